"""`alphafuse similar`: the cached clips that are most like a clip."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.data.streams import ALL, DEFAULT_NAMES, SENSES
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.progress import Bar

from .common import EXIT_FOUND, json_option, one_of, print_json, print_text, root_option
from .options import ONE_DEVICE, Weight, options_of

ENCODER_HELP = "Folder or hub id of the encoder. [default: that which made the embeddings]"


@click.command()
@click.argument("clips", metavar="CLIP...", nargs=-1, required=True)
@root_option
@click.option(
    "--split",
    default=ALL,
    show_default=True,
    shell_complete=one_of(*SPLITS, ALL),
    help="Where to search: train, val, test or all.",
)
@click.option("--count", type=click.IntRange(min=1), default=5, show_default=True, help="Clips to find for each.")
@click.option(
    "--alpha",
    "alphas",
    type=Weight(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Relative weight of a stream, as ast=0.5; 1 for the others. Repeatable.",
)
@click.option(
    "--by",
    default=ALL,
    show_default=True,
    shell_complete=one_of(ALL, *SENSES.values(), *DEFAULT_NAMES),
    help="Compare by sight (all streams of video), by sound, or by the stream of this name.",
)
@options_of(
    ExtractSettings,
    *("encoders", "device", "workers", "trust_code"),
    into="settings",
    change={
        "encoders": {"help": ENCODER_HELP},
        "device": ONE_DEVICE,
        "workers": {"help": "Decode processes; 0 = one per processor.", "flags": ("--workers",)},
    },
)
@json_option
def similar(
    clips: tuple[str, ...],
    root: Path,
    split: str,
    count: int,
    alphas: tuple[tuple[str, float], ...],
    by: str,
    settings: ExtractSettings,
    as_json: bool,
) -> None:
    """Find the cached clips that look and sound most like a CLIP: a clip_id of the root, or any file.

    Nothing is trained and no label is used. Clips of the same source video are never found. Exit code 1 when nothing
    was found for a clip; the reason is printed.

    \b
    Examples:
      alphafuse similar 0mel8sIKhgk_000007 --root demo
      alphafuse similar rain.mp4 --by sound --count 20 --root demo
      alphafuse similar rain.mp4 --alpha ast=0.5 --split train --root demo
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # set before torch is loaded, as in extract
    from alphafuse.predict.similar import similar as find_similar
    from alphafuse.report.similar import format_similar

    dataset = Dataset.open(root)
    found = find_similar(
        dataset,
        clips,
        split=split,
        count=count,
        alphas=dict(alphas),
        by=by,
        settings=settings,
        progress=Bar(disable=None if len(clips) > 1 else True),
    )
    if as_json:
        print_json({"root": str(root), **found.to_json()})
    else:
        print_text(format_similar(found))
    if not all(answer.found for answer in found.answers):
        sys.exit(EXIT_FOUND)
