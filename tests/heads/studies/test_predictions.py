"""The answers of a run for every clip of a split, without training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alphafuse.data.dataset import Dataset
from alphafuse.errors import ExperimentError, RecipeMismatchError
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.studies.evaluate import evaluate
from alphafuse.heads.studies.fit import fit
from alphafuse.heads.studies.runs import read_run
from alphafuse.heads.studies.weigh import weigh
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.report.weigh import write_weigh

QUICK = TrainSettings(epochs=3, hidden=(8,))


def test_every_result_of_a_run_gives_the_same_answers_from_the_cache(extracted: Path) -> None:
    result = fit(extracted, seeds=2, settings=QUICK)
    dataset = Dataset.open(extracted)
    for split in ("train", "val", "test"):
        clips, rows = dataset.manifest.of_split(split), dataset.embeddings(split)
        expected = np.mean([one.head.predict_proba(rows).astype(np.float64) for one in result.heads], axis=0)
        found = result.predictions(split)
        assert (found.split, len(found), found.classes) == (split, len(clips), dataset.classes)
        assert found.clip_ids == tuple(clip.clip_id for clip in clips)
        assert found.labels == tuple(clip.label for clip in clips)
        assert found.groups == tuple(clip.group for clip in clips)
        np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
        assert found.predicted == tuple(dataset.classes[i] for i in expected.argmax(axis=1))
        assert found.top1.mean == np.mean([a == b for a, b in zip(found.predicted, found.labels, strict=True)])
        for other in (read_run(result.folder), evaluate(result.folder, split=split)):
            np.testing.assert_array_equal(other.predictions(split).probabilities, found.probabilities)
    assert evaluate(result.folder, split="val").predictions().split == "val"


def test_a_result_answers_with_its_own_heads_after_its_run_was_replaced(extracted: Path) -> None:
    first = fit(extracted, settings=QUICK)
    before = first.predictions("val").probabilities
    second = fit(extracted, settings=replace(QUICK, epochs=1))
    assert second.folder == first.folder
    np.testing.assert_array_equal(first.predictions("val").probabilities, before)
    assert not np.array_equal(second.predictions("val").probabilities, before)


def test_weigh_answers_before_and_after_it_is_written(extracted: Path) -> None:
    found = weigh(extracted)
    before = found.predictions("test")
    np.testing.assert_array_equal(
        read_run(write_weigh(found, extracted)).predictions().probabilities, before.probabilities
    )
    assert before.top1.mean == found.heads["chosen"].test.top1.mean


def test_answers_need_the_embeddings_of_the_run(extracted: Path, tmp_path: Path) -> None:
    result = fit(extracted, settings=QUICK)
    other = replace(result, config={**result.config, "embeddings": {s: {"dim": 9} for s in ("timesformer", "ast")}})
    with pytest.raises(RecipeMismatchError, match="was trained on another timesformer dim"):
        other.predictions()
    away = shutil.copytree(result.folder, tmp_path / "away" / "run")
    with pytest.raises(ExperimentError, match="not inside a dataset root"):
        read_run(away).predictions()
    np.testing.assert_array_equal(
        read_run(away).predictions(dataset=extracted).probabilities, result.predictions().probabilities
    )


def test_sight_and_sound_name_the_streams_of_a_medium(extracted: Path) -> None:
    assert fit(extracted, Experiment(streams="sound"), settings=QUICK).folder.name == "ast-only"
    assert fit(extracted, Experiment("sqrt", on="sight"), settings=QUICK).experiment.on == "timesformer"
    assert weigh(str(extracted), streams="sound").weights == weigh(extracted, streams=["ast"]).weights
    assert Dataset.open(extracted).embeddings("val", streams="sight").dims.keys() == {"timesformer", "ast"}
