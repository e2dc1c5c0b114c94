"""`alphafuse predict` and `alphafuse export`: label clips with a trained run; bundle a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from tqdm import tqdm

from alphafuse.data.coverage import Coverage
from alphafuse.data.dataset import Dataset
from alphafuse.extract.settings import ExtractSettings
from alphafuse.system.progress import Bar

from .common import EXIT_FOUND, json_option, print_json, print_text, root_option, run_folders
from .options import ONE_DEVICE, options_of

ENCODER_HELP = "Folder or hub id of the encoder. [default: recorded in the run]"


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--run",
    shell_complete=run_folders,
    help="Name of a run of the root, its folder, an exported folder or a hub id. [default: the root's best run]",
)
@root_option
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Labels per clip.")
@click.option(
    "--why",
    is_flag=True,
    help="Also print what decided: shares of streams, answers with one blank, and along alpha.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print csv: clip, rank, label, probability, missing.")
@options_of(
    ExtractSettings,
    *("encoders", "device", "workers", "trust_code"),
    change={
        "encoders": {"help": ENCODER_HELP},
        "device": ONE_DEVICE,
        "workers": {"help": "Decode processes; 0 = one per processor.", "flags": ("--workers",)},
    },
)
@json_option
def predict(
    clips: tuple[Path, ...],
    run: str | None,
    root: Path,
    top: int,
    why: bool,
    as_csv: bool,
    encoders: dict[str, str],
    device: str,
    workers: int,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Label clips (files, or folders of them) with a trained run.

    Exit code 1 when a clip got no answer; the reason is printed.

    \b
    Examples:
      alphafuse predict clip.mp4 --root demo
      alphafuse predict clip.mp4 --run sqrt-ast --why --root demo
      alphafuse predict clips/ --run exported --top 1 --csv > labels.csv
    """
    if as_csv and (why or as_json):
        raise click.UsageError("--csv can't be combined with --why or --json: use --json for everything")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # set before torch is loaded, as in extract
    from alphafuse.heads.studies.best_run import find_best
    from alphafuse.heads.studies.runs import read_run, resolve_run
    from alphafuse.predict.explain import Explanation
    from alphafuse.predict.model import AlphaFuse, find_clips
    from alphafuse.report import predict as report
    from alphafuse.report.extract import format_coverage

    files = find_clips(clips)
    if run is None:
        best = find_best(Dataset.open(root))
        run = str(best.run.folder)
        click.echo(f"run: {run} ({best.why}; {report.format_score(read_run(run))})", err=True)
    else:
        run = str(resolve_run(run, root)) if "://" not in run else run
    model = AlphaFuse.from_pretrained(run, encoders=encoders, trust_code=trust_code, device=device, workers=workers)
    if report.is_guessing(model.run):
        click.echo(
            "note: on test clips, this run can't be distinguished from guessing; don't rely on its answers", err=True
        )
    answers, rows, coverage = 0, [], list[Coverage]()
    if as_csv:
        click.echo(report.to_csv([]), nl=False)
    for one in model.stream(files, top=top, why=why, progress=Bar(disable=None if len(files) > 1 else True)):
        prediction = one.prediction if isinstance(one, Explanation) else one
        answers += bool(prediction.top)
        coverage += prediction.coverage
        with tqdm.external_write_mode(file=sys.stdout):  # print each answer at once: an interrupt loses none
            if as_json:
                rows += report.to_json([one])
            elif as_csv:
                click.echo(report.to_csv([prediction], header=False), nl=False)
            else:
                print_text(report.format_prediction(prediction))
                if isinstance(one, Explanation):
                    print_text(report.format_explanation(one) + "\n")
    note = format_coverage(coverage, model.media) if len(files) > 1 or as_csv or as_json else ""
    click.echo(note, nl=False, err=True)
    if as_json:
        print_json({"run": run, "classes": len(model.classes), "clips": rows})
    if answers < len(files):
        sys.exit(EXIT_FOUND)


@click.command()
@click.argument(
    "places",
    metavar="[RUN] OUT",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=run_folders,
)
@root_option
@click.option("--with-encoders", is_flag=True, help="Also copy the encoders' files into the folder.")
@click.option("--push", metavar="OWNER/NAME", help="Also push it to the hub (needs a token: `hf auth login`).")
@click.option("--private", is_flag=True, help="With --push: a private repository.")
@click.option("--trust-code", is_flag=True, help="With --push: run the Python code that the run names, as a check.")
@json_option
def export(
    places: tuple[Path, ...],
    root: Path,
    with_encoders: bool,
    push: str | None,
    private: bool,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Bundle a run into one folder: heads, preprocessing, encoders' ids, metrics, and a model card.

    RUN is a folder, or the name of one of the root's runs; by default the root's best run. The folder is all that
    `alphafuse predict --run` and `AlphaFuse.from_pretrained` need.

    \b
    Examples:
      alphafuse export exported --root demo
      alphafuse export sqrt-ast exported --with-encoders --root demo
      alphafuse export vggsound/runs/sqrt-ast exported --push me/vggsound-sqrt-ast
    """
    from alphafuse.heads.studies.best_run import best_run
    from alphafuse.heads.studies.runs import read_run, resolve_run
    from alphafuse.predict.bundle import export_run
    from alphafuse.predict.card import warnings_of
    from alphafuse.predict.push import push_bundle

    if len(places) > 2:
        raise click.UsageError(f"export takes a run and a folder to make, not {len(places)} arguments")
    *named, out = places
    if named:
        run = resolve_run(named[0], root)
    else:
        run = best_run(Dataset.open(root))
        click.echo(f"run: {run}", err=True)
    folder = export_run(run, out, with_encoders=with_encoders)
    for warning in warnings_of(read_run(folder)):
        click.echo(f"note: {warning}", err=True)
    pushed = push_bundle(folder, push, private=private, trust_code=trust_code) if push else None
    if as_json:
        print_json({"folder": str(folder), "pushed": pushed, "bytes": _bytes(folder)})
        return
    print_text(f"{folder}: {_bytes(folder) / 1e6:.1f} MB (README.md is its card)")
    if pushed:
        print_text(f"pushed: {pushed}")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
