"""Where an encoder's files are: a folder, the one that is shipped, the hub's cache, or the hub. No torch here."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path

from alphafuse.errors import AlphafuseError, EncoderError
from alphafuse.system.files import read_json

COMPACT = "compact"
COMPACT_FOLDER = Path(__file__).parent / "compact"
LAYOUT = "config.json and model.safetensors"
HUB_TIMEOUT_SECONDS = 5.0
MODEL_TYPES = {"timesformer": "timesformer", "ast": "audio-spectrogram-transformer"}  # config.json's model_type
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def locate(modality: str, name: str) -> str:
    """Folder or hub id behind a name; a folder is checked for what it should hold.

    Raises:
        EncoderError: no such folder, or one that holds something else.
    """
    folder = COMPACT_FOLDER / modality if name == COMPACT else Path(name).expanduser()
    if not folder.is_dir():
        looks_like_folder = name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()
        if looks_like_folder:
            raise EncoderError(
                f"no such folder for --{modality}: '{name}': name a HuggingFace folder ({LAYOUT}), a hub id like "
                f"owner/name, or '{COMPACT}'"
            )
        return name
    config = folder / "config.json"
    if not config.is_file():
        raise EncoderError(
            f"{folder} is no HuggingFace folder (no config.json): an original checkpoint becomes one with "
            f"`alphafuse convert {modality} FILE OUT`"
        )
    try:
        model_type = read_json(config).get("model_type")
    except AlphafuseError as error:
        raise EncoderError(str(error)) from None
    if model_type != MODEL_TYPES[modality]:
        raise EncoderError(
            f"{folder} holds a '{model_type}', not the '{MODEL_TYPES[modality]}' that --{modality} needs"
        )
    return str(folder)


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a HuggingFace folder, or None."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def cached_weights(hub_id: str) -> Path | None:
    """The file of a hub model's weights in the hub's cache; None when it, or the model's config, is not there."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return None
    found = (try_to_load_from_cache(hub_id, name) for name in _WEIGHTS)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def hub_reachable() -> bool:
    """Whether the hub answers; without this, its client retries for half a minute before it gives up."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # only the client knows the way through a proxy
    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=HUB_TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def local_folder(modality: str, name: str) -> Path | None:
    """Where an encoder's files are on this machine: its folder, the shipped one, the hub's cache; None = not here.

    Raises:
        EncoderError: no such folder, or one that holds something else.
    """
    source = locate(modality, name)
    if Path(source).is_dir():
        return Path(source)
    cached = cached_weights(source)
    return cached.parent if cached else None
