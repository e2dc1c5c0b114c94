"""Benchmarks on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from .cli_common import EXTRACT_PARTS, HEADS_PARTS, Commands, json_option, one_of, print_json, print_text

if TYPE_CHECKING:
    from alphafuse.data.measuring import Bench

repeats_option = click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of each contender."
)
quick_option = click.option("--quick", is_flag=True, help="Small sizes, only to see that it works.")


def _part_option(names: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--part, with the parts of a benchmark."""
    return click.option(
        "--part",
        "parts",
        multiple=True,
        shell_complete=one_of(*names),
        help=f"{', '.join(names)}; may be repeated. [default: all]",
    )


@click.group(
    cls=Commands,
    sections={
        "Commands": {
            "extract": "Decoding against torchcodec, models against HuggingFace.",
            "heads": "Training heads against a plain PyTorch loop, scikit-learn.",
        }
    },
)
def bench() -> None:
    """Measure how fast alphafuse is on this machine, beside what one would use instead.

    \b
    Example:
      alphafuse bench heads --part table1 --quick
    """


@bench.command("extract")
@click.option("--clips", type=click.Path(path_type=Path), required=True, help="Folder with clips of yours.")
@_part_option(EXTRACT_PARTS)
@repeats_option
@quick_option
@json_option
def bench_extract(clips: Path, parts: tuple[str, ...], repeats: int, quick: bool, as_json: bool) -> None:
    """Extraction: decoding against torchcodec, models against HuggingFace and the machine's matrix rate, the whole.

    \b
    Example:
      alphafuse bench extract --clips /data/vggsound --part decode
    """
    from alphafuse.extract.bench import bench_extract as run_bench

    with _saying() as say:
        found = run_bench(clips, parts, repeats=repeats, quick=quick, progress=say)
    _print_bench(found, as_json=as_json)


@bench.command("heads")
@_part_option(HEADS_PARTS)
@repeats_option
@quick_option
@json_option
def bench_heads(parts: tuple[str, ...], repeats: int, quick: bool, as_json: bool) -> None:
    """Training heads: against a plain PyTorch loop and scikit-learn, and against the machine's matrix rate.

    \b
    Example:
      alphafuse bench heads --part table1 --part start
    """
    from alphafuse.heads.bench import bench_heads as run_bench

    with _saying() as say:
        found = run_bench(parts, repeats=repeats, quick=quick, progress=say)
    _print_bench(found, as_json=as_json)


@contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """A progress bar that says what is being measured."""
    with tqdm(desc="bench", unit="turn", disable=None) as bar:

        def say(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        yield say


def _print_bench(found: Bench, *, as_json: bool) -> None:
    from alphafuse.report.bench import format_bench

    if as_json:
        print_json(found.to_json())
        return
    print_text(format_bench(found))
