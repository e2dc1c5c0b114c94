"""`alphafuse store`: inspect, verify, pack and export embedding stores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.errors import DatasetError
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.files import one_line

from .common import EXIT_FOUND, Commands, Place, json_option, print_json, roots, store_folders
from .options import ONE_DEVICE, options_of

ENCODER_HELP = "Folder or hub id of the encoder. [default: recorded in the store]"
checking_options = options_of(  # options of commands that embed a few clips again
    ExtractSettings,
    *("encoders", "device", "trust_code"),
    change={"encoders": {"help": ENCODER_HELP}, "device": ONE_DEVICE},
)


@click.group(
    cls=Commands,
    sections={
        "Commands": {
            "info": "Show counts, recipes and failures of a store.",
            "verify": "Check every shard; compare recipes; extract some clips again.",
            "pack": "Merge all shards into one.",
            "export": "Write all embeddings as .npz or .parquet.",
        }
    },
)
def store() -> None:
    """Inspect embedding stores, verify them, merge their shards, export them.

    \b
    Examples:
      alphafuse store info demo/stores/train
      alphafuse store info s3://bucket/stores/train
    """


store_argument = click.argument("folder", type=Place(), shell_complete=store_folders)


@store.command("info")
@store_argument
@json_option
def store_info(folder: Path, as_json: bool) -> None:
    """Show counts, recipes and failures of a store.

    \b
    Example:
      alphafuse store info demo/stores/train
    """
    from alphafuse.data.store.store import EmbeddingStore
    from alphafuse.report.extract import format_failures

    info = EmbeddingStore(folder).info()
    if as_json:
        print_json(
            {
                **vars(info),
                "folder": str(info.folder),
                "failures": [vars(failure) for failure in info.failures],
            }
        )
        return
    windows = f" of {info.windows} windows" if info.windows != info.clips else ""
    click.echo(f"{info.folder}: {info.clips} clips{windows} in {info.shards} shards, {info.bytes / 1e6:.1f} MB")
    for stream, rows in info.rows.items():
        encoder = info.provenance.get("encoders", {}).get(stream, {}).get("name", "?")
        settings = ", ".join(f"{name}={_brief(value)}" for name, value in info.recipes[stream].items())
        click.echo(f"  {stream}: {rows} x {info.dims[stream]} from {one_line(str(encoder))}\n    {settings}")
    if info.duplicates:
        click.echo(f"  {info.duplicates} rows are stored twice (read once; `alphafuse store pack {folder}` drops them)")
    click.echo(format_failures(info.failures), nl=False)


def _brief(value: object) -> str:
    text = one_line(str(value))
    return text if len(text) <= 40 else f"{text[:12]}..."


@store.command("verify")
@store_argument
@click.option(
    "--resample",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Also extract this many random clips again, and compare.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the choice of clips.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    shell_complete=roots,
    help="With --resample: the root that the store belongs to. [default: ROOT of ROOT/stores/SPLIT]",
)
@checking_options
@json_option
def store_verify(folder: Path, resample: int, seed: int, root: Path | None, as_json: bool, **arguments: Any) -> None:
    """Check every shard against its checksum and compare recipes; exit code 1 when there is a problem.

    \b
    Examples:
      alphafuse store verify demo/stores/train
      alphafuse store verify demo/stores/train --resample 20
      alphafuse store verify s3://bucket/stores/train --resample 20 --root mine
    """
    from alphafuse.data.store.store import EmbeddingStore
    from alphafuse.report import extract as report

    embedding_store = EmbeddingStore(folder)
    shards = len(embedding_store.shards())
    if not shards:
        raise DatasetError(f"no shards in {folder}: name a store, such as ROOT/stores/train")
    problems = embedding_store.verify()
    found = None
    if resample and not problems:
        from alphafuse.extract import recheck

        dataset = _dataset_of(folder, root)
        found = recheck.resample(dataset, folder.name, resample, ExtractSettings(**arguments), seed=seed)
    if as_json:
        content: dict[str, Any] = {"folder": str(folder), "shards": shards, "problems": problems}
        print_json(content | ({"resampled": report.resampling_json(found)} if found else {}))
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(f"{folder}: {shards} shards, {len(problems)} problems")
        if found:
            click.echo(report.format_resampling(found), nl=False)
    if problems or (found and found.problems):
        sys.exit(EXIT_FOUND)


def _dataset_of(folder: Path, root: Path | None) -> Dataset:
    """Return the dataset that a store belongs to."""
    if isinstance(folder, Path):
        folder = folder.resolve()
    if folder.name not in SPLITS or (root is None and folder.parent.name != "stores"):
        raise DatasetError(f"{folder} is not ROOT/stores/SPLIT: extracting clips again needs their root: give --root")
    if root is None and not isinstance(folder, Path):
        raise DatasetError(f"{folder} is a URL: extracting clips again needs their root: give --root")
    dataset = Dataset.open(folder.parents[1] if root is None else root)
    own = dataset.store(folder.name).folder
    if (own.resolve() if isinstance(own, Path) else own) != folder:
        raise DatasetError(
            f"{folder} is not a store of {dataset.root}, whose {folder.name} store is {own}: name that one"
        )
    return dataset


@store.command("pack")
@store_argument
def store_pack(folder: Path) -> None:
    """Merge all shards into one.

    \b
    Example:
      alphafuse store pack demo/stores/train
    """
    from alphafuse.data.store.store import EmbeddingStore

    click.echo(str(EmbeddingStore(folder).pack()))


@store.command("export")
@store_argument
@click.argument("file", type=Place())
def store_export(folder: Path, file: Path) -> None:
    """Write all embeddings, with ids, labels, windows and files, as .npz or .parquet (docs/store.md lists the columns).

    \b
    Example:
      alphafuse store export demo/stores/train train.npz
    """
    from alphafuse.data.store.store import EmbeddingStore

    click.echo(str(EmbeddingStore(folder).export(file)))
