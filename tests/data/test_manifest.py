import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from alphafuse.data.dataset import Dataset
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.errors import DatasetError, EmptySplitError

DOG = Clip("abc_000001", "sub dir/abc_000001.mp4", "dog, barking", "train", "abc")
CAT = Clip("däf_000002", "däf_000002.mkv", 'a "quoted" cat', "test", "däf")


def test_manifest_survives_a_round_trip_with_commas_quotes_and_unicode(tmp_path: Path) -> None:
    Manifest([DOG, CAT]).write(tmp_path / "manifest.csv")
    assert list(Manifest.read(tmp_path / "manifest.csv")) == [DOG, CAT]


def test_manifest_refuses_a_clip_id_that_occurs_twice() -> None:
    with pytest.raises(DatasetError, match=r"clip_id 'abc_000001' occurs 2 times"):
        Manifest([DOG, DOG])


@pytest.mark.parametrize(
    "path",
    [
        "../secret.mp4",
        "/etc/passwd",
        "a/../../b.mp4",
        "a/..",
        "..",
        "..\\secret.mp4",
        "a\\..\\..\\b.mp4",
        "a/..\\b.mp4",
        "\\\\server\\share\\a.mp4",
        "C:\\a.mp4",
        "c:/a.mp4",
    ],
)
def test_clip_refuses_a_path_that_leaves_the_clip_folder(path: str) -> None:
    with pytest.raises(DatasetError, match="leaves the clip folder"):
        Clip("a", path, "dog", "train", "a")


def test_clip_refuses_control_characters_empty_fields_and_unknown_splits() -> None:
    with pytest.raises(DatasetError, match="control character"):
        Clip("a", "a.mp4", "dog\x1b[31m", "train", "a")
    with pytest.raises(DatasetError, match="empty label"):
        Clip("a", "a.mp4", "", "train", "a")
    with pytest.raises(DatasetError, match=r"unknown split 'tran' \(did you mean 'train'\?\)"):
        Clip("a", "a.mp4", "dog", "tran", "a")


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        " a ",
        "-rf",
        "--help",
        "~root",
        "~",
        "...",
        "a..b",
        "..a",
        "a:b",
        "C: the movie",
        "50% #1 & 'two' \"three\", four; five|six?*<>",
        "back\\slash",
        "déjà vu 猫 кошка قطة बिल्ली",
        "کتاب\u200cخانه",  # a joiner is part of the word
        "👩\u200d🚀",
        "non-breaking\xa0space",
        "=1+1",
        "x" * 250,
    ],
)
def test_legitimate_names_are_kept_as_they_are(tmp_path: Path, name: str) -> None:
    clip = Clip(name, f"{name}.mp4", name, "train", name)
    nested = Clip(f"{name}/2", f"{name}/{name}.mp4", name, "test", name)
    Manifest([clip, nested]).write(tmp_path / "manifest.csv")
    assert list(Manifest.read(tmp_path / "manifest.csv")) == [clip, nested]


def test_a_link_in_the_clip_folder_may_lead_out_of_it(tmp_path: Path) -> None:
    """A link is made on purpose; a path in a manifest alone can't leave the folder."""
    (tmp_path / "root" / "clips").mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.mp4").write_bytes(b"a film")
    (tmp_path / "root" / "clips" / "linked").symlink_to(tmp_path / "disk")
    clip = Clip("a", "linked/a.mp4", "dog", "train", "a")
    root = tmp_path / "root"
    dataset = Dataset.create(root, Manifest([clip]), name="d", clip_folder=root / "clips", classes=("dog",))
    assert dataset.path_of(clip).read_bytes() == b"a film"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("clip_id,path,label\n", "first line must be clip_id,path,label,split,group"),
        ("clip_id,path,label,split,group\na,a.mp4,dog,train\n", "line 2 has 4 columns instead of 5"),
        ("clip_id,path,label,split,group\n\na,../a.mp4,dog,train,a\n", "line 3: clip a: path"),
        ("", "is not a manifest"),
    ],
)
def test_errors_of_a_manifest_name_the_line_and_the_reason(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.csv").write_text(content)
    with pytest.raises(DatasetError, match=message):
        Manifest.read(tmp_path / "manifest.csv")


def test_a_missing_manifest_or_one_that_is_not_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such csv: "):
        Manifest.read(tmp_path / "manifest.csv")
    header = b"clip_id,path,label,split,group\na,a.mp4,dog,train,a\n"
    for broken, message in (
        (b"b,b.mp4,d\xff,train,b\n", "line 3 is not UTF-8"),
        (b'b,"b.mp4"x,dog,train,b\n', "line 3 can't be read as csv: "),
        (b"a,b.mp4,dog,train,b\n", "lines 2, 3: clip_id 'a' occurs 2 times"),
    ):
        (tmp_path / "manifest.csv").write_bytes(header + broken)
        with pytest.raises(DatasetError, match=f"manifest.csv {message}"):
            Manifest.read(tmp_path / "manifest.csv")


def test_repeated_labels_splits_and_groups_are_stored_once(tmp_path: Path) -> None:
    """Millions of clips must not hold a copy of each label, or a dictionary each."""
    cuts = [Clip(f"video_{cut:06d}", f"{cut}.mp4", "dog, barking", "train", "video") for cut in range(3)]
    Manifest(cuts).write(tmp_path / "manifest.csv")
    read = Manifest.read(tmp_path / "manifest.csv")
    assert list(read) == cuts and not hasattr(read[0], "__dict__")
    for name in ("label", "split", "group"):
        assert len({id(getattr(clip, name)) for clip in read}) == 1


def test_clips_can_be_pickled_for_other_processes() -> None:
    assert pickle.loads(pickle.dumps(CAT)) == CAT and replace(CAT, split="val").split == "val"


def test_empty_split_is_refused_with_the_sizes_of_all() -> None:
    with pytest.raises(EmptySplitError, match=r"split 'val' has no clips \(train 1, val 0, test 1\)"):
        Manifest([DOG, CAT]).require_split("val")


def test_a_root_stores_a_relative_path_of_a_clip_folder_inside_it_so_that_it_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "root" / "clips").mkdir(parents=True)
    Dataset.create(
        tmp_path / "root",
        Manifest([DOG]),
        name="d",
        clip_folder=tmp_path / "root" / "clips",
        classes=("dog, barking",),
    )
    moved = (tmp_path / "root").rename(tmp_path / "elsewhere")
    assert Dataset.open(moved).path_of(DOG) == moved / "clips" / DOG.path


def test_root_refuses_a_manifest_label_that_is_not_among_its_classes(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"unknown label 'dog, barking' \(did you mean 'dog, barkin'\?\)"):
        Dataset.create(tmp_path, Manifest([DOG]), name="d", clip_folder=tmp_path, classes=("dog, barkin",))


def test_a_root_can_be_made_again_but_another_dataset_split_or_edited_manifest_is_not_overwritten(
    tmp_path: Path,
) -> None:
    def create(name: str, **source: object) -> None:
        classes = ("dog, barking",)
        Dataset.create(tmp_path, Manifest([DOG]), name=name, clip_folder=tmp_path, classes=classes, source=source)

    create("mine", seed=0)
    create("mine", seed=1)
    with pytest.raises(DatasetError, match=r"is the root of another dataset \('mine'\): name another --root"):
        create("demo")
    edited = (tmp_path / "manifest.csv").read_text().replace("train", "test")
    (tmp_path / "manifest.csv").write_text(edited)
    with pytest.raises(DatasetError, match=r"manifest.csv was edited"):
        create("mine", seed=1)
    (tmp_path / "dataset.json").unlink()
    create("mine", split={"seed": 0})
    with pytest.raises(DatasetError, match=r"`alphafuse data split` made"):
        create("mine", seed=1)


def test_opening_a_folder_that_is_not_a_root_is_an_error_that_names_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError,
        match=r"no dataset root at .* make one with `alphafuse data demo\|vggsound\|ucf101\|kinetics\|folder",
    ):
        Dataset.open(tmp_path)
