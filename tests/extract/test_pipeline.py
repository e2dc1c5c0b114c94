"""Extraction end to end: compared with a plain loop, resumed, killed, with clips that fail."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.clips import write_clip
from transformers import ASTFeatureExtractor, ASTModel, TimesformerModel
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from alphafuse.data.audit import audit
from alphafuse.data.dataset import Dataset
from alphafuse.data.embeddings import Failure
from alphafuse.data.manifest import Clip, Manifest
from alphafuse.data.sources.vggsound import import_vggsound
from alphafuse.data.streams import DEFAULT_STREAMS
from alphafuse.errors import DatasetError, EmptySplitError, EncoderError, RecipeMismatchError
from alphafuse.extract.decoding.decode import decode_clip
from alphafuse.extract.decoding.signatures import sign_clips
from alphafuse.extract.decoding.specs import AudioSpec, frame_indices
from alphafuse.extract.encoders.ast import decibel_spectrogram
from alphafuse.extract.encoders.encoder import Encoder
from alphafuse.extract.engines.embedder import Embedder, load_encoders
from alphafuse.extract.engines.local import LocalEngine
from alphafuse.extract.jobs import Job
from alphafuse.extract.missing import Work
from alphafuse.extract.pipeline import extract_embeddings, fill_store
from alphafuse.extract.planning import TEXT_BYTES, plan_extraction
from alphafuse.extract.recheck import TOLERANCE, resample
from alphafuse.extract.settings import ExtractSettings
from alphafuse.report.extract import format_coverage, format_report
from alphafuse.system import claims

MakeRoot = Callable[..., Path]


def tiny(encoders: dict[str, Path], **settings: object) -> ExtractSettings:
    names = {stream: str(folder) for stream, folder in encoders.items()}
    return ExtractSettings(**{"batch_size": 4, "workers": 2, "encoders": names, **settings})  # type: ignore[arg-type]


def make_embedder(dataset: Dataset, settings: ExtractSettings) -> Embedder:
    return Embedder(load_encoders(dataset, settings, settings.device), settings)


def plain_loop(path: Path, encoders: dict[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Embed one clip with full decoding, HuggingFace's processors and HuggingFace's models."""
    import av

    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = [shown[i] for i in frame_indices(len(shown), 4)]
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.45] * 3, image_std=[0.225] * 3
    )
    pixel_values = torch.from_numpy(np.stack(processor(frames, return_tensors="np")["pixel_values"][0]))[None].float()
    waveform = decode_clip(path, frames=1).waveform
    feature_extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=128)
    input_values = feature_extractor(waveform, sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        cls = TimesformerModel.from_pretrained(encoders["timesformer"]).eval()(pixel_values).last_hidden_state[0, 0]
        pooled = ASTModel.from_pretrained(encoders["ast"]).eval()(input_values).pooler_output[0]
    return cls.numpy(), pooled.numpy()


def test_stored_embeddings_equal_a_plain_huggingface_loop(make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    dataset = Dataset.open(make_root())
    reports = extract_embeddings(dataset, ["train", "test"], tiny(tiny_encoders))
    assert [(r.clips, r.already, r.embedded) for r in reports] == [(4, 0, {"timesformer": 4, "ast": 4})] * 2
    for split in ("train", "test"):
        stored = dataset.embeddings(split)
        for i, clip in enumerate(dataset.manifest.of_split(split)):
            cls, pooled = plain_loop(dataset.path_of(clip), tiny_encoders)
            np.testing.assert_allclose(stored.features["timesformer"][i], cls, atol=1e-5)
            np.testing.assert_allclose(stored.features["ast"][i], pooled, atol=1e-5)


def test_protocol_notebook_makes_the_inputs_of_the_authors_code(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root(frames=30))
    extract_embeddings(dataset, ["test"], tiny(tiny_encoders, protocol="notebook"))
    stored = dataset.embeddings("test")
    assert stored.recipes["ast"]["protocol"] == "notebook"
    timesformer = TimesformerModel.from_pretrained(tiny_encoders["timesformer"]).eval()
    ast = ASTModel.from_pretrained(tiny_encoders["ast"]).eval()
    for i, clip in enumerate(dataset.manifest.of_split("test")):
        decoded = decode_clip(dataset.path_of(clip), frames=30)
        assert decoded.frames is not None and decoded.waveform is not None
        squashed = [
            np.asarray(Image.fromarray(decoded.frames[j]).resize((32, 32), Image.Resampling.BILINEAR))
            for j in (0, 7, 15, 22)  # int(30 / 4 * i)
        ]
        pixel_values = torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2)[None].float() / 255
        decibels = decibel_spectrogram(torch.from_numpy(decoded.waveform), 64)[:, :128]  # 2.5 s: over 128 frames
        input_values = ((decibels + 4.26) / (4.57 * 2))[None]  # (1, 64, 128): transposed
        with torch.no_grad():
            cls = timesformer(pixel_values).last_hidden_state[0, 0].numpy()
            pooled = ast(input_values).pooler_output[0].numpy()
        np.testing.assert_allclose(stored.features["timesformer"][i], cls, atol=1e-5)
        np.testing.assert_allclose(stored.features["ast"][i], pooled, atol=1e-5)


def test_a_second_extract_does_nothing_and_then_embeds_only_a_new_clip(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["val"], tiny(tiny_encoders))
    shards = dataset.store("val").shards()
    (again,) = extract_embeddings(dataset, ["val"], tiny(tiny_encoders))
    assert again.already == 4 and again.embedded == {"timesformer": 0, "ast": 0}
    assert dataset.store("val").shards() == shards
    for shard in shards:
        shard.unlink()
    settings = tiny(tiny_encoders, batch_size=1, flush_seconds=0)
    extract_embeddings(dataset, ["val"], settings)
    dataset.store("val").shards()[2].unlink()
    (repaired,) = extract_embeddings(dataset, ["val"], settings)
    assert repaired.already == 3 and repaired.embedded["ast"] == 1


def test_a_failing_stream_is_recorded_and_the_other_is_stored(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    root = make_root()
    dataset = Dataset.open(root)
    silent, blind, broken, gone = (clip.clip_id for clip in dataset.manifest.of_split("train"))
    clips = root / "clips"
    write_clip(clips / f"{silent}.mp4", audio=False)
    write_clip(clips / f"{blind}.mp4", video=False)
    (clips / f"{broken}.mp4").write_bytes(b"not a clip")
    (clips / f"{gone}.mp4").unlink()
    (report,) = extract_embeddings(dataset, ["train"], tiny(tiny_encoders))
    assert report.embedded == {"timesformer": 1, "ast": 1} and len(report.failures) == 6
    stored = dataset.embeddings("train")
    assert stored.present("timesformer").tolist() == [True, False, False, False]
    assert stored.present("ast").tolist() == [False, True, False, False]
    assert Failure(silent, "ast", "no audio stream") in stored.failures
    assert Failure(blind, "timesformer", "no video stream") in stored.failures
    assert Failure(gone, "ast", "can't be opened: No such file or directory") in stored.failures

    (again,) = extract_embeddings(dataset, ["train"], tiny(tiny_encoders))
    assert again.already == 4  # recorded failures are not tried again ...
    write_clip(clips / f"{gone}.mp4")
    (retried,) = extract_embeddings(dataset, ["train"], tiny(tiny_encoders, retry_failed=True))
    assert retried.already == 0 and retried.embedded == {"timesformer": 1, "ast": 1}  # ... unless requested
    assert dataset.embeddings("train").present("ast").tolist() == [False, True, False, True]


def test_a_root_made_with_other_encoders_is_refused_before_any_work(
    make_root: MakeRoot, tiny_encoders: dict[str, Path], tmp_path: Path
) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["test"], tiny(tiny_encoders))
    model = ASTModel.from_pretrained(tiny_encoders["ast"])
    model.layernorm.bias.data += 1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(RecipeMismatchError, match=r"another ast weights_sha256"):
        extract_embeddings(dataset, ["train", "test"], tiny({**tiny_encoders, "ast": tmp_path / "other"}))
    with pytest.raises(RecipeMismatchError, match=r"another timesformer precision \(there: fp32, here: bf16\)"):
        extract_embeddings(dataset, ["test"], tiny(tiny_encoders, precision="bf16"))
    assert not dataset.store("train").shards()


def test_splits_extracted_with_different_encoders_are_not_mixed(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["train", "val"], tiny(tiny_encoders))
    with pytest.raises(Exception, match=r"no embeddings in .*test"):
        dataset.all_embeddings()
    extract_embeddings(dataset, ["test"], tiny(tiny_encoders, precision="bf16"))
    with pytest.raises(RecipeMismatchError, match=r"train and test were extracted with another timesformer precision"):
        dataset.all_embeddings()


def test_stage_two_reports_the_clips_that_are_not_extracted_yet(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["val"], tiny(tiny_encoders, batch_size=1, flush_seconds=0))
    dataset.store("val").shards()[0].unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 4 val clips are not extracted yet: run `alphafuse extract --split val"
    ):
        dataset.embeddings("val")


def test_an_interrupt_in_a_forward_pass_loses_only_that_batch(
    make_root: MakeRoot, tiny_encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.open(make_root(labels=("dog", "cat", "owl")))
    embedder = make_embedder(dataset, tiny(tiny_encoders, batch_size=2))
    embedder.threads = 1
    embed, calls = Encoder.embed, []

    def interrupted(self: Encoder, clips: list[np.ndarray]) -> np.ndarray:
        if isinstance(self.spec, AudioSpec):
            calls.append(len(clips))
            if len(calls) == 3:
                raise KeyboardInterrupt
        return embed(self, clips)

    monkeypatch.setattr(Encoder, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill_store(LocalEngine(embedder), Work(dataset, "train", embedder.recipes))
    assert calls == [2, 2, 2] and len(dataset.store("train").read().present("ast")) == 4
    assert dataset.store("train").verify() == []


def test_the_report_says_if_the_file_system_has_no_locks(
    make_root: MakeRoot, tiny_encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.open(make_root())
    monkeypatch.setattr(claims, "fcntl", None)
    (report,) = extract_embeddings(dataset, ["train"], tiny(tiny_encoders))
    assert not report.is_shared and "no file locks in" in format_report(report)
    monkeypatch.undo()
    (report,) = extract_embeddings(dataset, ["val"], tiny(tiny_encoders))
    assert report.is_shared and "no file locks" not in format_report(report)


def test_a_clip_folder_that_is_gone_stops_the_run_instead_of_failing_every_clip(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    root = make_root()
    (root / "clips").rename(root / "elsewhere")
    with pytest.raises(DatasetError, match=r"the clip folder .* doesn't exist"):
        extract_embeddings(Dataset.open(root), ["train"], tiny(tiny_encoders))


def test_empty_and_unknown_splits_are_refused(make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    dataset = Dataset.open(make_root(labels=("dog",)))
    with pytest.raises(DatasetError, match="unknown split 'tests'"):
        extract_embeddings(dataset, ["tests"], tiny(tiny_encoders))
    only_train = [clip for clip in dataset.manifest if clip.split == "train"]
    Manifest(only_train).write(dataset.root / "manifest.csv")
    with pytest.raises(EmptySplitError, match="split 'val' has no clips"):
        extract_embeddings(Dataset.open(dataset.root), ["val"], tiny(tiny_encoders))


def test_extracting_one_stream_leaves_the_others_embeddings_unchanged(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    shutil.copytree(dataset.root, dataset.root.with_name("both"))
    both = Dataset.open(dataset.root.with_name("both"))
    extract_embeddings(both, ["train"], tiny(tiny_encoders))
    (first,) = extract_embeddings(dataset, ["train"], tiny(tiny_encoders, streams=("ast",)))
    assert first.embedded == {"ast": 4} and dataset.store("train").info().rows == {"ast": 4}
    shards = {path: path.read_bytes() for path in dataset.store("train").shards()}
    (second,) = extract_embeddings(dataset, ["train"], tiny(tiny_encoders))
    assert second.embedded == {"timesformer": 4, "ast": 0}, "existing embeddings are not made again"
    assert all(path.read_bytes() == content for path, content in shards.items())
    assert dataset.store("train").info().duplicates == 0
    for stream in ("timesformer", "ast"):
        ours, together = (root.embeddings("train").features[stream] for root in (dataset, both))
        np.testing.assert_allclose(ours, together, atol=1e-5)


def test_only_the_input_of_an_encoder_is_decoded(make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    dataset = Dataset.open(make_root())
    embedder = make_embedder(dataset, tiny(tiny_encoders))
    jobs = [Job(clip, dataset.path_of(clip), ("ast",)) for clip in dataset.manifest.of_split("val")]
    for _, decoded in embedder.decode(jobs):
        assert list(decoded.arrays) == ["ast"]
        assert len(decoded.arrays["ast"]) <= 127 * 160 + 400, "no more samples than 128 frames of 10 ms need"
    for _, decoded in embedder.decode([replace(job, streams=("timesformer",)) for job in jobs]):
        assert list(decoded.arrays) == ["timesformer"] and decoded.cpu_seconds > 0


def test_frames_resized_beside_the_model_give_the_same_embeddings(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    """Run the code path of CUDA devices (frames resized in batches on the device) on the CPU."""
    dataset = Dataset.open(make_root(size=(120, 90)))
    embedder = make_embedder(dataset, tiny(tiny_encoders))
    jobs = Work(dataset, "train", embedder.recipes).jobs
    beside = embedder.embed(list(embedder.decode(jobs)))
    embedder.device_resizes = frozenset(["timesformer"])
    travelled = list(embedder.decode(jobs))
    for _, decoded in travelled:
        assert decoded.arrays["timesformer"].shape == (4, 120, 90, 3) and decoded.unresized == {"timesformer"}
    on_device = embedder.embed(travelled)
    order = {job: i for i, job in enumerate(beside.jobs)}
    for stream in ("timesformer", "ast"):
        for job, row in zip(on_device.jobs, on_device.rows[stream], strict=True):
            np.testing.assert_allclose(row, beside.rows[stream][order[job]], atol=1e-6)


def test_a_dry_run_counts_measures_and_writes_nothing(make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    dataset = Dataset.open(make_root())
    extract_embeddings(dataset, ["val"], tiny(tiny_encoders))
    extract_embeddings(dataset, ["test"], tiny(tiny_encoders, streams=("timesformer",)))
    gone = dataset.manifest.of_split("train")[0]
    dataset.path_of(gone).unlink()
    before = sorted(dataset.root.rglob("*"))
    plans, rates = plan_extraction(dataset, ["train", "val", "test"], tiny(tiny_encoders))
    assert sorted(dataset.root.rglob("*")) == before
    train, val, test = plans
    assert (train.clips, train.pending, train.missing_files) == (4, 4, 1)
    assert (val.pending, val.finished, val.seconds, val.new_bytes) == (0, {"timesformer": 4, "ast": 4}, 0.0, 0)
    assert test.pending == 4 and test.finished == {"timesformer": 4, "ast": 0}
    assert train.new_bytes == 4 * (4 * (64 + 32) + TEXT_BYTES) and test.new_bytes == 4 * (4 * 32 + TEXT_BYTES)
    assert rates is not None and rates.clips == 7 and rates.decode_seconds > 0 and rates.embed_seconds > 0
    assert train.seconds == pytest.approx(4 / rates.clips_per_second)
    extract_embeddings(dataset, ["train", "test"], tiny(tiny_encoders))
    plans, rates = plan_extraction(dataset, ["train", "val", "test"], tiny(tiny_encoders))
    assert rates is None and [plan.pending for plan in plans] == [0, 0, 0]


def test_the_size_of_the_store_is_that_of_the_dry_run(make_root: MakeRoot, tiny_encoders: dict[str, Path]) -> None:
    dataset = Dataset.open(make_root())
    clips = [
        Clip(f"clip{i:05d}_000000", clip.path, clip.label, "train", f"clip{i:05d}")
        for i, clip in enumerate([*dataset.manifest.of_split("train")] * 50)
    ]
    Manifest(clips).write(dataset.root / "manifest.csv")
    dataset = Dataset.open(dataset.root)
    ((plan,), _) = plan_extraction(dataset, ["train"], tiny(tiny_encoders))
    extract_embeddings(dataset, ["train"], tiny(tiny_encoders))
    made = sum(path.stat().st_size for path in dataset.store("train").shards())
    assert made == pytest.approx(plan.new_bytes, rel=0.3)


def test_resampling_confirms_a_correct_store_and_detects_changed_clips(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    silent, *_ = dataset.manifest.of_split("train")
    write_clip(dataset.path_of(silent), audio=False)
    extract_embeddings(dataset, ["train"], tiny(tiny_encoders, batch_size=1))
    found = resample(dataset, "train", 10)
    assert found.clips == 4 and len(found.differences) == 7 and found.largest == 0.0 and found.problems == ()
    assert len(resample(dataset, "train", 2, seed=1).differences) <= 4
    write_clip(dataset.path_of(dataset.manifest.of_split("train")[1]), look=9)  # another clip under the same name
    dataset.path_of(dataset.manifest.of_split("train")[2]).unlink()
    problems = {(problem.clip_id, problem.stream): problem for problem in resample(dataset, "train", 10).problems}
    changed, gone = (clip.clip_id for clip in dataset.manifest.of_split("train")[1:3])
    assert set(problems) == {(clip_id, stream) for clip_id in (changed, gone) for stream in ("timesformer", "ast")}
    assert "No such file" in problems[gone, "ast"].reason and problems[changed, "ast"].reason == ""
    assert np.isinf(problems[gone, "ast"].relative) and problems[changed, "ast"].relative > 0.01


def test_resampling_prepares_clips_as_the_store_records_it_whatever_the_root_says_now(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    """Streams in bf16 and of protocol notebook; the root's options and the settings say otherwise by then."""
    streams = [
        replace(stream, encoder=str(tiny_encoders[stream.name])).with_options(precision="bf16", protocol="notebook")
        for stream in DEFAULT_STREAMS
    ]
    dataset = Dataset.open(make_root(labels=("dog",))).with_streams(streams)
    extract_embeddings(dataset, ["train"], ExtractSettings(workers=1))
    changed = dataset.with_streams([replace(stream, options={}) for stream in streams])
    again = resample(changed, "train", 2, ExtractSettings(workers=1))
    assert again.problems == () and again.tolerance == TOLERANCE["bf16"] and len(again.differences) == 4


def test_resampling_refuses_other_weights_than_the_stores(
    make_root: MakeRoot, tiny_encoders: dict[str, Path], tmp_path: Path
) -> None:
    dataset = Dataset.open(make_root())
    with pytest.raises(DatasetError, match=r"no embeddings in .*train"):
        resample(dataset, "train", 1)
    extract_embeddings(dataset, ["train"], tiny(tiny_encoders))
    model = ASTModel.from_pretrained(tiny_encoders["ast"])
    model.layernorm.bias.data += 1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(RecipeMismatchError, match="another ast weights_sha256"):
        resample(dataset, "train", 1, ExtractSettings(encoders={"ast": str(tmp_path / "other")}))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch_size", -1),
        ("workers", -1),
        ("flush_seconds", -1.0),
        ("max_memory_gb", float("nan")),
        ("timeout_seconds", -1),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: float) -> None:
    with pytest.raises(EncoderError, match=setting):
        ExtractSettings(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_all_real_clips_embed_with_the_shipped_encoders(real_csv: Path, real_clips: list[Path], tmp_path: Path) -> None:
    few = tmp_path / "clips"
    few.mkdir()
    for path in real_clips[::4]:
        (few / path.name).symlink_to(path)
    dataset = import_vggsound(real_csv, few, tmp_path / "root", val_fraction=0).dataset
    settings = ExtractSettings(encoders={"timesformer": "compact", "ast": "compact"})
    reports = extract_embeddings(dataset, ["train", "test"], settings)
    assert sum(report.embedded["timesformer"] for report in reports) == len(real_clips[::4])
    assert sum(report.embedded["ast"] for report in reports) == len(real_clips[::4])
    assert not any(report.failures for report in reports)
    assert all(report.already == report.clips for report in extract_embeddings(dataset, ["train", "test"], settings))


def test_picture_and_sound_may_lie_in_two_files_and_in_parts_of_a_container(
    tmp_path: Path, tiny_encoders: dict[str, Path]
) -> None:
    write_clip(tmp_path / "whole.mp4")
    sound = write_clip(tmp_path / "sound.m4a", video=False)
    silent = write_clip(tmp_path / "silent.mp4", audio=False)
    member = silent.read_bytes()
    (tmp_path / "all.tar").write_bytes(b"x" * 512 + member + b"y" * 100)
    part = f"all.tar@512+{len(member)}"
    clips = [
        Clip("whole", "whole.mp4", "dog", "train", "whole"),
        Clip("two", part, "dog", "train", "two", "sound.m4a"),
        Clip("other", "silent.mp4", "dog", "train", "other", "gone.m4a"),
    ]
    dataset = Dataset.create(tmp_path / "root", Manifest(clips), name="two", clip_folder=tmp_path, classes=("dog",))
    assert (dataset.root / "manifest.csv").read_text().splitlines()[2] == f"two,{part},dog,train,two,sound.m4a"
    assert list(Dataset.open(dataset.root).manifest) == clips
    size = len(member) + sound.stat().st_size
    assert dataset.file_sizes(clips) == {"whole": (tmp_path / "whole.mp4").stat().st_size, "two": size}
    (report,) = extract_embeddings(dataset, ["train"], tiny(tiny_encoders))
    assert [(f.clip_id, f.stream, f.reason) for f in report.failures] == [
        ("other", "ast", "can't be opened: No such file or directory")
    ]
    rows = dataset.store("train").read(clips)
    for stream in ("timesformer", "ast"):
        features = rows.features[stream]
        np.testing.assert_allclose(features[1], features[0], atol=1e-4 if stream == "timesformer" else 0.05)
    assert len(set(rows.digests)) == 3 and rows.file_bytes[1] == size


def test_a_changed_file_is_noticed_by_its_size_and_extracted_again_on_request(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root())
    (first,) = extract_embeddings(dataset, ["val"], tiny(tiny_encoders))
    assert first.changed == () == first.refreshed
    one, two, *others = dataset.manifest.of_split("val")
    before = dataset.embeddings("val")
    write_clip(dataset.path_of(one), look=40, frames=30)  # of another size
    content = bytearray(dataset.path_of(two).read_bytes())
    place = content.index(b"mdat") + 40
    content[place] ^= 1  # of the same size
    dataset.path_of(two).write_bytes(content)
    dataset.path_of(others[0]).touch()  # a new time says nothing
    (noticed,) = extract_embeddings(dataset, ["val"], tiny(tiny_encoders))
    assert noticed.changed == (one.clip_id,) and noticed.embedded == {"timesformer": 0, "ast": 0}
    text = format_report(noticed)
    assert one.clip_id in text and "extract --split val --refresh" in text
    assert [problem.kind for problem in audit(dataset).problems].count("changed") == 1
    plans, _ = plan_extraction(dataset, ["val"], tiny(tiny_encoders, refresh=True))
    assert plans[0].changed == (one.clip_id, two.clip_id)
    (made,) = extract_embeddings(dataset, ["val"], tiny(tiny_encoders, refresh=True))
    assert made.refreshed == (one.clip_id, two.clip_id) and made.embedded == {"timesformer": 2, "ast": 2}
    after = dataset.embeddings("val")
    same = (before.features["ast"] == after.features["ast"]).all(axis=1)
    assert not same[0] and same[2:].all() and after.failures == ()
    (last,) = extract_embeddings(dataset, ["val"], tiny(tiny_encoders, refresh=True))
    assert last.refreshed == () == last.changed and last.already == last.clips


def test_what_a_stream_does_not_hear_is_counted_before_and_after_extraction(
    make_root: MakeRoot, tiny_encoders: dict[str, Path]
) -> None:
    dataset = Dataset.open(make_root(frames=24, fps=12))  # 2 s; the tiny AST hears 1.28 s
    film, brief, mute, _ = dataset.manifest.of_split("val")
    write_clip(dataset.path_of(film), frames=60, fps=12, look=3)
    write_clip(dataset.path_of(brief), frames=24, fps=12, seconds=0.5)  # the sound ends before the picture
    write_clip(dataset.path_of(mute), frames=24, fps=12, audio=False)
    plans, _ = plan_extraction(dataset, ["val"], tiny(tiny_encoders))
    (made,) = extract_embeddings(dataset, ["val"], tiny(tiny_encoders))
    signed = audit(dataset, signatures=sign_clips(dataset, dataset.manifest.of_split("val")))
    for found in (*plans[0].coverage, *made.coverage, *signed.coverage):
        assert (found.stream, found.hears, found.pads_to, found.clips) == ("ast", 1.28, 1.28, 3)
        assert list(found.short) == [brief.clip_id] and film.clip_id in found.cut and len(found.cut) == 2
        assert found.unheard_seconds == pytest.approx(5 - 1.28 + 2 - 1.28, abs=0.15)
    stored = audit(dataset).coverage[0]  # stores keep the longer of picture and sound
    assert stored.clips == 3 and not stored.short and len(stored.cut) == 3
    assert {problem.kind for problem in signed.problems} >= {"unheard", "padded"}
    assert "2 of 3 clips are longer" in format_coverage(made.coverage, dataset.media).replace("\n ", "")
