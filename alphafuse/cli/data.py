"""`alphafuse data`: make, audit and split dataset roots. Each command is a thin call of one public function."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from alphafuse.data.dataset import LABELLED_BY, Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.data.streams import DEFAULT_NAMES
from alphafuse.system.progress import Bar

from .common import (
    EXIT_FOUND,
    Commands,
    Place,
    json_option,
    one_of,
    print_json,
    print_text,
    root_option,
    seed_option,
    test_fraction_option,
    val_fraction_option,
    workers_option,
)
from .streams import data_embeddings, data_streams, labelled_by_option, stream_options

if TYPE_CHECKING:
    from alphafuse.data.sources.importing import ImportReport, LeaveOut
    from alphafuse.data.sources.resplit import SplitReport

DEFAULT_DEMO_ROOT = "demo"


@click.group(
    cls=Commands,
    sections={
        "Commands": {
            "demo": "Generate the demo: small clips, in VGGSound's own layout.",
            "vggsound": "From VGGSound's csv and a folder of its clips.",
            "ucf101": "From UCF-101's official split files and its clips.",
            "kinetics": "From Kinetics' official csv files and its clips.",
            "folder": "From your own clips: a folder per class, or a csv.",
            "embeddings": "From your own embeddings: a parquet file of vectors.",
            "streams": "The streams of a root: list, add or remove some.",
            "labelled-by": "How labels were given: show it, or say it.",
            "audit": "Check a root: what its splits can show, problems with clips.",
            "drop": "Take clips out of a root, or put them back.",
            "split": "Make a new split of a root, by source video, balanced by label.",
        }
    },
)
def data() -> None:
    """Make a dataset root: from VGGSound, UCF-101, Kinetics or your own clips, or the demo.

    \b
    Examples:
      alphafuse data demo --root demo
      alphafuse data audit --root demo
    """


_stores_option = click.option(
    "--stores",
    type=Place(),
    help="Folder or URL (s3://, gs://, ...) for the embedding stores. [default: the root's, else ROOT/stores]",
)


def _defaults(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for what a root saves: how labels were given, streams and stores."""
    return labelled_by_option(stream_options(_stores_option(command)))


data.add_command(data_embeddings)
data.add_command(data_streams)


@data.command("demo")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=DEFAULT_DEMO_ROOT,
    envvar="ALPHAFUSE_ROOT",
    show_default=True,
    show_envvar=True,
    help="Folder to make.",
)
@seed_option
@_stores_option
@json_option
def data_demo(root: Path, seed: int, stores: Path | None, as_json: bool) -> None:
    """Generate the demo: small clips with video and audio, in VGGSound's own layout.

    \b
    Example:
      alphafuse data demo --root demo
    """
    from alphafuse.data.sources.demo import make_demo

    with tqdm(desc="demo", unit="clip", disable=None) as bar:
        report = make_demo(root, seed=seed, stores=stores, progress=bar.update)
    _print_import(report, as_json=as_json)


@data.command("vggsound")
@click.option("--csv", type=click.Path(path_type=Path), help="VGGSound's vggsound.csv; not needed with --subset paper.")
@click.option("--clips", type=Place(), required=True, help="Folder or URL with {id}_{start:06d}.mp4 files.")
@root_option
@click.option("--subset", help="'paper' (the seed paper's 130 clips), a number of clips, or a fraction.")
@seed_option
@val_fraction_option
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
    from alphafuse.data.sources.vggsound import import_vggsound

    _print_import(import_vggsound(**arguments), as_json=as_json)


def _audio_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --require-audio and --workers; they become the command's argument `leave_out`."""

    @click.option("--require-audio", is_flag=True, help="Leave out clips without an audio track (reads their headers).")
    @workers_option
    @functools.wraps(command)
    def with_leave_out(require_audio: bool, workers: int, **arguments: Any) -> None:
        command(leave_out=_without_audio(workers) if require_audio else None, **arguments)

    return with_leave_out


def _without_audio(workers: int) -> LeaveOut:
    """Return `files_without_audio` with a progress bar."""
    from alphafuse.extract.decoding.probe import files_without_audio

    def leave_out(files: Sequence[Path]) -> dict[Path, str]:
        return files_without_audio(files, workers=workers, progress=Bar("audio"))

    return leave_out


_subset_option = click.option("--subset", help="A number of clips, or a fraction. [default: all]")


@data.command("ucf101")
@click.option("--splits", type=click.Path(path_type=Path), required=True, help="The folder ucfTrainTestlist.")
@click.option("--clips", type=Place(), required=True, help="Folder or URL with v_Class_g01_c01.avi files.")
@root_option
@click.option("--split", type=click.IntRange(1, 3), default=1, show_default=True, help="Which official split.")
@_audio_options
@_subset_option
@seed_option
@val_fraction_option
@_defaults
@json_option
def data_ucf101(as_json: bool, **arguments: Any) -> None:
    """Make a root from UCF-101's official split files and a folder of its clips.

    About half of its classes have no audio. --require-audio leaves these clips out; without it they stay, and
    --absent of fit decides how they are used.

    \b
    Examples:
      alphafuse data ucf101 --splits ucfTrainTestlist --clips UCF-101 --root ucf101
      alphafuse data ucf101 --splits ucfTrainTestlist --clips UCF-101 --root ucf101-av --require-audio
      alphafuse data ucf101 --splits ucfTrainTestlist --clips UCF-101 --root ucf101-2 --split 2
    """
    from alphafuse.data.sources.ucf101 import import_ucf101

    _print_import(import_ucf101(**arguments), as_json=as_json)


@data.command("kinetics")
@click.option(
    "--csv",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Official list, such as train.csv; give the option once per file.",
)
@click.option("--clips", type=Place(), required=True, help="Folder or URL with {id}_{start:06d}_{end:06d}.mp4 files.")
@root_option
@click.option("--name", help="Name of the dataset. [default: kinetics400, 600 or 700, by the number of classes]")
@_audio_options
@_subset_option
@seed_option
@val_fraction_option
@_defaults
@json_option
def data_kinetics(as_json: bool, **arguments: Any) -> None:
    """Make a root from Kinetics' official csv files (400, 600 or 700) and a folder of its clips.

    Most test lists have no labels. Without labelled test clips, the official validation list becomes test, and part
    of train becomes val.

    \b
    Examples:
      alphafuse data kinetics --csv train.csv --csv validate.csv --clips k600 --root kinetics600
      alphafuse data kinetics --csv train.csv --csv validate.csv --clips k600 --root k600-tenth --subset 0.1
      alphafuse data kinetics --csv train.csv --csv validate.csv --clips k600 --root k600-av --require-audio
    """
    from alphafuse.data.sources.kinetics import import_kinetics

    _print_import(import_kinetics(**arguments), as_json=as_json)


@data.command("folder")
@click.argument("source", type=Place())
@click.option("--csv", type=click.Path(path_type=Path), help="List of clips: path,label[,split][,group][,audio].")
@root_option
@seed_option
@val_fraction_option
@test_fraction_option
@_defaults
@json_option
def data_folder(as_json: bool, **arguments: Any) -> None:
    """Make a root from your own clips, videos or sounds: one folder per class, or a csv that lists them.

    \b
    Examples:
      alphafuse data folder clips/ --root mine              clips/dog/a.mp4, clips/cat/b.mkv, ...
      alphafuse data folder clips/ --root mine              clips/train/dog/a.mp4, clips/test/dog/b.mp4, ...
      alphafuse data folder sounds/ --root mine             sounds/dog/a.wav, sounds/cat/b.mp3, ...
      alphafuse data folder clips/ --csv labels.csv --root mine
      alphafuse data folder s3://bucket/clips --stores s3://bucket/stores --root mine
    """
    from alphafuse.data.sources.folder import import_folder

    _print_import(import_folder(**arguments), as_json=as_json)


@data.command("labelled-by")
@click.argument("how", metavar="[ear|eye|both]", required=False, shell_complete=one_of(*LABELLED_BY))
@root_option
@json_option
def data_labelled_by(root: Path, how: str | None, as_json: bool) -> None:
    """Show how the labels of a root were given, by ear, by eye or by both; or say it.

    Labels given by eye make sound look useless, and labels given by ear sight: studies of what a stream contributes
    warn of it.

    \b
    Examples:
      alphafuse data labelled-by --root mine
      alphafuse data labelled-by eye --root mine
    """
    dataset = Dataset.open(root)
    if how is not None:
        dataset = dataset.with_labelled_by(how)
    if as_json:
        print_json({"root": str(root), "labelled_by": dataset.labelled_by})
    else:
        click.echo(dataset.labelled_by or "unknown")


@data.command("audit")
@root_option
@click.option("--strict", is_flag=True, help="Exit code 1 when there is an error or a warning.")
@click.option(
    "--no-decode", is_flag=True, help="Skip the checks that decode clips: re-encoded copies, silent clips, ..."
)
@workers_option
@json_option
def data_audit(root: Path, strict: bool, no_decode: bool, workers: int, as_json: bool) -> None:
    """Report what a root's splits can show, and problems with its clips.

    \b
    Examples:
      alphafuse data audit --root demo
      alphafuse data audit --root demo --no-decode --strict
    """
    from alphafuse.data.audit import audit
    from alphafuse.extract.decoding.signatures import sign_clips
    from alphafuse.extract.encoders.families import known_hearing
    from alphafuse.report.audit import format_audit

    dataset = Dataset.open(root)
    signatures = hearing = None
    if not no_decode:
        signatures = sign_clips(dataset, workers=workers, progress=Bar("audit"))
        hearing = known_hearing(dataset)
    report = audit(dataset, signatures=signatures, hearing=hearing)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(format_audit(report), nl=False)
    if strict and not report.is_sound:
        sys.exit(EXIT_FOUND)


@data.command("drop")
@click.argument("clips", nargs=-1, metavar="[CLIP]...")
@root_option
@click.option("--reason", default="", help="Why, for people; kept in ROOT/dropped.csv.")
@click.option("--undo", is_flag=True, help="Put these clips back; without a CLIP, all that were dropped.")
@json_option
def data_drop(clips: tuple[str, ...], root: Path, reason: str, undo: bool, as_json: bool) -> None:
    """Take clips out of a root, named by clip_id; without a CLIP, list those that were taken out.

    Files and stored embeddings stay, and are no longer read. Heads and studies that were made before are of all clips.

    \b
    Examples:
      alphafuse data drop dog/a dog/b --reason "two sounds at once" --root mine
      alphafuse data drop dog/a --undo --root mine
    """
    from alphafuse.data.dropping import drop_clips, dropped_clips, restore_clips

    if undo and reason:
        raise click.UsageError("--undo puts clips back, which needs no --reason")
    dataset = Dataset.open(root)
    if undo:
        dataset = restore_clips(dataset, clips)
    elif clips:
        dataset = drop_clips(dataset, clips, reason=reason)
    dropped = dropped_clips(root)
    sizes = {split: len(dataset.manifest.of_split(split)) for split in SPLITS}
    if as_json:
        listed = [{"clip_id": clip.clip_id, "split": clip.split, "reason": why} for clip, why in dropped]
        print_json({"root": str(root), "clips": sizes, "dropped": listed})
        return
    if not (clips or undo):
        for clip, why in dropped:
            click.echo(f"{clip.clip_id} ({clip.split}){f': {why}' if why else ''}")
    shown = ", ".join(f"{split} {count}" for split, count in sizes.items())
    click.echo(f"{root}: {len(dataset.manifest)} clips ({shown}), {len(dropped)} dropped")
    empty = sorted(set(dataset.classes).difference(dataset.manifest.labels))
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        click.echo(f"  no clip is left of {', '.join(empty[:3])}{more}: heads still have a place for it")
    if clips or undo:
        print_text("  heads and studies made before are of other clips: make them again")


@data.command("split")
@root_option
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Root to make; with --folds OUT/fold-1, ..."
)
@click.option("--val", default="0.1", show_default=True, help="Clips for validation: a number, or a share of all.")
@click.option("--test", help="Clips for testing: a number, or a share of all. [default: 0.2]")
@click.option("--folds", type=int, help="Make this many roots; each tests another part of the clips.")
@seed_option
@json_option
def data_split(root: Path, out: Path, val: str, test: str | None, folds: int | None, seed: int, as_json: bool) -> None:
    """Make a root with a new split: by source video, balanced by label, every label in training.

    Embeddings of the old root are reused. Labels with a single source video are in train only.

    \b
    Examples:
      alphafuse data split --root vggsound --val 0.1 --test 0.2 --out vggsound-split
      alphafuse data split --root vggsound --folds 5 --out vggsound-folds
    """
    from alphafuse.data.sources.resplit import TEST_FRACTION, fold_datasets, resplit_dataset
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
        click.echo(f"  train only: {len(labels)} labels with a single source video, such as {', '.join(labels[:3])}")
    carried = sum(report.carried.values())
    if carried:
        click.echo(f"  embeddings of {carried} of {len(manifest)} clips carried over")
    study = "table1" if set(DEFAULT_NAMES) <= set(report.dataset.media) else "compare"
    step = study if carried == len(manifest) else "extract --split all"
    print_text(f"  next: alphafuse {step} --root {root}")


def _print_import(report: ImportReport, *, as_json: bool) -> None:
    from alphafuse.data.sources.folder import counted_files
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
                "left_out": dict(report.left_out),
                "skipped": dict(report.skipped),
                "notes": list(report.notes),
                "labelled_by": dataset.labelled_by,
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
    if report.left_out:
        reasons = Counter(report.left_out.values()).most_common()
        listed = "; ".join(f"{reason}: {count}" for reason, count in reasons[:3])
        more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
        click.echo(f"  left out: {len(report.left_out)} clips ({listed}{more}; all in {dataset.root / 'left_out.csv'})")
    if report.skipped:
        click.echo(f"  skipped: {counted_files(report.skipped)}")
    for note in report.notes:
        click.echo(f"  {note}")
    print_text(f"root: {dataset.root}\nnext: alphafuse extract --split all --root {dataset.root}")
