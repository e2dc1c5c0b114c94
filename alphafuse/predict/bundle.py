"""Export a run as one folder: its heads, the recipes of their embeddings, their metrics, and a model card.

    out/
      README.md          model card: data, protocol, metrics with intervals, limits
      config.json        as in the run: experiment, classes, encoders, every preprocessing number, settings, seeds
      metrics.json       as in the run
      head/, heads/      as in the run
      encoders/<name>/  the encoders' own files, if requested

It is a run folder without training curves and predictions: every command that takes a run takes it.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from alphafuse.data.streams import COMPACT, GIVEN, Stream, is_code
from alphafuse.errors import EncoderError, ExperimentError
from alphafuse.extract.encoders.hub import local_folder
from alphafuse.heads.studies.runs import TrainedRun, read_run

from .card import model_card

ENCODER_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "*.bin")


def export_run(run: str | Path, out: str | Path, *, with_encoders: bool = False) -> Path:
    """Bundle a run into one folder that can be copied to another machine, or pushed to the hub.

    Args:
        run: folder of a run with heads.
        out: folder to make, written atomically.
        with_encoders: also copy the encoders' files, so that prediction needs nothing else. Without them, the
            folder holds their hub ids; for an encoder in a local folder, its name and the sha256 of its weights.
            An encoder that is Python code is never copied; see `card.warnings_of`.

    Returns:
        `out`.

    Raises:
        ExperimentError: `run` is not a run, or `out` exists.
        EncoderError: an encoder is not on this machine.

    >>> from alphafuse import export_run, read_run
    >>> folder = export_run("demo/runs/sqrt-ast", "bundle")
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'config.json', 'head', 'metrics.json']
    >>> read_run(folder)
    TrainedRun(AST sqrt, 1 heads, folder='bundle')
    """
    trained, out = read_run(run), Path(out)
    if out.exists():
        raise ExperimentError(f"{out} exists: name another folder, or remove it first")
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        write_bundle(trained, temporary, with_encoders=with_encoders)
        (temporary / "README.md").write_text(str(model_card(read_run(temporary))), "utf-8")
        temporary.rename(out)
    except OSError as error:
        raise ExperimentError(f"can't write {out}: {error.strerror or error}: name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def write_bundle(run: TrainedRun, folder: Path, *, with_encoders: bool = False) -> None:
    """Write all but the card; encoders that the run contains are copied too."""
    folder.mkdir(parents=True, exist_ok=True)
    encoders: dict[str, dict[str, Any]] = {}
    for stream, encoder in run.encoders.items():
        name = encoder["name"]
        source = carried_encoder(run.folder, stream)
        has_files = stream in run.streams and name != GIVEN and not is_code(name)
        if source is None and with_encoders and has_files:
            source = local_folder(Stream(stream, name, encoder["medium"]))
            if source is None:
                raise EncoderError(
                    f"the encoder {name} of {stream} is not on this machine: predict with it once, or leave it out"
                )
        if source is not None:
            _copy_encoder(source, folder / "encoders" / stream)
        is_public = name in (COMPACT, GIVEN) or not Path(name).expanduser().exists()
        encoders[stream] = {**encoder, "name": name if is_public else Path(name).resolve().name}
    TrainedRun(run.folder, run.experiment, run.heads, {**run.config, "encoders": encoders}, run.metrics).write(folder)


def carried_encoder(folder: Path, stream: str) -> Path | None:
    """Return the folder of an encoder inside a bundle; None if the bundle does not contain it."""
    inside = folder / "encoders" / stream
    return inside if (inside / "config.json").is_file() else None


def _copy_encoder(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for pattern in ENCODER_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)  # files in the hub's cache are links: copy their content
