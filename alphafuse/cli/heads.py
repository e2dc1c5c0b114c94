"""The commands of stage two: heads on cached embeddings. Each is a thin call of one public function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import SPLITS
from alphafuse.data.streams import ALL, DEFAULT_NAMES, in_order
from alphafuse.errors import unknown
from alphafuse.extract.settings import ExtractSettings
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.model.transforms import ALPHA_TRANSFORMS
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.system.progress import Bar

from .common import (
    json_option,
    one_of,
    print_json,
    print_text,
    root_option,
    run_folders,
    seed_option,
    some_of,
)
from .options import Names, options_of

training_options = options_of(TrainSettings, into="settings")
probe_option = click.option(
    "--probe",
    is_flag=True,
    help="Choose a linear or MLP head, learning rate and weight decay on validation: 18 more heads per experiment.",
)
engine_options = options_of(ExtractSettings, "engine", "address")
wide_option = click.option("--wide", is_flag=True, help="Print all columns and notes, in 120 columns of text.")


streams_option = click.option(
    "--stream",
    "streams",
    type=Names(),
    default="",
    shell_complete=some_of(*DEFAULT_NAMES),
    help="Streams to use, separated by commas. [default: all that are extracted]",
)


def seeds_options(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add --seeds and --first-seed."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        command = click.option(
            "--first-seed", type=click.IntRange(min=0), default=0, show_default=True, help="First seed."
        )(command)
        return click.option("--seeds", default=default, show_default=True, help="Heads of each kind, one per seed.")(
            command
        )

    return add


@click.command()
@options_of(Experiment, into="experiment")
@seeds_options(1)
@click.option("--run", help="Name of the run. [default: from the experiment, such as sqrt-ast]")
@probe_option
@training_options
@engine_options
@root_option
@wide_option
@json_option
@click.pass_context
def fit(
    context: click.Context,
    root: Path,
    experiment: Experiment,
    seeds: int,
    first_seed: int,
    run: str | None,
    probe: bool,
    settings: TrainSettings,
    engine: str,
    address: str | None,
    wide: bool,
    as_json: bool,
) -> None:
    """Train one experiment on the cached embeddings; writes ROOT/runs/NAME/.

    \b
    Examples:
      alphafuse fit --transform sqrt --on ast
      alphafuse fit --transform scale --alpha 0.75 --on timesformer --seeds 10
      alphafuse fit --fusion gate --normalize zscore --patience 5
      alphafuse fit --stream ast --hidden linear --root demo
      alphafuse fit --stream ast --probe --seeds 5
    """
    from alphafuse.heads.studies.fit import fit as fit_experiment
    from alphafuse.report.studies import describe
    from alphafuse.report.tables import to_text

    on, is_typed = context.params["on"], context.get_parameter_source("transform") != ParameterSource.DEFAULT
    if on and experiment.transform == "none" and not is_typed:
        raise click.UsageError(f"--on {on} needs a --transform; to train on one stream, use --stream {on}")
    dataset = Dataset.open(root)
    older = set((dataset.root / "runs").glob("*/"))
    result = fit_experiment(
        dataset,
        experiment,
        seeds=seeds,
        first_seed=first_seed,
        settings=settings,
        probe=probe,
        run=run,
        progress=Bar(),
        engine=engine,
        address=address,
    )
    if result.folder in older:
        click.echo(f"replaced: the older run {result.folder} (--run NAME keeps both)", err=True)
    if as_json:
        made: dict[str, Any] = {"run": str(result.folder), "experiment": experiment.name, "seeds": list(result.seeds)}
        if result.probe:
            made["probe"] = result.probe.to_json()
        print_json({**made, **result.to_json()})
        return
    print_text(f"{to_text(describe(result), wide=wide)}\nRun: {result.folder}\n")


@click.command()
@seeds_options(5)
@training_options
@engine_options
@root_option
@wide_option
@json_option
def table1(
    root: Path,
    seeds: int,
    first_seed: int,
    settings: TrainSettings,
    engine: str,
    address: str | None,
    wide: bool,
    as_json: bool,
) -> None:
    """Train the paper's six experiments, the untransformed baseline and each stream alone.

    Needs the paper's streams, and reads no others. Prints the rows beside the paper's figures and writes
    ROOT/runs/table1/ (json, markdown, loss curves).

    \b
    Example:
      alphafuse table1 --root demo
    """
    from alphafuse.heads.studies.table1 import table1 as train_table1
    from alphafuse.report.studies import describe, write_table1
    from alphafuse.report.tables import to_text

    dataset = Dataset.open(root)
    table = train_table1(
        dataset,
        seeds=seeds,
        first_seed=first_seed,
        settings=settings,
        progress=Bar(),
        engine=engine,
        address=address,
    )
    folder = write_table1(table, dataset)
    if as_json:
        print_json(table.to_json())
        return
    print_text(
        f"{to_text(describe(table), wide=wide)}\nwritten: {folder} (table1.md, table1.json, history.csv, figure3.png)"
    )


@click.command()
@click.option(
    "--on",
    type=Names(),
    default="",
    shell_complete=some_of(*DEFAULT_NAMES, ALL),
    help="A stream or all; a curve for each of NAME,NAME. [default: the last stream]",
)
@click.option("--alpha", default="0:2:0.25", show_default=True, help="start:stop:step, or a list 0.5,1,2.")
@click.option(
    "--transform",
    default="scale",
    show_default=True,
    shell_complete=one_of(*ALPHA_TRANSFORMS),
    help="scale, or another transform with an alpha, such as power.",
)
@seeds_options(5)
@click.option("--run", help="Name of the run. [default: sweep-ON]")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="config.json of an earlier sweep to repeat; besides it, only --root, --run, --engine and --address are used.",
)
@training_options
@engine_options
@root_option
@wide_option
@json_option
def sweep(
    root: Path,
    on: tuple[str, ...],
    alpha: str,
    transform: str,
    seeds: int,
    first_seed: int,
    run: str | None,
    config: Path | None,
    settings: TrainSettings,
    engine: str,
    address: str | None,
    wide: bool,
    as_json: bool,
) -> None:
    """Measure accuracy and loss against alpha, chosen on validation, tested once; writes ROOT/runs/sweep-ON/.

    \b
    Examples:
      alphafuse sweep --on ast --alpha 0:2:0.25 --seeds 20
      alphafuse sweep --on timesformer,ast --root demo
      alphafuse sweep --config demo/runs/sweep-ast/config.json --root demo --run again
      alphafuse sweep --on ast --seeds 20 --engine ray --address auto
    """
    from alphafuse.heads.studies.runs import read_sweep_config
    from alphafuse.heads.studies.sweep import parse_alphas
    from alphafuse.heads.studies.sweep import sweep as run_sweep
    from alphafuse.report.studies import describe, write_sweep
    from alphafuse.report.tables import to_text

    arguments: dict[str, Any] = {
        "on": on,
        "alphas": parse_alphas(alpha),
        "transform": transform,
        "seeds": seeds,
        "first_seed": first_seed,
        "settings": settings,
    }
    if config:
        arguments = read_sweep_config(config)
    dataset = Dataset.open(root)
    arguments["on"] = arguments["on"] or in_order(dataset.media)[-1:]
    found = run_sweep(dataset, **arguments, progress=Bar(), engine=engine, address=address)
    folder = write_sweep(found, dataset, run=run)
    if as_json:
        print_json(found.to_json())
        return
    print_text(
        f"{to_text(describe(found), wide=wide)}\nwritten: {folder} (sweep.csv, sweep.json, history.csv, sweep.png)"
    )


@click.command()
@seeds_options(5)
@probe_option
@training_options
@engine_options
@root_option
@wide_option
@json_option
def compare(
    root: Path,
    seeds: int,
    first_seed: int,
    probe: bool,
    settings: TrainSettings,
    engine: str,
    address: str | None,
    wide: bool,
    as_json: bool,
) -> None:
    """Compare streams alone and in pairs, late fusion, all fusions, all transforms and controls in one table.

    Prints it with intervals and paired tests, and writes ROOT/runs/compare/.

    \b
    Examples:
      alphafuse compare --root demo
      alphafuse compare --root demo --probe
    """
    from alphafuse.heads.studies.compare import compare as run_compare
    from alphafuse.report.studies import describe, write_compare
    from alphafuse.report.tables import to_text

    dataset = Dataset.open(root)
    table = run_compare(
        dataset,
        seeds=seeds,
        first_seed=first_seed,
        settings=settings,
        probe=probe,
        progress=Bar(),
        engine=engine,
        address=address,
    )
    folder = write_compare(table, dataset)
    if as_json:
        print_json(table.to_json())
        return
    print_text(f"{to_text(describe(table), wide=wide)}\nwritten: {folder} (compare.md, compare.json, compare.csv)")


@click.command()
@click.option(
    "--sizes",
    default="",
    help="Training clips per class. [default: 1,2,4,... as far as half of the classes have so many, and all]",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    help="Draws of training clips for each size. [default: 10; of the preset: 5]",
)
@streams_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draws.")
@click.option(
    "--preset",
    shell_complete=one_of("mteb"),
    help="mteb: the protocol of MTEB's VGGSound tasks instead, on the test clips, and what its folds leak.",
)
@root_option
@wide_option
@json_option
@click.pass_context
def curve(
    context: click.Context,
    root: Path,
    sizes: str,
    draws: int | None,
    streams: tuple[str, ...],
    seed: int,
    preset: str | None,
    wide: bool,
    as_json: bool,
) -> None:
    """Measure test accuracy against training clips per class, of each stream and of all; writes ROOT/runs/curve/.

    \b
    Examples:
      alphafuse curve --root demo
      alphafuse curve --sizes 1,4,16,all --draws 20
      alphafuse curve --preset mteb --root demo
    """
    from alphafuse.heads.studies.curve import CURVE_DRAWS, parse_sizes
    from alphafuse.heads.studies.curve import curve as draw_curve
    from alphafuse.heads.studies.mteb import MTEB_DRAWS, mteb_scores
    from alphafuse.report.curve import curve_json, describe, write_curve
    from alphafuse.report.tables import to_text

    if preset not in (None, "mteb"):
        raise click.UsageError(unknown("preset", str(preset), ["mteb"]))
    typed = [f"--{name}" for name in ("sizes", "seed") if context.get_parameter_source(name) != ParameterSource.DEFAULT]
    if preset and typed:
        raise click.UsageError(f"{typed[0]} doesn't go with --preset {preset}, which fixes it: leave one of them out")
    dataset = Dataset.open(root)
    if preset:
        found: Any = mteb_scores(dataset, streams=streams, draws=draws or MTEB_DRAWS, progress=Bar())
    else:
        chosen = parse_sizes(sizes) if sizes else ()
        found = draw_curve(
            dataset, sizes=chosen, draws=draws or CURVE_DRAWS, streams=streams, seed=seed, progress=Bar()
        )
    folder = write_curve(found, dataset)
    if as_json:
        print_json(curve_json(found))
        return
    files = "curve.md, curve.json, curve.csv" + ("" if preset else ", curve.png")
    print_text(f"{to_text(describe(found), wide=wide)}\nwritten: {folder} ({files})")


@click.command()
@click.option(
    "--head",
    default="closed",
    show_default=True,
    shell_complete=one_of("closed", "fit"),
    help="Heads of each subset: closed (form, in seconds) or fit (trained).",
)
@streams_option
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    shell_complete=run_folders,
    help="Trained run whose use of its streams is measured: a name or a folder. [default: the root's best]",
)
@click.option("--folds", default=5, show_default=True, help="Folds of source videos, for closed.")
@click.option("--refits", default=20, show_default=True, help="Permuted refits of each stream; 0 = none.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of folds, permutations, heads.")
@training_options
@root_option
@wide_option
@json_option
def contribute(
    root: Path,
    head: str,
    streams: tuple[str, ...],
    run: Path | None,
    folds: int,
    refits: int,
    seed: int,
    settings: TrainSettings,
    wide: bool,
    as_json: bool,
) -> None:
    """Measure what each stream contributes: what the embeddings offer, and what a trained run uses.

    In bits about the label first, then in points of accuracy; beside each gain, what a permuted stream
    gains. Training options are for --head fit. Writes ROOT/runs/contribute/.

    \b
    Examples:
      alphafuse contribute --root demo
      alphafuse contribute --root demo --run untransformed --refits 0
      alphafuse contribute --root demo --head fit --refits 3 --normalize zscore
    """
    from alphafuse.heads.studies.contribute import contribute as run_contribute
    from alphafuse.report.contribute import contribution_json, write_contribution
    from alphafuse.report.studies import describe
    from alphafuse.report.tables import to_text

    dataset = Dataset.open(root)
    found = run_contribute(
        dataset,
        head=head,
        streams=streams,
        run=run,
        folds=folds,
        seed=seed,
        refits=refits,
        settings=settings,
        progress=Bar(),
    )
    folder = write_contribution(found, dataset)
    if as_json:
        print_json(contribution_json(found))
        return
    print_text(
        f"{to_text(describe(found), wide=wide)}\nwritten: {folder} (contribute.md, contribute.json, contribute.csv)"
    )


@click.command()
@click.argument("run", type=click.Path(path_type=Path), required=False, shell_complete=run_folders)
@click.option("--split", default="test", show_default=True, shell_complete=one_of(*SPLITS), help="train, val or test.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    shell_complete=run_folders,
    help="Another run, for a paired test on the same clips.",
)
@click.option("--vggsounder", is_flag=True, help="Also VGGSounder's multi-label scores (needs the package vggsounder).")
@root_option
@wide_option
@json_option
@click.pass_context
def evaluate(
    context: click.Context,
    run: Path | None,
    split: str,
    against: Path | None,
    vggsounder: bool,
    root: Path,
    wide: bool,
    as_json: bool,
) -> None:
    """Compute every metric of a run's heads on a split; writes RUN/evaluation-SPLIT/.

    RUN is a folder, or the name of one of the root's runs; by default the root's best run. A folder of another root
    is scored on that root's clips, unless --root is given.

    \b
    Examples:
      alphafuse evaluate --root demo
      alphafuse evaluate sqrt-ast --against untransformed --root demo
      alphafuse evaluate demo/runs/sqrt-ast --split val
    """
    from alphafuse.heads.studies.best_run import best_run
    from alphafuse.heads.studies.evaluate import evaluate as evaluate_run
    from alphafuse.heads.studies.runs import dataset_of, resolve_run
    from alphafuse.report.studies import describe, write_evaluation
    from alphafuse.report.tables import to_text

    if run is None:
        dataset = Dataset.open(root)
        run = best_run(dataset)
        click.echo(f"run: {run}", err=True)
    else:
        run = resolve_run(run, root)
        is_typed = context.get_parameter_source("root") == ParameterSource.COMMANDLINE
        dataset = Dataset.open(root) if is_typed else dataset_of(run)
    found = evaluate_run(run, split=split, dataset=dataset, against=against, vggsounder=vggsounder)
    folder = write_evaluation(found)
    if as_json:
        print_json(found.to_json())
        return
    print_text(
        f"{to_text(describe(found), wide=wide)}\nwritten: {folder} (evaluation.json, classes.csv, confusion.csv)"
    )


@click.command()
@streams_option
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Folds within train.")
@seed_option
@click.option(
    "--all", "everything", is_flag=True, help="Also late fusion, and the logistic probe even if it takes long."
)
@click.option("--vggsounder", is_flag=True, help="Also VGGSounder's modality confusion (needs the package vggsounder).")
@click.option("--run", help="Name of the run. [default: weigh]")
@root_option
@wide_option
@json_option
def weigh(
    root: Path,
    streams: tuple[str, ...],
    folds: int,
    seed: int,
    everything: bool,
    vggsounder: bool,
    run: str | None,
    wide: bool,
    as_json: bool,
) -> None:
    """Say how much each stream should weigh, in closed form, with an interval; writes ROOT/runs/weigh/.

    Says which streams to keep, their weights and what equal weights cost. The head with these weights is saved as a
    run, so that predict and report work from it. Trains nothing; takes seconds to minutes.

    \b
    Examples:
      alphafuse weigh --root demo
      alphafuse weigh --stream timesformer,ast --all
    """
    from alphafuse.heads.studies.runs import check_run_name
    from alphafuse.heads.studies.weigh import weigh as weigh_streams
    from alphafuse.report.tables import to_text
    from alphafuse.report.weigh import describe, write_weigh

    if run:
        check_run_name(run, "weigh")  # before minutes of work
    dataset = Dataset.open(root)
    found = weigh_streams(
        dataset, streams=streams, folds=folds, seed=seed, everything=everything, vggsounder=vggsounder, progress=Bar()
    )
    folder = write_weigh(found, dataset, run=run)
    if as_json:
        print_json(found.to_json())
        return
    print_text(f"{to_text(describe(found), wide=wide)}\nwritten: {folder} (weigh.json, weigh.csv, weigh.md, head/)")
