"""Locate an encoder's files: a folder, the package's own, the hub's cache, or the hub. Doesn't load torch."""

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


def locate(stream: str, name: str) -> str:
    """Return the folder or hub id of a name; check that a folder holds the right model.

    Raises:
        EncoderError: the folder doesn't exist, or holds another model.
    """
    folder = COMPACT_FOLDER / stream if name == COMPACT else Path(name).expanduser()
    if not folder.is_dir():
        looks_like_folder = name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()
        if looks_like_folder:
            raise EncoderError(
                f"no such folder for --{stream}: '{name}': name a HuggingFace folder ({LAYOUT}), a hub id like "
                f"owner/name, or '{COMPACT}'"
            )
        return name
    config = folder / "config.json"
    if not config.is_file():
        raise EncoderError(
            f"{folder} is not a HuggingFace folder (no config.json): convert an original checkpoint with "
            f"`alphafuse convert {stream} FILE OUT`"
        )
    try:
        model_type = read_json(config).get("model_type")
    except AlphafuseError as error:
        raise EncoderError(str(error)) from None
    if model_type != MODEL_TYPES[stream]:
        raise EncoderError(
            f"{folder} holds a '{model_type}', not the '{MODEL_TYPES[stream]}' that --{stream} needs"
        )
    return str(folder)


def weights_in(folder: Path) -> Path | None:
    """Return the file of weights in a HuggingFace folder, or None."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def cached_weights(hub_id: str) -> Path | None:
    """Return the file of a hub model's weights in the hub's cache; None if it or the config is not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return None
    found = (try_to_load_from_cache(hub_id, name) for name in _WEIGHTS)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def hub_reachable() -> bool:
    """Whether the hub answers; without this check, its client retries for half a minute."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # only the client can connect through a proxy
    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=HUB_TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def local_folder(stream: str, name: str) -> Path | None:
    """Return the folder of an encoder's files: its own, the package's or the hub's cache; None if not on this machine.

    Raises:
        EncoderError: the folder doesn't exist, or holds another model.
    """
    source = locate(stream, name)
    if Path(source).is_dir():
        return Path(source)
    cached = cached_weights(source)
    return cached.parent if cached else None
