"""Benchmarks on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from alphafuse.cli.common import EXIT_FOUND, Commands, json_option, one_of, print_json, print_text

if TYPE_CHECKING:
    from measuring import Bench

repeats_option = click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of each contender."
)
quick_option = click.option("--quick", is_flag=True, help="Small sizes, only to see that it works.")


EXTRACT_PARTS = ("decode", "models", "overlap", "memory", "engines")
HEADS_PARTS = ("table1", "start", "stacks", "vggsound", "scaling", "stream", "clips")


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
            "scale": "Simulate extraction on 1,000 nodes, and its failures.",
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
    from bench_extract import bench_extract as run_bench

    with _saying() as say:
        found = run_bench(clips, parts, repeats=repeats, quick=quick, progress=say)
    _print_bench(found, as_json=as_json)


@bench.command("heads")
@_part_option(HEADS_PARTS)
@click.option("--clips", type=int, help="Of part clips. [default: 1000000]")
@repeats_option
@quick_option
@json_option
def bench_heads(parts: tuple[str, ...], clips: int | None, repeats: int, quick: bool, as_json: bool) -> None:
    """Training heads: against a plain PyTorch loop and scikit-learn, and against the machine's matrix rate.

    \b
    Examples:
      alphafuse bench heads --part table1 --part start
      alphafuse bench heads --part clips --clips 10000000 --repeats 1
    """
    from bench_heads import bench_heads as run_bench

    with _saying() as say:
        found = run_bench(parts, repeats=repeats, quick=quick, progress=say)
    _print_bench(found, as_json=as_json)


@bench.command("scale")
@click.option("--clips", type=int, default=1_000_000_000, show_default=True, help="Clips in all.")
@click.option("--nodes", type=int, default=1000, show_default=True, help="Machines in all.")
@click.option("--roots", type=int, default=25, show_default=True, help="Dataset roots, each with a driver of its own.")
@click.option("--cores", type=int, default=16, show_default=True, help="Cores of a node that decode.")
@click.option(
    "--models-per-second", default=74.0, show_default=True, help="Clips that a node's device embeds (L4, bf16)."
)
@click.option(
    "--node-hours", default=100.0, show_default=True, help="Mean hours between two losses of a node; 0 = never."
)
@click.option("--preemption-hours", default=2.0, show_default=True, help="The same between preemptions of 5% of nodes.")
@click.option("--driver-hours", default=20.0, show_default=True, help="The same between two deaths of a driver.")
@click.option("--flush-seconds", default=30.0, show_default=True, help="As extract's.")
@click.option("--header-seconds", default=0.1, show_default=True, help="Seeing which clips are in a shard.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides everything that is drawn.")
@json_option
def bench_scale(as_json: bool, **arguments: Any) -> None:
    """Simulate extraction on a large Ray cluster: what failures cost, and whether each clip is stored once.

    \b
    Examples:
      alphafuse bench scale
      alphafuse bench scale --clips 100000000 --node-hours 10
    """
    from format_simulation import format_simulation
    from simulate import SimulationSettings, simulate

    found = simulate(SimulationSettings(**arguments))
    if as_json:
        print_json(found.to_json())
    else:
        print_text(format_simulation(found))
    if not found.promises_held:
        sys.exit(EXIT_FOUND)


@contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """A progress bar that says what is being measured."""
    with tqdm(desc="bench", unit="turn", disable=None) as bar:

        def say(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        yield say


def _print_bench(found: Bench, *, as_json: bool) -> None:
    from format_bench import format_bench

    if as_json:
        print_json(found.to_json())
        return
    print_text(format_bench(found))


if __name__ == "__main__":
    bench()
