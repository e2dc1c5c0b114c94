"""The command line: each command is a thin call of one public function with the same keywords.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 `store verify` or `data audit --strict`
found something, 2 a mistake of the user's (one line says what, why, and how to mend it), 130 and 143 interrupted (what
was done is kept).
Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

import alphafuse
from alphafuse.data.dataset import DEFAULT_AST, DEFAULT_PROTOCOL, DEFAULT_TIMESFORMER, Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.errors import AlphafuseError, DatasetError, unknown

from . import cli_heads
from .cli_common import json_option, print_json, root_option

if TYPE_CHECKING:
    from alphafuse.data.resplit import SplitReport
    from alphafuse.data.sources import ImportReport
    from alphafuse.extract.checkpoints import ConversionReport
    from alphafuse.extract.pipeline import ExtractReport

EXIT_FOUND = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT  # what a shell reports of a command that Ctrl-C ended
EXIT_TERMINATED = 128 + signal.SIGTERM
DEFAULT_DEMO_ROOT = "demo"

workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decode processes; 0 = one per processor.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides everything that is drawn by lot."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(alphafuse.__version__)
def cli() -> None:
    """How much should each modality weigh when frozen video and audio transformers are fused late?

    \b
    The demo, offline and without any download:
      alphafuse data demo
      alphafuse extract --split all --root demo
      alphafuse table1 --root demo
    """


def main() -> None:
    """Console entry point: runs the command and turns every foreseen error into one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli.main(standalone_mode=False)
    except AlphafuseError as error:
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(EXIT_MISTAKE)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_hint = f" (see `{context.command_path} --help`)" if context else ""
        _fail(f"{error.format_message()}{help_hint}")
    except click.Abort:
        click.echo("alphafuse: interrupted; what was finished is kept, the same command goes on from there", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output (head, less) is gone
    except ImportError as error:
        if not _was_interrupted(error):
            raise
        click.echo("alphafuse: interrupted", err=True)  # transformers turns a Ctrl-C while it loads into an ImportError
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        _fail(f"{error.filename or 'disk'}: {error.strerror or error}: check the path, its rights and the free space")


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is among the causes of an error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(message: str) -> None:
    click.echo(f"alphafuse: {' '.join(message.split())}", err=True)
    sys.exit(EXIT_MISTAKE)


def _terminate(number: int, frame: object) -> None:
    click.echo("alphafuse: terminated; what was finished is kept, the same command goes on from there", err=True)
    sys.exit(EXIT_TERMINATED)


# data


@cli.group()
def data() -> None:
    """Make a dataset root: from VGGSound, from your own clips, or the demo."""


def _defaults(command: Callable[..., None]) -> Callable[..., None]:
    """The backbones and protocol that a root remembers."""
    options = (
        click.option("--timesformer", default=DEFAULT_TIMESFORMER, show_default=True, help="Remembered for extract."),
        click.option("--ast", default=DEFAULT_AST, show_default=True, help="Remembered for extract."),
        click.option(
            "--protocol", default=DEFAULT_PROTOCOL, show_default=True, help="standard, or the paper's notebook."
        ),
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@data.command("demo")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=DEFAULT_DEMO_ROOT,
    show_default=True,
    help="Folder to make.",
)
@seed_option
@json_option
def data_demo(root: Path, seed: int, as_json: bool) -> None:
    """Generate the demo: small clips with picture and sound, in VGGSound's own layout.

    \b
    Example:
      alphafuse data demo --root demo
    """
    from alphafuse.data.demo import make_demo

    with tqdm(desc="demo", unit="clip", disable=None) as bar:
        report = make_demo(root, seed=seed, progress=bar.update)
    _print_import(report, as_json=as_json)


@data.command("vggsound")
@click.option("--csv", type=click.Path(path_type=Path), help="VGGSound's vggsound.csv; --subset paper does without.")
@click.option("--clips", type=click.Path(path_type=Path), required=True, help="Folder with {id}_{start:06d}.mp4 files.")
@root_option
@click.option("--subset", help="'paper' (the seed paper's 130 clips), a number of clips, or a fraction.")
@seed_option
@click.option("--val-fraction", default=0.1, show_default=True, help="Share of train carved out for validation.")
@_defaults
@json_option
def data_vggsound(as_json: bool, **arguments: Any) -> None:
    """Make a root from VGGSound's csv and a folder of its clips (any video suffix, nested folders too).

    \b
    Examples:
      alphafuse data vggsound --csv vggsound.csv --clips /data/vggsound
      alphafuse data vggsound --subset paper --clips /data/vggsound --root paper --protocol notebook
      alphafuse data vggsound --csv vggsound.csv --clips /data/vggsound --subset 0.1 --root tenth
    """
    from alphafuse.data.vggsound import import_vggsound

    _print_import(import_vggsound(**arguments), as_json=as_json)


@data.command("folder")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--csv", type=click.Path(path_type=Path), help="List of clips: path,label[,split][,group].")
@root_option
@seed_option
@click.option("--val-fraction", default=0.1, show_default=True, help="Share of train carved out for validation.")
@click.option("--test-fraction", default=0.2, show_default=True, help="Share of all clips carved out for testing.")
@_defaults
@json_option
def data_folder(as_json: bool, **arguments: Any) -> None:
    """Make a root from your own clips: one folder per class, or a csv that lists them.

    \b
    Examples:
      alphafuse data folder clips/ --root mine              clips/dog/a.mp4, clips/cat/b.mkv, ...
      alphafuse data folder clips/ --root mine              clips/train/dog/a.mp4, clips/test/dog/b.mp4, ...
      alphafuse data folder clips/ --csv labels.csv --root mine
    """
    from alphafuse.data.folder import import_folder

    _print_import(import_folder(**arguments), as_json=as_json)


@data.command("audit")
@root_option
@click.option("--strict", is_flag=True, help="Exit code 1 when there is an error or a warning.")
@click.option(
    "--no-decode", is_flag=True, help="Leave out what needs decoding: copies encoded again, silent clips, ..."
)
@workers_option
@json_option
def data_audit(root: Path, strict: bool, no_decode: bool, workers: int, as_json: bool) -> None:
    """Say what a root's splits can show, and what is wrong with its clips.

    \b
    Examples:
      alphafuse data audit --root demo
      alphafuse data audit --root demo --no-decode --strict
    """
    from alphafuse.data.audit import audit
    from alphafuse.extract.signatures import sign_clips
    from alphafuse.report.audit import format_audit

    dataset = Dataset.open(root)
    signatures = None
    if not no_decode:
        with tqdm(total=len(dataset.manifest), desc="audit", unit="clip", disable=None) as bar:
            signatures = sign_clips(dataset, workers=workers, progress=bar.update)
    report = audit(dataset, signatures=signatures)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(format_audit(report), nl=False)
    if strict and not report.is_sound:
        sys.exit(EXIT_FOUND)


@data.command("split")
@root_option
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Root to make; with --folds OUT/fold-1, ..."
)
@click.option("--val", default="0.1", show_default=True, help="Clips for validation: a number, or a share of all.")
@click.option("--test", help="Clips for testing: a number, or a share of all. [default: 0.2]")
@click.option("--folds", type=int, help="Make so many roots instead; each tests another part of the clips.")
@seed_option
@json_option
def data_split(root: Path, out: Path, val: str, test: str | None, folds: int | None, seed: int, as_json: bool) -> None:
    """Split a root anew into another: by source video, balanced over labels, every label in training.

    Embeddings that are there already carry over. Labels with a single source video are only trained on.

    \b
    Examples:
      alphafuse data split --root vggsound --val 0.1 --test 0.2 --out vggsound-split
      alphafuse data split --root vggsound --folds 5 --out vggsound-folds
    """
    from alphafuse.data.resplit import TEST_FRACTION, fold_datasets, resplit_dataset
    from alphafuse.data.splits import parse_size

    if folds is not None and test is not None:
        raise click.UsageError("--test and --folds exclude each other: a fold's test clips are 1/FOLDS of all")
    dataset = Dataset.open(root)
    val_size = parse_size("--val", val)
    if folds is not None:
        reports = fold_datasets(dataset, out, folds, val=val_size, seed=seed)
    else:
        test_size = TEST_FRACTION if test is None else parse_size("--test", test)
        reports = [resplit_dataset(dataset, out, val=val_size, test=test_size, seed=seed)]
    if as_json:
        print_json([_split_json(report) for report in reports])
        return
    for report in reports:
        _print_split(report)


def _split_json(report: SplitReport) -> dict[str, Any]:
    dataset = report.dataset
    return {
        "root": str(dataset.root),
        "clips": {split: len(dataset.manifest.of_split(split)) for split in SPLITS},
        "single_video_labels": list(report.single_video_labels),
        "carried": dict(report.carried),
    }


def _print_split(report: SplitReport) -> None:
    root, manifest = report.dataset.root, report.dataset.manifest
    sizes = ", ".join(f"{split} {len(manifest.of_split(split))}" for split in SPLITS)
    click.echo(f"{root}: {len(manifest)} clips in {len(manifest.labels)} classes ({sizes})")
    if report.single_video_labels:
        labels = report.single_video_labels
        click.echo(f"  only trained: {len(labels)} labels with a single source video, such as {', '.join(labels[:3])}")
    carried = sum(report.carried.values())
    if carried:
        click.echo(f"  embeddings of {carried} of {len(manifest)} clips carried over")
    step = "table1" if carried == len(manifest) else "extract --split all"
    click.echo(f"  next: alphafuse {step} --root {root}")


def _print_import(report: ImportReport, *, as_json: bool) -> None:
    from alphafuse.data.splits import reachable_ceiling

    dataset = report.dataset
    train_labels = [clip.label for clip in dataset.manifest.of_split("train")]
    ceilings = {
        split: reachable_ceiling(train_labels, [clip.label for clip in dataset.manifest.of_split(split)])
        for split in SPLITS
    }
    if as_json:
        print_json(
            {
                "root": str(dataset.root),
                "name": dataset.name,
                "classes": len(dataset.classes),
                "clips": {split: ceiling.clips for split, ceiling in ceilings.items()},
                "reachable": {split: ceiling.reachable for split, ceiling in ceilings.items()},
                "listed": report.listed,
                "missing": list(report.missing),
            }
        )
        return
    sizes = ", ".join(f"{split} {ceiling.clips}" for split, ceiling in ceilings.items())
    click.echo(f"{dataset.name}: {len(dataset.manifest)} clips in {len(dataset.classes)} classes ({sizes})")
    for split, ceiling in ceilings.items():
        if not ceiling.clips:
            click.echo(f"  {split} has no clips: fit and table1 need all three splits")
        if ceiling.reachable < ceiling.clips:
            click.echo(
                f"  {split}: only {ceiling.reachable} of {ceiling.clips} clips have a label that occurs in training: "
                f"no head can score above {ceiling.accuracy:.1%}"
            )
    if report.missing:
        click.echo(
            f"  missing: {len(report.missing)} of {report.listed} listed clips have no file, such as "
            f"{', '.join(report.missing[:3])} (all in {dataset.root / 'missing.csv'})"
        )
    click.echo(f"root: {dataset.root}\nnext: alphafuse extract --split all --root {dataset.root}")


# stage one


class _ExtractBar:
    """tqdm behind the pipeline's progress: clips/s, time left, failures; quiet when not a terminal."""

    def start(self, split: str, *, clips: int, already: int) -> None:
        self.failed = 0
        self.bar = tqdm(total=clips + already, initial=already, desc=split, unit="clip", disable=None)

    def clip(self, *, complete: bool) -> None:
        self.failed += not complete
        self.bar.set_postfix(failures=self.failed, refresh=False)
        self.bar.update()

    def stop(self) -> None:
        self.bar.close()


@cli.command()
@click.option("--split", required=True, help="train, val, test or all.")
@root_option
@click.option("--timesformer", help="Hub id, HuggingFace folder, or 'compact'. [default: the root's]")
@click.option("--ast", help="Hub id, HuggingFace folder, or 'compact'. [default: the root's]")
@click.option("--protocol", help="Preprocessing. [default: the root's]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", default="fp32", show_default=True, help="fp32 or bf16.")
@click.option("--batch-size", default=8, show_default=True, help="Clips per forward pass.")
@workers_option
@click.option("--flush-seconds", default=30.0, show_default=True, help="A kill costs at most this much work.")
@click.option("--retry-failed", is_flag=True, help="Also try clips again whose failure is recorded.")
@json_option
def extract(split: str, root: Path, as_json: bool, **arguments: Any) -> None:
    """Run the frozen backbones over a split's clips, once; resumes by itself.

    \b
    Examples:
      alphafuse extract --split train
      alphafuse extract --split all --root demo
      alphafuse extract --split all --timesformer ./timesformer-k400 --ast ./ast-audioset
    """
    # before torch is loaded: OpenMP threads that wait actively take the decode workers' processors (measured on 2
    # cores: small backbones extract 1.25 times faster with this, full-size ones as fast as without)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from alphafuse.extract.pipeline import ExtractSettings, extract_embeddings

    dataset = Dataset.open(root)
    if split not in (*SPLITS, "all"):
        raise DatasetError(unknown("split", split, (*SPLITS, "all")))
    splits = [name for name in SPLITS if dataset.manifest.of_split(name)] if split == "all" else [split]
    if not splits:
        raise DatasetError(f"{root / 'manifest.csv'} lists no clips: make the root again")
    reports = extract_embeddings(dataset, splits, ExtractSettings(**arguments), progress=_ExtractBar())
    if as_json:
        print_json([_extract_json(report) for report in reports])
        return
    for report in reports:
        _print_tally(report)


def _extract_json(report: ExtractReport) -> dict[str, Any]:
    return {
        "split": report.split,
        "clips": report.clips,
        "already": report.already,
        "embedded": report.embedded,
        "failures": [vars(failure) for failure in report.failures],
        "seconds": round(report.seconds, 3),
        "store": str(report.store.folder),
    }


def _print_tally(report: ExtractReport) -> None:
    new = report.clips - report.already
    if not new:
        click.echo(f"{report.split}: all {report.clips} clips are there already, nothing to do")
        return
    made = ", ".join(f"{modality} {count}" for modality, count in report.embedded.items())
    before = f", {report.already} were there before" if report.already else ""
    rate = f"{report.seconds:.1f} s, {new / report.seconds:.1f} clips/s"
    click.echo(f"{report.split}: {new} clips embedded ({made}){before}; {rate} -> {report.store.folder}")
    _print_failures(report.failures)


def _print_failures(failures: tuple[Any, ...]) -> None:
    """Counts per modality and reason, with one clip as an example."""
    examples: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        examples.setdefault((failure.modality, failure.reason), []).append(failure.clip_id)
    for (modality, reason), clips in sorted(examples.items(), key=lambda entry: -len(entry[1])):
        click.echo(f"  {len(clips)} without {modality}: {reason} (such as {clips[0]})")


@cli.group()
def convert() -> None:
    """Turn original checkpoints into HuggingFace folders that extract takes."""


@convert.command("timesformer")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--image-size", type=int, help="Pixels that the original is built for. [default: from the tensors]")
@click.option("--frames", type=int, help="Frames that the original is built for. [default: from the tensors]")
@click.option("--fed-image-size", type=int, help="Pixels that it is then fed. [default: as built]")
@click.option("--fed-frames", type=int, help="Frames that it is then fed. [default: as built]")
@click.option("--attention-type", help="divided_space_time, joint_space_time, space_only. [default: from the tensors]")
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
    from alphafuse.extract import checkpoints

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
    from alphafuse.extract import checkpoints

    _print_conversion(checkpoints.convert_ast(**arguments), as_json=as_json)


def _print_conversion(report: ConversionReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(str(report))


# stage two

for _command in (
    cli_heads.fit,
    cli_heads.table1,
    cli_heads.sweep,
    cli_heads.compare,
    cli_heads.evaluate,
    cli_heads.bench,
):
    cli.add_command(_command)


# the store


@cli.group()
def store() -> None:
    """Look into embedding stores, check them, merge their shards, export them."""


store_argument = click.argument("folder", type=click.Path(path_type=Path))


@store.command("info")
@store_argument
@json_option
def store_info(folder: Path, as_json: bool) -> None:
    """Counts, settings and failures of a store.

    \b
    Example:
      alphafuse store info demo/stores/train
    """
    from alphafuse.data.store import EmbeddingStore

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
    click.echo(f"{info.folder}: {info.clips} clips in {info.shards} shards, {info.bytes / 1e6:.1f} MB")
    for modality, rows in info.rows.items():
        backbone = info.provenance.get("backbones", {}).get(modality, {}).get("name", "?")
        settings = ", ".join(f"{name}={_brief(value)}" for name, value in info.settings[modality].items())
        click.echo(f"  {modality}: {rows} x {info.dims[modality]} from {backbone}\n    {settings}")
    if info.duplicates:
        click.echo(f"  {info.duplicates} rows are stored twice (read once; `alphafuse store pack {folder}` drops them)")
    _print_failures(info.failures)


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


@store.command("verify")
@store_argument
def store_verify(folder: Path) -> None:
    """Re-read every shard against its checksum; exit code 1 when something is wrong.

    \b
    Example:
      alphafuse store verify demo/stores/train
    """
    from alphafuse.data.store import EmbeddingStore

    embedding_store = EmbeddingStore(folder)
    shards = len(embedding_store.shards())
    if not shards:
        raise DatasetError(f"no shards in {folder}: name a store, such as ROOT/stores/train")
    problems = embedding_store.verify()
    for problem in problems:
        click.echo(problem)
    click.echo(f"{folder}: {shards} shards, {len(problems)} problems")
    if problems:
        sys.exit(EXIT_FOUND)


@store.command("pack")
@store_argument
def store_pack(folder: Path) -> None:
    """Merge all shards into one.

    \b
    Example:
      alphafuse store pack demo/stores/train
    """
    from alphafuse.data.store import EmbeddingStore

    click.echo(str(EmbeddingStore(folder).pack()))


@store.command("export")
@store_argument
@click.argument("file", type=click.Path(path_type=Path))
def store_export(folder: Path, file: Path) -> None:
    """Write all embeddings as .npz or .parquet (columns clip_id, label, group, timesformer, ast).

    \b
    Example:
      alphafuse store export demo/stores/train train.npz
    """
    from alphafuse.data.store import EmbeddingStore

    click.echo(str(EmbeddingStore(folder).export(file)))
