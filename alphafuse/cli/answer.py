"""`alphafuse answer`: from a folder of clips to an answer, a report and a classifier."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from alphafuse.data.dataset import Dataset
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.progress import Bar

from .common import Place, json_option, print_json, print_text, root_option_with, workers_option
from .options import options_of
from .streams import labelled_by_option, stream_options

if TYPE_CHECKING:
    from alphafuse.answering import Answer, Step


def _with_root(command: Callable[..., None]) -> Callable[..., None]:
    """Fill in --root, for `stream_options`, which adds streams to those of an existing root."""

    @functools.wraps(command)
    def wrapped(clips: Path, root: Path | None, **arguments: Any) -> None:
        from alphafuse.answering import default_root

        command(clips=clips, root=default_root(clips) if root is None else root, **arguments)

    return wrapped


@click.command()
@click.argument("clips", type=Place())
@root_option_with(help="Folder to make, or to go on with. [default: CLIPS-answer in this folder]")
@click.option("--csv", type=click.Path(path_type=Path), help="List of clips: path,label[,split][,group][,audio].")
@_with_root
@labelled_by_option
@stream_options
@click.option("--stores", type=Place(), help="Folder or URL for the embedding stores. [default: ROOT/stores]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the splits, for a new root. [default: 0]")
@click.option("--val-fraction", type=float, help="Share of train moved to validation, for a new root. [default: 0.1]")
@click.option("--test-fraction", type=float, help="Share of all clips moved to test, for a new root. [default: 0.2]")
@click.option("--seeds", default=5, show_default=True, help="Heads per row of compare.")
@click.option("--no-decode", is_flag=True, help="Audit without decoding: finds no copies and no silent clips.")
@options_of(ExtractSettings, "device", "trust_code")
@workers_option
@json_option
def answer(
    clips: Path,
    root: Path,
    device: str,
    trust_code: bool,
    workers: int,
    no_decode: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Say whether picture or sound carries the labels of your clips, and make a classifier that uses both.

    CLIPS is a folder with one folder per class (or --csv), or an existing root. Imports it, audits it, extracts the
    embeddings, then does weigh, contribute, compare and report. Interrupt it at any time: the same command goes on,
    and later does only what is missing.

    \b
    Examples:
      alphafuse answer clips/                          clips/dog/a.mp4, clips/cat/b.mkv, ...
      alphafuse answer clips/ --csv labels.csv --root mine --labelled-by ear
      alphafuse answer clips/ --timesformer compact --ast compact
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # set before torch is loaded, as in extract
    from alphafuse.answering import answer as run_answer

    shown = _Shown()
    try:
        found = run_answer(
            clips,
            root,
            decode=not no_decode,
            settings=ExtractSettings(device=device, trust_code=trust_code, workers=workers),
            tell=shown.tell,
            progress=Bar(leave=False),
            **arguments,
        )
    finally:
        shown.close()
    if as_json:
        print_json({**found.to_json(), "next": _commands(found)})
    else:
        print_text(_format(found))


class _Shown:
    """The step that runs, in a line that it leaves when it ends; on a terminal the line is shown meanwhile."""

    def __init__(self) -> None:
        self._line: tqdm | None = None

    def tell(self, step: Step) -> None:
        """Show a step that begins, or print one that ends."""
        if step.state == "running":
            if self._line is None:
                self._line = tqdm(bar_format="{desc}", disable=None, leave=False)
            self._line.set_description_str(f"{step.text.removesuffix(': ')} ...")
        else:
            self.close()
            click.echo(step.text, err=True)

    def close(self) -> None:
        """Remove the line."""
        if self._line is not None:
            self._line.close()
            self._line = None


def _format(found: Answer) -> str:
    lines = list(found.sentences) or ["No answer: the steps above say why."]
    lines += [f"Audit: {warning}" for warning in found.warnings]
    if found.run:
        lines.append(f"run: {found.run} ({found.why})")
    if found.report:
        lines.append(f"report: {found.report}")
    return "\n".join([*lines, *(f"next: {command}" for command in _commands(found))])


def _commands(found: Answer) -> list[str]:
    """Return commands that use the classifier, on a clip of the root."""
    if not found.run:
        return []
    dataset = Dataset.open(found.root)
    clip = next(iter(dataset.manifest.of_split("test")), None)
    path = str(dataset.path_of(clip)) if clip and dataset.needs_clips else "CLIP"
    return [
        shlex.join(["alphafuse", "predict", path, "--why", "--root", str(found.root)]),
        shlex.join(["alphafuse", "runs", "--root", str(found.root)]),
    ]
