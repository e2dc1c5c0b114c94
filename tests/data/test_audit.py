import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.clips import write_clip

from alphafuse.data.audit import AuditReport, audit
from alphafuse.data.dataset import Dataset
from alphafuse.data.duplicates import Signature, near_identical_pairs
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.sources.demo import write_mp4
from alphafuse.data.sources.vggsound import Row, paper_rows
from alphafuse.extract.decoding.decode import decode_clip
from alphafuse.extract.decoding.signatures import sign_clips, sign_file
from alphafuse.report.audit import format_audit

RATE_HZ = 22_050


def film(seed: int, *, seconds: float = 2.0, height: int = 96, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Return moving images and changing tones: (frames, height, width, 3) uint8 and (1, samples) float32."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (2, 6, 8, 3)).astype(np.uint8)
    first, last = (
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        for image in coarse
    )
    share = np.linspace(0, 1, round(seconds * 12))[:, None, None, None]
    tones = np.repeat(rng.uniform(120, 3500, 12), math.ceil(seconds * RATE_HZ / 12))[: round(seconds * RATE_HZ)]
    wave = 0.4 * np.sin(2 * np.pi * np.cumsum(tones) / RATE_HZ)
    return ((1 - share) * first + share * last).round().astype(np.uint8), wave[None].astype(np.float32)


def write_film(path: Path, seed: int, **shape: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames, wave = film(seed, **shape)  # type: ignore[arg-type]
    write_mp4(path, frames, wave, sample_rate_hz=RATE_HZ)
    return path


def encode_again(source: Path, target: Path) -> Path:
    """Decode, shrink by a third, resample to 16 kHz, and encode."""
    decoded = decode_clip(source, frames=24, prepare=lambda image: np.asarray(Image.fromarray(image).resize((86, 64))))
    assert decoded.frames is not None and decoded.waveform is not None
    write_mp4(target, decoded.frames, decoded.waveform[None] * 0.8, sample_rate_hz=16_000)
    return target


def make_dataset(root: Path, clips: list[Clip]) -> Dataset:
    manifest = Manifest(clips)
    (root / "clips").mkdir(parents=True, exist_ok=True)
    return Dataset.create(root, manifest, name="films", clip_folder=root / "clips", classes=manifest.labels)


def clip(name: str, label: str = "dog", split: str = "train", group: str = "") -> Clip:
    return Clip(name, f"{name}.mp4", label, split, group or name)


def kinds(report: AuditReport) -> dict[str, str]:
    return {problem.kind: problem.severity for problem in report.problems}


def message(report: AuditReport, kind: str) -> str:
    return next(problem.message for problem in report.problems if problem.kind == kind)


def collapse(rows: list[Row]) -> list[Row]:
    """Keep the last clip of each source video within its split, as the paper's code did."""
    return list({(row.split, row.youtube_id): row for row in rows}.values())


def paper_dataset(root: Path, rows: list[Row]) -> Dataset:
    return make_dataset(root, [clip(row.clip_id, row.label, row.split, row.youtube_id) for row in rows])


# the paper's split, counted by hand from its list


def test_audit_says_that_4_of_the_papers_18_test_clips_are_reachable(tmp_path: Path) -> None:
    report = audit(paper_dataset(tmp_path, collapse(paper_rows())))
    assert {split: counts.clips for split, counts in report.splits.items()} == {"train": 86, "val": 9, "test": 18}
    assert report.splits["train"].classes == 73
    ceilings = {split: counts.ceiling for split, counts in report.splits.items()}
    assert (ceilings["test"].reachable, ceilings["test"].clips) == (4, 18)
    assert (ceilings["val"].reachable, ceilings["val"].clips) == (4, 9)
    assert report.straddling == {"bpclJoDaTCY": ("train", "test")}
    sentences = [p.message for p in report.problems if p.kind == "unseen_labels"]
    assert sentences[1].startswith("Only 4 of 18 test clips have a label that occurs in training")
    assert "22.2%" in sentences[1]


def test_audit_counts_all_130_clips_of_the_paper_when_they_are_not_collapsed(tmp_path: Path) -> None:
    report = audit(paper_dataset(tmp_path, paper_rows()))
    assert {split: counts.clips for split, counts in report.splits.items()} == {"train": 100, "val": 10, "test": 20}
    assert {split: counts.source_videos for split, counts in report.splits.items()} == {
        "train": 86,
        "val": 9,
        "test": 18,
    }
    assert report.splits["train"].classes == 73
    assert report.splits["val"].ceiling.reachable == 5
    assert report.splits["test"].ceiling.reachable == 4


def test_audit_says_that_the_papers_test_split_cannot_distinguish_heads(tmp_path: Path) -> None:
    report = audit(paper_dataset(tmp_path, collapse(paper_rows())))
    assert report.resolution is not None and report.resolution.is_hopeless
    assert report.resolution.source_videos == 18
    assert report.resolution.smallest_gap == pytest.approx(0.404, abs=0.005)
    assert kinds(report)["resolution"] == "error"
    assert "can't tell any two heads apart" in message(report, "resolution")


def test_audit_of_the_paper_works_without_files_and_reports_that_they_are_missing(tmp_path: Path) -> None:
    report = audit(paper_dataset(tmp_path, paper_rows()), signatures={})
    assert len(report.missing) == 130
    assert "130 of 130 clips have no file" in message(report, "missing")
    assert report.content is not None and report.content.decoded == 0 and report.content.median_seconds is None
    json.dumps(report.to_json(), allow_nan=False)


# counting


def test_balance_is_counted_over_training_classes(tmp_path: Path) -> None:
    clips = [clip(f"a{i}", "a") for i in range(12)] + [clip("b", "b"), clip("c", "c"), clip("t", "a", "test")]
    balance = audit(make_dataset(tmp_path, clips)).balance
    assert balance is not None
    assert (balance.largest, balance.smallest, balance.single_clip_classes) == (12, 1, 2)
    shares = np.array([12, 1, 1]) / 14
    assert balance.entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))
    report = audit(make_dataset(tmp_path, clips))
    assert kinds(report)["imbalance"] == kinds(report)["single_clip_classes"] == "note"


def test_empty_splits_are_found(tmp_path: Path) -> None:
    report = audit(make_dataset(tmp_path, [clip("a")]))
    assert report.resolution is None
    empty = {p.message: p.severity for p in report.problems if p.kind == "empty_split"}
    assert empty == {"Split val has no clips.": "warning", "Split test has no clips.": "error"}
    json.dumps(report.to_json(), allow_nan=False)


def test_a_split_without_training_has_ceiling_zero(tmp_path: Path) -> None:
    report = audit(make_dataset(tmp_path, [clip("a", split="test")]))
    assert report.balance is None and report.splits["test"].ceiling.accuracy == 0
    json.dumps(report.to_json(), allow_nan=False)


def test_problems_come_worst_first_and_decide_soundness(tmp_path: Path) -> None:
    clips = [clip(f"{split}{i}", split=split) for split in ("train", "val", "test") for i in range(80)]
    dataset = make_dataset(tmp_path, clips)
    for number, one in enumerate(clips):
        dataset.path_of(one).write_bytes(b"%d" % number)
    sound = audit(dataset)
    assert sound.is_sound and set(kinds(sound).values()) == {"note"}
    dataset.path_of(clips[0]).unlink()
    missing = audit(dataset)
    assert not missing.is_sound and missing.problems[0].kind == "missing"


# files and their content


def test_byte_identical_files_are_found_with_their_splits(tmp_path: Path) -> None:
    clips = [clip("a"), clip("b"), clip("c", split="test"), clip("d", "cat"), clip("e", "cat"), clip("f", "cow")]
    dataset = make_dataset(tmp_path, clips)
    for name, content in (("a", b"12"), ("b", b"34"), ("c", b"12"), ("d", b"56"), ("e", b"56"), ("f", b"34")):
        (tmp_path / "clips" / f"{name}.mp4").write_bytes(content)
    report = audit(dataset)
    assert [copies.clip_ids for copies in report.byte_identical] == [("a", "c"), ("b", "f"), ("d", "e")]
    assert [copies.straddles for copies in report.byte_identical] == [True, False, False]
    found = kinds(report)
    assert found["byte_identical_across_splits"] == found["byte_identical_labels"] == "error"
    assert found["byte_identical"] == "warning"
    assert "a = c (train, test)" in message(report, "byte_identical_across_splits")
    assert "b = f" in message(report, "byte_identical_labels")
    assert report.to_json()["byte_identical"][0]["straddles"] is True


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of fourteen small clips; most have one fault each, one has no file."""
    root = tmp_path_factory.mktemp("films")
    folder = root / "clips"
    original = write_film(folder / "original.mp4", 1)
    encode_again(original, folder / "again.mp4")
    shutil.copy(original, folder / "copy.mp4")
    for number in range(2, 6):
        write_film(folder / f"film{number}.mp4", number)
    write_film(folder / "short.mp4", 6, seconds=0.75)
    frames, wave = film(7)
    write_mp4(folder / "silent.mp4", frames, 0 * wave, sample_rate_hz=RATE_HZ)
    write_mp4(folder / "frozen.mp4", np.repeat(frames[:1], 24, axis=0), film(8)[1], sample_rate_hz=RATE_HZ)
    write_clip(folder / "mute.mp4", audio=False)
    write_clip(folder / "blind.mp4", video=False, seconds=2)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    clips = [clip(path.stem) for path in sorted(folder.iterdir())]
    in_test = {"again", "film2"}
    return make_dataset(
        root, [replace(c, split="test" if c.clip_id in in_test else "train") for c in clips] + [clip("gone")]
    )


@pytest.fixture(scope="module")
def films_report(films: Dataset) -> AuditReport:
    return audit(films, signatures=sign_clips(films))


def test_each_fault_of_a_clip_is_found_and_no_other(films_report: AuditReport) -> None:
    content = films_report.content
    assert content is not None
    assert films_report.missing == ("gone",)
    assert content.decoded == 13
    assert content.median_seconds == pytest.approx(2.0, abs=0.1)
    assert dict(content.unreadable) == {"broken": content.unreadable["broken"]}
    assert "can't be opened" in content.unreadable["broken"]
    assert content.without_video == ("blind",)
    assert content.without_audio == ("mute",)
    assert content.short == ("short",)
    assert content.silent == ("silent",)
    assert content.frozen == ("frozen",)


def test_a_clip_encoded_again_is_found_as_near_identical_across_splits(films_report: AuditReport) -> None:
    assert films_report.content is not None
    near = films_report.content.near_identical
    assert [copies.clip_ids for copies in near] == [("again", "copy", "original")]
    assert near[0].straddles and near[0].splits == ("train", "test")
    assert [copies.clip_ids for copies in films_report.byte_identical] == [("copy", "original")]
    assert kinds(films_report)["near_identical_across_splits"] == "error"
    assert kinds(films_report)["byte_identical"] == "warning"


def test_text_names_the_worst_first_within_120_columns(films_report: AuditReport) -> None:
    text = format_audit(films_report)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[2].startswith("ERROR")
    for part in ("again = copy = original (train, test)", "Frozen: frozen.", "Silent: silent.", "broken: can't be"):
        assert part in text
    json.dumps(films_report.to_json(), allow_nan=False)


def test_audit_without_decoding_reports_that(films: Dataset) -> None:
    report = audit(films)
    assert report.content is None and report.to_json()["content"] is None
    assert "Nothing was decoded" in format_audit(report)


def test_clips_with_the_same_video_and_other_audio_are_different(tmp_path: Path) -> None:
    frames, wave = film(1)
    write_mp4(tmp_path / "a.mp4", frames, wave, sample_rate_hz=RATE_HZ)
    write_mp4(tmp_path / "b.mp4", frames, film(2)[1], sample_rate_hz=RATE_HZ)
    write_mp4(tmp_path / "c.mp4", film(3)[0], wave, sample_rate_hz=RATE_HZ)
    assert near_identical_pairs({name: sign_file(tmp_path / f"{name}.mp4") for name in "abc"}) == []


def test_plain_images_and_constant_tones_are_distinguished(tmp_path: Path) -> None:
    signatures = {}
    for name, colour, hertz in (("red", (200, 0, 0), 300), ("blue", (0, 0, 200), 300), ("high", (200, 0, 0), 900)):
        wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE_HZ) / RATE_HZ)
        frames = np.full((12, 48, 64, 3), colour, np.uint8)
        write_mp4(tmp_path / f"{name}.mp4", frames, wave[None].astype(np.float32), sample_rate_hz=RATE_HZ)
        signatures[name] = sign_file(tmp_path / f"{name}.mp4")
    signatures["red again"] = signatures["red"]
    assert near_identical_pairs(signatures) == [("red", "red again")]


def test_peak_is_measured_against_full_scale() -> None:
    assert Signature(1.0, peak=0.1).peak_dbfs == pytest.approx(-20)
    assert Signature(1.0, peak=0.0).peak_dbfs is None
    assert Signature(1.0, peak=0.0009).is_silent and not Signature(1.0, peak=0.0011).is_silent
    assert not Signature(1.0, no_waveform="no audio stream").is_silent


def test_copies_that_share_a_clip_are_one_set(tmp_path: Path) -> None:
    same = Signature(
        1.0, picture=b"\xff" * 128, colours=(1.0,) * 24, movement=50, sound=b"\xff" * 138, levels=(0.0,) * 9
    )
    other = replace(same, picture=b"\x0f" * 128)
    clips = [clip(name) for name in "abcd"]
    dataset = make_dataset(tmp_path, clips)
    report = audit(dataset, signatures={"d": other, "c": same, "b": same, "a": same})
    assert report.content is not None
    assert [copies.clip_ids for copies in report.content.near_identical] == [("a", "b", "c")]


def test_audit_finds_the_byte_identical_pair_of_the_real_clips(
    real_clips: list[Path], tmp_path: Path, make_root: Callable[..., Path]
) -> None:
    twins = [path for path in real_clips if path.stem in ("bpHdHkhHFMc_000000", "bpHdHkhHFMc_000001")]
    if len(twins) < 2:
        pytest.skip("these real clips lack bpHdHkhHFMc")
    clips = [Clip(path.stem, path.name, "dog", "train", path.stem[:11]) for path in real_clips]
    dataset = Dataset.create(tmp_path, Manifest(clips), name="real", clip_folder=real_clips[0].parent, classes=("dog",))
    some = [c for c in clips if c.path in {path.name for path in [*twins, real_clips[0], real_clips[-1]]}]
    report = audit(dataset, signatures=sign_clips(dataset, some))
    assert ("bpHdHkhHFMc_000000", "bpHdHkhHFMc_000001") in [copies.clip_ids for copies in report.byte_identical]
    assert report.content is not None and report.content.near_identical == ()
    assert report.content.median_seconds == pytest.approx(10, abs=0.2)


def test_a_clip_whose_sound_has_a_file_of_its_own_is_audited_with_that_sound(tmp_path: Path) -> None:
    write_clip(tmp_path / "root" / "clips" / "silent.mp4", audio=False)
    for look, name in enumerate("abc"):
        write_clip(tmp_path / "root" / "clips" / f"{name}.m4a", video=False, look=look)
    shutil.copyfile(tmp_path / "root" / "clips" / "a.m4a", tmp_path / "root" / "clips" / "copy.m4a")
    sounds = {"a": "a.m4a", "b": "b.m4a", "copy": "copy.m4a", "mute": ""}
    dataset = make_dataset(
        tmp_path / "root", [Clip(name, "silent.mp4", "dog", "train", name, sound) for name, sound in sounds.items()]
    )
    signatures = sign_clips(dataset)
    assert {name: signature.no_waveform for name, signature in signatures.items()} == {
        **dict.fromkeys(("a", "b", "copy"), ""),
        "mute": "no audio stream",
    }
    alone = sign_file(tmp_path / "root" / "clips" / "a.m4a")
    assert signatures["a"].sound == alone.sound and signatures["a"].picture == signatures["mute"].picture
    assert audit(dataset).byte_identical[0].clip_ids == ("a", "copy")  # not b, whose picture is the same file
