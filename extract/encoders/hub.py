"""Locate an encoder's files: a folder, the package's own, the hub's cache, or the hub. Doesn't load torch."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from alphafuse.data.streams import COMPACT, DEFAULT_NAMES, Stream
from alphafuse.errors import AlphafuseError, EncoderError
from alphafuse.system.files import read_json

COMPACT_FOLDER = Path(__file__).parent / "compact"
LAYOUT = "config.json and model.safetensors"
HUB_TIMEOUT_SECONDS = 5.0
COMPACT_OF = {"video": "timesformer", "audio": "ast"}  # medium -> folder of its small encoder
PREPROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def locate(stream: Stream) -> str:
    """Return the folder or hub id of a stream's encoder.

    Raises:
        EncoderError: the folder doesn't exist, or has no config.json.
    """
    if stream.encoder == COMPACT:
        return str(COMPACT_FOLDER / COMPACT_OF[stream.medium])
    folder = Path(stream.encoder).expanduser()
    if not folder.is_dir():
        name = stream.encoder
        looks_like_folder = name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()
        if looks_like_folder:
            raise EncoderError(
                f"no such folder for {stream.name}: '{name}': name a HuggingFace folder ({LAYOUT}), a hub id like "
                f"owner/name, or '{COMPACT}'"
            )
        return name
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"{folder} is not a HuggingFace folder (no config.json): `alphafuse convert` makes one from an original "
            "checkpoint"
        )
    return str(folder)


def read_file(source: str, name: str) -> dict[str, Any] | None:
    """Return a json file of a folder or hub id as a dict; None if it has no such file, or can't be reached.

    Raises:
        EncoderError: the file can't be read.
    """
    path: str | Path | None = Path(source) / name
    if not Path(source).is_dir():
        path = _from_hub(source, name)
    if path is None or not Path(path).is_file():
        return None
    try:
        return read_json(Path(path))
    except AlphafuseError as error:
        raise EncoderError(str(error)) from None


def read_preprocessor(source: str, medium: str) -> dict[str, Any]:
    """Return the settings of the preprocessor of a folder or hub id; {} if it has no file of them.

    They are in preprocessor_config.json, for videos also in video_preprocessor_config.json, or are a part of
    processor_config.json, which comes first (as in transformers 5).

    Raises:
        EncoderError: a file can't be read.
    """
    parts = ("feature_extractor",) if medium == "audio" else ("video_processor", "image_processor")
    files = ("preprocessor_config.json",) if medium == "audio" else PREPROCESSOR_FILES
    whole = read_file(source, "processor_config.json") or {}
    for part in parts:
        if isinstance(whole.get(part), dict):
            return dict(whole[part])
    return next((content for name in files if (content := read_file(source, name)) is not None), {})


def architectures(stream: Stream) -> list[str]:
    """Return the classes of `transformers` that a stream's config.json names; [] without."""
    return list((read_file(locate(stream), "config.json") or {}).get("architectures") or ())


def _from_hub(hub_id: str, name: str) -> str | None:
    """Return the path of a hub model's file in the hub's cache, after fetching it if need be; None without one.

    Raises:
        EncoderError: its owner shares the model only with people who accept a licence.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    cached = _in_cache(hub_id, name)
    if isinstance(cached, str):
        return cached
    if cached is not None or not hub_reachable():  # the cache records that there is no such file
        return None
    try:
        return huggingface_hub.hf_hub_download(hub_id, name)
    except GatedRepoError:
        raise EncoderError(
            f"'{hub_id}' is shared only with people who accept its licence: accept it at "
            f"{huggingface_hub.constants.ENDPOINT}/{hub_id}, then log in with `hf auth login`"
        ) from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def _in_cache(hub_id: str, name: str) -> Any:
    """Return the path of a hub model's file in the hub's cache, or what else HuggingFace's cache says of it."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return try_to_load_from_cache(hub_id, name)
    except HFValidationError:  # no name that the hub allows
        return None


def not_found(stream: Stream) -> str:
    """Return the message for a hub id whose files are neither on the hub nor in its cache."""
    hub_id = stream.encoder
    what = (
        f"the hub has no model '{hub_id}'"
        if hub_reachable()
        else f"the hub can't be reached and '{hub_id}' is not in its cache"
    )
    is_default = stream.name in DEFAULT_NAMES
    small = f"--{stream.name} {COMPACT}" if is_default else f"--stream {stream.name}={COMPACT},medium={stream.medium}"
    return (
        f"{what}: give stream {stream.name} a folder ({LAYOUT}; `alphafuse convert` makes one from an original "
        f"checkpoint), or try the small encoder of the package ({small}, or `alphafuse data demo`)"
    )


def weights_in(folder: Path) -> Path | None:
    """Return the file of weights in a HuggingFace folder, or None."""
    return next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)


def cached_weights(hub_id: str) -> Path | None:
    """Return the file of a hub model's weights in the hub's cache; None if it or the config is not in the cache."""
    if not isinstance(_in_cache(hub_id, "config.json"), str):
        return None
    found = (_in_cache(hub_id, name) for name in _WEIGHTS)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def cached_revision(encoder: str) -> str:
    """Return the commit of a hub model in the hub's cache; "" for a folder, or one that isn't in the cache."""
    if encoder.startswith((".", "/", "~")) or encoder.count("/") != 1 or Path(encoder).is_dir():
        return ""
    cached = _in_cache(encoder, "config.json")
    return Path(cached).parent.name if isinstance(cached, str) else ""


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


def local_folder(stream: Stream) -> Path | None:
    """Return the folder of an encoder's files: its own, the package's or the hub's cache; None if not on this machine.

    Raises:
        EncoderError: the folder doesn't exist, or has no config.json.
    """
    source = locate(stream)
    if Path(source).is_dir():
        return Path(source)
    cached = cached_weights(source)
    return cached.parent if cached else None
