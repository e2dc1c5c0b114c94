"""`contribute`: what the embeddings offer, what a trained head uses, and what is said of both."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.toy import CLAP, DINO, SETTINGS, assert_no_nan, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.errors import DatasetError, ExperimentError
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.studies.best_run import best_run
from alphafuse.heads.studies.contribute import Contribution, contribute
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.runs import list_runs, read_run
from alphafuse.heads.studies.use import use_of_run
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.contribute import headline, write_contribution
from alphafuse.report.studies import describe
from alphafuse.report.tables import to_text

SIZES = {"train": 400, "val": 100, "test": 300}
STREAMS = (Stream("a", "compact", "video"), Stream("b", "compact", "audio"))
Make = Callable[[np.random.Generator, int], tuple[np.ndarray, dict[str, np.ndarray]]]


def dataset_of(root: Path, make: Make, streams: tuple[Stream, ...] = STREAMS) -> Dataset:
    """Make a dataset of two clips per source video; `make` gives (clips,) classes and stream -> (clips, dim)."""
    made = {split: make(np.random.default_rng(i), size) for i, (split, size) in enumerate(SIZES.items())}
    classes = tuple(f"class {i}" for i in range(1 + max(int(targets.max()) for targets, _ in made.values())))
    clips = {
        split: [
            Clip(f"{split}{i // 2}_{i:06d}", f"{split}{i}.mp4", classes[target], split, f"{split}{i // 2}")
            for i, target in enumerate(targets)
        ]
        for split, (targets, _) in made.items()
    }
    dataset = Dataset.create(
        root,
        Manifest([clip for own in clips.values() for clip in own]),
        name="made",
        clip_folder=root / "clips",
        classes=classes,
        streams=streams,
    )
    for split, (_, features) in made.items():
        dataset.store(split).write(
            Embeddings(
                clip_ids=tuple(clip.clip_id for clip in clips[split]),
                labels=tuple(clip.label for clip in clips[split]),
                groups=tuple(clip.group for clip in clips[split]),
                features={name: matrix.astype(np.float32) for name, matrix in features.items()},
                recipes={name: {"protocol": "standard"} for name in features},
            )
        )
    return dataset


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = make_dataset(tmp_path_factory.mktemp("toy"), silent_test_clips=3)
    fit(dataset, Experiment(), settings=SETTINGS, seeds=2)
    fit(dataset, Experiment(), settings=replace(SETTINGS, hidden=()), run="linear")
    return dataset


@pytest.fixture(scope="module")
def found(toy: Dataset) -> Contribution:
    return contribute(toy, refits=3)


def test_shares_sum_to_what_all_streams_are_worth_and_figures_agree(found: Contribution) -> None:
    whole, none = found.values["timesformer", "ast"], found.values[()]
    assert none.bits.mean == 0 and none.accuracy.mean == pytest.approx(1 / 9)
    for unit in ("bits", "accuracy"):
        total = sum(getattr(worth, unit).mean for worth in found.streams.shares.values())
        assert total == pytest.approx(getattr(whole, unit).mean - getattr(none, unit).mean)
        for name, other in (("timesformer", "ast"), ("ast", "timesformer")):
            gain = getattr(whole, unit).mean - getattr(found.values[other,], unit).mean
            assert getattr(found.gains[name].worth, unit).mean == pytest.approx(gain)
    for worth in found.values.values():
        assert worth.bits.interval.low <= worth.bits.mean <= worth.bits.interval.high
    assert found.clips["test"] == 42 and found.dropped["test"] == 3
    assert set(found.out_of_fold) == set(found.values)
    assert found.of_media is None and len(found.by_class) == 18
    by_class = sum(share.n * share.worth.bits.mean for share in found.by_class if share.stream == "ast")
    assert by_class / 42 == pytest.approx(found.streams.shares["ast"].bits.mean)


def test_a_permuted_stream_gains_nothing_and_a_true_one_adds(found: Contribution) -> None:
    for gain in found.gains.values():
        assert gain.verdict == "adds" and max(gain.permuted_bits) < gain.worth.bits.mean / 4
        assert len(set(gain.permuted_bits)) == 3
    assert headline(found)[0] == "Keep both: each tells something about the label that the other doesn't."


def test_the_heads_are_ridge_regressions_on_weighted_streams(found: Contribution, toy: Dataset) -> None:
    """Accuracy of scikit-learn's ridge, best of many ratios and penalties by out-of-fold squared error."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    from alphafuse.heads.closed.moments import assign_folds

    train, test = toy.embeddings("train"), toy.embeddings("test")
    kept = test.take(test.present("ast"))
    targets = np.array([toy.classes.index(label) for label in train.labels])
    folds = PredefinedSplit(assign_folds(train.groups, targets, 5))
    searches = {}
    for exponent in range(-4, 5):
        columns, others = [], []
        for stream, weight in (("timesformer", 1), ("ast", 2.0**exponent)):
            x = train.features[stream].astype(np.float64)
            scale = weight / np.sqrt(x.var(axis=0).sum())
            columns.append(scale * x)
            others.append(scale * kept.features[stream])
        grid = {"alpha": 2.0 ** np.arange(-14, 8, 0.5)}
        search = GridSearchCV(Ridge(), grid, scoring="neg_mean_squared_error", cv=folds)
        search.fit(np.hstack(columns), np.eye(9)[targets])
        searches[exponent] = search.best_score_, search.predict(np.hstack(others)).argmax(axis=1)
    best = max(searches, key=lambda exponent: searches[exponent][0])
    weights = found.weights["timesformer", "ast"]
    assert np.log2(weights["ast"] / weights["timesformer"]) == pytest.approx(best)
    right = np.mean([toy.classes[i] == label for i, label in zip(searches[best][1], kept.labels, strict=True)])
    assert found.values["timesformer", "ast"].accuracy.mean == pytest.approx(right, abs=1.5 / 42)


def test_a_copied_stream_can_go_and_cooperates_by_minus_what_it_is_worth(tmp_path: Path) -> None:
    def make(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        targets = rng.integers(0, 3, clips)
        x = np.eye(3)[targets] + 0.5 * rng.normal(size=(clips, 3))
        return targets, {"a": x, "b": x}

    found = contribute(dataset_of(tmp_path / "root", make), refits=0)
    alone = found.values["a",]
    assert found.values["b",].bits.mean == pytest.approx(alone.bits.mean, abs=1e-9)
    assert found.streams.pairs["a", "b"].bits.mean == pytest.approx(-alone.bits.mean, abs=0.01)
    # nothing differs: Wilson's bound for 0 of the 150 source videos is 1.8 points, which is more than 1
    assert {gain.verdict for gain in found.gains.values()} == {"undecided"}
    assert "Undecided: whether" in headline(found)[0]


def test_independent_halves_of_a_label_cooperate_by_0_bits(tmp_path: Path) -> None:
    def make(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        one, other = np.arange(clips) % 2, np.arange(clips) // 2 % 2
        noise = 0.02 * rng.normal(size=(2, clips, 2))
        return 2 * one + other, {"a": np.eye(2)[one] + noise[0], "b": np.eye(2)[other] + noise[1]}

    found = contribute(dataset_of(tmp_path / "root", make), refits=0)
    assert found.values["a", "b"].bits.mean == pytest.approx(2, abs=0.1)
    assert found.streams.pairs["a", "b"].bits.mean == pytest.approx(0, abs=0.05)
    assert found.streams.pairs["a", "b"].accuracy.mean > 0.15  # accuracy invents some


def test_only_trained_heads_see_what_a_combination_tells(tmp_path: Path) -> None:
    def make(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        one, other = rng.integers(0, 2, (2, clips))
        signs = {"a": 2 * one - 1, "b": 2 * other - 1}
        return one ^ other, {s: x[:, None] + 0.2 * rng.normal(size=(clips, 2)) for s, x in signs.items()}

    dataset = dataset_of(tmp_path / "root", make)
    closed = contribute(dataset, refits=0)
    assert abs(closed.values["a", "b"].bits.mean) < 0.02
    assert "undecided" in {gain.verdict for gain in closed.gains.values()}
    settings = TrainSettings(hidden=(16,), epochs=25, batch_size=32, learning_rate=2e-2, dropout=0)
    trained = contribute(dataset, head="fit", refits=1, settings=settings)
    assert trained.values["a", "b"].bits.mean > 0.9 and trained.values["a",].bits.mean < 0.05
    assert trained.streams.pairs["a", "b"].bits.mean > 0.85
    assert max(gain.permuted_bits[0] for gain in trained.gains.values()) < 0.1 and not trained.out_of_fold
    fit(dataset, Experiment(), settings=settings, run="xor")
    used = use_of_run(dataset.root / "runs" / "xor", dataset)
    assert used.interaction and used.interaction.accuracy.mean > 0.3


def test_a_stream_of_noise_has_a_perceptual_score_of_0_in_expectation(tmp_path: Path) -> None:
    def make(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        targets = rng.integers(0, 3, clips)
        x = np.eye(3)[targets] + 0.7 * rng.normal(size=(clips, 3))
        return targets, {"a": x, "b": rng.normal(size=(clips, 4))}

    dataset = dataset_of(tmp_path / "root", make)
    fit(dataset, Experiment(), settings=TrainSettings(hidden=(), epochs=5, learning_rate=1e-2), run="linear")
    found = contribute(dataset, refits=2)
    assert found.used and found.used.is_additive and found.used.interaction is None
    noise, signal = found.used.perceptual["b"], found.used.perceptual["a"]
    assert noise.bits.interval.low < 0 < noise.bits.interval.high and abs(noise.accuracy.mean) < 0.02
    assert signal.bits.interval.low > 0.2
    assert found.gains["a"].verdict == "adds" and found.gains["b"].verdict != "adds"
    assert found.weights["a", "b"]["b"] < 0.5 and abs(found.gains["b"].worth.bits.mean) < 0.02  # not what noise costs
    assert np.abs(found.gains["b"].permuted_bits).max() < 0.02
    assert headline(found)[0].startswith("Keep sight as a sees it.")


def test_four_streams_are_shared_also_among_media(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "root", streams=(*DEFAULT_STREAMS, CLAP, DINO))
    found = contribute(dataset, refits=0)
    assert len(found.values) == 16 and len(found.streams.pairs) == 6 and found.of_media
    whole = found.values["timesformer", "ast", "clap", "dino-s"].bits.mean
    assert sum(worth.bits.mean for worth in found.of_media.shares.values()) == pytest.approx(whole)
    text = to_text(describe(found))
    assert "share of a medium" in text and "sight with sound" in text and "sound as clap hears it" in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    some = contribute(dataset, streams=("clap", "timesformer"), refits=0)
    assert set(some.media) == {"timesformer", "clap"} and some.of_media is None
    alone = contribute(dataset, streams=("clap",), refits=1)
    assert alone.streams.shares["clap"].bits.mean == pytest.approx(alone.values["clap",].bits.mean)
    assert headline(alone)[0].startswith("Sound as clap hears it tells +")
    assert "On top" not in to_text(describe(alone))


def test_the_result_is_a_run_that_others_list_and_leave_out_as_best(found: Contribution, toy: Dataset) -> None:
    folder = write_contribution(found, toy)
    content = json.loads((folder / "contribute.json").read_text())
    assert_no_nan(content)
    said = {"answer": headline(found)[0], "note_on_encoders": "", "said": headline(found)}
    assert content == json.loads(json.dumps({**said, **found.to_json()}))
    assert [value["streams"] for value in content["values"]] == [[], ["timesformer"], ["ast"], ["timesformer", "ast"]]
    with (folder / "contribute.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 and float(rows[0]["bits"]) == found.by_class[0].worth.bits.mean
    assert (folder / "contribute.md").read_text().startswith("# What each stream contributes on toy")
    (run,) = (run for run in list_runs(toy.root)[0] if run.kind == "contribute")
    assert run.command.startswith("alphafuse contribute --run ") and "--refits 3 --seed 0" in run.command
    assert best_run(toy).name != "contribute"
    with pytest.raises(ExperimentError, match="is a run of contribute, which keeps no heads"):
        read_run(folder)
    with pytest.raises(ExperimentError, match="the run name 'contribute' is reserved"):
        fit(toy, Experiment(), run="contribute")


def test_the_text_says_what_to_do_first_and_then_what_the_best_run_uses(found: Contribution, toy: Dataset) -> None:
    used = found.used
    assert used and used.run == best_run(toy) and set(used.perceptual) == {"timesformer", "ast"}
    text = to_text(describe(found), wide=True)
    assert text.startswith("Keep both")
    assert "\n\nWhat each stream contributes on toy: 90 train and 42 test clips" in text
    assert "AST from other clips" in text and "Left out because they lack a stream: 3 test." in text
    assert "the heads held fixed" in text.replace("\n  ", " ")
    assert "only a sum over streams" in text or "these heads add up" in text


def test_mistakes_are_one_line_before_the_work(toy: Dataset, tmp_path: Path) -> None:
    for arguments, message in (
        ({"head": "ridge"}, "unknown head 'ridge'"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"refits": -1}, "refits must be a whole number"),
        ({"streams": ("clap",)}, "unknown stream 'clap'"),
        ({"run": tmp_path / "none"}, "no such run"),
    ):
        with pytest.raises((DatasetError, ExperimentError), match=message):
            contribute(toy, **arguments)  # type: ignore[arg-type]

    def constant(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return rng.integers(0, 2, clips), {"a": rng.normal(size=(clips, 2)), "b": np.ones((clips, 3))}

    with pytest.raises(ExperimentError, match="the b embeddings are the same for all training clips"):
        contribute(dataset_of(tmp_path / "root", constant))


def test_clips_of_a_class_without_training_clips_are_left_out(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "root", unseen_test_labels=2)
    found = contribute(dataset, refits=0)
    assert found.unseen == 10 and found.clips["test"] == 35
    assert_no_nan(found.to_json())
    assert "no training clip: 10 test clips" in to_text(describe(found))
