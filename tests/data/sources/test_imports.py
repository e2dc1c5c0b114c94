import shutil
from pathlib import Path

import pytest

from alphafuse.data.manifest import Clip
from alphafuse.data.sources.folder import import_folder
from alphafuse.data.sources.vggsound import import_vggsound, official_classes, paper_rows, read_vggsound_csv
from alphafuse.data.splits import Ceiling, reachable_ceiling, split_off, take_subset
from alphafuse.data.streams import DEFAULT_STREAMS, Stream
from alphafuse.errors import DatasetError

CSV = """\
aaaaaaaaaa-,30,"bird chirping, tweeting",train
aaaaaaaaaa-,90,"bird chirping, tweeting",train
bbbbbbbbbb_,0,playing harmonica,train
cccccccccc1,5,playing harmonica,train
dddddddddd2,5,playing harmonica,test
eeeeeeeeee3,123456,"bird chirping, tweeting",test
"""


@pytest.fixture
def vggsound(tmp_path: Path) -> tuple[Path, Path]:
    """VGGSound's csv and a nested clip folder in which one listed file is missing."""
    csv, clips = tmp_path / "vggsound.csv", tmp_path / "clips"
    csv.write_text(CSV)
    for name in (
        "aaaaaaaaaa-_000030.mp4",
        "deep/er/aaaaaaaaaa-_000090.webm",
        "bbbbbbbbbb__000000.mp4",
        "cccccccccc1_000005.MP4",
        "dddddddddd2_000005.mkv",
        "zzzzzzzzzzz_000001.mp4",
        "notes.txt",
    ):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
        (clips / name).touch()
    return csv, clips


def test_vggsound_finds_any_video_suffix_in_nested_folders_and_reports_missing_clips(
    vggsound: tuple[Path, Path], tmp_path: Path
) -> None:
    report = import_vggsound(*vggsound, tmp_path / "root", val_fraction=0)
    clips = {clip.clip_id: clip for clip in report.dataset.manifest}
    assert list(clips) == [
        "aaaaaaaaaa-_000030",
        "aaaaaaaaaa-_000090",
        "bbbbbbbbbb__000000",
        "cccccccccc1_000005",
        "dddddddddd2_000005",
    ]
    assert clips["aaaaaaaaaa-_000090"].path == "deep/er/aaaaaaaaaa-_000090.webm"
    assert clips["aaaaaaaaaa-_000090"].group == "aaaaaaaaaa-"
    assert clips["aaaaaaaaaa-_000030"].label == "bird chirping, tweeting"
    assert report.missing == ("eeeeeeeeee3_123456",)
    assert (tmp_path / "root" / "missing.csv").read_text() == "clip_id\neeeeeeeeee3_123456\n"
    assert report.dataset.classes == ("bird chirping, tweeting", "playing harmonica")  # official order


def test_vggsound_validation_split_keeps_source_videos_together_and_their_labels_in_training(
    vggsound: tuple[Path, Path], tmp_path: Path
) -> None:
    for seed in range(5):
        manifest = import_vggsound(*vggsound, tmp_path / "root", val_fraction=0.3, seed=seed).dataset.manifest
        val = manifest.of_split("val")
        assert len(val) == 1 and val[0].label == "playing harmonica"  # the birds are one source video only
        assert not {clip.group for clip in val} & {clip.group for clip in manifest.of_split("train")}


def test_vggsound_import_is_the_same_for_the_same_seed(vggsound: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (
        import_vggsound(*vggsound, tmp_path / name, val_fraction=0.3, seed=3).dataset.manifest for name in "ab"
    )
    assert list(first) == list(second)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("aaaaaaaaaaa,30,bird chirping, tweeting,train", "line 1 has 5 columns instead of 4"),
        ("aaaaaaaaaaa,30,playing harmonica", "line 1 has 3 columns instead of 4"),
        ("aaaaaaaaaaa,soon,playing harmonica,train", "start 'soon' is not a whole number of seconds"),
        ("aaaaaaaaaaa,30,playing harmonika,train", r"unknown label 'playing harmonika' \(did you mean 'playing harm"),
        ("aaaaaaaaaaa,30,playing harmonica,val", "unknown split 'val'"),
        ("", "lists no clips"),
    ],
)
def test_vggsound_csv_errors_name_line_and_reason(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(line + "\n")
    with pytest.raises(DatasetError, match=message):
        read_vggsound_csv(tmp_path / "bad.csv")


def test_vggsound_csv_listing_a_clip_twice_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("aaaaaaaaaaa,30,playing harmonica,train\n" * 2)
    with pytest.raises(DatasetError, match="line 2: clip aaaaaaaaaaa_000030 is listed twice"):
        read_vggsound_csv(tmp_path / "bad.csv")
    with pytest.raises(DatasetError, match="no such csv"):
        read_vggsound_csv(tmp_path / "nowhere.csv")


def test_official_classes_and_the_papers_split_are_as_published() -> None:
    rows = paper_rows()
    assert len(official_classes()) == 309 and len(set(official_classes())) == 309
    assert len(rows) == 130 and {row.label for row in rows} <= set(official_classes())
    assert [sum(row.split == split for row in rows) for split in ("train", "val", "test")] == [100, 10, 20]


def test_paper_subset_keeps_the_papers_own_splits_and_needs_no_csv(tmp_path: Path) -> None:
    rows = [row for row in paper_rows() if row.split != "test"]
    (tmp_path / "clips").mkdir()
    for row in rows:
        (tmp_path / "clips" / f"{row.clip_id}.mp4").touch()
    report = import_vggsound(None, tmp_path / "clips", tmp_path / "root", subset="paper")
    manifest = report.dataset.manifest
    assert [len(manifest.of_split(split)) for split in ("train", "val", "test")] == [100, 10, 0]
    assert report.listed == 130 and len(report.missing) == 20


def test_protocol_notebook_keeps_the_last_clip_of_each_video_so_the_papers_split_shrinks_to_86_9_18(
    tmp_path: Path,
) -> None:
    (tmp_path / "clips").mkdir()
    for row in paper_rows():
        (tmp_path / "clips" / f"{row.clip_id}.mp4").touch()
    streams = [stream.with_options(protocol="notebook") for stream in DEFAULT_STREAMS]
    dataset = import_vggsound(None, tmp_path / "clips", tmp_path / "root", subset="paper", streams=streams).dataset
    splits = {split: dataset.manifest.of_split(split) for split in ("train", "val", "test")}
    assert [len(clips) for clips in splits.values()] == [86, 9, 18]
    assert len(dataset.classes) == 91
    train = {clip.label for clip in splits["train"]}
    assert len(train) == 73
    assert reachable_ceiling(train, [clip.label for clip in splits["test"]]) == Ceiling(reachable=4, clips=18)
    assert reachable_ceiling(train, [clip.label for clip in splits["val"]]) == Ceiling(reachable=4, clips=9)
    assert {clip.clip_id for clip in splits["test"] if clip.group == "bp_QFVnao2E"} == {"bp_QFVnao2E_000053"}


@pytest.mark.parametrize(("subset", "count"), [("3", 3), ("0.6", 3), ("1.0", 5), ("5", 5)])
def test_subset_takes_a_number_or_a_fraction_of_the_clips_found(
    vggsound: tuple[Path, Path], tmp_path: Path, subset: str, count: int
) -> None:
    dataset = import_vggsound(*vggsound, tmp_path / "root", subset=subset, val_fraction=0).dataset
    assert len(dataset.manifest) == count


@pytest.mark.parametrize("subset", ["0", "-1", "1.5", "many", "6"])
def test_impossible_subsets_are_refused(vggsound: tuple[Path, Path], tmp_path: Path, subset: str) -> None:
    with pytest.raises(DatasetError, match="--subset"):
        import_vggsound(*vggsound, tmp_path / "root", subset=subset)


def test_a_folder_without_any_listed_clip_is_an_error_that_shows_how_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "vggsound.csv").write_text(CSV)
    (tmp_path / "clips").mkdir()
    with pytest.raises(DatasetError, match=r"none of the 6 listed clips .* named like aaaaaaaaaa-_000030.mp4"):
        import_vggsound(tmp_path / "vggsound.csv", tmp_path / "clips", tmp_path / "root")
    with pytest.raises(DatasetError, match="no such clip folder"):
        import_vggsound(tmp_path / "vggsound.csv", tmp_path / "nowhere", tmp_path / "root")


def _clips(groups: int, labels: int, cuts: int = 2) -> list[Clip]:
    return [
        Clip(f"g{g}_{c}", f"g{g}_{c}.mp4", f"label {g % labels}", "train", f"g{g}")
        for g in range(groups)
        for c in range(cuts)
    ]


def test_subset_is_drawn_in_proportion_to_labels_and_by_whole_source_videos() -> None:
    clips = _clips(groups=40, labels=4)
    taken = take_subset(clips, 40, seed=1)
    assert [sum(clip.label == f"label {i}" for clip in taken) for i in range(4)] == [10, 10, 10, 10]
    assert all(sum(clip.group == other.group for other in taken) == 2 for clip in taken)
    assert taken == [clip for clip in clips if clip in taken]  # manifest order
    assert take_subset(clips, 40, seed=1) == taken != take_subset(clips, 40, seed=2)


def test_a_new_split_is_balanced_over_labels_and_never_divides_a_source_video() -> None:
    moved = split_off(_clips(groups=40, labels=4), 0.1, into="val", seed=0)
    val = [clip for clip in moved if clip.split == "val"]
    assert sorted(clip.label for clip in val) == sorted(f"label {i}" for i in range(4) for _ in range(2))
    assert not {clip.group for clip in val} & {clip.group for clip in moved if clip.split == "train"}


def test_a_new_split_takes_the_last_video_of_a_label_only_if_no_other_is_left() -> None:
    moved = split_off(_clips(groups=4, labels=4), 0.5, into="val", seed=0)
    assert sum(clip.split == "val" for clip in moved) == 4
    assert reachable_ceiling(
        [clip.label for clip in moved if clip.split == "train"], [c.label for c in moved if c.split == "val"]
    ) == Ceiling(reachable=0, clips=4)


def test_a_folder_per_class_is_imported_and_test_and_val_are_split_off(tmp_path: Path) -> None:
    for label in ("dog", "big cat"):
        for i in range(10):
            path = tmp_path / "clips" / label / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    dataset = import_folder(tmp_path / "clips", tmp_path / "root").dataset
    assert dataset.classes == ("big cat", "dog") and dataset.name == "clips"
    assert [len(dataset.manifest.of_split(split)) for split in ("train", "val", "test")] == [14, 2, 4]
    assert dataset.manifest[0].clip_id == "big cat/0" and dataset.manifest[0].label == "big cat"


def test_folder_with_split_folders_keeps_them(tmp_path: Path) -> None:
    for name in ("train/dog/a.mp4", "train/dog/c.mp4", "validation/dog/x.avi", "test/dog/b.mp4"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    manifest = import_folder(tmp_path / "clips", tmp_path / "root").dataset.manifest
    assert {clip.clip_id: clip.split for clip in manifest} == {
        "test/dog/b": "test",
        "train/dog/a": "train",
        "train/dog/c": "train",
        "validation/dog/x": "val",
    }


def test_a_folder_csv_gives_labels_splits_and_groups_and_missing_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b c.mp4").touch()
    (tmp_path / "list.csv").write_text(
        'path,label,split,group\na.mp4,"x, y",train,v1\nb c.mp4,z,test,v2\nn.mp4,z,val,v3\n'
    )
    report = import_folder(tmp_path, tmp_path / "root", csv=tmp_path / "list.csv")
    assert list(report.dataset.manifest) == [
        Clip("a", "a.mp4", "x, y", "train", "v1"),
        Clip("b c", "b c.mp4", "z", "test", "v2"),
    ]
    assert report.missing == ("n",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.mp4,x\n", r"first line must be path,label\[,split\]\[,group\]"),
        ("path,label\na.mp4\n", "line 2 has 1 columns instead of 2"),
        ("path,label,split\na.mp4,x,later\n", "line 2: split 'later' is not one of train, val, test"),
        ("path;label\na.mp4;x\n", "line 1 separates its columns by semicolons: save it with commas"),
        ("path,label\na.mp4,x\nb.mp4,y\na.mp4,x\n", "line 4: 'a.mp4' is listed in line 2 too"),
        (
            "path,label\nhttps://me:pw@host/a.mp4?token=abc,x\n",
            r"line 2: 'https://\*\*\*@host/a.mp4\?token=\*\*\*' is a",
        ),
        ("path,label\n../a.mp4,x\n", "line 2: clip ../a: path .* leaves the clip folder"),
        ("path,label\n", "no clips found"),
    ],
)
def test_errors_of_a_folders_csv_name_line_and_reason(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DatasetError, match=message):
        import_folder(tmp_path, tmp_path / "root", csv=tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("encoding", "guess"), [("utf-16", "utf-16"), ("utf-16-le", "utf-16"), ("latin-1", "windows-1252")]
)
def test_a_csv_in_another_encoding_says_how_to_convert_it_and_a_byte_order_mark_is_read(
    tmp_path: Path, encoding: str, guess: str
) -> None:
    (tmp_path / "a.mp4").touch()
    content, csv = "path,label\na.mp4,bébé\n", tmp_path / "list.csv"
    csv.write_text(content, encoding=encoding)
    with pytest.raises(DatasetError, match=rf"line \d is not UTF-8 but probably {guess}: .*iconv -f {guess} -t utf-8"):
        import_folder(tmp_path, tmp_path / "root", csv=csv)
    csv.write_text(content, encoding="utf-8-sig")
    assert import_folder(tmp_path, tmp_path / "root", csv=csv).dataset.classes == ("bébé",)


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_of_sounds_are_imported_with_the_streams_that_hear(tmp_path: Path) -> None:
    _touch(tmp_path / "clips", "dog/a.wav", "dog/b.FLAC", "cat/c.mp3", "cat/notes.txt", "cat/more.txt", "cat/old.zip")
    report = import_folder(tmp_path / "clips", tmp_path / "root")
    assert [(clip.clip_id, clip.path) for clip in report.dataset.manifest] == [
        ("cat/c", "cat/c.mp3"),
        ("dog/a", "dog/a.wav"),
        ("dog/b", "dog/b.FLAC"),
    ]
    assert report.dataset.media == {"ast": "audio"}
    assert report.notes == ("no clip has a picture, so the root has no stream that looks (timesformer)",)
    assert list(report.skipped.items()) == [(".txt", 2), (".zip", 1)]
    with pytest.raises(DatasetError, match=r"all clips of .* are sounds, and no stream hears: give one"):
        import_folder(tmp_path / "clips", tmp_path / "other", streams=[Stream("eye", "compact", "sight")])
    again = import_folder(tmp_path / "clips", tmp_path / "root").dataset  # as the root records its streams
    assert again.media == {"ast": "audio"}


def test_a_folder_of_videos_and_sounds_keeps_all_streams_and_skips_the_sound_of_a_video(tmp_path: Path) -> None:
    _touch(tmp_path / "clips", "dog/a.mp4", "dog/a.wav", "dog/b.wav", "dog/.hidden", "dog/README")
    report = import_folder(tmp_path / "clips", tmp_path / "root")
    assert [clip.path for clip in report.dataset.manifest] == ["dog/a.mp4", "dog/b.wav"]
    assert set(report.dataset.media) == {"timesformer", "ast"}
    assert report.skipped == {".wav beside a video of the same name": 1, "without a suffix": 1}


def test_two_files_of_one_name_are_two_clips_of_one_group(tmp_path: Path) -> None:
    _touch(tmp_path / "clips", "dog/a.mkv", "dog/a.mp4", "dog/b.mp4")
    report = import_folder(tmp_path / "clips", tmp_path / "root")
    assert [(clip.clip_id, clip.path, clip.group) for clip in report.dataset.manifest] == [
        ("dog/a", "dog/a.mkv", "dog/a"),
        ("dog/a.mp4", "dog/a.mp4", "dog/a"),
        ("dog/b", "dog/b.mp4", "dog/b"),
    ]
    assert "dog/a.mp4 of dog/a.mkv" in report.notes[0] and "alphafuse data drop 'dog/a.mp4'" in report.notes[0]
    csv = tmp_path / "list.csv"
    csv.write_text("path,label\ndog/a.mp4,dog\ndog/a.mkv,dog\n")
    listed = import_folder(tmp_path / "clips", tmp_path / "listed", csv=csv).dataset.manifest
    assert [(clip.clip_id, clip.group) for clip in listed] == [("dog/a", "dog/a"), ("dog/a.mkv", "dog/a")]


def test_a_folder_without_clips_says_what_is_in_it(tmp_path: Path) -> None:
    _touch(tmp_path / "clips", "dog/a.txt", "dog/b.txt", "dog/c.zip")
    with pytest.raises(DatasetError, match=r"no clips found in .* \(it has 2 .txt, 1 .zip\): it needs"):
        import_folder(tmp_path / "clips", tmp_path / "root")


def test_a_clip_outside_every_class_folder_is_not_skipped_silently(tmp_path: Path) -> None:
    (tmp_path / "stray.mp4").touch()
    with pytest.raises(DatasetError, match=r"stray.mp4 is not in a class folder"):
        import_folder(tmp_path, tmp_path / "root")


def test_folder_links_back_to_a_folder_above_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "clips" / "dog").mkdir(parents=True)
    (tmp_path / "clips" / "dog" / "a.mp4").touch()
    (tmp_path / "clips" / "dog" / "loop").symlink_to(tmp_path / "clips")
    assert len(import_folder(tmp_path / "clips", tmp_path / "root").dataset.manifest) == 1


def test_all_clips_of_the_real_sample_are_found(real_csv: Path, real_clips: list[Path], tmp_path: Path) -> None:
    nested = tmp_path / "nested"
    (nested / "a").mkdir(parents=True)
    for i, clip in enumerate(real_clips):
        (nested / ("a" if i % 2 else ".") / clip.name).symlink_to(clip)
    report = import_vggsound(real_csv, nested, tmp_path / "root")
    assert len(report.dataset.manifest) == report.listed == len(real_clips) and not report.missing
    shutil.rmtree(nested)


def test_importing_again_keeps_the_streams_of_the_root(tmp_path: Path) -> None:
    for label in ("dog", "cat"):
        for number in range(6):
            path = tmp_path / "clips" / label / f"{label}{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    root = tmp_path / "root"
    streams = [Stream("ear", "compact", "audio", {"protocol": "notebook"}), *DEFAULT_STREAMS]
    import_folder(tmp_path / "clips", root, streams=streams)
    (tmp_path / "clips" / "dog" / "more.mp4").touch()
    again = import_folder(tmp_path / "clips", root).dataset
    assert again.streams == (*DEFAULT_STREAMS, streams[0])
    other = import_folder(tmp_path / "clips", root, streams=streams[:1]).dataset
    assert other.streams == (streams[0],)


def test_a_csv_whose_files_are_missing_and_an_empty_folder_are_different_errors(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "labels.csv").write_text("path,label\nhail/zz.mp4,hail\n")
    with pytest.raises(DatasetError, match=r"none of its 1 files is in .*clips, such as hail/zz"):
        import_folder(tmp_path / "clips", tmp_path / "root", csv=tmp_path / "labels.csv")
