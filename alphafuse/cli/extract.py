"""Stage one on the command line: extract, convert, and what looks into its stores."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.errors import DatasetError, unknown
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.files import one_line

from .bar import Bar
from .common import (
    EXIT_FOUND,
    Commands,
    Place,
    json_option,
    one_of,
    print_json,
    root_option,
    roots,
    store_folders,
)
from .options import ONE_DEVICE, options_of
from .plan import planning_options, print_run_plan, require_option, take_planned

if TYPE_CHECKING:
    from alphafuse.extract.encoders.checkpoints import ConversionReport


MOVED = "Where its encoder is now. [default: as the store was made]"
checking_options = options_of(  # those of commands that embed a few clips again
    ExtractSettings,
    *("timesformer", "ast", "device"),
    change={"timesformer": {"help": MOVED}, "ast": {"help": MOVED}, "device": ONE_DEVICE},
)


@click.command()
@click.option("--split", shell_complete=one_of(*SPLITS, "all"), help="train, val, test or all.")
@root_option
@options_of(ExtractSettings, into="settings")
@click.option("--dry-run", is_flag=True, help="Only say what there is to do, and how long it takes at a measured rate.")
@planning_options
@json_option
@click.pass_context
def extract(
    context: click.Context,
    split: str | None,
    root: Path,
    settings: ExtractSettings,
    dry_run: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Run the frozen encoders over a split's clips, once; resumes by itself.

    \b
    Examples:
      alphafuse extract --split train
      alphafuse extract --split all --dry-run
      alphafuse extract --dry-run --clips 10000000 --cpus 512 --root demo
      alphafuse extract --split all --root demo
      alphafuse extract --split all --timesformer ./timesformer-k400 --ast ./ast-audioset
      alphafuse extract --split train --engine ray --address auto
    """
    # before torch is loaded: OpenMP threads that wait actively take the decode workers' processors
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from alphafuse.extract.pipeline import extract_embeddings
    from alphafuse.extract.planning import plan_extraction
    from alphafuse.report import extract as report
    from alphafuse.report.plan import format_plan, plan_json

    planned = take_planned(context, arguments, dry_run=dry_run)
    if planned:
        print_run_plan(context, settings, root=root, as_json=as_json, **planned)
        return
    split = require_option(context, "split", split)
    dataset = Dataset.open(root)
    if split not in (*SPLITS, "all"):
        raise DatasetError(unknown("split", split, (*SPLITS, "all")))
    splits = [name for name in SPLITS if dataset.manifest.of_split(name)] if split == "all" else [split]
    if not splits:
        raise DatasetError(f"{root / 'manifest.csv'} lists no clips: make the root again")
    if dry_run:
        plans, rates = plan_extraction(dataset, splits, settings)
        if as_json:
            print_json(plan_json(plans, rates))
        else:
            click.echo(format_plan(plans, rates, dataset), nl=False)
        return
    reports = extract_embeddings(dataset, splits, settings, progress=Bar())
    if as_json:
        print_json([report.report_json(found) for found in reports])
        return
    for found in reports:
        click.echo(report.format_report(found), nl=False)


@click.group(cls=Commands)
def convert() -> None:
    """Turn original checkpoints into HuggingFace folders that extract takes.

    \b
    Example:
      alphafuse convert ast audioset_10_10_0.4593.pth ast-audioset
    """


@convert.command("timesformer")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--image-size", type=int, help="Pixels that the original is built for. [default: from the tensors]")
@click.option("--frames", type=int, help="Frames that the original is built for. [default: from the tensors]")
@click.option("--fed-image-size", type=int, help="Pixels that it is then fed. [default: as built]")
@click.option("--fed-frames", type=int, help="Frames that it is then fed. [default: as built]")
@click.option(
    "--attention-type",
    shell_complete=one_of("divided_space_time", "joint_space_time", "space_only"),
    help="divided_space_time, joint_space_time, space_only. [default: from the tensors]",
)
@json_option
def convert_timesformer(as_json: bool, **arguments: Any) -> None:
    """Convert a .pyth file of facebookresearch/TimeSformer.

    \b
    Example:
      alphafuse convert timesformer TimeSformer_divST_8x32_224_K400.pyth timesformer-k400
    The seed paper's model, a 224-pixel 64-frame file built for 448 pixels and fed 8 frames of 224:
      alphafuse convert timesformer TimeSformer_divST_64x32_224_HowTo100M.pyth timesformer-howto \\
        --image-size 448 --frames 64 --fed-image-size 224 --fed-frames 8
    """
    from alphafuse.extract.encoders import checkpoints

    _print_conversion(checkpoints.convert_timesformer(**arguments), as_json=as_json)


@convert.command("ast")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--fstride", type=int, help="Patch step along frequency. [default: from the tensors]")
@click.option("--tstride", type=int, help="Patch step along time. [default: from the tensors]")
@click.option("--max-length", type=int, help="Input frames of 10 ms. [default: from the tensors]")
@json_option
def convert_ast(as_json: bool, **arguments: Any) -> None:
    """Convert a .pth file of YuanGongND/ast.

    \b
    Example:
      alphafuse convert ast audioset_10_10_0.4593.pth ast-audioset
    """
    from alphafuse.extract.encoders import checkpoints

    _print_conversion(checkpoints.convert_ast(**arguments), as_json=as_json)


def _print_conversion(report: ConversionReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(str(report))


@click.group(
    cls=Commands,
    sections={
        "Commands": {
            "info": "Counts, settings and failures of a store.",
            "verify": "Check every shard; compare settings; extract some anew.",
            "pack": "Merge all shards into one.",
            "export": "Write all embeddings as .npz or .parquet.",
        }
    },
)
def store() -> None:
    """Look into embedding stores, check them, merge their shards, export them.

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
    """Counts, settings and failures of a store.

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
    for modality, rows in info.rows.items():
        encoder = info.provenance.get("encoders", {}).get(modality, {}).get("name", "?")
        settings = ", ".join(f"{name}={_brief(value)}" for name, value in info.recipes[modality].items())
        click.echo(f"  {modality}: {rows} x {info.dims[modality]} from {one_line(str(encoder))}\n    {settings}")
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
    help="Also extract so many clips again, drawn by lot, and compare.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides which clips.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    shell_complete=roots,
    help="With --resample: the root that the store belongs to. [default: ROOT of ROOT/stores/SPLIT]",
)
@checking_options
@json_option
def store_verify(folder: Path, resample: int, seed: int, root: Path | None, as_json: bool, **arguments: Any) -> None:
    """Re-read every shard against its checksum and compare settings; exit code 1 when something is wrong.

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
        from alphafuse.extract import resample as resampling

        dataset = _dataset_of(folder, root)
        found = resampling.resample(dataset, folder.name, resample, ExtractSettings(**arguments), seed=seed)
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
    """The dataset that a store belongs to."""
    if isinstance(folder, Path):
        folder = folder.resolve()
    if folder.name not in SPLITS or (root is None and folder.parent.name != "stores"):
        raise DatasetError(
            f"{folder} is no ROOT/stores/SPLIT: to extract clips again, their root is needed: name it with --root"
        )
    if root is None and not isinstance(folder, Path):
        raise DatasetError(f"{folder} is behind a URL: name its root with --root, to extract clips again")
    dataset = Dataset.open(folder.parents[1] if root is None else root)
    own = dataset.store(folder.name).folder
    if (own.resolve() if isinstance(own, Path) else own) != folder:
        raise DatasetError(f"{folder} is no store of {dataset.root}, whose {folder.name} is in {own}: name that one")
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
