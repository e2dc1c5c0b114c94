"""Inputs and embeddings are compared with HuggingFace's own processors and models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.clips import sine, write_clip
from support.encoders import load
from transformers import ASTFeatureExtractor, ASTModel, TimesformerModel
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from alphafuse.errors import DatasetError, DecodeError, EncoderError
from alphafuse.extract.decoding.decode import decode_clip, prepare_frame
from alphafuse.extract.decoding.specs import FrameSpec
from alphafuse.extract.encoders import ast as ast_family
from alphafuse.extract.encoders.ast import SpectrogramSpec, audio_inputs
from alphafuse.extract.encoders.encoder import Placement
from alphafuse.extract.encoders.timesformer import can_resize, frame_inputs, resize_frames

CPU = torch.device("cpu")

K400 = {  # facebook/timesformer-base-finetuned-k400's preprocessor_config.json
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.45, 0.45, 0.45],
    "image_std": [0.225, 0.225, 0.225],
}


def huggingface_frames(frames: np.ndarray, config: dict) -> np.ndarray:
    processor = VideoMAEImageProcessorPil(**config)
    return np.stack(processor(list(frames), return_tensors="np")["pixel_values"][0])


def our_frames(frames: np.ndarray, config: dict) -> np.ndarray:
    spec = FrameSpec.from_config(config, frames=len(frames), image_size=224)
    prepared = np.stack([prepare_frame(frame, spec) for frame in frames])
    return frame_inputs([prepared], spec, device=CPU)[0].numpy()


def audio_input(waveform: np.ndarray, spec: SpectrogramSpec) -> np.ndarray:
    return audio_inputs([waveform], spec, device=CPU)[0].numpy()


def decibel_spectrogram(waveform: np.ndarray, mel_bins: int) -> np.ndarray:
    return ast_family.decibel_spectrogram(torch.from_numpy(waveform), mel_bins).numpy()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(240, 320), (360, 480), (720, 406), (224, 224), (225, 301), (100, 90), (352, 640)])
def test_frames_equal_huggingfaces_processor_at_any_size(size: tuple[int, int]) -> None:
    frames = noise(2, *size, 3)
    np.testing.assert_allclose(our_frames(frames, K400), huggingface_frames(frames, K400), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"height": 224, "width": 224}},
        {"do_center_crop": False, "size": {"height": 64, "width": 96}},
        {"do_normalize": False},
        {"do_rescale": False},
        {"resample": 3},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"size": {"shortest_edge": 256}},
        {"do_resize": False},
    ],
)
def test_other_processor_settings_are_followed_as_huggingface_follows_them(change: dict) -> None:
    frames, config = noise(2, 300, 260, 3), {**K400, **change}
    np.testing.assert_allclose(our_frames(frames, config), huggingface_frames(frames, config), rtol=1e-6, atol=1e-6)


def test_a_folder_without_processor_settings_gets_the_published_ones() -> None:
    assert FrameSpec.from_config({}, frames=8, image_size=224) == FrameSpec.from_config(K400, frames=8, image_size=224)
    assert FrameSpec.from_config({}, frames=8, image_size=224) == FrameSpec()
    assert FrameSpec.from_config({}, frames=16, image_size=448).crop == (448, 448)
    assert SpectrogramSpec.from_config({}, mel_bins=128, max_length=1024) == SpectrogramSpec()


def test_settings_that_are_not_implemented_are_refused_not_ignored() -> None:
    with pytest.raises(EncoderError, match="only shortest_edge or height and width are implemented"):
        FrameSpec.from_config({"size": {"longest_edge": 224}}, frames=8, image_size=224)
    with pytest.raises(EncoderError, match="wants audio at 44100 Hz"):
        SpectrogramSpec.from_config({"sampling_rate": 44_100}, mel_bins=128, max_length=1024)
    with pytest.raises(EncoderError, match=r"64 mel bins x 1024 frames, config.json takes 128 x 1024"):
        SpectrogramSpec.from_config({"num_mel_bins": 64}, mel_bins=128, max_length=1024)
    with pytest.raises(DecodeError, match="smaller than the crop"):
        prepare_frame(noise(100, 100, 3), FrameSpec(shortest_edge=0, crop=(224, 224)))


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(
    "size",
    [
        (240, 320),
        (360, 480),
        (720, 406),
        (224, 224),
        (225, 301),
        (100, 90),
        (1080, 1920),
        (33, 47),
        (224, 300),
        (900, 380),
    ],
)
def test_frames_resized_on_the_device_equal_pils_to_the_bit(size: tuple[int, int], resample: int) -> None:
    frames = noise(2, *size, 3)
    for spec in (
        FrameSpec(resample=resample),
        FrameSpec(shortest_edge=0, size=(64, 96), crop=(0, 0), resample=resample),
        FrameSpec(shortest_edge=30, crop=(20, 24), resample=resample),
    ):
        expected = np.stack([prepare_frame(frame, spec) for frame in frames])
        np.testing.assert_array_equal(resize_frames(torch.from_numpy(frames), spec).numpy(), expected)
    assert can_resize(FrameSpec(resample=resample)) and not can_resize(FrameSpec(resample=1))


def test_frames_resized_on_the_device_and_prepared_frames_share_a_batch() -> None:
    spec, clips = FrameSpec(shortest_edge=256), [noise(3, 300, 400, 3), noise(3, 230, 224, 3)]
    prepared = [np.stack([prepare_frame(frame, spec) for frame in clip]) for clip in clips]
    fed = frame_inputs([resize_frames(torch.from_numpy(clips[0]), spec), prepared[1]], spec, device=CPU)
    assert fed.shape == (2, 3, 3, 224, 224)
    torch.testing.assert_close(fed, frame_inputs(prepared, spec, device=CPU), rtol=0, atol=0)


def test_filter_banks_do_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    waveforms = [rng.normal(0, 0.1, samples).astype(np.float32) for samples in (400, 7_000, 160_000, 200_000)]
    together = audio_inputs(waveforms, SpectrogramSpec(), device=CPU)
    for waveform, fed in zip(waveforms, together, strict=True):
        torch.testing.assert_close(fed, audio_inputs([waveform], SpectrogramSpec(), device=CPU)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seconds", [0.03, 1.0, 10.0, 12.5])
def test_filter_bank_equals_huggingfaces_extractor_at_any_length(seconds: float) -> None:
    waveform = sine(seconds, 16_000, 1)[0] + np.random.default_rng(0).normal(0, 0.01, round(seconds * 16_000))
    waveform = waveform.astype(np.float32)
    expected = ASTFeatureExtractor()(waveform, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    ours = audio_input(waveform, SpectrogramSpec())
    assert ours.shape == (1024, 128) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_samples_beyond_the_last_frame_do_not_change_the_audio_input() -> None:
    spec = SpectrogramSpec(max_length=50, mel_bins=64)
    waveform = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    samples = 49 * 160 + 400
    np.testing.assert_array_equal(audio_input(waveform, spec), audio_input(waveform[:samples], spec))
    assert not np.array_equal(audio_input(waveform, spec), audio_input(waveform[: samples - 1], spec))


def test_audio_shorter_than_a_window_is_refused() -> None:
    audio = SpectrogramSpec().audio
    audio.check(np.zeros(400, np.float32))
    with pytest.raises(DecodeError, match=r"audio is shorter than one window of 400 samples \(25 ms\)"):
        audio.check(np.zeros(399, np.float32))


def test_embeddings_equal_huggingfaces_models(tiny_encoders: dict[str, Path], tmp_path: Path) -> None:
    clip = decode_clip(write_clip(tmp_path / "clip.mp4"), frames=4)
    assert clip.frames is not None and clip.waveform is not None
    timesformer, ast = load("timesformer", tiny_encoders["timesformer"]), load("ast", tiny_encoders["ast"])
    config = {**K400, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    pixel_values = torch.from_numpy(huggingface_frames(clip.frames, config))[None].float()
    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=128)
    input_values = extractor(clip.waveform, sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        model = TimesformerModel.from_pretrained(tiny_encoders["timesformer"]).eval()
        cls = model(pixel_values).last_hidden_state[:, 0].numpy()
        pooled = ASTModel.from_pretrained(tiny_encoders["ast"]).eval()(input_values).pooler_output.numpy()
    prepared = np.stack([prepare_frame(frame, timesformer.spec) for frame in clip.frames])  # type: ignore[arg-type]
    np.testing.assert_allclose(timesformer.embed([prepared]), cls, atol=1e-5)
    np.testing.assert_allclose(ast.embed([clip.waveform]), pooled, atol=1e-5)
    assert timesformer.dim == 64 and ast.dim == 32


def test_bf16_stays_close_to_fp32(tiny_encoders: dict[str, Path]) -> None:
    frames = noise(2, 4, 32, 32, 3)
    name = str(tiny_encoders["timesformer"])
    full = load("timesformer", name).embed(list(frames))
    half = load("timesformer", name, Placement(precision="bf16")).embed(list(frames))
    assert half.dtype == np.float32 and not np.array_equal(full, half)
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert (cosine > 0.99).all()


def test_weights_checksum_depends_on_the_weights_alone(tiny_encoders: dict[str, Path], tmp_path: Path) -> None:
    name = str(tiny_encoders["ast"])
    original = load("ast", name)
    ASTModel.from_pretrained(name).save_pretrained(tmp_path / "copy")
    assert load("ast", tmp_path / "copy").recipe() == original.recipe()
    changed = ASTModel.from_pretrained(name)
    changed.layernorm.bias.data[0] += 1e-3
    changed.save_pretrained(tmp_path / "changed")
    assert load("ast", tmp_path / "changed").weights_sha256 != original.weights_sha256


def test_a_classifier_checkpoint_loads_without_its_head(tmp_path: Path) -> None:
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_length=64, num_labels=5
    )
    whole = ASTForAudioClassification(config)
    whole.save_pretrained(tmp_path / "ast")
    whole.audio_spectrogram_transformer.save_pretrained(tmp_path / "body")
    loaded, body = load("ast", tmp_path / "ast"), load("ast", tmp_path / "body")
    assert loaded.weights_sha256 == body.weights_sha256
    waveform = noise(16_000).astype(np.float32) / 255
    np.testing.assert_array_equal(loaded.embed([waveform]), body.embed([waveform]))


def test_a_folder_that_is_not_an_encoder_is_a_one_line_error(tiny_encoders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no such folder for ast: '/nowhere/ast'"):
        load("ast", "/nowhere/ast")
    with pytest.raises(EncoderError, match=r"no config.json\): `alphafuse convert` makes one from an original"):
        load("ast", tmp_path)
    with pytest.raises(EncoderError, match=r"embeds video, and stream ast is audio: give it another encoder"):
        load("ast", tiny_encoders["timesformer"])
    with pytest.raises(EncoderError, match=r"unknown precision 'fp8'"):
        Placement(precision="fp8")
    with pytest.raises(DatasetError, match=r"unknown protocol 'notebok' \(did you mean 'notebook'\?\)"):
        load("ast", tiny_encoders["ast"], protocol="notebok")
    with pytest.raises(EncoderError, match="stream ast: unknown option 'frames': choose from protocol"):
        load("ast", tiny_encoders["ast"], frames="4")


def test_incomplete_weights_are_refused_not_filled_with_random_numbers(
    tiny_encoders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "ast"
    ASTModel.from_pretrained(tiny_encoders["ast"]).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"lacks 1 weights, such as layernorm.weight"):
        load("ast", folder)
    (folder / "model.safetensors").write_bytes((tiny_encoders["ast"] / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(EncoderError, match=r"can't be loaded"):
        load("ast", folder)


def test_an_unreachable_hub_names_three_alternatives() -> None:
    with pytest.raises(EncoderError) as caught:
        load("timesformer", "facebook/timesformer-base-finetuned-k400")
    message = str(caught.value)
    for way in ("a folder (config.json and model.safetensors;", "`alphafuse convert`", "`alphafuse data demo`"):
        assert way in message
    assert "\n" not in message


def test_real_clips_prepare_exactly_like_huggingfaces_processors(real_clips: list[Path]) -> None:
    for path in real_clips[::10]:
        clip = decode_clip(path, frames=4)
        assert clip.frames is not None and clip.waveform is not None
        np.testing.assert_allclose(our_frames(clip.frames, K400), huggingface_frames(clip.frames, K400), atol=1e-6)
        expected = ASTFeatureExtractor()(clip.waveform, sampling_rate=16_000, return_tensors="np")["input_values"][0]
        np.testing.assert_allclose(audio_input(clip.waveform, SpectrogramSpec()), expected, atol=1e-6)


def librosa_decibels(waveform: np.ndarray) -> np.ndarray:
    librosa = pytest.importorskip("librosa")
    mel = librosa.feature.melspectrogram(y=waveform, sr=16_000, n_mels=128, hop_length=160)
    return librosa.power_to_db(mel, ref=np.max)


def test_decibel_spectrogram_equals_librosas_on_noise_sine_and_silence() -> None:
    rng = np.random.default_rng(0)
    for waveform in (rng.normal(0, 0.1, 20_000), sine(1.0, 16_000, 1)[0], np.zeros(3_000), rng.normal(0, 1, 500)):
        ours = decibel_spectrogram(waveform.astype(np.float32), 128)
        np.testing.assert_allclose(ours, librosa_decibels(waveform.astype(np.float32)), atol=1e-3)
        assert ours.shape == (128, 1 + len(waveform) // 160) and ours.dtype == np.float32


def test_notebook_audio_is_transposed_padded_with_maximum_loudness_and_normalised_like_natural_logarithms() -> None:
    waveform = sine(2.0, 16_000, 1)[0]
    spec = SpectrogramSpec.notebook(mel_bins=128, max_length=1024)
    fed = audio_input(waveform, spec)
    assert fed.shape == (128, 1024) and fed.dtype == np.float32
    expected = (librosa_decibels(waveform) + 4.26) / (4.57 * 2)
    np.testing.assert_allclose(fed[:, :201], expected, atol=2e-4)
    np.testing.assert_allclose(fed[:, 201:], 4.26 / 9.14, atol=1e-6)
    long = audio_input(np.tile(waveform, 7), spec)
    np.testing.assert_allclose(long, (librosa_decibels(np.tile(waveform, 7))[:, :1024] + 4.26) / 9.14, atol=2e-4)


def test_notebook_frames_are_squashed_to_a_square_in_zero_to_one() -> None:
    image = noise(180, 320, 3)
    spec = FrameSpec.notebook(frames=1, image_size=224)
    fed = frame_inputs([prepare_frame(image, spec)[None]], spec, device=CPU)[0, 0].numpy()
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(fed, expected.transpose(2, 0, 1), atol=1e-6)


def test_the_recipes_of_protocols_differ(tiny_encoders: dict[str, Path]) -> None:
    for name, folder in tiny_encoders.items():
        standard, notebook = load(name, folder).recipe(), load(name, folder, protocol="notebook").recipe()
        assert standard["protocol"] == "standard" and notebook["protocol"] == "notebook"
        assert standard["weights_sha256"] == notebook["weights_sha256"]


def test_notebook_spectrograms_of_real_clips_equal_librosas(real_clips: list[Path]) -> None:
    for path in real_clips[::10]:
        waveform = decode_clip(path, frames=1).waveform
        assert waveform is not None
        np.testing.assert_allclose(decibel_spectrogram(waveform, 128), librosa_decibels(waveform), atol=1e-3)


def test_all_computation_of_an_embedding_stays_on_the_device(tiny_encoders: dict[str, Path]) -> None:
    """PyTorch's meta device computes nothing and refuses tensors of different devices, as CUDA does."""
    device = torch.device("meta")
    resized = resize_frames(torch.zeros(2, 300, 400, 3, dtype=torch.uint8, device=device), FrameSpec())
    assert frame_inputs([resized, resized], FrameSpec(), device=device).shape == (2, 2, 3, 224, 224)
    waveforms = [np.zeros(samples, np.float32) for samples in (5_000, 9_000)]
    assert audio_inputs(waveforms, SpectrogramSpec(), device=device).shape == (2, 1024, 128)
    notebook = SpectrogramSpec.notebook(mel_bins=128, max_length=64)
    assert audio_inputs(waveforms, notebook, device=device).shape == (2, 128, 64)
    timesformer, ast = load("timesformer", tiny_encoders["timesformer"]), load("ast", tiny_encoders["ast"])
    for encoder, inputs in ((timesformer, (2, 4, 3, 32, 32)), (ast, (2, 128, 64))):
        with torch.inference_mode():
            embeddings = encoder.model.to(device)(torch.zeros(inputs, device=device))
        assert embeddings.shape == (2, encoder.dim) and embeddings.device == device
