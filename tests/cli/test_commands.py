"""The command line as a user meets it: output, exit codes, one-line errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Run, assert_one_line_error
from support.clips import write_clip
from support.toy import make_dataset

from alphafuse import __version__
from alphafuse.cli.common import walk
from alphafuse.cli.main import cli
from alphafuse.data.sources.folder import TEST_FRACTION
from alphafuse.data.splits import VAL_FRACTION
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import ExperimentError
from alphafuse.extract.pipeline import ExtractSettings
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.table1 import TABLE1_SEEDS
from alphafuse.heads.training.settings import TrainSettings

MakeRoot = Callable[..., Path]


@pytest.mark.parametrize("path", [path for path, _ in walk(cli)], ids=lambda path: " ".join(("alphafuse", *path)))
def test_the_help_of_every_command_and_group_has_an_example(run: Run, path: tuple[str, ...]) -> None:
    code, out, err = run(*path, "--help")
    assert code == 0 and not err
    assert "Example" in out and f"{' '.join(('alphafuse', *path))} " in out.split("Example", 1)[1]


def test_the_options_defaults_are_those_of_python() -> None:
    def options(*path: str) -> dict[str, object]:
        command: object = cli
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        return {option.name: option.default for option in command.params}  # type: ignore[attr-defined]

    for command, settings in (("extract", ExtractSettings()), ("fit", TrainSettings()), ("sweep", TrainSettings())):
        given = {name: value for name, value in vars(settings).items() if value not in (None, False, {})}
        if "hidden" in given:
            given["hidden"] = ",".join(str(width) for width in given["hidden"])
        shared = {name: value for name, value in given.items() if name in options(command)}
        assert len(shared) >= 5
        assert {name: options(command)[name] for name in shared} == shared
    assert options("table1")["seeds"] == TABLE1_SEEDS
    (timesformer,) = (o for o in cli.commands["data"].commands["vggsound"].params if o.name == "timesformer")
    assert f"[default: {DEFAULT_STREAMS[0].encoder}]" in timesformer.help
    assert options("data", "vggsound")["val_fraction"] == VAL_FRACTION
    assert options("data", "folder")["test_fraction"] == TEST_FRACTION


def test_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"{__version__}\n", "")


def test_commands_that_only_read_stores_import_no_torch(extracted: Path) -> None:
    script = (
        "import sys\nfrom alphafuse.cli.main import main\nmain()\n"
        "sys.exit(bool({'torch', 'sklearn'} & sys.modules.keys()))"
    )
    for command in ("info", "verify"):
        words = [sys.executable, "-P", "-c", script, "store", command, str(extracted / "stores" / "train")]
        run = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False)
        assert run.returncode == 0 and run.stdout, run.stderr


def test_vggsound_to_store_in_two_commands(run: Run, tiny_encoders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("aaaaaaaaaaa_000030", "aaaaaaaaaaa_000040", "bbbbbbbbbbb_000000", "ccccccccccc_000001"):
        write_clip(tmp_path / "clips" / f"{name}.mp4")
    (tmp_path / "vggsound.csv").write_text(
        'aaaaaaaaaaa,30,"bird chirping, tweeting",train\naaaaaaaaaaa,40,"bird chirping, tweeting",train\n'
        'bbbbbbbbbbb,0,"bird chirping, tweeting",train\nccccccccccc,1,playing harmonica,test\n'
        "ddddddddddd,1,playing harmonica,test\n"
    )
    root = tmp_path / "root"
    code, out, _ = run(
        *("data", "vggsound", "--csv", tmp_path / "vggsound.csv", "--clips", tmp_path / "clips", "--root", root),
        *("--timesformer", tiny_encoders["timesformer"], "--ast", tiny_encoders["ast"]),
    )
    assert code == 0
    assert "vggsound: 4 clips in 2 classes (train 2, val 1, test 1)" in out
    assert "test: only 0 of 1 clips have a label that occurs in training: no head can score above 0.0%" in out
    assert "missing: 1 of 5 listed clips have no file, such as ddddddddddd_000001" in out
    code, out, _ = run("extract", "--split", "all", "--root", root)  # the root remembers the encoders
    assert code == 0 and "train: 2 clips embedded (timesformer 2, ast 2)" in out
    code, out, _ = run("extract", "--split", "all", "--root", root)
    assert code == 0 and out.count("already in the store, nothing to do") == 3
    code, out, _ = run("extract", "--split", "val", "--root", root, "--json")
    assert code == 0 and json.loads(out)[0]["already"] == 1


def test_extract_counts_failures_by_reason(run: Run, make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    root = make_root()
    for clip in sorted((root / "clips").glob("train0*")):
        write_clip(clip, audio=False)
    code, out, _ = run(
        *("extract", "--split", "train", "--root", root, "--workers", 1),
        *("--timesformer", tiny_encoders["timesformer"], "--ast", tiny_encoders["ast"]),
    )
    assert code == 0 and "4 clips embedded (timesformer 4, ast 2)" in out
    header, row = (line.split(maxsplit=2) for line in out.splitlines()[1:3])
    assert header[:2] == ["clips", "without"] and row[:2] == ["2", "ast"]
    assert row[2].startswith("no audio stream  train0_00000")
    code, out, _ = run("store", "info", root / "stores" / "train", "--json")
    info = json.loads(out)
    assert info["rows"] == {"timesformer": 4, "ast": 2} and len(info["failures"]) == 2


def test_fit_prints_figures_with_n_and_intervals_and_writes_a_run(run: Run, extracted: Path) -> None:
    code, out, _ = run("fit", "--transform", "sqrt", "--on", "ast", "--epochs", 2, "--root", extracted)
    assert code == 0 and "AST sqrt (seed 0)" in out and "95% intervals" in out and "over source videos: Wilson" in out
    folder = extracted / "runs" / "sqrt-ast"
    assert {"config.json", "metrics.json", "history.csv", "head"} <= {path.name for path in folder.iterdir()}
    code, out, _ = run("fit", "--epochs", 2, "--seeds", 2, "--root", extracted, "--run", "mine", "--json")
    figures = json.loads(out)
    assert figures["test"]["n"] == 6 and len(figures["test"]["top1"]["per_seed"]) == 2
    assert (extracted / "runs" / "mine" / "head" / "model.safetensors").is_file()


def test_table1_prints_and_writes_nine_rows(run: Run, extracted: Path) -> None:
    code, out, _ = run("table1", "--seeds", 2, "--epochs", 2, "--root", extracted, "--wide")
    assert code == 0 and "TimeSformer pos-scalar" in out and "AST only" in out and "4/18" in out
    names = {path.name for path in (extracted / "runs" / "table1").iterdir()}
    assert {"table1.json", "table1.md", "figure3.png", "config.json", "history.csv"} <= names
    code, out, _ = run("table1", "--seeds", 2, "--epochs", 2, "--root", extracted, "--json")
    assert len(json.loads(out)["rows"]) == 9


def test_audit_says_what_the_splits_can_show_and_strict_fails(run: Run, extracted: Path) -> None:
    code, out, _ = run("data", "audit", "--root", extracted, "--workers", 1)
    assert code == 0 and "train      6        3              3" in out and "points" in out
    assert (
        run("data", "audit", "--root", extracted, "--no-decode", "--strict")[0] == 1
    )  # 3 source videos settle nothing
    report = json.loads(run("data", "audit", "--root", extracted, "--no-decode", "--json")[1])
    assert report["splits"]["test"]["clips"] == 6 and report["problems"]


def test_a_new_split_of_a_root_keeps_its_embeddings(run: Run, extracted: Path, tmp_path: Path) -> None:
    code, out, _ = run("data", "split", "--root", extracted, "--out", tmp_path / "new", "--val", "3", "--test", "3")
    assert code == 0 and "18 clips in 3 classes" in out and "embeddings of 18 of 18 clips carried over" in out
    assert run("fit", "--root", tmp_path / "new", "--epochs", 1)[0] == 0
    code, out, _ = run("data", "split", "--root", extracted, "--out", tmp_path / "folds", "--folds", "3", "--val", "3")
    assert code == 0 and out.count("carried over") == 3
    assert_one_line_error(
        run("data", "split", "--root", extracted, "--out", tmp_path / "x", "--folds", "3", "--test", "3"), "exclude"
    )


def test_convert_makes_folders_that_extract_takes(run: Run, tmp_path: Path) -> None:
    from support.encoders import load
    from support.originals import save_timesformer, timesformer_tensors

    original = save_timesformer(tmp_path / "original.pyth", timesformer_tensors())
    code, out, _ = run("convert", "timesformer", original, tmp_path / "folder")
    assert code == 0 and "tensors" in out
    assert load("timesformer", tmp_path / "folder").dim == 64
    code, out, _ = run("convert", "timesformer", original, tmp_path / "again", "--frames", 4, "--json")
    assert json.loads(out)["geometry"]
    assert_one_line_error(run("convert", "ast", original, tmp_path / "wrong"), "TimeSformer")
    assert_one_line_error(run("convert", "ast", tmp_path / "nowhere.pth", tmp_path / "wrong"), "nowhere.pth")


def test_store_commands_inspect_verify_merge_and_export(run: Run, extracted: Path, tmp_path: Path) -> None:
    store = extracted / "stores" / "train"
    assert run("store", "verify", store)[:2] == (0, f"{store}: 1 shards, 0 problems\n")
    assert run("store", "pack", store)[0] == 0
    assert run("store", "export", store, tmp_path / "x.npz")[0] == 0 and (tmp_path / "x.npz").is_file()
    shard = next(store.glob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, _ = run("store", "verify", store)
    assert code == 1 and "is damaged" in out and "1 shards, 1 problems" in out


def test_mistakes_get_one_clear_line_and_exit_code_2(
    run: Run, extracted: Path, tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    missing, clips = tmp_path / "missing.csv", extracted / "clips"
    assert_one_line_error(run("data", "vggsound", "--csv", missing, "--clips", clips), "no such csv")
    (tmp_path / "bad.csv").write_text("aaaaaaaaaaa,30,playing harmonica\n")
    assert_one_line_error(
        run("data", "vggsound", "--csv", tmp_path / "bad.csv", "--clips", clips), "line 1 has 3 columns instead of 4"
    )
    (tmp_path / "bad.csv").write_text("aaaaaaaaaaa,30,playing harmonika,train\n")
    assert_one_line_error(
        run("data", "vggsound", "--csv", tmp_path / "bad.csv", "--clips", clips), "unknown label 'playing harmonika'"
    )
    assert_one_line_error(run("data", "vggsound", "--clips", clips), "csv is needed")
    assert_one_line_error(run("extract", "--split", "tests", "--root", extracted), "did you mean 'test'?")
    assert_one_line_error(run("extract", "--split", "train", "--root", tmp_path), "no dataset root")
    assert_one_line_error(run("fit", "--transform", "sqr", "--on", "ast", "--root", extracted), "did you mean 'sqrt'?")
    assert_one_line_error(run("fit", "--transform", "sqrt", "--root", extracted), "--on NAME[,NAME] or --on all")
    assert_one_line_error(run("fit", "--transform", "sqrt", "--on", "audio", "--root", extracted), "unknown stream")
    assert_one_line_error(run("fit", "--seeds", "0", "--root", extracted), "seeds must be")
    assert_one_line_error(run("fit", "--run", "a/b", "--root", extracted), "can't name a run")
    assert_one_line_error(run("fit", "--run", "x" * 300, "--root", extracted), "can't name a run")
    assert_one_line_error(run("fit", "--run", "table1", "--root", extracted), "is reserved for `alphafuse table1`")
    assert_one_line_error(
        run("fit", "--transform", "scale", "--alpha", "1e300", "--on", "ast", "--root", extracted), "finite number"
    )
    assert_one_line_error(run("data", "demo", "--root", tmp_path / "bad.csv"), "can't make the folder")
    assert_one_line_error(run("data", "demo", "--root", extracted), "is the root of another dataset ('root')")
    assert not list(clips.glob("*_0000[1-9]*")), "no clip was written into another dataset's root"
    assert_one_line_error(run("data", "demo", "--root", tmp_path / "d", "--seed", "-1"), "--seed")
    assert_one_line_error(run("data", "audit", "--root", extracted, "--workers", "-1"), "--workers")
    assert_one_line_error(
        run("fit", "--sedes", "1"), "unknown option '--sedes' (did you mean '--seeds'?) (see `alphafuse fit --help`)"
    )
    assert_one_line_error(run("extrakt"), "'extrakt' (did you mean 'extract'?) (see `alphafuse --help`)")
    assert_one_line_error(run("verify"), "unknown command 'verify' (did you mean 'store verify'?)")
    assert_one_line_error(run("data", "flder"), "unknown command 'flder' (did you mean 'folder'?)")
    assert_one_line_error(run("qqq"), "unknown command 'qqq': choose from answer, data, extract, store")
    assert_one_line_error(run("extract"), "missing option '--split': train, val, test or all (see `alphafuse extract")
    assert_one_line_error(run("store", "info", tmp_path / "nowhere"), "no embeddings in")
    assert_one_line_error(
        run("extract", "--split", "train", "--root", extracted, "--ast", "nobody/nothing", "--timesformer", "compact"),
        "the hub can't be reached",
        "give stream ast a folder",
        "alphafuse convert",
        "alphafuse data demo",
    )
    assert_one_line_error(  # the stores of `extracted` were made with other (made-up) encoders
        run(
            *("extract", "--split", "train", "--root", extracted),
            *("--timesformer", tiny_encoders["timesformer"], "--ast", tiny_encoders["ast"]),
        ),
        "was made with another timesformer",
    )


def test_a_group_without_a_command_shows_its_help(run: Run) -> None:
    code, out, err = run("data")
    assert code == 2 and "Commands:" in out and not err


def test_an_edited_dataset_json_is_refused_in_one_line(run: Run, extracted: Path) -> None:
    whole = json.loads((extracted / "dataset.json").read_text())
    for field, value in (("classes", 5), ("clips", 7), ("streams", None)):
        (extracted / "dataset.json").write_text(json.dumps({**whole, field: value}))
        assert_one_line_error(run("fit", "--root", extracted), f"'{field}' must be a")


def test_an_empty_split_is_refused(run: Run, extracted: Path) -> None:
    manifest = extracted / "manifest.csv"
    manifest.write_text("".join(line for line in manifest.open() if ",val," not in line))
    assert_one_line_error(run("extract", "--split", "val", "--root", extracted), "split 'val' has no clips")
    assert_one_line_error(run("fit", "--root", extracted), "split 'val' has no clips")


def test_fit_reports_a_replaced_run_and_requires_a_transform_for_on(run: Run, tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "toy").root
    quick = ("fit", "--root", root, "--epochs", "1", "--hidden", "8")
    assert run(*quick)[2] == ""
    code, out, err = run(*quick, "--seeds", "2")
    assert code == 0 and err == f"replaced: the older run {root / 'runs' / 'untransformed'} (--run NAME keeps both)\n"
    assert "mean over 2 seeds" in out
    code, _, err = run(*quick, "--on", "ast")
    assert code == 2 and "--on ast needs a --transform; to train on one stream, use --stream ast" in err
    assert run(*quick, "--transform", "none", "--on", "ast")[0] == 0, "the baseline of a loop over transforms"


def test_a_name_instead_of_an_experiment_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="fit takes an Experiment, not 'sqrt'"):
        fit(make_dataset(tmp_path / "toy"), "sqrt")  # type: ignore[arg-type]
