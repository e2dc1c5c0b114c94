"""From a folder of clips to an answer: every step, resumed after an interrupt, and what can't be done."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.cli import Run, assert_one_line_error
from support.clips import write_clip

from alphafuse.answering import STEPS, Step, answer, default_root, unlisted_files
from alphafuse.data.dataset import Dataset
from alphafuse.data.dropping import drop_clips
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import DatasetError
from alphafuse.extract.settings import ExtractSettings
from alphafuse.heads.studies.best_run import best_run
from alphafuse.heads.studies.runs import made_from
from alphafuse.heads.studies.same_clips import current_inputs
from alphafuse.heads.training.settings import TrainSettings

LABELS = ("cat", "dog", "owl")

pytestmark = pytest.mark.slow  # all need a folder that was answered once


def options(encoders: dict[str, Path]) -> dict[str, Any]:
    """Quick settings, with tiny encoders."""
    return {
        "streams": [replace(stream, encoder=str(encoders[stream.name])) for stream in DEFAULT_STREAMS],
        "val_fraction": 0.3,
        "test_fraction": 0.3,
        "seeds": 1,
        "refits": 0,
        "settings": ExtractSettings(workers=1),
        "training": TrainSettings(epochs=1, hidden=(4,)),
    }


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answer") / "films"
    for place, label in enumerate(LABELS):
        for i in range(8):
            write_clip(folder / label / f"{label}{i}.mp4", look=7 * place + i)
    return folder


@pytest.fixture(scope="module")
def root(clips: Path, tiny_encoders: dict[str, Path]) -> Path:
    """An answered root; its first call was interrupted when `compare` began."""
    root = clips.parent / "answered"
    told: list[Step] = []

    def interrupt(step: Step) -> None:
        told.append(step)
        if step.name == "compare":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(clips, root, tell=interrupt, **options(tiny_encoders))
    ended = [step.name for step in told if step.state == "done"]
    assert ended == ["import", "estimate", "audit", "extract", "weigh", "contribute"]
    assert "extract" in next(step.line for step in told if step.name == "estimate" and step.state == "done")
    found = answer(clips, root, **options(tiny_encoders))
    assert [step.name for step in found.steps] == list(STEPS)
    states = {step.name: step.state for step in found.steps}
    assert states == dict.fromkeys(STEPS, "kept") | {"compare": "done", "report": "done"}
    assert set(found.expected) == {"compare", "report"}, "what is kept costs nothing"
    return root


def test_a_repeated_call_keeps_everything_and_answers_the_same(
    clips: Path, root: Path, tiny_encoders: dict[str, Path]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    found = answer(clips, root, **options(tiny_encoders))
    assert {step.state for step in found.steps} == {"kept"} and not found.expected
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    assert found.report == root / "report.html" and found.run == best_run(Dataset.open(root))
    assert found.sentences and found.sentences[0] == json.loads((root / "runs/weigh/weigh.json").read_text())["verdict"]
    assert answer(root, **{name: value for name, value in options(tiny_encoders).items() if "fraction" not in name})


def test_studies_are_of_the_labels_splits_and_embeddings_that_the_root_has(root: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(shutil.copytree(root, tmp_path / "root"))
    for study in ("weigh", "contribute", "compare"):
        assert made_from(dataset.root, study) == current_inputs(dataset)
    assert current_inputs(dataset.with_labelled_by("eye")) != made_from(dataset.root, "weigh")
    manifest = (dataset.root / "manifest.csv").read_text().replace(",cat,", ",dog,", 1)
    (dataset.root / "manifest.csv").write_text(manifest)
    assert current_inputs(Dataset.open(dataset.root)) != made_from(dataset.root, "weigh")


def test_files_that_the_root_neither_lists_nor_dropped_are_counted(root: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(shutil.copytree(root, tmp_path / "root"))
    fewer = drop_clips(dataset, dataset.manifest.clip_ids[0])
    assert unlisted_files(fewer) == 0
    sound = dataset.clip_folder / "owl" / "new.wav"
    sound.write_bytes(b"")
    assert unlisted_files(fewer) == 1
    sound.unlink()


def test_the_command_prints_the_answer_and_what_to_do_with_it(run: Run, clips: Path, root: Path) -> None:
    extra = clips / "owl" / "new.mp4"
    write_clip(extra)
    code, out, err = run("answer", clips, "--root", root)
    extra.unlink()
    assert code == 0, err
    lines = out.splitlines()
    assert f"report: {root / 'report.html'}" in lines and f"run: {best_run(Dataset.open(root))}" in out
    assert [line for line in lines if line.startswith(f"next: alphafuse predict {clips}") and "--why" in line]
    assert err.splitlines()[0].startswith("1/7 import: 24 clips in 3 classes") and "1 more file in" in err
    assert err.splitlines()[-1].startswith("7/7 report: ") and len(err.splitlines()) == len(STEPS)
    found = json.loads(run("answer", clips, "--root", root, "--json")[1])
    assert set(found) == {*["root", "answer", "report", "run", "why", "warnings", "expected_seconds", "steps", "next"]}


def test_what_one_class_can_not_answer_is_left_out_with_its_reason(
    run: Run, tmp_path: Path, tiny_encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_clip(tmp_path / "one" / "dog" / f"{i}.mp4", look=i)
    encoders = [f"--{name}={folder}" for name, folder in tiny_encoders.items()]
    code, out, err = run("answer", tmp_path / "one", "--workers", 1, *encoders)
    assert code == 0 and Path("one-answer/dataset.json").is_file(), err
    left_out = [line for line in err.splitlines() if "left out: " in line]
    assert [line.split(":")[0] for line in left_out] == ["4/7 weigh", "5/7 contribute", "6/7 compare", "7/7 report"]
    assert out.startswith("No answer: the steps above say why.\n")


def test_roots_and_clips_that_do_not_belong_together_are_refused(run: Run, clips: Path, root: Path) -> None:
    other = clips.parent / "other"
    other.mkdir(exist_ok=True)
    assert_one_line_error(run("answer", other, "--root", root), "was made from the clips in", "another --root")
    assert_one_line_error(run("answer", root, "--root", other), "is a root itself")
    assert_one_line_error(run("answer", clips, "--root", root, "--seed", 5), "--seed is for a new one")
    assert_one_line_error(run("answer", clips.parent / "nothing"), "no such clip folder")
    with pytest.raises(DatasetError, match="no clips found"):
        answer(other, clips.parent / "none")
    assert default_root(clips) == Path("films-answer") and default_root(root) == root
