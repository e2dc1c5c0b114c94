"""Common parts of the benchmarks' command lines: options, progress, output, one-line errors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from format_bench import format_bench
from measuring import Bench
from tqdm import tqdm

from alphafuse.cli.common import print_error
from alphafuse.errors import AlphafuseError

EXIT_USER_ERROR = 2


def parser_of(description: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser of a benchmark with parts; `description` is its module's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(parts)
    parser.add_argument("--part", action="append", default=[], help=f"{names}; may be repeated (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--quick", action="store_true", help="small sizes, only to check that it works")
    parser.add_argument("--json", action="store_true", help="print json for programs instead of text")
    return parser


def print_bench(options: argparse.Namespace, run: Callable[..., Bench]) -> None:
    """Run a benchmark with these options, show a progress bar, and print the result."""
    with one_line_errors(), tqdm(desc="bench", unit="turn", disable=None) as bar:

        def announce(measurement: str) -> None:
            bar.set_postfix_str(measurement)
            bar.update()

        found = run(options.part, repeats=options.repeats, quick=options.quick, progress=announce)
    print(json.dumps(found.to_json(), indent=2) if options.json else format_bench(found).rstrip("\n"))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error that the user can fix as one line, and exit with code 2."""
    try:
        yield
    except AlphafuseError as error:
        print_error(str(error))
        sys.exit(EXIT_USER_ERROR)
