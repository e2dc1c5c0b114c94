"""How labels were given: remembered by a root, known of published data sets, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import Run, assert_one_line_error
from support.toy import CLAP, DINO, make_dataset

from alphafuse.data.dataset import Dataset
from alphafuse.data.labelling import labelling_warning
from alphafuse.data.sources.kinetics import import_kinetics
from alphafuse.data.sources.resplit import resplit_dataset
from alphafuse.data.sources.ucf101 import import_ucf101
from alphafuse.data.sources.vggsound import import_vggsound
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.errors import DatasetError


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Empty files of own clips, in a folder per class."""
    for label in ("dog", "cat"):
        for number in range(6):
            path = tmp_path / "clips" / label / f"{label}{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return tmp_path / "clips"


def recorded(root: Path) -> object:
    """Return what dataset.json says; "" if it says nothing."""
    return json.loads((root / "dataset.json").read_text()).get("labelled_by", "")


def test_a_root_remembers_how_labels_were_given_until_told_otherwise(run: Run, clips: Path, tmp_path: Path) -> None:
    root, split = tmp_path / "root", tmp_path / "split"
    assert run("data", "folder", clips, "--root", root)[0] == 0
    assert recorded(root) == "" and Dataset.open(root).labelled_by is None
    assert run("data", "labelled-by", "--root", root) == (0, "unknown\n", "")
    code, out, _ = run("data", "folder", clips, "--root", root, "--labelled-by", "eye", "--json")
    assert code == 0 and json.loads(out)["labelled_by"] == "eye" == recorded(root)
    assert run("data", "folder", clips, "--root", root)[0] == 0
    assert recorded(root) == "eye", "importing again keeps it"
    assert run("data", "labelled-by", "both", "--root", root) == (0, "both\n", "")
    code, out, _ = run("data", "labelled-by", "--root", root, "--json")
    assert json.loads(out) == {"root": str(root), "labelled_by": "both"} and recorded(root) == "both"
    assert run("data", "streams", "--root", root, "--remove", "ast")[0] == 0
    assert recorded(root) == "both", "changing streams keeps it"
    resplit_dataset(Dataset.open(root), split, val=2, test=2)
    assert recorded(split) == "both", "another split keeps it"


def test_an_unknown_way_of_labelling_is_one_line_and_nothing_is_written(run: Run, clips: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    message = "unknown way of labelling 'eyes' (did you mean 'eye'?): choose from ear, eye, both"
    assert_one_line_error(run("data", "folder", clips, "--root", root, "--labelled-by", "eyes"), message)
    assert not root.exists()
    assert run("data", "folder", clips, "--root", root)[0] == 0
    before = (root / "dataset.json").read_bytes()
    assert_one_line_error(run("data", "labelled-by", "eyes", "--root", root), message)
    assert (root / "dataset.json").read_bytes() == before


def vggsound(folder: Path, root: Path, **options: str) -> Dataset:
    (folder / "aaaaaaaaaaa_000001.mp4").touch()
    (folder / "list.csv").write_text("aaaaaaaaaaa,1,playing harmonica,train\n")
    return import_vggsound(folder / "list.csv", folder, root, **options).dataset


def kinetics(folder: Path, root: Path, **options: str) -> Dataset:
    (folder / "aaaaaaaaaaa_000001_000011.mp4").touch()
    (folder / "list.csv").write_text("label,youtube_id,time_start,time_end,split\nyoga,aaaaaaaaaaa,1,11,train\n")
    return import_kinetics(folder, root, csv=folder / "list.csv", **options).dataset


def ucf101(folder: Path, root: Path, **options: str) -> Dataset:
    (folder / "v_YoYo_g08_c01.avi").touch()
    lists = {"classInd": "1 YoYo", "trainlist01": "YoYo/v_YoYo_g08_c01.avi 1", "testlist01": "YoYo/v_YoYo_g01_c01.avi"}
    for name, line in lists.items():
        (folder / f"{name}.txt").write_text(line)
    return import_ucf101(folder, root, splits=folder, **options).dataset


@pytest.mark.parametrize(("make", "published"), [(vggsound, "both"), (kinetics, "eye"), (ucf101, "eye")])
def test_of_published_data_sets_it_is_known_unless_told_otherwise(
    make: Callable[..., Dataset], published: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    assert make(tmp_path, root).labelled_by == published == recorded(root)
    assert make(tmp_path, root, labelled_by="ear").labelled_by == "ear"
    assert make(tmp_path, root).labelled_by == "ear", "what the root says counts more than what was published"
    with pytest.raises(DatasetError, match="unknown way of labelling 'nose'"):
        make(tmp_path, root, labelled_by="nose")


@pytest.mark.parametrize(
    ("labelled_by", "words"),
    [
        ("eye", "by eye: sound can look useless here even where it carries the event"),
        ("ear", "by ear: sight can look useless here even where it shows the event"),
        ("both", None),
        (None, "it isn't known how labels were given"),
    ],
)
def test_labels_given_by_one_sense_are_warned_of_where_sight_and_sound_are_compared(
    tmp_path: Path, labelled_by: str | None, words: str | None
) -> None:
    def warning(*streams: Stream) -> str | None:
        dataset = make_dataset(tmp_path / "-".join(stream.name for stream in streams), streams=streams)
        return labelling_warning(dataset if labelled_by is None else dataset.with_labelled_by(labelled_by))

    for streams in (DEFAULT_STREAMS, (DINO, CLAP, *DEFAULT_STREAMS)):
        found = warning(*streams)
        assert found is None if words is None else found and words in found and "arXiv 2606.14958" in found
    assert warning(DINO, DEFAULT_STREAMS[0]) is None, "of sight alone there is nothing to say"
    assert warning(CLAP) is None


def test_the_warning_of_unknown_labels_names_a_command_that_ends_it(run: Run, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "toy")
    found = labelling_warning(dataset)
    assert found is not None
    command = found.partition("`alphafuse ")[2].rstrip("`").replace("ear|eye|both", "both")
    assert run(*command.split(), "--root", dataset.root)[0] == 0
    assert labelling_warning(Dataset.open(dataset.root)) is None
