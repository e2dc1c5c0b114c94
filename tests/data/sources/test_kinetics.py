"""Kinetics' official csv files, as DeepMind and others publish them, and folders of clips."""

import json
import random
import string
import time
from pathlib import Path

import pytest
from support.cli import Run, assert_one_line_error
from support.clips import write_clip

from alphafuse.data.sources.folder import import_folder
from alphafuse.data.sources.kinetics import import_kinetics, read_kinetics_csv
from alphafuse.errors import DatasetError

HEADER = "label,youtube_id,time_start,time_end,split\n"
# DeepMind's lines: ids may start with dashes; labels with commas or brackets may be quoted
TRAIN = (
    HEADER
    + """\
testifying,---QUuC4vJs,84,94,train
"mountain climber (exercise)",1val3qlpldk,26,36,train
"mountain climber (exercise)",15qwsMlDRrk,0,10,train
washing feet,--GkrdYZ9Tc,0,10,train
washing feet,--GkrdYZ9Tc,60,70,train
washing feet,aaaaaaaaaaa,5,15,train
"""
)
VALIDATE = HEADER + "testifying,U8IITDKEfTg,0,10,validate\nwashing feet,bbbbbbbbbbb,3,13,validate\n"
TEST_LABELLED = HEADER + "climbing tree,--8YXc8iCt8,2,12,test\ntestifying,--6bJUbfpnQ,17,27,test\n"
TEST_UNLABELLED = "youtube_id,time_start,time_end,split\n--65_UAU7ao,0,10,test\n--6zxbYq5M4,39,49,test\n"


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Folder of csv files."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    for name, content in {
        "train": TRAIN,
        "validate": VALIDATE,
        "test": TEST_UNLABELLED,
        "test_labelled": TEST_LABELLED,
    }.items():
        (folder / f"{name}.csv").write_text(content)
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Empty files of all listed clips except one of train, in the layout of the class archives."""
    folder = tmp_path / "k600"
    for line in (TRAIN + VALIDATE + TEST_LABELLED).splitlines():
        label, youtube_id, start, end, split = line.replace('"', "").split(",")
        if youtube_id in ("youtube_id", "15qwsMlDRrk"):
            continue
        path = folder / split / label / f"{youtube_id}_{int(start):06d}_{int(end):06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "train" / "testifying" / "._---QUuC4vJs_000084_000094.mp4").touch()  # macOS leaves such files in archives
    return folder


def sizes(root: Path) -> list[int]:
    from alphafuse.data.dataset import Dataset

    return [len(Dataset.open(root).manifest.of_split(split)) for split in ("train", "val", "test")]


def test_without_labelled_test_clips_the_validation_list_is_test_and_val_is_split_off_by_source_video(
    lists: Path, clips: Path, tmp_path: Path
) -> None:
    for seed in range(4):
        csv = [lists / "train.csv", lists / "validate.csv", lists / "test.csv"]
        report = import_kinetics(clips, tmp_path / "root", csv=csv, val_fraction=0.2, seed=seed)
        manifest = report.dataset.manifest
        assert {clip.group for clip in manifest.of_split("test")} == {"U8IITDKEfTg", "bbbbbbbbbbb"}
        val, train = manifest.of_split("val"), manifest.of_split("train")
        assert val and {clip.label for clip in val} == {"washing feet"}  # the other labels have one video each
        assert not {clip.group for clip in val} & {clip.group for clip in train}
    assert report.notes == (
        "test is the official validation list, because no test clip has a label; val is taken from train by source "
        "video",
        "2 listed clips have no label and are not used",
    )
    assert report.missing == ("15qwsMlDRrk_000000_000010",) and report.listed == 8
    assert report.dataset.classes == ("mountain climber (exercise)", "testifying", "washing feet")  # sorted


def test_with_labelled_test_clips_the_official_splits_are_kept(lists: Path, clips: Path, tmp_path: Path) -> None:
    csv = [lists / "train.csv", lists / "validate.csv", lists / "test_labelled.csv"]
    report = import_kinetics(clips, tmp_path / "root", csv=csv)
    assert sizes(tmp_path / "root") == [5, 2, 2]
    assert report.notes == ("test is the official test list, with labels",)
    import_kinetics(clips, tmp_path / "carved", csv=[csv[0], csv[2]], val_fraction=0.2)
    assert sizes(tmp_path / "carved") == [4, 1, 2]


def test_a_labelled_test_list_without_its_clips_does_not_leave_test_empty(
    lists: Path, clips: Path, tmp_path: Path
) -> None:
    for path in (clips / "test").rglob("*.mp4"):
        path.unlink()
    csv = [lists / "train.csv", lists / "validate.csv", lists / "test_labelled.csv"]
    report = import_kinetics(clips, tmp_path / "root", csv=csv, val_fraction=0.2)
    assert sizes(tmp_path / "root") == [4, 1, 2] and len(report.missing) == 3
    assert "official validation list" in report.notes[0]


def test_clips_are_named_by_id_start_and_end_and_grouped_by_source_video(
    lists: Path, clips: Path, tmp_path: Path
) -> None:
    dataset = import_kinetics(clips, tmp_path / "root", csv=lists / "train.csv", val_fraction=0).dataset
    clip = {clip.clip_id: clip for clip in dataset.manifest}["--GkrdYZ9Tc_000060_000070"]
    assert (clip.group, clip.label, clip.path) == (
        "--GkrdYZ9Tc",
        "washing feet",
        "train/washing feet/--GkrdYZ9Tc_000060_000070.mp4",
    )


@pytest.mark.parametrize(("classes", "name"), [(400, "kinetics400"), (600, "kinetics600"), (700, "kinetics700")])
def test_the_name_follows_from_the_number_of_listed_classes(
    tmp_path: Path, clips: Path, classes: int, name: str
) -> None:
    rows = [f"class {i},{i:011d},0,10,train\n" for i in range(classes - 1)]
    (tmp_path / "train.csv").write_text(HEADER + "testifying,---QUuC4vJs,84,94,train\n" + "".join(rows))
    assert import_kinetics(clips, tmp_path / "root", csv=tmp_path / "train.csv").dataset.name == name


def test_another_number_of_classes_is_kinetics_and_a_given_name_is_kept(
    lists: Path, clips: Path, tmp_path: Path
) -> None:
    assert import_kinetics(clips, tmp_path / "a", csv=lists / "train.csv").dataset.name == "kinetics"
    assert import_kinetics(clips, tmp_path / "b", csv=lists / "train.csv", name="mini").dataset.name == "mini"


def test_other_publishers_columns_line_ends_byte_order_mark_and_spellings_are_read(lists: Path) -> None:
    expected = read_kinetics_csv([lists / "train.csv", lists / "validate.csv"])
    # CVDF's Kinetics-400: is_cc at the end, split val; others write floats, or change the columns' order
    lines = VALIDATE.replace(",validate", ",val").splitlines()
    (lists / "validate.csv").write_text("\n".join([f"{lines[0]},is_cc", *(f"{line},0" for line in lines[1:])]))
    columns = [line.split(",") for line in TRAIN.replace("84,94", "84.0,94.0").splitlines()]
    content = "\r\n".join(",".join([row[4], row[1], row[2], row[3], row[0]]) for row in columns)
    (lists / "train.csv").write_bytes(b"\xef\xbb\xbf" + content.encode() + b"\r\n\r\n")
    assert read_kinetics_csv([lists / "train.csv", lists / "validate.csv"]) == expected


def test_repeated_lines_count_once_and_are_reported(lists: Path, clips: Path, tmp_path: Path) -> None:
    csv = [lists / "train.csv", lists / "validate.csv", lists / "validate.csv"]
    report = import_kinetics(clips, tmp_path / "root", csv=csv)
    assert report.listed == 8 and "2 lines repeat an earlier one and are not used" in report.notes


def test_source_videos_with_clips_in_several_splits_are_counted(lists: Path, clips: Path, tmp_path: Path) -> None:
    (lists / "validate.csv").write_text(VALIDATE + "washing feet,aaaaaaaaaaa,80,90,validate\n")
    (clips / "aaaaaaaaaaa_000080_000090.webm").touch()
    report = import_kinetics(clips, tmp_path / "root", csv=[lists / "train.csv", lists / "validate.csv"])
    assert report.notes[-1].startswith("1 source videos have clips in several splits: `alphafuse data audit`")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"the first line must name the columns label,youtube_id,time_start,time_end,split"),
        ("abseiling/-3B32lodo2M_000059_000069.mp4 0\n", r"first line must name .* not 'abseiling/-3B32lodo2M"),
        ("label,youtube_id,youtube_id,time_start,time_end,split\n", "first line must name the columns"),
        (HEADER, "lists no clips"),
        (HEADER + "a,---QUuC4vJs,84,94\n", "line 2 has 4 columns instead of 5"),
        (HEADER + "cut, not,---QUuC4vJs,84,94,train\n", "line 2 has 6 columns instead of 5"),
        (HEADER + "a,../../etc/pas,84,94,train\n", r"line 2: '\.\./\.\./etc/pas' is not a YouTube id"),
        (HEADER + "a,#NAME?,84,94,train\n", r"'#NAME\?' is not a YouTube id \(spreadsheets damage ids"),
        (HEADER + "a,---QUuC4vJs,84.5,94,train\n", "line 2: times '84.5,94' are not whole numbers of seconds"),
        (HEADER + "a,---QUuC4vJs,-1,9,train\n", "times '-1,9' are not whole"),
        (HEADER + "a,---QUuC4vJs,1234567,9,train\n", "times '1234567,9' are not whole"),
        (HEADER + "a,---QUuC4vJs,84,94,trian\n", r"line 2: unknown split 'trian' \(did you mean 'train'\?\)"),
        (
            HEADER + "a,---QUuC4vJs,84,94,train\nb,---QUuC4vJs,84,94,train\n",
            r"line 3: clip ---QUuC4vJs_000084_000094 is 'b' in train, but an earlier line says 'a' in train: remove",
        ),
        (HEADER + "a,---QUuC4vJs,84,94,train\na,---QUuC4vJs,84,94,test\n", "line 3: .* is 'a' in test, but an earlier"),
        (TEST_UNLABELLED, r"none of the 2 listed clips has a label: give the train and validation lists too"),
        (HEADER + ",---QUuC4vJs,84,94,train\n", "none of the 1 listed clips has a label"),
        (HEADER + '"a,---QUuC4vJs,84,94,train\n' * 2, "can't be read as csv"),
        (HEADER + "x" * 300_000, "can't be read as csv: a row is longer"),
    ],
)
def test_csv_errors_name_file_line_and_reason(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_kinetics_csv([tmp_path / "bad.csv"])
    assert "bad.csv" in str(caught.value) or "has a label" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_with_control_characters_is_refused_before_it_reaches_a_terminal(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(HEADER + "a\x1b[2Jb,---QUuC4vJs,84,94,train\n")
    with pytest.raises(DatasetError, match=r"label 'a\\x1b\[2Jb' is with a control character") as caught:
        import_kinetics(clips, tmp_path / "root", csv=tmp_path / "bad.csv")
    assert "\x1b" not in str(caught.value)


def test_a_folder_without_any_listed_clip_or_no_csv_is_an_error_that_names_what_is_needed(
    lists: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"none of the 6 listed clips .* like ---QUuC4vJs_000084_000094.mp4"):
        import_kinetics(tmp_path / "empty", tmp_path / "root", csv=lists / "train.csv")
    with pytest.raises(DatasetError, match=r"csv files are needed: pass --csv train.csv --csv validate.csv"):
        import_kinetics(tmp_path / "empty", tmp_path / "root", csv=[])
    with pytest.raises(DatasetError, match="no such csv"):
        import_kinetics(tmp_path / "empty", tmp_path / "root", csv=lists / "nowhere.csv")


def test_a_list_of_a_hundred_thousand_clips_is_read_in_seconds(tmp_path: Path) -> None:
    draw = random.Random(0)
    letters = string.ascii_letters + string.digits + "-_"
    with (tmp_path / "train.csv").open("w") as file:
        file.write(HEADER)
        for i in range(100_000):
            file.write(f"action {i % 600},{''.join(draw.choices(letters, k=11))},{i % 300},{i % 300 + 10},train\n")
    begin = time.process_time()
    assert len(read_kinetics_csv([tmp_path / "train.csv"]).rows) == 100_000
    assert time.process_time() - begin < 5  # 0.5 s on an Intel Xeon


def test_class_folders_of_kinetics_clips_are_grouped_by_source_video_without_a_csv(clips: Path, tmp_path: Path) -> None:
    manifest = import_folder(clips / "train", tmp_path / "root").dataset.manifest
    groups = {clip.clip_id.rpartition("/")[2]: clip.group for clip in manifest}
    assert groups["--GkrdYZ9Tc_000000_000010"] == groups["--GkrdYZ9Tc_000060_000070"] == "--GkrdYZ9Tc"


# the command line


def test_data_kinetics_prints_the_splits_and_leaves_out_clips_without_audio_on_request(
    run: Run, lists: Path, tmp_path: Path
) -> None:
    clips, root = tmp_path / "clips", tmp_path / "root"
    for line in TRAIN.splitlines()[1:] + VALIDATE.splitlines()[1:]:
        _, youtube_id, start, end, _ = line.rsplit(",", 4)
        path = clips / f"{youtube_id}_{int(start):06d}_{int(end):06d}.mp4"
        write_clip(path, frames=4, size=(16, 16), audio=youtube_id != "aaaaaaaaaaa")
    files = ("--csv", lists / "train.csv", "--csv", lists / "validate.csv", "--csv", lists / "test.csv")
    code, out, err = run("data", "kinetics", *files, "--clips", clips, "--root", root, "--require-audio")
    assert code == 0 and err == "", err
    assert "kinetics: 7 clips in 3 classes" in out
    assert f"left out: 1 clips (no audio stream: 1; all in {root / 'left_out.csv'})" in out
    assert "  test is the official validation list, because no test clip has a label; val is taken from" in out
    assert "  2 listed clips have no label and are not used" in out
    assert f"next: alphafuse extract --split all --root {root}" in out
    assert (root / "left_out.csv").read_text() == "clip_id,reason\naaaaaaaaaaa_000005_000015,no audio stream\n"
    code, out, _ = run("data", "kinetics", *files, "--clips", clips, "--root", root, "--json")
    content = json.loads(out)
    assert code == 0 and content["left_out"] == {} and len(content["notes"]) == 2 and content["classes"] == 3


def test_errors_of_data_kinetics_are_one_line(run: Run, lists: Path, clips: Path, tmp_path: Path) -> None:
    there = ("--clips", clips, "--root", tmp_path / "root")
    assert_one_line_error(run("data", "kinetics", "--csv", lists / "test.csv", *there), "--csv train.csv")
    assert_one_line_error(run("data", "kinetics", *there), "--csv")
