from pathlib import Path

import numpy as np
import pytest
from support.cli import Run

from alphafuse.data.dataset import Dataset
from alphafuse.data.dropping import drop_clips, dropped_clips, restore_clips
from alphafuse.data.embeddings import Embeddings
from alphafuse.data.sources.folder import import_folder
from alphafuse.errors import DatasetError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abcdefgh":
        path = tmp_path / "clips" / ("dog" if name < "e" else "cat") / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    import_folder(tmp_path / "clips", tmp_path / "root")
    return tmp_path / "root"


def test_dropped_clips_come_back_to_their_places_in_any_number_of_steps(root: Path) -> None:
    dataset = Dataset.open(root)
    before = (root / "manifest.csv").read_bytes()
    ids = list(dataset.manifest.clip_ids)
    fewer = drop_clips(drop_clips(dataset, [ids[3], ids[0], ids[4]], reason="noise"), [ids[1], ids[7]])
    assert list(fewer.manifest.clip_ids) == [ids[2], ids[5], ids[6]] == list(Dataset.open(root).manifest.clip_ids)
    assert [(clip.clip_id, why) for clip, why in dropped_clips(root)] == [
        *((ids[i], "noise") for i in (0, 3, 4)),
        *((ids[i], "") for i in (1, 7)),
    ]
    with pytest.raises(DatasetError, match="a root from which clips were dropped"):
        import_folder(root.parent / "clips", root)
    restore_clips(restore_clips(fewer, [ids[4]]))
    assert sorted(Dataset.open(root).manifest.clip_ids) == ids
    drop_clips(Dataset.open(root), ids[:2])
    restore_clips(Dataset.open(root))
    drop_clips(drop_clips(dataset, [ids[5], ids[2]]), [ids[6]])
    restore_clips(Dataset.open(root))
    assert (root / "manifest.csv").read_bytes() == before and not (root / "dropped.csv").exists()


def test_a_drop_that_was_killed_halfway_can_be_repeated(root: Path) -> None:
    dataset = Dataset.open(root)
    before = (root / "manifest.csv").read_bytes()
    drop_clips(dataset, ["dog/a"])
    (root / "manifest.csv").write_bytes(before)  # as if it was killed before the manifest was written
    restore_clips(drop_clips(Dataset.open(root), ["dog/a"]))
    assert (root / "manifest.csv").read_bytes() == before


def test_what_cannot_be_dropped_or_put_back_is_refused_in_one_line(root: Path) -> None:
    dataset = Dataset.open(root)
    with pytest.raises(DatasetError, match=r"unknown clip 'dog/aa' \(did you mean 'dog/a'\?\)"):
        drop_clips(dataset, ["dog/aa"])
    with pytest.raises(DatasetError, match=r"all 8 clips of .* would be dropped"):
        drop_clips(dataset, list(dataset.manifest.clip_ids))
    with pytest.raises(DatasetError, match=r"no clip was dropped from"):
        restore_clips(dataset)
    drop_clips(dataset, ["dog/a"])
    with pytest.raises(DatasetError, match=r"dropped.csv: unknown clip 'dog/b'"):
        restore_clips(dataset, ["dog/b"])


def test_the_command_drops_lists_and_puts_back(root: Path, run: Run) -> None:
    _, done, _ = run("data", "drop", "dog/a", "dog/b", "--reason", "two sounds", "--root", str(root))
    assert "6 clips" in done and "2 dropped" in done
    assert "dog/a (" in run("data", "drop", "--root", str(root))[1]
    assert "8 clips" in run("data", "drop", "--undo", "--root", str(root))[1]


def test_embeddings_of_dropped_clips_stay_and_are_not_read(root: Path) -> None:
    dataset = Dataset.open(root)
    clips = dataset.manifest.of_split("train")
    features = {"ast": np.zeros((len(clips), 2), np.float32)}
    ids, groups = tuple(clips.clip_ids), tuple(clips.clip_groups)
    dataset.store("train").write(Embeddings(ids, tuple(clips.clip_labels), groups, features, recipes={"ast": {"a": 1}}))
    fewer = drop_clips(dataset, ids[:1])
    assert fewer.embeddings("train").clip_ids == ids[1:] and fewer.store("train").read().clip_ids == ids
