"""Extraction end to end: against a plain loop, resumed, killed, with clips that fail."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_clip
from PIL import Image
from transformers import ASTFeatureExtractor, ASTModel, TimesformerModel
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from alphafuse.data.dataset import Dataset
from alphafuse.data.store import Failure
from alphafuse.data.vggsound import import_vggsound
from alphafuse.errors import BackboneError, DatasetError, EmptySplitError, SettingsMismatchError
from alphafuse.extract.backbones import Backbone
from alphafuse.extract.decode import decode_clip, frame_indices
from alphafuse.extract.inputs import FrameSpec, decibel_spectrogram
from alphafuse.extract.pipeline import Extractor, ExtractSettings, decode_clips, extract_embeddings

MakeRoot = Callable[..., Path]


def tiny(backbones: dict[str, Path], **settings: object) -> ExtractSettings:
    names = {modality: str(folder) for modality, folder in backbones.items()}
    return ExtractSettings(**{"batch_size": 4, "workers": 2, **names, **settings})  # type: ignore[arg-type]


def plain_loop(path: Path, backbones: dict[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """One clip the straightforward way: decode everything, HuggingFace's processors, HuggingFace's models."""
    import av

    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = [shown[i] for i in frame_indices(len(shown), 4)]
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.45] * 3, image_std=[0.225] * 3
    )
    pixel_values = torch.from_numpy(np.stack(processor(frames, return_tensors="np")["pixel_values"][0]))[None].float()
    waveform = decode_clip(path, frames=1).waveform
    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=128)
    input_values = extractor(waveform, sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        cls = TimesformerModel.from_pretrained(backbones["timesformer"]).eval()(pixel_values).last_hidden_state[0, 0]
        pooled = ASTModel.from_pretrained(backbones["ast"]).eval()(input_values).pooler_output[0]
    return cls.numpy(), pooled.numpy()


def test_stored_embeddings_equal_a_plain_huggingface_loop(make_root: MakeRoot, tiny_backbones: dict[str, Path]) -> None:
    dataset = Dataset.open(make_root())
    reports = extract_embeddings(dataset, ["train", "test"], tiny(tiny_backbones))
    assert [(r.clips, r.already, r.embedded) for r in reports] == [(4, 0, {"timesformer": 4, "ast": 4})] * 2
    for split in ("train", "test"):
        stored = dataset.embeddings(split)
        for i, clip in enumerate(dataset.manifest.of_split(split)):
            cls, pooled = plain_loop(dataset.path_of(clip), tiny_backbones)
            np.testing.assert_allclose(stored.features["timesformer"][i], cls, atol=1e-5)
            np.testing.assert_allclose(stored.features["ast"][i], pooled, atol=1e-5)


def test_protocol_notebook_feeds_what_the_authors_code_fed(
    make_root: MakeRoot, tiny_backbones: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root(frames=30))
    extract_embeddings(dataset, ["test"], tiny(tiny_backbones, protocol="notebook"))
    stored = dataset.embeddings("test")
    assert stored.settings["ast"]["protocol"] == "notebook"
    timesformer = TimesformerModel.from_pretrained(tiny_backbones["timesformer"]).eval()
    ast = ASTModel.from_pretrained(tiny_backbones["ast"]).eval()
    for i, clip in enumerate(dataset.manifest.of_split("test")):
        decoded = decode_clip(dataset.path_of(clip), frames=30)
        assert decoded.frames is not None and decoded.waveform is not None
        squashed = [
            np.asarray(Image.fromarray(decoded.frames[j]).resize((32, 32), Image.Resampling.BILINEAR))
            for j in (0, 7, 15, 22)  # int(30 / 4 * i)
        ]
        pixel_values = torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2)[None].float() / 255
        decibels = decibel_spectrogram(decoded.waveform, 64)[:, :128]  # 2.5 s: longer than 128 frames
        input_values = torch.from_numpy((decibels + 4.26) / (4.57 * 2))[None].float()  # (1, 64, 128): transposed
        with torch.no_grad():
            cls = timesformer(pixel_values).last_hidden_state[0, 0].numpy()
            pooled = ast(input_values).pooler_output[0].numpy()
        np.testing.assert_allclose(stored.features["timesformer"][i], cls, atol=1e-5)
        np.testing.assert_allclose(stored.features["ast"][i], pooled, atol=1e-5)


def test_a_second_extract_does_nothing_and_a_new_clip_only_itself(
    make_root: MakeRoot, tiny_backbones: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["val"], tiny(tiny_backbones))
    shards = dataset.store("val").shards()
    (again,) = extract_embeddings(dataset, ["val"], tiny(tiny_backbones))
    assert again.already == 4 and again.embedded == {"timesformer": 0, "ast": 0}
    assert dataset.store("val").shards() == shards
    for shard in shards:
        shard.unlink()
    settings = tiny(tiny_backbones, batch_size=1, flush_seconds=0)
    extract_embeddings(dataset, ["val"], settings)
    dataset.store("val").shards()[2].unlink()
    (repaired,) = extract_embeddings(dataset, ["val"], settings)
    assert repaired.already == 3 and repaired.embedded["ast"] == 1


def test_a_failing_modality_is_recorded_and_the_other_is_stored(
    make_root: MakeRoot, tiny_backbones: dict[str, Path]
) -> None:
    root = make_root()
    dataset = Dataset.open(root)
    silent, blind, broken, gone = (clip.clip_id for clip in dataset.manifest.of_split("train"))
    clips = root / "clips"
    write_clip(clips / f"{silent}.mp4", audio=False)
    write_clip(clips / f"{blind}.mp4", video=False)
    (clips / f"{broken}.mp4").write_bytes(b"not a clip")
    (clips / f"{gone}.mp4").unlink()
    (report,) = extract_embeddings(dataset, ["train"], tiny(tiny_backbones))
    assert report.embedded == {"timesformer": 1, "ast": 1} and len(report.failures) == 6
    stored = dataset.embeddings("train")
    assert stored.present("timesformer").tolist() == [True, False, False, False]
    assert stored.present("ast").tolist() == [False, True, False, False]
    assert Failure(silent, "ast", "no audio stream") in stored.failures
    assert Failure(blind, "timesformer", "no video stream") in stored.failures
    assert Failure(gone, "ast", "can't be opened: No such file or directory") in stored.failures

    (again,) = extract_embeddings(dataset, ["train"], tiny(tiny_backbones))
    assert again.already == 4  # recorded failures are not tried again ...
    write_clip(clips / f"{gone}.mp4")
    (retried,) = extract_embeddings(dataset, ["train"], tiny(tiny_backbones, retry_failed=True))
    assert retried.already == 0 and retried.embedded == {"timesformer": 2, "ast": 2}  # ... unless asked for
    assert dataset.embeddings("train").present("ast").tolist() == [False, True, False, True]


def test_a_root_made_with_other_backbones_is_refused_before_any_work(
    make_root: MakeRoot, tiny_backbones: dict[str, Path], tmp_path: Path
) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["test"], tiny(tiny_backbones))
    model = ASTModel.from_pretrained(tiny_backbones["ast"])
    model.layernorm.bias.data += 1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(SettingsMismatchError, match=r"another ast weights_sha256"):
        extract_embeddings(dataset, ["train", "test"], tiny({**tiny_backbones, "ast": tmp_path / "other"}))
    with pytest.raises(SettingsMismatchError, match=r"another timesformer precision \(there: fp32, here: bf16\)"):
        extract_embeddings(dataset, ["test"], tiny(tiny_backbones, precision="bf16"))
    assert not dataset.store("train").shards()


def test_splits_extracted_with_different_backbones_are_not_mixed(
    make_root: MakeRoot, tiny_backbones: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["train", "val"], tiny(tiny_backbones))
    with pytest.raises(Exception, match=r"no embeddings in .*test"):
        dataset.all_embeddings()
    extract_embeddings(dataset, ["test"], tiny(tiny_backbones, precision="bf16"))
    with pytest.raises(
        SettingsMismatchError, match=r"train and test were extracted with another timesformer precision"
    ):
        dataset.all_embeddings()


def test_stage_two_is_told_which_clips_are_not_extracted_yet(
    make_root: MakeRoot, tiny_backbones: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["val"], tiny(tiny_backbones, batch_size=1, flush_seconds=0))
    dataset.store("val").shards()[0].unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 4 val clips are not extracted yet: run `alphafuse extract --split val"
    ):
        dataset.embeddings("val")


def test_what_interrupts_a_forward_pass_costs_only_that_batch(
    make_root: MakeRoot, tiny_backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.open(make_root(labels=("dog", "cat", "owl")))
    extractor = Extractor(dataset, tiny(tiny_backbones, batch_size=2))
    embed, calls = extractor.ast.embed_spectrograms, []

    def interrupted(self: Backbone, spectrograms: np.ndarray) -> np.ndarray:
        calls.append(len(spectrograms))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(spectrograms)

    monkeypatch.setattr(Backbone, "embed_spectrograms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extractor.extract("train")
    assert calls == [2, 2, 2] and len(dataset.store("train").read().present("ast")) == 4
    assert dataset.store("train").verify() == []


def test_a_clip_folder_that_is_gone_stops_the_run_instead_of_failing_every_clip(
    make_root: MakeRoot, tiny_backbones: dict[str, Path]
) -> None:
    root = make_root()
    (root / "clips").rename(root / "elsewhere")
    with pytest.raises(DatasetError, match=r"the clip folder .* is gone"):
        extract_embeddings(Dataset.open(root), ["train"], tiny(tiny_backbones))


def test_empty_and_unknown_splits_are_refused(make_root: MakeRoot, tiny_backbones: dict[str, Path]) -> None:
    dataset = Dataset.open(make_root(labels=("dog",)))
    with pytest.raises(DatasetError, match="unknown split 'tests'"):
        extract_embeddings(dataset, ["tests"], tiny(tiny_backbones))
    only_train = [clip for clip in dataset.manifest if clip.split == "train"]
    from alphafuse.data.manifest import Manifest

    Manifest(only_train).write(dataset.root / "manifest.csv")
    with pytest.raises(EmptySplitError, match="split 'val' has no clips"):
        extract_embeddings(Dataset.open(dataset.root), ["val"], tiny(tiny_backbones))


@pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("workers", -1), ("flush_seconds", -1.0)])
def test_impossible_settings_are_refused(setting: str, value: float) -> None:
    with pytest.raises(BackboneError, match=setting):
        ExtractSettings(**{setting: value})  # type: ignore[arg-type]


def test_a_decoder_that_crashes_its_process_costs_only_its_clip(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.open(make_root())
    clips = dataset.manifest.of_split("train") + dataset.manifest.of_split("val")
    fatal = clips[3].path

    def crash_on_fatal(path: Path, **settings: object) -> object:
        if path.name == fatal:
            os.kill(os.getpid(), signal.SIGSEGV)
        return decode_clip(path, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("alphafuse.extract.pipeline.decode_clip", crash_on_fatal)
    settings = ExtractSettings(workers=2, batch_size=2)
    decoded = {clip.path: result for clip, result in decode_clips(dataset, clips, FrameSpec(frames=2), settings)}
    assert set(decoded) == {clip.path for clip in clips}
    assert decoded.pop(fatal).no_frames == "the decoder crashed"
    assert all(result.frames is not None and result.waveform is not None for result in decoded.values())


def _processes_of(folder: Path) -> list[str]:
    """Command lines of the processes whose working directory is this folder (Linux only; elsewhere none are seen)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_killed_extraction_resumes_and_ends_like_an_uninterrupted_one(
    make_root: MakeRoot, tiny_backbones: dict[str, Path]
) -> None:
    labels = tuple(f"label {i}" for i in range(30))
    calm, killed = (Dataset.open(make_root(name, labels=labels)) for name in ("calm", "killed"))
    extract_embeddings(calm, ["train"], tiny(tiny_backbones))
    script = (
        "import sys; from pathlib import Path; from alphafuse.data.dataset import Dataset\n"
        "from alphafuse.extract.pipeline import ExtractSettings, extract_embeddings\n"
        "names = {'timesformer': sys.argv[2], 'ast': sys.argv[3]}\n"
        "settings = ExtractSettings(**names, batch_size=1, workers=1, flush_seconds=0)\n"
        "extract_embeddings(Dataset.open(Path(sys.argv[1])), ['train'], settings)\n"
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(killed.root),
        *(str(tiny_backbones[m]) for m in ("timesformer", "ast")),
    ]
    stored = 0
    for _ in range(3):
        run = subprocess.Popen(command, cwd=killed.root)
        deadline = time.monotonic() + 60
        while run.poll() is None and len(killed.store("train").shards()) < stored + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        now = len(killed.store("train").done())
        assert now >= stored + 3, "rows that were flushed are there after the kill"
        stored = now
    deadline = time.monotonic() + 30
    while _processes_of(killed.root) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _processes_of(killed.root), "workers outlived the process that they worked for"
    (last,) = extract_embeddings(killed, ["train"], tiny(tiny_backbones))
    assert 0 < last.already < last.clips, "the kills came neither before the first flush nor after the last"
    assert killed.store("train").verify() == [] and killed.store("train").info().duplicates == 0
    for modality in ("timesformer", "ast"):
        np.testing.assert_allclose(
            killed.embeddings("train").features[modality], calm.embeddings("train").features[modality], atol=1e-5
        )


@pytest.mark.slow
def test_all_real_clips_embed_with_the_shipped_backbones(
    real_csv: Path, real_clips: list[Path], tmp_path: Path
) -> None:
    few = tmp_path / "clips"
    few.mkdir()
    for path in real_clips[::4]:
        (few / path.name).symlink_to(path)
    dataset = import_vggsound(real_csv, few, tmp_path / "root", val_fraction=0).dataset
    settings = ExtractSettings(timesformer="compact", ast="compact")
    reports = extract_embeddings(dataset, ["train", "test"], settings)
    assert sum(report.embedded["timesformer"] for report in reports) == len(real_clips[::4])
    assert sum(report.embedded["ast"] for report in reports) == len(real_clips[::4])
    assert not any(report.failures for report in reports)
    assert all(report.already == report.clips for report in extract_embeddings(dataset, ["train", "test"], settings))
