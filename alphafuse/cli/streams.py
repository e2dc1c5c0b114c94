"""Streams on the command line: the options of commands that make a root, `data streams` and `data embeddings`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alphafuse.data.dataset import LABELLED_BY, Dataset, streams_of
from alphafuse.data.manifest import SPLITS
from alphafuse.data.streams import (
    DEFAULT_NAMES,
    DEFAULT_PROTOCOL,
    DEFAULT_STREAMS,
    PROTOCOLS,
    Stream,
    merged,
    require_different,
)
from alphafuse.system.files import one_line

from .common import (
    json_option,
    one_of,
    print_json,
    print_text,
    root_option,
    seed_option,
    test_fraction_option,
    val_fraction_option,
)
from .options import Assignment

if TYPE_CHECKING:
    from alphafuse.data.sources.given import GivenReport


labelled_by_option = click.option(
    "--labelled-by",
    shell_complete=one_of(*LABELLED_BY),
    help="How labels were given: by ear, by eye, or by both. [default: the root's, else as published, else unknown]",
)


def stream_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the streams of a root. The command gets `streams`, None if none is given."""

    @functools.wraps(command)
    def wrapped(stream: tuple[str, ...], protocol: str | None, **arguments: Any) -> None:
        encoders = {name: arguments.pop(name) for name in DEFAULT_NAMES}
        streams = _chosen_streams(arguments["root"], stream, encoders, protocol)
        return command(**arguments, streams=streams)

    options = (
        click.option(
            "--stream",
            multiple=True,
            metavar="NAME=ENCODER",
            help="A stream of embeddings: hub id, HuggingFace folder, compact or package.module:name, then "
            "options: dino=facebook/dinov2-base,frames=16. Repeatable. [default: the root's, else the paper's two]",
        ),
        *(
            click.option(f"--{stream.name}", help=f"Encoder of stream {stream.name}. [default: {stream.encoder}]")
            for stream in DEFAULT_STREAMS
        ),
        click.option(
            "--protocol",
            shell_complete=one_of(*PROTOCOLS),
            help=f"standard, or the paper's notebook. [default: the root's, else {DEFAULT_PROTOCOL}]",
        ),
    )
    return functools.reduce(lambda inner, option: option(inner), reversed(options), wrapped)


def _chosen_streams(
    root: Path, texts: Sequence[str], encoders: Mapping[str, str | None], protocol: str | None
) -> list[Stream] | None:
    """Return the streams that a root gets; None if no option asks for any.

    They are added to those of an existing root, or replace those of their names. A new root gets the given ones; if
    none is given by --stream, the default ones.
    """
    if not texts and protocol is None and not any(encoders.values()):
        return None
    exists = (root / "dataset.json").is_file()
    known = streams_of(root) if exists or not texts else ()
    chosen = {stream.name: stream for stream in merged(known, _parsed(texts))}
    for default in DEFAULT_STREAMS:
        name, encoder = default.name, encoders[default.name]
        if encoder is not None:
            chosen[name] = replace(chosen.get(name, default), encoder=encoder)
        if name in chosen:
            chosen[name] = chosen[name].with_options(protocol=protocol)
    return list(chosen.values())


def _parsed(texts: Sequence[str]) -> tuple[Stream, ...]:
    """Return the streams that texts describe; `DatasetError` for two of one name."""
    from alphafuse.extract.encoders.families import parse_stream

    return require_different([parse_stream(text) for text in texts]) if texts else ()


@click.command("embeddings")
@click.argument("file", type=click.Path(path_type=Path))
@root_option
@click.option(
    "--medium",
    "media",
    type=Assignment(),
    multiple=True,
    metavar="NAME=MEDIUM",
    help="What a column embeds: sight or sound (or video, audio). Repeatable. [default: a word in its name, as in "
    "sound-clap]",
)
@click.option("--name", help="Name of a new dataset. [default: that of the file]")
@seed_option
@val_fraction_option
@test_fraction_option
@labelled_by_option
@json_option
def data_embeddings(as_json: bool, media: tuple[tuple[str, str], ...], **arguments: Any) -> None:
    """Make a root from a parquet file of your own embeddings, or add them to a root as streams, by clip_id.

    Columns: clip_id; for a new root label, and if you have them split and group; each column of lists of numbers is a
    stream of that name. Such a root needs no clips. Null and NaN mean that a clip has no embedding.

    \b
    Examples:
      alphafuse data embeddings vectors.parquet --root mine --medium clap=sound --medium dino=sight
      alphafuse data embeddings more.parquet --root vggsound --medium clap=sound
    """
    from alphafuse.data.sources.given import import_embeddings

    report = import_embeddings(media=dict(media), **arguments)
    if as_json:
        print_json(_given_json(report))
    else:
        _print_given(report)


@click.command("streams")
@root_option
@click.option(
    "--add",
    multiple=True,
    metavar="NAME=ENCODER",
    help="Add a stream, or replace that of its name; as --stream of alphafuse data folder. Repeatable.",
)
@click.option("--remove", multiple=True, metavar="NAME", help="Remove a stream; its embeddings stay. Repeatable.")
@json_option
def data_streams(root: Path, add: tuple[str, ...], remove: tuple[str, ...], as_json: bool) -> None:
    """List the streams of a root; add or remove some. Stored embeddings stay, and extract adds what is missing.

    \b
    Examples:
      alphafuse data streams --root demo
      alphafuse data streams --root demo --add clap=laion/clap-htsat-unfused
      alphafuse data streams --root demo --add dino=facebook/dinov2-base,frames=16 --remove timesformer
      alphafuse data streams --root demo --add colour=mymodule:colour,frames=8
    """
    dataset = Dataset.open(root)
    removed, added = [dataset.stream(name) for name in remove], _parsed(add)
    if added or removed:
        dataset = dataset.with_streams(merged([one for one in dataset.streams if one not in removed], added))
    if as_json:
        print_json({"root": str(root), "streams": [stream.to_json() for stream in dataset.streams]})
        return
    rows = [(stream.name, stream.medium, str(stream).partition("=")[2].rstrip(")")) for stream in dataset.streams]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, medium, encoder in rows:
        click.echo(f"{name:<{widths[0]}}  {medium:<{widths[1]}}  {encoder}")
    if added:
        trust = " --trust-code" if any(stream.is_code for stream in added) else ""
        print_text(f"next: alphafuse extract --split all --root {root}{trust}")


def _given_json(report: GivenReport) -> dict[str, Any]:
    return {
        "root": str(report.dataset.root),
        "name": report.dataset.name,
        "clips": {split: len(report.dataset.manifest.of_split(split)) for split in SPLITS},
        "streams": {
            stream.name: {"medium": stream.medium, "present": count, "absent": report.absent[stream.name]}
            for stream in report.dataset.streams
            if (count := report.present.get(stream.name)) is not None
        },
        "unknown": list(report.unknown),
        "notes": list(report.notes),
    }


def _print_given(report: GivenReport) -> None:
    dataset = report.dataset
    sizes = ", ".join(f"{split} {len(dataset.manifest.of_split(split))}" for split in SPLITS)
    click.echo(f"{dataset.name}: {len(dataset.manifest)} clips in {len(dataset.classes)} classes ({sizes})")
    for name, count in report.present.items():
        absent = f", absent for {report.absent[name]}" if report.absent[name] else ""
        click.echo(f"  {name} ({dataset.media[name]}): embeddings of {count} clips{absent}")
    if report.unknown:
        click.echo(
            f"  left out: {len(report.unknown)} clips of the file that the root lacks, such as "
            f"{', '.join(one_line(clip_id, 40) for clip_id in report.unknown[:3])}"
        )
    for note in report.notes:
        click.echo(f"  {note}")
    print_text(f"root: {dataset.root}\nnext: alphafuse compare --root {dataset.root}")
