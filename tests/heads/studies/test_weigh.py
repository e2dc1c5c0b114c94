"""What `weigh` says of streams that were made to tempt it, and the head that it saves."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression, Ridge
from support.closed import DIMS, STREAMS, make_weigh_dataset, one_hot
from support.progress import RecordedProgress
from support.toy import assert_no_nan, silence_label

from alphafuse.cli.main import cli
from alphafuse.data.dataset import Dataset
from alphafuse.data.streams import DEFAULT_NAMES
from alphafuse.errors import AlphafuseError, ExperimentError
from alphafuse.heads.closed import profile, recommend
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.scoring.vggsounder import ModalityConfusion
from alphafuse.heads.studies import weigh as module
from alphafuse.heads.studies.best_run import best_run
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.reproduce import command_of
from alphafuse.heads.studies.runs import Run, read_run
from alphafuse.heads.studies.weigh import Weighing, weigh
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.page.build import write_report
from alphafuse.report.tables import to_markdown, to_text
from alphafuse.report.weigh import describe, write_weigh

Make = Callable[..., Dataset]
SMALL = {"train": 80, "val": 24, "test": 40}
PROGRESS = RecordedProgress()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda **settings: make_weigh_dataset(tmp_path / "made", **settings)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_weigh_dataset(tmp_path_factory.mktemp("made") / "root")


@pytest.fixture(scope="module")
def found(dataset: Dataset) -> Weighing:
    return weigh(dataset, everything=True, progress=PROGRESS)


@pytest.fixture(scope="module")
def run(dataset: Dataset, found: Weighing) -> Path:
    return write_weigh(found, dataset)


def printed(found: Weighing) -> str:
    """The whole text on one line; in both forms it fits its columns."""
    narrow, wide = (to_text(describe(found), wide=wide) for wide in (False, True))
    assert max(map(len, narrow.splitlines())) <= 80 and max(map(len, wide.splitlines())) <= 120
    assert found.to_json()["answer"] == found.verdict
    return " ".join(wide.split())


def columns(dataset: Dataset, split: str, streams: tuple[str, ...] = DEFAULT_NAMES) -> tuple[np.ndarray, np.ndarray]:
    """Centred streams of total variance 1 each, side by side, and labels as numbers."""
    train, rows = dataset.embeddings("train"), dataset.embeddings(split)
    parts = []
    for stream in streams:
        of_train = train.features[stream].astype(np.float64)
        parts.append((rows.features[stream] - of_train.mean(axis=0)) / np.sqrt(of_train.var(axis=0).sum()))
    return np.concatenate(parts, axis=1), np.array([dataset.classes.index(label) for label in rows.labels])


# what to do


def test_streams_that_both_help_are_kept_and_the_best_single_one_is_named(found: Weighing) -> None:
    text = printed(found)
    assert text.startswith("Keep both streams and weigh them alike: 600 clips don't show that another weight is better")
    assert found.best_single == "timesformer" and "The smallest gain over a stream alone, over " in text
    assert found.weights == {"timesformer": 1.0, "ast": 1.0} and found.found.removed == ()
    assert set(found.heads) == {"chosen", "timesformer", "ast"}, "equal weights are the chosen ones"
    assert all(cost.bound > 0.01 for cost in found.found.without.values())
    assert "timesformer: 1, ast: 1" in repr(found)
    assert PROGRESS.rounds[0] == ("statistics", 600, "clip") and PROGRESS.stopped == len(PROGRESS.rounds)
    done = sum(total for _, total, _ in PROGRESS.rounds)
    assert sum(PROGRESS.done) == done, "every round ends at its total"


def test_a_stream_of_noise_is_dropped_at_a_stated_cost(make: Make) -> None:
    dataset = make(signal={"timesformer": 1.0, "ast": 0.0})
    found = weigh(dataset)
    assert found.verdict.startswith("Drop AST: without it you lose at most 0.")
    assert found.weights["ast"] == 0 and found.raw == {"timesformer": 1.0, "ast": 0.0}
    assert found.head.config.streams == ("timesformer",)
    assert set(found.heads) == {"chosen", "equal", "timesformer", "ast"}
    assert found.heads["timesformer"].comparison is None, "a head isn't compared with itself"
    assert found.heads["equal"].comparison and found.heads["ast"].comparison
    assert "drop" in printed(found)
    folder = write_weigh(found, dataset)
    assert read_run(folder).streams == ("timesformer",)
    assert best_run(dataset) == folder
    assert write_report(dataset, dataset.root / "report.html").is_file()


def test_of_two_copies_either_can_go_and_any_weight_will_do(make: Make) -> None:
    found = weigh(make(streams=(STREAMS[0], STREAMS[2]), copies=("timesformer", "dino-s")), everything=True)
    assert found.verdict.startswith("Either stream can go, and any weight will do: you lose at most 0.")
    assert found.found.profile and found.found.profile.choice.inside.all()
    assert len(found.found.removed) == 1 and found.late and found.late.high.min() > 0.9
    assert_no_nan(json.loads(json.dumps(found.to_json())))


def test_too_few_clips_leave_it_undecided(make: Make) -> None:
    found = weigh(make(sizes={"train": 16, "val": 8, "test": 8}, signal=0.1))
    assert found.verdict.startswith("Undecided: from 16 training clips no stream predicts the labels")
    assert set(found.weights.values()) == {1.0} and found.found.removed == ()
    assert "Equal weights cost" not in printed(found)


def test_a_constant_stream_is_left_out_and_named(make: Make) -> None:
    dataset = make(sizes=SMALL, constant="ast")
    found = weigh(dataset, everything=True)
    assert found.verdict == "Use TimeSformer alone: AST is the same for all clips."
    assert found.constant == ("ast",) and found.weights == {"timesformer": 1.0} and found.late is None
    text = printed(found)
    assert "Left out, because they are the same for all clips: AST." in text
    head = read_run(write_weigh(found, dataset)).heads[0]
    np.testing.assert_array_equal(
        head.predict_logits(dataset.embeddings("test")), found.head.predict_logits(dataset.embeddings("test"))
    )
    with pytest.raises(ExperimentError, match="the embeddings of ast are the same for all training clips"):
        weigh(dataset, streams=["ast"])


def test_a_stream_that_is_not_extracted_and_one_with_a_missing_number_are_named(make: Make) -> None:
    dataset = make(sizes=SMALL)
    for split in SMALL:
        store = dataset.store(split)
        kept = store.read()
        for shard in store.shards():
            shard.unlink()
        features = {"timesformer": kept.features["timesformer"]}
        store.write(replace(kept, features=features, recipes={"timesformer": kept.recipes["timesformer"]}))
    found = weigh(dataset)
    assert found.streams == ("timesformer",) and found.absent == ("ast",) and found.to_json()["absent"] == ["ast"]
    assert "Left out, because they aren't extracted (`alphafuse extract`): AST." in printed(found)
    with pytest.raises(AlphafuseError, match="the clips have no ast embeddings yet: run `alphafuse extract"):
        weigh(dataset, streams=DEFAULT_NAMES)
    dataset = make_weigh_dataset(dataset.root.parent / "undefined", sizes=SMALL, undefined="ast")
    with pytest.raises(AlphafuseError, match="80 of 80 train clips are not extracted yet"):
        weigh(dataset)


def test_a_single_stream_has_nothing_to_be_weighed_against(dataset: Dataset, make: Make) -> None:
    for one in (weigh(dataset, streams=["ast"]), weigh(make(sizes=SMALL, streams=STREAMS[1:2]))):
        assert one.verdict == "AST is the only stream: there is nothing to weigh it against."
        assert one.weights == {"ast": 1.0} and one.found.profile is None and one.zscored is None
        assert set(one.heads) == {"chosen", "ast"} and "On test, " in printed(one)
        assert_no_nan(json.loads(json.dumps(one.to_json())))


@pytest.fixture
def no_inflation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few clips of few dimensions show a weight only without the factor for shared training clips."""
    choose = recommend.choose_by_sums
    monkeypatch.setattr(
        recommend, "choose_by_sums", lambda sums, sizes, equal, **how: choose(sums, sizes, equal, seed=how["seed"])
    )


@pytest.mark.usefixtures("no_inflation")
def test_of_three_streams_the_noise_goes_and_the_others_are_weighed(make: Make) -> None:
    dataset = make(streams=STREAMS, signal={"timesformer": 1.5, "ast": 0.7, "dino-s": 0.0})
    found = weigh(dataset)
    assert found.verdict.startswith("Drop dino-s: without it you lose at most 0.")
    assert "Keep TimeSformer and AST" in found.verdict
    assert found.found.final and found.found.final.streams == DEFAULT_NAMES
    assert found.found.profile and found.found.profile.streams == ("timesformer", "ast", "dino-s")
    assert found.head.config.streams == DEFAULT_NAMES and found.weights["dino-s"] == 0
    assert "The 12 weightings of least error." in printed(found)
    folder = write_weigh(found, dataset)
    assert not (folder / "weigh.png").exists() and (folder / "weigh.csv").is_file()
    some = weigh(dataset, streams=["dino-s", "ast"])
    assert some.streams == ("ast", "dino-s") and some.weights["dino-s"] < some.weights["ast"]
    assert "dino-s should weigh 0.062 times as much as AST (at most 0.1" in some.verdict


@pytest.mark.usefixtures("no_inflation")
def test_of_three_streams_that_stay_each_has_its_weight(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "DIRECTIONS", 3)
    monkeypatch.setattr(profile, "REACH", 2.0)
    signal = {"timesformer": 3.0, "ast": 0.0, "dino-s": 0.0}  # too few clips to drop the noise
    found = weigh(make(streams=STREAMS, signal=signal, sizes=SMALL, classes=6))
    assert found.found.removed == () and found.found.final is found.found.profile
    weighed = found.found.final
    assert weighed and weighed.choice.is_equal_excluded and found.weights["timesformer"] == max(found.weights.values())
    assert np.prod(list(found.weights.values())) == pytest.approx(1)
    for stream in weighed.streams:
        low, high = weighed.range_of(stream)
        assert low <= found.weights[stream] <= high
        assert all(limit in (None, end) for limit, end in zip(weighed.limits_of(stream), (low, high), strict=True))
    assert found.verdict.startswith("Keep TimeSformer, AST and dino-s, with the weights TimeSformer ")
    assert found.heads["equal"].comparison
    assert_no_nan(json.loads(json.dumps(found.to_json())))


# figures


def test_the_chosen_head_is_scikit_learns_ridge_over_its_temperature(dataset: Dataset, found: Weighing) -> None:
    x, truth = columns(dataset, "train")
    dims = sum(DIMS[stream] for stream in DEFAULT_NAMES)
    ridge = Ridge(alpha=found.found.chosen.penalty / (dims / 2)).fit(x, one_hot(truth, 4))  # a dimension's variance: 1
    for split in ("val", "test"):
        own, targets = columns(dataset, split)
        scores = ridge.predict(own)
        logits = found.head.predict_logits(dataset.embeddings(split))
        temperatures = (scores - scores.mean(axis=1, keepdims=True)) / (logits - logits.mean(axis=1, keepdims=True))
        np.testing.assert_allclose(temperatures, np.median(temperatures), rtol=1e-2)
        np.testing.assert_allclose(scores / np.median(temperatures), logits, atol=1e-3)
        result = getattr(found.heads["chosen"], split)
        assert result.top1.mean == pytest.approx((scores.argmax(axis=1) == targets).mean())
        p = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        assert result.loss.mean == pytest.approx(-np.log(p[np.arange(len(p)), targets]).mean(), rel=1e-4)


def test_alphas_for_fit_are_weights_over_standard_deviations(dataset: Dataset, found: Weighing, make: Make) -> None:
    rows = dataset.embeddings("train").features
    spread = {stream: np.sqrt(rows[stream].astype(np.float64).var(axis=0).sum()) for stream in DEFAULT_NAMES}
    assert found.raw["timesformer"] == 1
    assert found.raw["ast"] == pytest.approx(spread["timesformer"] / spread["ast"], rel=1e-6)


def test_the_logistic_probe_is_the_best_on_validation(dataset: Dataset, found: Weighing) -> None:
    x, truth = columns(dataset, "train")
    scale = np.sqrt(sum(DIMS[stream] for stream in DEFAULT_NAMES) / 2)
    results = []
    for strength in (0.001, 0.01, 0.1, 1.0, 10.0):
        model = LogisticRegression(C=strength, max_iter=1000).fit(x * scale, truth)
        val, test = (columns(dataset, split) for split in ("val", "test"))
        own = model.predict_proba(val[0] * scale)[np.arange(len(val[1])), val[1]]
        results.append((-np.log(own).mean(), model.score(test[0] * scale, test[1])))
    loss, accuracy = min(results)
    assert found.probe and found.probe.val.loss.mean == pytest.approx(loss, rel=1e-2)
    assert found.probe.test.top1.mean == pytest.approx(accuracy, abs=0.02)


def test_every_figure_is_in_the_json_and_none_is_undefined(found: Weighing) -> None:
    content = json.loads(json.dumps(found.to_json()))
    assert_no_nan(content)
    assert content["test"] == content["heads"]["chosen"]["test"] and content["test"]["n"] == 160
    assert content["weights"] == found.weights and content["verdict"] == found.verdict
    assert len(content["profile"]["candidates"]) == 65 and content["late"]["clips"] == 600
    assert len(content["zscored"]["candidates"]) == 17
    assert content["heads"]["ast"]["chosen_against"]["p_holm"] <= 1
    assert sum(content["late"]["weights"].values()) == pytest.approx(1)


# the run


def test_the_saved_head_works_like_one_of_fit(dataset: Dataset, found: Weighing, run: Path) -> None:
    assert run == dataset.root / "runs" / "weigh"
    assert {"config.json", "weigh.json", "weigh.csv", "weigh.md", "weigh.png"} <= {path.name for path in run.iterdir()}
    saved = read_run(run)
    test = dataset.embeddings("test")
    np.testing.assert_array_equal(saved.heads[0].predict_logits(test), found.head.predict_logits(test))
    assert saved.metrics["test"]["top1"]["mean"] == found.heads["chosen"].test.top1.mean
    assert saved.experiment == Experiment(normalize="variance").of(DEFAULT_NAMES)
    assert (run / "weigh.md").read_text().strip() == to_markdown(describe(found)).strip()
    assert best_run(dataset) == run
    quick = TrainSettings(epochs=1, hidden=(4,), learning_rate=1e-6)
    fit(dataset, Experiment(), settings=quick)
    assert best_run(dataset) == run, "validation ranks it among the others"
    assert write_report(dataset, dataset.root / "report.html").is_file()


def test_the_command_of_the_run_makes_it_again(dataset: Dataset, run: Path, tmp_path: Path) -> None:
    root = tmp_path / "a root"
    shutil.copytree(dataset.root, root)
    made = write_weigh(weigh(Dataset.open(root), streams=["ast"], folds=3, seed=2), Dataset.open(root), run="mine")
    for folder in (root / "runs" / "weigh", made):
        before = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix in (".json", ".csv")}
        one = Run.open(folder, root)
        words = shlex.split(one.command)
        assert one.command == command_of(one.config, folder.name, root) and words[:2] == ["alphafuse", "weigh"]
        shutil.rmtree(folder)
        result = CliRunner().invoke(cli, words[1:])
        assert result.exit_code == 0, result.output
        again = {path.name: path.read_bytes() for path in folder.glob("*.*") if path.suffix in (".json", ".csv")}
        assert again == before


def test_modality_confusion_compares_the_chosen_head_with_one_head_per_medium(
    dataset: Dataset, found: Weighing, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = found
    asked: dict[str, Any] = {}

    def confusion(clip_ids: Sequence[str], fused: np.ndarray, single: dict[str, np.ndarray], classes: object) -> object:
        asked.update(ids=clip_ids, fused=fused, single=single)
        mu = {name: earlier.heads["chosen"].test.top1 for name in single}
        return ModalityConfusion("by hand", len(clip_ids), 0, mu)

    monkeypatch.setattr(module, "modality_confusion", confusion)
    found = weigh(dataset, vggsounder=True)
    assert found.head.predict_logits(dataset.embeddings("test")) == pytest.approx(asked["fused"])
    for sense, medium in (("sight", "video"), ("sound", "audio")):
        own = [stream for stream in found.dims if found.media[stream] == medium]
        assert own
        if len(own) == 1:
            test = found.heads[own[0]].test
            predicted = asked["single"][sense].argmax(axis=1)
            assert (predicted == test.scores.predicted[0]).all(), "the head of the medium's only stream"
    assert "VGGSounder's modality confusion, of" in printed(found)
    assert "--vggsounder" in command_of({"kind": "weigh", **found.config()}, "weigh", dataset.root)


# bad input


def test_a_class_absent_from_training_and_clips_without_a_stream_are_stated(make: Make) -> None:
    dataset = make(sizes=SMALL)
    silence_label(dataset, "class3")
    found = weigh(dataset)
    text = printed(found)
    assert found.dropped == {"train": 20, "val": 0, "test": 0} and found.clips["train"] == 60
    assert "Left out because they lack a stream: 20 train" in text
    assert "Ceiling: 75.0%, the share of test clips whose label occurs in training." in text
    assert_no_nan(json.loads(json.dumps(found.to_json())))


@pytest.mark.parametrize(
    ("sizes", "classes", "per_video"),
    [
        ({"train": 6, "val": 6, "test": 6}, 6, 1),
        ({"train": 4, "val": 4, "test": 4}, 2, 2),
        ({"train": 12, "val": 12, "test": 12}, 6, 1),
    ],
    ids=["one clip per class", "two source videos", "fewer clips than dimensions"],
)
def test_a_handful_of_clips_is_undecided_not_an_exception(
    make: Make, sizes: dict[str, int], classes: int, per_video: int
) -> None:
    found = weigh(make(sizes=sizes, classes=classes, per_video=per_video, signal=0.2))
    assert found.found.removed == () and printed(found) and found.probe
    assert_no_nan(json.loads(json.dumps(found.to_json())))


def test_training_clips_of_one_class_teach_nothing(make: Make) -> None:
    dataset = make(sizes=SMALL)
    for label in ("class1", "class2", "class3"):
        silence_label(dataset, label)
    found = weigh(dataset, everything=True)
    assert found.verdict.startswith("Undecided") and found.probe is None
    assert_no_nan(json.loads(json.dumps(found.to_json())))


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        ({"train": 2}, {}, "at least two source videos"),
        ({"val": 0}, {}, "val"),
        ({}, {"streams": ["audio"]}, "unknown stream 'audio'"),
        ({}, {"folds": 1}, "folds must be a whole number of at least 2, not 1"),
        ({}, {"folds": True}, "folds must be a whole number"),
    ],
    ids=["one source video", "no validation", "unknown stream", "one fold", "folds of a wrong type"],
)
def test_what_can_not_be_weighed_is_one_line(
    make: Make, sizes: dict[str, int], arguments: dict[str, object], message: str
) -> None:
    dataset = make(sizes=SMALL | sizes)
    with pytest.raises(AlphafuseError, match=message) as caught:
        weigh(dataset, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_names_of_other_commands_are_no_name_for_a_run(dataset: Dataset, found: Weighing) -> None:
    with pytest.raises(ExperimentError, match="the run name 'table1' is reserved"):
        write_weigh(found, dataset, run="table1")
    with pytest.raises(ExperimentError, match="'a/b' can't name a run"):
        write_weigh(found, dataset, run="a/b")
