"""UCF-101's official lists and clips, and clips without audio, in their published forms."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support.cli import Run, assert_one_line_error
from support.clips import write_clip
from support.progress import RecordedProgress

from alphafuse.data.dataset import Dataset
from alphafuse.data.sources.ucf101 import import_ucf101, read_ucf101_splits
from alphafuse.errors import DatasetError
from alphafuse.extract.decoding.probe import files_without_audio

# lines as in the archive: CRLF in some files, no class index in the test lists
CLASSES = "1 ApplyEyeMakeup\r\n37 HandstandPushups\r\n101 YoYo\r\n"
TRAIN = """\
ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r
ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi 1\r
ApplyEyeMakeup/v_ApplyEyeMakeup_g09_c01.avi 1\r
HandstandPushups/v_HandStandPushups_g08_c01.avi 37\r
YoYo/v_YoYo_g25_c05.avi 101\r
"""
TEST = """\
ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
HandstandPushups/v_HandStandPushups_g01_c01.avi
YoYo/v_YoYo_g07_c04.avi
"""
STEMS = [line.split("/")[1].split(".")[0] for line in (TRAIN + TEST).split("\n") if line]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """The folder ucfTrainTestlist, shortened; split 2 tests on the training clips of split 1."""
    folder = tmp_path / "ucfTrainTestlist"
    folder.mkdir()
    contents = {"classInd": CLASSES, "trainlist01": TRAIN, "testlist01": TEST, "trainlist02": TEST, "testlist02": TRAIN}
    for name, content in contents.items():
        (folder / f"{name}.txt").write_bytes(content.encode())
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Empty files for all listed clips except the last: some in class folders, some not, some converted."""
    folder = tmp_path / "clips"
    for i, stem in enumerate(STEMS[:-1]):
        path = folder / stem.split("_")[1] / f"{stem}.avi" if i % 2 else folder / f"{stem}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_official_lists_become_train_and_test_grouped_by_video_and_missing_clips_are_listed(
    lists: Path, clips: Path, tmp_path: Path
) -> None:
    report = import_ucf101(clips, tmp_path / "root", splits=lists, val_fraction=0)
    manifest = {clip.clip_id: clip for clip in report.dataset.manifest}
    assert list(manifest) == STEMS[:-1]
    assert [len(report.dataset.manifest.of_split(split)) for split in ("train", "val", "test")] == [5, 0, 2]
    assert manifest["v_ApplyEyeMakeup_g08_c02"].group == "v_ApplyEyeMakeup_g08"
    assert manifest["v_ApplyEyeMakeup_g08_c02"].path == "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi"
    assert manifest["v_HandStandPushups_g01_c01"].label == "HandstandPushups"  # the lists use both spellings
    assert report.missing == ("v_YoYo_g07_c04",) and report.listed == 8 and not report.left_out
    assert (tmp_path / "root" / "missing.csv").read_text() == "clip_id\nv_YoYo_g07_c04\n"
    assert not (tmp_path / "root" / "left_out.csv").exists()
    assert report.dataset.name == "ucf101" and report.dataset.source["official_split"] == 1


def test_classes_that_occur_are_listed_in_the_official_order(lists: Path, clips: Path, tmp_path: Path) -> None:
    (lists / "classInd.txt").write_text("101 YoYo\n5 BalanceBeam\n37 HandstandPushups\n1 ApplyEyeMakeup\n")
    dataset = import_ucf101(clips, tmp_path / "root", splits=lists).dataset
    assert dataset.classes == ("YoYo", "HandstandPushups", "ApplyEyeMakeup")


def test_validation_is_split_off_from_train_by_group_and_never_from_test(
    lists: Path, clips: Path, tmp_path: Path
) -> None:
    for seed in range(4):
        manifest = import_ucf101(clips, tmp_path / "root", splits=lists, val_fraction=0.2, seed=seed).dataset.manifest
        val, train = manifest.of_split("val"), manifest.of_split("train")
        assert val and not {clip.group for clip in val} & {clip.group for clip in train}
        assert {clip.label for clip in val} <= {clip.label for clip in train}
        assert len(manifest.of_split("test")) == 2


def test_each_official_split_reads_its_own_lists(lists: Path, clips: Path, tmp_path: Path) -> None:
    report = import_ucf101(clips, tmp_path / "root", splits=lists, split=2, val_fraction=0)
    assert {clip.clip_id for clip in report.dataset.manifest.of_split("train")} == set(STEMS[5:7])
    assert "official split 2" in report.notes[0]
    with pytest.raises(DatasetError, match=r"no trainlist03.txt in .*ucfTrainTestlist: --splits is the folder"):
        import_ucf101(clips, tmp_path / "root", splits=lists, split=3)
    with pytest.raises(DatasetError, match="split must be 1, 2 or 3, not 4"):
        import_ucf101(clips, tmp_path / "root", splits=lists, split=4)


def test_a_byte_order_mark_blank_lines_and_an_index_in_the_test_list_are_accepted(lists: Path) -> None:
    expected = read_ucf101_splits(lists)
    for name in ("classInd", "trainlist01"):
        content = (lists / f"{name}.txt").read_text()
        (lists / f"{name}.txt").write_bytes(b"\xef\xbb\xbf\r\n" + content.replace("\n", "\r\n\r\n").encode())
    numbers = {"ApplyEyeMakeup": 1, "HandstandPushups": 37, "YoYo": 101}
    with_index = "".join(f"{line} {numbers[line.split('/')[0]]}\n" for line in TEST.splitlines())
    (lists / "testlist01.txt").write_text(with_index)
    assert read_ucf101_splits(lists) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classInd", "ApplyEyeMakeup\n", r"classInd.txt line 1 is 'ApplyEyeMakeup', not like 1 ApplyEyeMakeup"),
        ("classInd", "1 YoYo\n2 YoYo\n", r"classInd.txt line 2: class 2 YoYo is listed twice"),
        ("classInd", "1 YoYo\n1 Archery\n", r"classInd.txt line 2: class 1 Archery is listed twice"),
        ("classInd", "\n", "classInd.txt lists no classes"),
        ("trainlist01", "", "trainlist01.txt lists no clips"),
        ("trainlist01", "label,youtube_id\n", r"line 1 is 'label,youtube_id', not like ApplyEyeMakeup/v_Apply"),
        ("trainlist01", "YoYo/../../v_YoYo_g25_c05.avi 101\n", r"line 1 is 'YoYo/\.\./\.\./v_YoYo.*', not like"),
        ("trainlist01", "/etc/v_YoYo_g25_c05.avi 101\n", "line 1 is '/etc/v_YoYo_g25_c05.avi 101', not like"),
        ("trainlist01", "YoYo/v_YoYo_g25_c05.avi\x1b[2J 101\n", r"line 1 is 'YoYo/v_YoYo_g25_c05.avi\\x1b\[2J 101'"),
        ("trainlist01", "YoYoo/v_YoYo_g25_c05.avi 101\n", r"unknown class 'YoYoo' \(did you mean 'YoYo'\?\)"),
        ("trainlist01", "YoYo/v_YoYo_g25_c05.avi 37\n", "line 1 says class 37, but classInd.txt numbers YoYo 101"),
        ("trainlist01", "YoYo/v_YoYo_g25_c05.avi 101\n" * 2, "line 2: clip v_YoYo_g25_c05 is listed twice"),
        ("testlist01", "YoYo/v_YoYo_g25_c05.avi\n", r"line 1: group v_YoYo_g25 is in the train list too"),
        ("testlist01", "YoYo/v_YoYo_g25_c99.avi\n", r"line 1: group v_YoYo_g25 is in the train list too"),
        ("testlist01", "x" * 300_000, "testlist01.txt line 1 is longer than 262144 characters"),
    ],
)
def test_list_errors_name_file_line_and_reason(lists: Path, name: str, content: str, message: str) -> None:
    (lists / f"{name}.txt").write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_ucf101_splits(lists)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_list_that_is_not_text_is_a_one_line_error(lists: Path) -> None:
    (lists / "trainlist01.txt").write_bytes(b"\xff\xfe\x00video")
    with pytest.raises(DatasetError, match=r"trainlist01.txt can't be read: 'utf-8' codec can't decode"):
        read_ucf101_splits(lists)


def test_a_folder_without_any_listed_clip_is_an_error_that_shows_how_files_are_named(
    lists: Path, tmp_path: Path
) -> None:
    (tmp_path / "clips").mkdir()
    with pytest.raises(DatasetError, match=r"none of the 8 listed clips .* named like v_ApplyEyeMakeup_g08_c01.mp4"):
        import_ucf101(tmp_path / "clips", tmp_path / "root", splits=lists)


# clips without audio


@pytest.fixture
def sounding(tmp_path: Path) -> Path:
    """All listed clips: those of YoYo have no audio track, one file is not a video."""
    folder = tmp_path / "UCF-101"
    with_sound = write_clip(tmp_path / "sound.mp4", frames=4, size=(16, 16))
    without = write_clip(tmp_path / "silent.mp4", frames=4, size=(16, 16), audio=False)
    folder.mkdir()
    for stem in STEMS:
        shutil.copy(without if "YoYo" in stem else with_sound, folder / f"{stem}.mp4")
    (folder / "v_HandStandPushups_g01_c01.mp4").write_bytes(b"no video")
    return folder


def test_files_without_audio_names_those_without_a_track_and_those_that_cannot_be_opened_in_order(
    sounding: Path,
) -> None:
    files = [sounding / f"{stem}.mp4" for stem in reversed(STEMS)]
    progress = RecordedProgress()
    found = files_without_audio(files, workers=2, progress=progress)
    assert [file.stem for file in found] == ["v_YoYo_g07_c04", "v_HandStandPushups_g01_c01", "v_YoYo_g25_c05"]
    reasons = list(found.values())
    assert reasons[0] == reasons[2] == "no audio stream" and reasons[1].startswith("can't be opened: ")
    assert sum(progress.done) == len(files) and progress.stopped == 1
    assert files_without_audio([], workers=1) == {}


@pytest.mark.parametrize("kind", ["webm", "mkv", "avi", "mp4"])
def test_audio_is_found_in_every_container_without_decoding_it(tmp_path: Path, kind: str) -> None:
    codecs = {
        "webm": {"codec": "libvpx", "audio_codec": "libopus", "rate": 48_000},
        "avi": {"codec": "mpeg4", "audio_codec": "libmp3lame"},
    }.get(kind, {})
    with_sound = write_clip(tmp_path / f"a.{kind}", frames=4, size=(16, 16), **codecs)  # type: ignore[arg-type]
    without = write_clip(tmp_path / f"b.{kind}", frames=4, size=(16, 16), audio=False, **codecs)  # type: ignore[arg-type]
    assert files_without_audio([with_sound, without], workers=1) == {without: "no audio stream"}


def test_a_named_pipe_does_not_block_the_search_for_audio(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert files_without_audio([tmp_path / "pipe.mp4"], workers=1) == {tmp_path / "pipe.mp4": "not a regular file"}


def test_clips_without_audio_stay_by_default_and_are_listed_with_reasons_if_left_out(
    lists: Path, sounding: Path, tmp_path: Path
) -> None:
    stay = import_ucf101(sounding, tmp_path / "root", splits=lists, val_fraction=0)
    assert len(stay.dataset.manifest) == 8 and not stay.left_out
    report = import_ucf101(sounding, tmp_path / "root", splits=lists, val_fraction=0, leave_out=files_without_audio)
    assert len(report.dataset.manifest) == 5 and report.dataset.classes == ("ApplyEyeMakeup", "HandstandPushups")
    assert set(report.left_out) == {"v_YoYo_g25_c05", "v_HandStandPushups_g01_c01", "v_YoYo_g07_c04"}
    assert report.missing == () and report.dataset.source["left_out"] == 3
    lines = (tmp_path / "root" / "left_out.csv").read_text().splitlines()
    assert lines[0] == "clip_id,reason" and "v_YoYo_g25_c05,no audio stream" in lines and len(lines) == 4
    import_ucf101(sounding, tmp_path / "root", splits=lists, val_fraction=0)
    assert not (tmp_path / "root" / "left_out.csv").exists()  # an old list would mislead


def test_leaving_every_clip_out_is_an_error_that_says_why(lists: Path, sounding: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"all 8 clips are left out, the first, v_Apply.*, because: too loud"):
        import_ucf101(
            sounding, tmp_path / "root", splits=lists, leave_out=lambda files: dict.fromkeys(files, "too loud")
        )
    assert not (tmp_path / "root").exists()


def test_a_subset_is_sampled_from_the_remaining_clips_in_proportion_to_the_splits(
    lists: Path, clips: Path, tmp_path: Path
) -> None:
    manifest = import_ucf101(clips, tmp_path / "root", splits=lists, subset=4, val_fraction=0).dataset.manifest
    assert [len(manifest.of_split(split)) for split in ("train", "test")] == [3, 1]
    with pytest.raises(DatasetError, match=r"--subset '2\.5' is neither a number of clips nor a fraction above 0"):
        import_ucf101(clips, tmp_path / "root", splits=lists, subset=2.5)


# the command line


def test_data_ucf101_prints_splits_missing_clips_left_out_clips_and_the_next_command(
    run: Run,
    lists: Path,
    sounding: Path,
    tmp_path: Path,
) -> None:
    (sounding / "v_ApplyEyeMakeup_g09_c01.mp4").unlink()
    root = tmp_path / "root"
    code, out, err = run(
        "data", "ucf101", "--splits", lists, "--clips", sounding, "--root", root, "--require-audio", "--workers", 1
    )
    assert code == 0 and err == "", err
    assert "ucf101: 4 clips in 2 classes" in out
    assert f"missing: 1 of 8 listed clips have no file, such as v_ApplyEyeMakeup_g09_c01 (all in {root}" in out
    assert "left out: 3 clips (no audio stream: 2; can't be opened: " in out and "left_out.csv)" in out
    assert "test is official split 1; val is taken from train by group" in out
    assert f"next: alphafuse extract --split all --root {root}" in out
    assert len(Dataset.open(root).manifest) == 4


def test_data_ucf101_json_has_the_content_of_the_text(
    run: Run,
    lists: Path,
    clips: Path,
    tmp_path: Path,
) -> None:
    code, out, _ = run("data", "ucf101", "--splits", lists, "--clips", clips, "--root", tmp_path / "root", "--json")
    content = json.loads(out)
    assert code == 0 and content["listed"] == 8 and content["missing"] == ["v_YoYo_g07_c04"]
    assert content["left_out"] == {} and content["notes"][0].startswith("test is official split 1")


def test_errors_of_data_ucf101_are_one_line(run: Run, lists: Path, clips: Path, tmp_path: Path) -> None:
    there = ("--clips", clips, "--root", tmp_path / "root")
    assert_one_line_error(run("data", "ucf101", "--splits", clips, *there), "no classInd.txt in", "--splits is the")
    assert_one_line_error(
        run("data", "ucf101", "--splits", lists, "--clips", tmp_path / "no", "--root", tmp_path / "root"),
        "no such clip folder",
    )


def test_clips_without_audio_are_recorded_by_extraction_and_dropped_or_replaced_by_zeros_in_training(
    lists: Path, sounding: Path, tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    from alphafuse.extract.pipeline import extract_embeddings
    from alphafuse.extract.settings import ExtractSettings
    from alphafuse.heads.model.config import Experiment
    from alphafuse.heads.studies.fit import fit
    from alphafuse.heads.training.settings import TrainSettings

    dataset = import_ucf101(sounding, tmp_path / "root", splits=lists, val_fraction=0.2).dataset
    encoders = {name: str(folder) for name, folder in tiny_encoders.items()}
    extract_embeddings(dataset, ["train", "val", "test"], ExtractSettings(encoders=encoders, workers=1))
    failures = {(f.clip_id, f.stream, f.reason) for f in dataset.embeddings("test").failures}
    assert ("v_YoYo_g07_c04", "ast", "no audio stream") in failures
    dropped = fit(dataset, Experiment("none"), settings=TrainSettings(absent="drop", epochs=1), run="drop")
    zeros = fit(dataset, Experiment("none"), settings=TrainSettings(absent="zeros", epochs=1), run="zeros")
    assert dropped.splits["test"].n == 1 and zeros.splits["test"].n == 2  # the third is not a video
