"""Every family on clips: the whole path, from a file to the embedding, against HuggingFace's own processor and model.

The models are tiny and random. Each has a preprocessor file whose values differ from those of HuggingFace's class.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.clips import write_clip
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.models.vivit.image_processing_vivit import VivitImageProcessor

from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError
from alphafuse.extract.decoding.decode import decode_clip, decode_inputs
from alphafuse.extract.encoders.encoder import Encoder, Placement
from alphafuse.extract.encoders.families import load_encoder, medium_of
from alphafuse.extract.encoders.generic import load_generic
from alphafuse.extract.engines.ray_stages import ship_encoders, unship_encoders

Settings = dict[str, Any]
Output = Any
PICTURE = {  # differs from the defaults of every class
    "do_resize": True,
    "size": {"shortest_edge": 40},
    "do_rescale": True,
    "rescale_factor": 1 / 200,
    "do_normalize": True,
    "image_mean": [0.3, 0.4, 0.55],
    "image_std": [0.2, 0.3, 0.4],
}
PICTURE_CHANGES: list[Settings] = [
    {"do_resize": False},
    {"do_rescale": False},
    {"do_normalize": False},
    {"rescale_factor": 1 / 255},
    {"image_mean": [0.4, 0.4, 0.5]},
    {"image_std": [0.3, 0.3, 0.4]},
]


@dataclass(frozen=True)
class Case:
    """A family with a tiny model.

    Attributes:
        model: makes HuggingFace's model that is saved.
        preprocessor: its settings, all different from the class's defaults.
        reference: (folder, settings, raw frames or waveform) -> (d,), by HuggingFace's processor and model.
        changes: changes of settings; each must change the embedding.
        refused: settings that don't fit the model, and a word of the error's message.
        rate: samples per second of the waveform; None for frames.
        frames: number of frames by default.
        longest: samples that are heard at most.
        options: of the stream.
    """

    model: Callable[[], Any]
    preprocessor: Settings
    reference: Callable[[Path, Settings, np.ndarray], torch.Tensor]
    changes: list[Settings]
    refused: Mapping[str, tuple[Settings, str]] = field(default_factory=dict)
    rate: int | None = None
    frames: int = 8
    longest: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    file: str = "preprocessor_config.json"


SMALL: Settings = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CROP = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}}
SIDES = {"size": {"height": 28, "width": 28}}


# ------------------------------------------------------------------------------------------------------------- families


def dinov2(registers: int = 0) -> Any:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**small, num_register_tokens=registers)
        return transformers.Dinov2WithRegistersModel(config)
    return transformers.Dinov2Model(transformers.Dinov2Config(**small))


def frame_mean(processor: Any, model: str, pool: Callable[[Output], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reference(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
        loaded = getattr(transformers, model).from_pretrained(folder)
        inputs = processor(**settings)(list(frames), return_tensors="pt")
        return pool(loaded(**inputs)).mean(0)

    return reference


def vjepa2() -> Any:
    config = transformers.VJEPA2Config(
        hidden_size=48,
        num_attention_heads=2,
        num_hidden_layers=2,
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        mlp_ratio=1.0,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_pooler_layers=1,
    )
    return transformers.VJEPA2Model(config)


def vjepa2_reference(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
    model = transformers.VJEPA2Model.from_pretrained(folder)
    inputs = transformers.VJEPA2VideoProcessor(**settings)(frames, return_tensors="pt")
    return model(**inputs, skip_predictor=True).last_hidden_state[0].mean(0)


def dinov3() -> Any:
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, patch_size=7, image_size=28, num_register_tokens=2, key_bias=True, **SMALL
    )
    return transformers.DINOv3ViTModel(config)


def dinov3_convnext() -> Any:
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], image_size=64)
    return transformers.DINOv3ConvNextModel(config)


TEXT: Settings = {"vocab_size": 50, "hidden_size": 16, "max_position_embeddings": 8, **SMALL}
VISION: Settings = {"hidden_size": 32, "image_size": 28, "patch_size": 7, **SMALL}


def clip(*, whole: bool = True) -> Any:
    if not whole:
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    vision = {**VISION, "projection_dim": 24}
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=24)
    return transformers.CLIPModel(config)


def clip_projection(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
    inputs = CLIPImageProcessorPil(**settings)(list(frames), return_tensors="pt")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    return model.visual_projection(model.vision_model(**inputs).pooler_output).mean(0)


def siglip(*, whole: bool) -> Any:
    if not whole:
        return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION))


def siglip2() -> Any:
    vision = {"hidden_size": 32, "patch_size": 8, "num_patches": 16, **SMALL}
    return transformers.Siglip2Model(transformers.Siglip2Config(text_config=TEXT, vision_config=vision))


def siglip2_mean(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
    inputs = Siglip2ImageProcessorPil(**settings)(list(frames), return_tensors="pt")
    states = transformers.Siglip2VisionModel.from_pretrained(folder)(**inputs).last_hidden_state
    real = inputs["pixel_attention_mask"].bool()
    assert not real.all()
    return torch.stack([one[mask].mean(0) for one, mask in zip(states, real, strict=True)]).mean(0)


def videomae(*, classifier: bool) -> Any:
    config = transformers.VideoMAEConfig(**VISION, num_frames=4, num_labels=5)
    model = transformers.VideoMAEForVideoClassification if classifier else transformers.VideoMAEModel
    return model(config)


def videomae_reference(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
    inputs = VideoMAEImageProcessorPil(**settings)(list(frames), return_tensors="pt")
    return transformers.VideoMAEModel.from_pretrained(folder)(**inputs).last_hidden_state[0].mean(0)


def videomae_classifier(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
    inputs = VideoMAEImageProcessorPil(**settings)(list(frames), return_tensors="pt")
    model = transformers.VideoMAEForVideoClassification.from_pretrained(folder)
    heard: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, arguments: heard.append(arguments[0]))
    model(**inputs)
    return heard[0][0]


def vivit() -> Any:
    config = transformers.VivitConfig(
        hidden_size=32, image_size=28, tubelet_size=[2, 7, 7], num_frames=4, num_labels=5, **SMALL
    )
    return transformers.VivitForVideoClassification(config)


def vivit_reference(pool: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reference(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
        inputs = VivitImageProcessor(**settings)(list(frames), return_tensors="pt")
        model = transformers.VivitForVideoClassification.from_pretrained(folder).vivit.eval()
        return pool(model(**inputs).last_hidden_state[0])

    return reference


def clap(fusion: bool) -> Any:
    text = {"vocab_size": 50, "hidden_size": 16, **SMALL}
    audio = {"hidden_size": 32, "patch_embeds_hidden_size": 8, "depths": [1, 1, 1], "num_mel_bins": 16}
    audio |= {"num_attention_heads": [1, 1, 2], "spec_size": 64, "window_size": 4, "enable_fusion": fusion}
    audio |= {"enable_patch_layer_norm": True, "aff_block_r": 2}
    return transformers.ClapModel(transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=24))


def clap_reference(folder: Path, settings: Settings, waveform: np.ndarray) -> torch.Tensor:
    extractor = transformers.ClapFeatureExtractor(**settings)
    heard = waveform[: extractor.nb_max_samples]
    inputs = extractor(heard, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    model = transformers.ClapModel.from_pretrained(folder).eval()
    return model.audio_projection(model.audio_model(**inputs).pooler_output)[0]


def clap_pooler(folder: Path, settings: Settings, waveform: np.ndarray) -> torch.Tensor:
    extractor = transformers.ClapFeatureExtractor(**settings)
    heard = waveform[: extractor.nb_max_samples]
    inputs = extractor(heard, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return transformers.ClapAudioModel.from_pretrained(folder).eval()(**inputs).pooler_output[0]


CLAP_SETTINGS = {
    "feature_size": 16,
    "sampling_rate": 32_000,
    "hop_length": 320,
    "max_length_s": 1,
    "fft_window_size": 512,
    "frequency_min": 100,
    "frequency_max": 12_000,
    "truncation": "rand_trunc",
    "padding": "repeat",
}
CLAP_CHANGES: list[Settings] = [
    {"sampling_rate": 24_000},
    {"hop_length": 400},
    {"max_length_s": 2},
    {"fft_window_size": 1024},
    {"frequency_min": 0},
    {"frequency_max": 14_000},
    {"truncation": "fusion"},
    {"padding": "pad"},
]


def whisper() -> Any:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 60, "num_mel_bins": 20}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = transformers.WhisperConfig(**sizes, **ids, max_source_positions=150)
    return transformers.WhisperForConditionalGeneration(config)


def whisper_reference(folder: Path, settings: Settings, waveform: np.ndarray) -> torch.Tensor:
    extractor = transformers.WhisperFeatureExtractor(**settings)
    inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    model = transformers.WhisperModel.from_pretrained(folder).eval()
    states = model.encoder(inputs["input_features"]).last_hidden_state[0]
    seconds = min(len(waveform) / extractor.sampling_rate, extractor.chunk_length)
    tokens = int(np.ceil(seconds / extractor.chunk_length * len(states)))
    return states[:tokens].mean(0)


def wav2vec2(family: str, **settings: Any) -> Any:
    sizes = {"hidden_size": 32, "conv_dim": [16, 16, 16], "conv_kernel": [12, 6, 6], "conv_stride": [10, 5, 4], **SMALL}
    sizes |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 20}
    return getattr(transformers, f"{family}ForCTC")(getattr(transformers, f"{family}Config")(**sizes, **settings))


def wav2vec2_reference(folder: Path, settings: Settings, waveform: np.ndarray) -> torch.Tensor:
    extractor = transformers.Wav2Vec2FeatureExtractor(**settings)
    inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return transformers.AutoModel.from_pretrained(folder).eval()(inputs["input_values"]).last_hidden_state[0].mean(0)


def pe(*sides: str) -> Any:
    tower = {"hidden_size": 32, "head_dim": 16, **SMALL}
    ids = {name: 1 for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")}
    text = {"model_type": "modernbert", "vocab_size": 60, "hidden_size": 24, **SMALL, **ids}
    codec = {"encoder_hidden_size": 4, "downsampling_ratios": [4, 5, 8], "codebook_dim": 8, "hidden_size": 32}
    audio = {"model_type": "pe_audio_encoder", "dac_config": codec, **tower}
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 2}
    images = {"architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 8, "global_pool": "map"}
    images |= {"do_pooling": True, "model_args": {**sizes, "ref_feat_shape": [2, 2]}}
    video = {"model_type": "pe_video_encoder", "vision_config": images, **tower}
    if sides == ("audio",):
        return transformers.PeAudioModel(transformers.PeAudioConfig(text_config=text, audio_config=audio))
    if sides == ("video",):
        return transformers.PeVideoModel(transformers.PeVideoConfig(text_config=text, video_config=video))
    both = {"audio_config": audio, "video_config": video, **tower}
    return transformers.PeAudioVideoModel(transformers.PeAudioVideoConfig(text_config=text, audio_video_config=both))


def pe_audio(folder: Path, settings: Settings, waveform: np.ndarray) -> torch.Tensor:
    extractor = transformers.PeAudioFeatureExtractor(**settings)
    inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "audio_model", model)
    return model.audio_head(model.audio_encoder(**inputs).pooler_output)[0]


def pe_video(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
    inputs = transformers.PeVideoVideoProcessor(**settings, do_sample_frames=False)(frames, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "video_model", model)
    return model.video_head(model.video_encoder(**inputs).pooler_output)[0]


def vit(*, classifier: bool = False) -> Any:
    config = transformers.ViTConfig(**VISION, num_labels=5)
    return transformers.ViTForImageClassification(config) if classifier else transformers.ViTModel(config)


def xclip() -> Any:
    time = {f"mit_{name}": value for name, value in {"hidden_size": 24, **SMALL}.items()}
    vision = {**VISION, **time, "num_frames": 4}
    return transformers.XCLIPModel(
        transformers.XCLIPConfig(
            text_config=TEXT, vision_config=vision, projection_dim=24, prompt_num_attention_heads=2
        )
    )


def xclip_reference(folder: Path, settings: Settings, frames: np.ndarray) -> torch.Tensor:
    inputs = VideoMAEImageProcessorPil(**settings)(list(frames), return_tensors="pt")
    return transformers.AutoModel.from_pretrained(folder).get_video_features(**inputs).pooler_output[0]


def wav2vec2_bert() -> Any:
    config = transformers.Wav2Vec2BertConfig(hidden_size=32, feature_projection_input_dim=60, **SMALL)
    return transformers.Wav2Vec2BertModel(config)


def wav2vec2_bert_reference(folder: Path, settings: Settings, waveform: np.ndarray) -> torch.Tensor:
    extractor = transformers.SeamlessM4TFeatureExtractor(**settings)
    inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    states = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0]
    return states[: int(inputs["attention_mask"].sum())].mean(0)


WAVEFORM: Settings = {"sampling_rate": 8000, "do_normalize": False}
WAVEFORM_CHANGES: list[Settings] = [{"sampling_rate": 12_000}, {"do_normalize": True}]

CASES = {
    "dinov3": Case(
        dinov3,
        {**PICTURE, **SIDES, "resample": 3},
        frame_mean(transformers.DINOv3ViTImageProcessor, "DINOv3ViTModel", lambda output: output.pooler_output),
        [
            *PICTURE_CHANGES[2:],
            {"size": {"height": 35, "width": 28}},
            {"resample": 2},
            {**CROP, "size": {"height": 40, "width": 35}},
        ],
        {"size": ({"do_resize": False}, "size of frames"), "filter": ({"resample": 1}, "resample is 1")},
    ),
    "dinov3-mean": Case(
        dinov3,
        {**PICTURE, **SIDES, "resample": 3},
        frame_mean(
            transformers.DINOv3ViTImageProcessor, "AutoModel", lambda output: output.last_hidden_state[:, 3:].mean(1)
        ),
        [],
        frames=2,
        options={"pool": "mean", "frames": "2"},
    ),
    "dinov3-convnext": Case(
        dinov3_convnext,
        {**PICTURE, "size": {"height": 64, "width": 96}, "resample": 3},
        frame_mean(transformers.DINOv3ViTImageProcessor, "AutoModel", lambda output: output.pooler_output),
        [],
    ),
    "clip": Case(
        clip,
        {**PICTURE, **CROP, "resample": 2},
        frame_mean(CLIPImageProcessorPil, "CLIPVisionModel", lambda output: output.pooler_output),
        [*PICTURE_CHANGES, {"size": 36}, {"resample": 3}, {"resample": 1}],
    ),
    "clip-projection": Case(
        clip, {**PICTURE, **CROP, "resample": 2}, clip_projection, [], options={"pool": "projection"}
    ),
    "clip-vision": Case(
        lambda: clip(whole=False),
        {**PICTURE, **CROP, "resample": 2},
        frame_mean(CLIPImageProcessorPil, "CLIPVisionModel", lambda output: output.last_hidden_state[:, 1:].mean(1)),
        [],
        options={"pool": "mean"},
    ),
    "siglip": Case(
        lambda: siglip(whole=True),
        {**PICTURE, **SIDES, "resample": 2},
        frame_mean(SiglipImageProcessorPil, "SiglipVisionModel", lambda output: output.pooler_output),
        [*PICTURE_CHANGES[1:], {"resample": 3}, {**CROP, "size": {"shortest_edge": 40}}],
    ),
    "siglip-vision": Case(
        lambda: siglip(whole=False),
        {**PICTURE, **SIDES, "resample": 2},
        frame_mean(SiglipImageProcessorPil, "SiglipVisionModel", lambda output: output.last_hidden_state.mean(1)),
        [],
        options={"pool": "mean"},
    ),
    "siglip2": Case(
        siglip2,
        {**{k: v for k, v in PICTURE.items() if k != "size"}, "resample": 3, "patch_size": 8, "max_num_patches": 20},
        frame_mean(Siglip2ImageProcessorPil, "Siglip2VisionModel", lambda output: output.pooler_output),
        [*PICTURE_CHANGES[1:], {"resample": 2}, {"max_num_patches": 30}],
        {"patch": ({"patch_size": 16}, "patches of 16 pixels"), "resize": ({"do_resize": False}, "doesn't resize")},
    ),
    "siglip2-mean": Case(
        siglip2,
        {**{k: v for k, v in PICTURE.items() if k != "size"}, "resample": 3, "patch_size": 8, "max_num_patches": 31},
        siglip2_mean,
        [],
        frames=3,
        options={"pool": "mean", "frames": "3"},
    ),
    "videomae": Case(
        lambda: videomae(classifier=False),
        {**PICTURE, **CROP, "resample": 3},
        videomae_reference,
        [*PICTURE_CHANGES, {"size": {"shortest_edge": 36}}, {"resample": 2}],
        frames=4,
    ),
    "videomae-classifier": Case(
        lambda: videomae(classifier=True),
        {**PICTURE, **CROP, "resample": 3},
        videomae_classifier,
        [],
        frames=4,
        file="video_preprocessor_config.json",
    ),
    "vivit": Case(
        vivit,
        {**PICTURE, **CROP, "resample": 3, "offset": True},
        vivit_reference(lambda states: states[0]),
        [
            *PICTURE_CHANGES[:1],
            *PICTURE_CHANGES[2:],
            {"size": {"shortest_edge": 36}},
            {"resample": 2},
            {"offset": False},
            {"offset": False, "do_rescale": False},
        ],
        {"offset": ({"do_rescale": False}, "offset without do_rescale")},
        frames=4,
    ),
    "vivit-mean": Case(
        vivit,
        {**PICTURE, **CROP, "resample": 3, "offset": False},
        vivit_reference(lambda states: states[1:].mean(0)),
        [],
        frames=4,
        options={"pool": "mean"},
    ),
    "wav2vec2": Case(
        lambda: wav2vec2("Wav2Vec2"), WAVEFORM, wav2vec2_reference, WAVEFORM_CHANGES, rate=8000, longest=30
    ),
    "wav2vec2-layer": Case(
        lambda: wav2vec2("Wav2Vec2", feat_extract_norm="layer", do_stable_layer_norm=True, add_adapter=True),
        WAVEFORM,
        wav2vec2_reference,
        [],
        rate=8000,
        longest=30,
    ),
    "hubert": Case(lambda: wav2vec2("Hubert"), WAVEFORM, wav2vec2_reference, WAVEFORM_CHANGES, rate=8000, longest=30),
    "wavlm": Case(lambda: wav2vec2("WavLM"), WAVEFORM, wav2vec2_reference, WAVEFORM_CHANGES, rate=8000, longest=30),
    "pe-audio": Case(
        lambda: pe("audio"),
        {"sampling_rate": 8000, "hop_length": 160},
        pe_audio,
        [{"sampling_rate": 12_000}, {"hop_length": 480}],
        rate=8000,
        longest=30,
    ),
    "pe-audio-of-both": Case(
        lambda: pe("audio", "video"), {"sampling_rate": 8000, "hop_length": 160}, pe_audio, [], rate=8000, longest=30
    ),
    "pe-video": Case(
        lambda: pe("video"),
        {**PICTURE, **SIDES, "resample": 3},
        pe_video,
        [*PICTURE_CHANGES[1:], {"resample": 2}],
        frames=16,
        file="video_preprocessor_config.json",
    ),
    "pe-video-of-both": Case(
        lambda: pe("audio", "video"),
        {**PICTURE, **SIDES, "resample": 3},
        pe_video,
        [],
        frames=3,
        options={"frames": "3"},
        file="video_preprocessor_config.json",
    ),
    "generic-images": Case(
        vit,
        {**PICTURE, **SIDES, "resample": 3, "image_processor_type": "ViTImageProcessor"},
        frame_mean(ViTImageProcessorPil, "ViTModel", lambda output: output.pooler_output),
        [*PICTURE_CHANGES[1:], {"resample": 2}],
        {"size": ({"size": {"height": 35, "width": 35}}, "can't embed a trial input")},
    ),
    "generic-without-pooler": Case(
        lambda: vit(classifier=True),
        {**PICTURE, **SIDES, "resample": 3, "image_processor_type": "ViTImageProcessor"},
        frame_mean(ViTImageProcessorPil, "ViTModel", lambda output: output.last_hidden_state.mean(1)),
        [],
        frames=2,
        options={"frames": "2"},
    ),
    "generic-video-beside-texts": Case(
        xclip,
        {**PICTURE, **CROP, "resample": 3, "image_processor_type": "VideoMAEImageProcessor"},
        xclip_reference,
        [],
        frames=4,
    ),
    "generic-spectrogram": Case(
        wav2vec2_bert,
        {
            "feature_extractor_type": "SeamlessM4TFeatureExtractor",
            "feature_size": 30,
            "num_mel_bins": 30,
            "sampling_rate": 12_000,
            "padding_value": 0.5,
        },
        wav2vec2_bert_reference,
        [{"sampling_rate": 8000}],
        rate=12_000,
        longest=30,
    ),
    "generic-samples": Case(
        lambda: wav2vec2("UniSpeechSat"),
        {**WAVEFORM, "feature_extractor_type": "Wav2Vec2FeatureExtractor"},
        wav2vec2_reference,
        WAVEFORM_CHANGES,
        rate=8000,
        longest=30,
    ),
    "dinov2": Case(
        dinov2,
        {**PICTURE, "resample": 2, "do_center_crop": True, "crop_size": {"height": 28, "width": 35}},
        frame_mean(BitImageProcessorPil, "Dinov2Model", lambda output: output.pooler_output),
        [
            *PICTURE_CHANGES,
            {"size": {"shortest_edge": 44}},
            {"resample": 3},
            {"crop_size": {"height": 28, "width": 28}},
        ],
        {"crop": ({"do_center_crop": False}, "size of frames")},
    ),
    "dinov2-mean": Case(
        lambda: dinov2(registers=3),
        {**PICTURE, "resample": 2, "do_center_crop": False, "size": {"height": 35, "width": 28}},
        frame_mean(BitImageProcessorPil, "AutoModel", lambda output: output.last_hidden_state[:, 4:].mean(1)),
        [{"size": {"height": 28, "width": 35}}],
        frames=3,
        options={"pool": "mean", "frames": "3"},
    ),
    "vjepa2": Case(
        vjepa2,
        {**PICTURE, "resample": 3, "do_center_crop": True, "crop_size": {"height": 32, "width": 40}},
        vjepa2_reference,
        [*PICTURE_CHANGES, {"resample": 2}, {"crop_size": 40}],
        {"frames": ({"do_center_crop": False}, "size of frames")},
        frames=4,
        file="video_preprocessor_config.json",
    ),
    "clap": Case(
        lambda: clap(fusion=False),
        CLAP_SETTINGS,
        clap_reference,
        CLAP_CHANGES[:6] + CLAP_CHANGES[7:],
        {"mel bins": ({"feature_size": 20}, "20 mel bins")},
        rate=32_000,
        longest=1,
    ),
    "clap-alone": Case(lambda: clap(fusion=False).audio_model, CLAP_SETTINGS, clap_pooler, [], rate=32_000, longest=1),
    "clap-fused": Case(
        lambda: clap(fusion=True),
        {**CLAP_SETTINGS, "truncation": "fusion"},
        clap_reference,
        [{"frequency_min": 0}, {"padding": "repeatpad"}],
        rate=32_000,
        longest=1,
    ),
    "whisper": Case(
        whisper,
        {
            "feature_size": 20,
            "sampling_rate": 24_000,
            "hop_length": 240,
            "chunk_length": 3,
            "n_fft": 300,
            "padding_value": 0.01,
        },
        whisper_reference,
        [{"sampling_rate": 32_000, "hop_length": 320}, {"n_fft": 480}, {"padding_value": 0.0}],
        {"hop": ({"hop_length": 120}, "600 frames"), "mel bins": ({"feature_size": 24}, "24 mel bins")},
        rate=24_000,
        longest=3,
    ),
}


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A broad clip, a tall one and one of few frames; of 2, 4 and 0.5 seconds."""
    folder = tmp_path_factory.mktemp("clips")
    sizes = [((72, 96), 24), ((120, 80), 48), ((64, 64), 6)]
    return [write_clip(folder / f"{i}.mp4", frames=n, size=size, look=i) for i, (size, n) in enumerate(sizes)]


class Folders:
    """The models of cases, each made when it is first asked for; weights differ from each other and from zero."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def __getitem__(self, name: str) -> Path:
        folder, case = self._base / name, CASES[name]
        if not folder.exists():
            torch.manual_seed(0)
            model = case.model()
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    noise = torch.randn(value.shape)
                    is_scale = key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1", "running_var"))
                    value.copy_(1 + 0.1 * noise.clamp(-2, 2) if is_scale else 0.2 * noise)
            model.save_pretrained(folder)
            (folder / case.file).write_text(json.dumps(case.preprocessor))
        return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("models"))


def load(folder: Path, case: Case, placement: Placement | None = None, **options: str) -> Encoder:
    medium = "video" if case.rate is None else "audio"
    return load_encoder(Stream("tiny", str(folder), medium, {**case.options, **options}), placement)


def changed(folder: Path, case: Case, change: Settings, to: Path) -> tuple[Path, Settings]:
    """A folder with other settings of the preprocessor."""
    settings = {**case.preprocessor, **change}
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).symlink_to(file)
    (to / case.file).unlink()
    (to / case.file).write_text(json.dumps(settings))
    return to, settings


def inputs_of(encoder: Encoder, clips: list[Path]) -> list[np.ndarray]:
    decoded = [decode_inputs((path, ("tiny",), None), specs={"tiny": encoder.spec}) for path in clips]
    assert all(not one.reasons for one in decoded), decoded
    return [one.arrays["tiny"] for one in decoded]


def by_huggingface(folder: Path, settings: Settings, case: Case, path: Path) -> np.ndarray:
    """The reference on everything that the file holds."""
    rate = settings.get("sampling_rate", case.rate)
    decoded = decode_clip(path, frames=case.frames, rate=rate or 16_000)
    raw = decoded.frames if case.rate is None else decoded.waveform
    assert raw is not None
    with torch.inference_mode():
        return case.reference(folder, settings, raw).numpy()


def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == np.float32 and np.isfinite(ours).all() and theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_an_embedding_equals_huggingfaces_processor_and_model(name, folders, clips):
    case, folder = CASES[name], folders[name]
    encoder = load(folder, case)
    embeddings = encoder.embed(inputs_of(encoder, clips))
    assert embeddings.shape == (len(clips), encoder.dim)
    for row, path in zip(embeddings, clips, strict=True):
        assert_equal(row, by_huggingface(folder, case.preprocessor, case, path))


@pytest.mark.parametrize("name", CASES)
def test_real_clips_too(name, folders, real_clips):
    case, folder = CASES[name], folders[name]
    encoder = load(folder, case)
    for path in real_clips[:2]:
        row = encoder.embed(inputs_of(encoder, [path]))[0]
        assert_equal(row, by_huggingface(folder, case.preprocessor, case, path))


@pytest.mark.parametrize("name", CASES)
def test_a_batch_equals_its_clips_one_by_one(name, folders, clips):
    encoder = load(folders[name], CASES[name])
    inputs = inputs_of(encoder, clips)
    with ThreadPoolExecutor(3) as pool:  # as on the CPU, where each core embeds one clip
        alone = np.concatenate(list(pool.map(lambda one: encoder.embed([one]), inputs)))
    np.testing.assert_allclose(encoder.embed(inputs), alone, atol=1e-5, rtol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


MAIN = [name for name, case in CASES.items() if case.changes]  # one of each family
CHANGES = [(name, change) for name, case in CASES.items() for change in case.changes]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[f"{name}-{'-'.join(change)}" for name, change in CHANGES])
def test_each_value_of_the_preprocessor_changes_the_embedding(name, change, folders, clips, tmp_path):
    case = CASES[name]
    before = load(folders[name], case)
    folder, settings = changed(folders[name], case, change, tmp_path / "changed")
    encoder = load(folder, case)
    ours = encoder.embed(inputs_of(encoder, clips[2:]))[0]
    assert_equal(ours, by_huggingface(folder, settings, case, clips[2]))
    assert np.abs(ours - before.embed(inputs_of(before, clips[2:]))[0]).max() > 5e-5
    assert encoder.recipe() != before.recipe()


REFUSED = [(name, *refused) for name, case in CASES.items() for refused in case.refused.values()]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_settings_that_dont_fit_are_one_line(name, change, message, folders, tmp_path):
    folder, _ = changed(folders[name], CASES[name], change, tmp_path / "changed")
    with pytest.raises(EncoderError, match=message) as error:
        load(folder, CASES[name])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", MAIN)
def test_an_encoder_is_the_same_after_pickling(name, folders, clips):
    encoder = load(folders[name], CASES[name])
    inputs = inputs_of(encoder, clips)
    pickled, weights = ship_encoders({"tiny": encoder})  # as Ray's actors get it
    assert sum(map(len, weights)) > 10 * len(pickled) or len(pickled) < 200_000
    for copy in (pickle.loads(pickle.dumps(encoder)), unship_encoders((pickled, weights))["tiny"]):
        np.testing.assert_array_equal(copy.embed(inputs), encoder.embed(inputs))
        assert copy.recipe() == encoder.recipe()
    json.dumps(encoder.recipe())


@pytest.mark.parametrize("name", MAIN)
def test_bf16_is_near_and_float32(name, folders, clips):
    encoder = load(folders[name], CASES[name])
    fast = load(folders[name], CASES[name], Placement(precision="bf16"))
    inputs = inputs_of(encoder, clips)
    exact, near = encoder.embed(inputs), fast.embed(inputs)
    assert near.dtype == np.float32 and encoder.forward_bytes >= 0 and fast.forward_bytes >= 0
    cosine = (exact * near).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    assert (cosine > 0.98).all() and not np.array_equal(exact, near)


def write_config(folder: Path, **config: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


OPTIONS = [
    ("dinov2", {"frames": "0"}, "stream tiny: frames=0 must be a whole number from 1 on"),
    ("dinov2", {"frames": "many"}, "stream tiny: frames=many must be a whole number from 1 on"),
    ("dinov2", {"pool": "max"}, "stream tiny: unknown pool 'max': choose from cls, mean"),
    ("dinov2", {"seconds": "3"}, "stream tiny: unknown option 'seconds'"),
    ("vjepa2", {"frames": "5"}, "stream tiny: frames=5 must be a whole number from 1 on that is a multiple of 2"),
    ("videomae", {"frames": "8"}, "stream tiny: unknown option 'frames'"),
    ("clap", {"seconds": "2"}, "stream tiny: seconds=2 must be a number above 0 and at most 1, which is all that "),
    ("whisper", {"seconds": "nan"}, "stream tiny: seconds=nan must be a number above 0 and at most 3"),
    ("wav2vec2", {"seconds": "-1"}, "stream tiny: seconds=-1 must be a number above 0"),
    ("generic-images", {"pool": "projection"}, "stream tiny: unknown pool 'projection': choose from pooler, mean, cls"),
]


@pytest.mark.parametrize(("name", "options", "message"), OPTIONS)
def test_an_option_that_isnt_possible_is_one_line(name, options, message, folders):
    with pytest.raises(EncoderError) as error:
        load(folders[name], CASES[name], **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "longest"), [("clap", 32_000), ("whisper", 72_000), ("wav2vec2", 240_000)])
def test_sound_is_heard_from_its_start(name, longest, folders, clips):
    everything = load(folders[name], CASES[name])
    assert everything.spec.max_samples == longest
    first = load(folders[name], CASES[name], seconds="0.5")
    inputs = inputs_of(first, clips[:1])
    assert len(inputs[0]) == CASES[name].rate / 2
    whole = inputs_of(everything, clips[:1])[0]
    np.testing.assert_array_equal(inputs[0], whole[: len(inputs[0])])
    assert np.abs(first.embed(inputs) - everything.embed([whole])).max() > 1e-4


@pytest.mark.parametrize("name", ["clip", "clap", "siglip", "whisper", "pe-audio"])
def test_towers_that_arent_used_are_not_in_memory(name, folders):
    encoder = load(folders[name], CASES[name])
    names = [key for key, _ in encoder.model.named_parameters()]
    assert names and not [key for key in names if "text" in key or "decoder" in key]


def test_clap_before_its_projection(folders, clips):
    case = CASES["clap"]
    encoder = load(folders["clap"], case, pool="pooler")
    model = transformers.ClapModel.from_pretrained(folders["clap"]).eval()
    extractor = transformers.ClapFeatureExtractor(**case.preprocessor)
    waveform = inputs_of(encoder, clips[:1])[0]
    inputs = extractor(waveform, sampling_rate=32_000, return_tensors="pt")
    with torch.inference_mode():
        expected = model.audio_model(**inputs).pooler_output.numpy()
    np.testing.assert_allclose(encoder.embed([waveform]), expected, atol=1e-5)
    assert encoder.dim == 32 and load(folders["clap"], case).dim == 24


def test_a_missing_weight_is_an_error_and_a_missing_mask_token_is_not(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    for name, lost, is_needed in (
        ("wav2vec2", "wav2vec2.masked_spec_embed", False),
        ("wav2vec2", "wav2vec2.feature_projection.projection.weight", True),
    ):
        folder, _ = changed(folders[name], CASES[name], {}, tmp_path / lost)
        weights = load_file(folder / "model.safetensors")
        del weights[lost]
        (folder / "model.safetensors").unlink()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        if is_needed:
            with pytest.raises(EncoderError, match="lacks 1 weights, such as feature_projection"):
                load(folder, CASES[name])
        else:
            twice = [load(folder, CASES[name]).weights_sha256 for _ in range(2)]
            assert twice[0] == twice[1]  # nothing random is left in it


BAD: list[tuple[str, Settings, str]] = [
    ("dinov2", {"size": "big"}, "a setting that can't be used"),
    ("dinov2", {"size": {"shortest_edge": -3}}, "must be whole numbers of pixels"),
    ("dinov2", {"image_mean": [0.5]}, "image_mean is \\[0.5\\]: it must be three numbers"),
    ("dinov2", {"rescale_factor": "1/255"}, "must be whole numbers of pixels, and a number"),
    ("dinov2", {"do_pad": True}, "do_pad isn't implemented"),
    ("vjepa2", {"crop_size": {"shortest_edge": 3}}, "it must be a number or a height and a width"),
    ("clap", {"sampling_rate": "48 kHz"}, "aren't those of ClapFeatureExtractor"),
    ("clap", {"hop_length": 0}, "can't embed a trial input: hop_length must be greater than zero"),
    ("wav2vec2", {"sampling_rate": 0}, "sampling_rate is 0: it must be a whole number above 0"),
    ("generic-samples", {"feature_extractor_type": "Nope"}, "can't be loaded: Unrecognized feature extractor"),
]


@pytest.mark.parametrize(("name", "settings", "message"), BAD)
def test_a_setting_that_makes_no_sense_is_one_line(name, settings, message, folders, tmp_path):
    folder, _ = changed(folders[name], CASES[name], settings, tmp_path / "changed")
    with pytest.raises(EncoderError, match=message) as error:
        _ = load(folder, CASES[name]).forward_bytes
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 64}, "their shapes don't fit its config.json"),
        ({"hidden_size": "wide"}, "config.json of .* has a value that can't be used"),
        ({"hidden_act": "nope"}, "config.json of .* has a value that can't be used: KeyError 'nope'"),
    ],
)
def test_a_config_that_makes_no_sense_is_one_line(config, message, folders, tmp_path):
    folder, _ = changed(folders["dinov2"], CASES["dinov2"], {}, tmp_path / "changed")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    write_config(folder, **{**content, **config})
    with pytest.raises(EncoderError, match=message) as error:
        load(folder, CASES["dinov2"])
    assert "\n" not in str(error.value)


SCALED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 0.00392156862745098}
PUBLISHED: dict[str, Settings] = {  # preprocessor_config.json of the checkpoints on the hub
    "dinov2": {  # facebook/dinov2-base
        **SCALED,
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": {"shortest_edge": 256},
    },
    "dinov3": {  # facebook/dinov3-vitb16-pretrain-lvd1689m
        **SCALED,
        "crop_size": None,
        "do_center_crop": None,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "size": {"height": 224, "width": 224},
    },
    "vivit": {  # google/vivit-b-16x2-kinetics400
        **SCALED,
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 0.00784313725490196,
        "size": {"shortest_edge": 224},
    },
    "pe-video": {  # facebook/pe-av-base
        "do_sample_frames": False,
        "num_frames": None,
        "size": {"height": 336, "width": 336},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_without_a_preprocessor_takes_the_published_values(name, folders, tmp_path):
    case = CASES[name]
    published, _ = changed(folders[name], case, {}, tmp_path / "published")
    (published / case.file).write_text(json.dumps(PUBLISHED[name]))
    bare, _ = changed(folders[name], case, {}, tmp_path / "bare")
    (bare / case.file).unlink()
    assert load(bare, case).recipe() == load(published, case).recipe() != load(folders[name], case).recipe()


def test_settings_inside_of_processor_config_come_first(folders, tmp_path):
    """Transformers 5 saves them there."""
    for name, part in (("clap", "feature_extractor"), ("vjepa2", "video_processor"), ("dinov2", "image_processor")):
        case = CASES[name]
        folder, _ = changed(folders[name], case, {}, tmp_path / name)
        (folder / case.file).write_text("{}")
        (folder / "processor_config.json").write_text(json.dumps({part: case.preprocessor}))
        assert load(folder, case).recipe() == load(folders[name], case).recipe()


def test_what_is_no_encoder_is_one_line(tmp_path, folders, caplog):
    small = {"hidden_size": 16, **SMALL, "vocab_size": 40}
    bert = transformers.BertModel(transformers.BertConfig(**small))
    bert.save_pretrained(tmp_path / "bert")
    codec = {"num_filters": 4, "hidden_size": 16, "codebook_size": 8, "codebook_dim": 16, "upsampling_ratios": [4, 2]}
    encodec = transformers.EncodecModel(transformers.EncodecConfig(**codec, num_lstm_layers=1))
    encodec.save_pretrained(tmp_path / "encodec")
    transformers.EncodecFeatureExtractor().save_pretrained(tmp_path / "encodec")
    vit().save_pretrained(tmp_path / "bare")
    write_config(tmp_path / "new", model_type="notyet")
    write_config(tmp_path / "remote", model_type="notyet", auto_map={"AutoModel": "modeling.Model"})
    own = "write an encoder of your own, package.module:name"
    for folder, medium, message in (
        (
            tmp_path / "bert",
            "audio",
            f"(bert) takes input_ids, neither pictures nor sound: name a model of these, or {own}",
        ),
        (tmp_path / "encodec", "audio", "can't embed a trial input: it returns neither pooler_output nor last_hidden"),
        (
            tmp_path / "bare",
            "video",
            f"has no preprocessor_config.json, which says how its input is prepared: add one, or {own}",
        ),
        (
            tmp_path / "new",
            "video",
            f"has model_type 'notyet', which transformers {transformers.__version__} doesn't know: {own}",
        ),
        (tmp_path / "remote", "video", f"needs Python code of its own, which isn't run because a file names it: {own}"),
        (folders["generic-images"], "audio", "(vit) embeds video, and stream tiny is audio: give it another encoder"),
        (folders["dinov2"], "audio", "embeds video, and stream tiny is audio: give it another encoder"),
    ):
        with pytest.raises(EncoderError) as error:
            load_encoder(Stream("tiny", str(folder), medium))
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "siglip-vision", "vjepa2", "vivit-mean", "wav2vec2", "hubert"])
def test_the_generic_builder_equals_that_of_a_listed_family(name, folders, clips, tmp_path):
    case, folder = CASES[name], folders[name]
    if case.rate is None:
        kind = "video_processor_type" if name == "vjepa2" else "image_processor_type"
        classes = {"dinov2": "BitImageProcessor", "dinov3": "DINOv3ViTImageProcessor", "vjepa2": "VJEPA2VideoProcessor"}
        classes |= {"siglip-vision": "SiglipImageProcessor", "vivit-mean": "VivitImageProcessor"}
        folder, _ = changed(folder, case, {kind: classes[name]}, tmp_path / "changed")
    else:
        kind = "feature_extractor_type"
        folder, _ = changed(folder, case, {kind: "Wav2Vec2FeatureExtractor"}, tmp_path / "changed")
    listed = load(folder, case)
    pool = {"pool": "mean"} if name == "siglip-vision" else {}
    generic = load_generic(Stream("tiny", str(folder), listed.stream.medium, pool))
    ours, theirs = (encoder.embed(inputs_of(encoder, clips)) for encoder in (listed, generic))
    if name == "vivit-mean":  # of all tokens, the CLS token included
        theirs = theirs * 33 / 32 - load(folder, case, pool="cls").embed(inputs_of(listed, clips)) / 32
    assert_equal(ours, theirs)


def test_a_model_behind_a_licence_says_where_to_accept_it(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(hub_id: str, name: str) -> None:
        raise GatedRepoError.__new__(GatedRepoError)  # its constructor needs a response

    monkeypatch.setattr("alphafuse.extract.encoders.hub.hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(EncoderError) as error:
        load_encoder(Stream("dino", "facebook/dinov3-vitb16-pretrain-lvd1689m", "video"))
    expected = (
        "'facebook/dinov3-vitb16-pretrain-lvd1689m' is shared only with people who accept its licence: accept it at"
    )
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


@pytest.mark.slow
def test_the_commit_of_a_hub_model_is_known(folders, tmp_path):
    """The hub's cache serves the processor, the model and the commit without a network."""
    names = ("clip", "whisper", "generic-images")
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name in names:
        model = tmp_path / f"models--owner--{name}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text(commit)
        (model / "snapshots").mkdir()
        (model / "snapshots" / commit).symlink_to(folders[name])
    program = f"""
from alphafuse.data.streams import Stream
from alphafuse.extract.encoders.families import load_encoder
for name, medium in {[(name, "audio" if CASES[name].rate else "video") for name in names]}:
    print(load_encoder(Stream("tiny", f"owner/{{name}}", medium)).revision)
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [commit] * 3, done.stderr
    said = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert len(said) == 1 and "is of no listed family" in said[0]  # nothing else is printed


@pytest.mark.parametrize("name", ["a b/c", "a--b/c", "owner/model.git", "owner/nothing"])
def test_a_hub_id_that_doesnt_exist_is_one_line(name):
    with pytest.raises(EncoderError) as error:
        load_encoder(Stream("tiny", name, "video"))
    assert f"'{name}'" in str(error.value) and "--stream tiny=compact,medium=video" in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_of_older_versions_are_ignored(folders, clips, tmp_path):
    """Published files have values that follow from others, such as Whisper's table of mel filters."""
    derived = {
        "whisper": {"mel_filters": [[0.5]], "n_samples": 7, "nb_max_frames": 7, "feature_extractor_type": "Whisper..."},
        "clap": {"nb_max_samples": 7, "n_fft": 7, "chunk_length_s": 7, "top_db": None, "processor_class": "Clap..."},
    }
    for name, settings in derived.items():
        folder, _ = changed(folders[name], CASES[name], settings, tmp_path / name)
        ours, plain = load(folder, CASES[name]), load(folders[name], CASES[name])
        np.testing.assert_array_equal(*(one.embed(inputs_of(one, clips[:1])) for one in (ours, plain)))


def test_the_pooling_of_an_unlisted_family_is_said_once(folders, caplog):
    folder = folders["generic-images"]
    for _ in range(2):
        load_encoder(Stream("said", str(folder), "video"))
    said = [record.getMessage() for record in caplog.records if record.name == "alphafuse"]
    pooling = "pool=pooler of each frame, averaged over frames"
    assert said == [f"stream said: {folder} is of no listed family; its embedding is {pooling}"]


def test_a_checkpoint_of_two_media_asks_for_one(folders):
    with pytest.raises(EncoderError, match="doesn't tell a medium: say what stream pe embeds"):
        medium_of("pe", str(folders["pe-video-of-both"]), {})
    assert medium_of("pe", str(folders["pe-video"]), {}) == "video"
    assert medium_of("clap", str(folders["clap"]), {}) == "audio"
    assert medium_of("tiny", str(folders["generic-spectrogram"]), {}) == "audio"


@pytest.mark.slow
def test_torchvision_is_not_needed(folders, clips, tmp_path):
    """The families whose HuggingFace processors need it give the same without it."""
    names = ("vjepa2", "dinov3", "vivit", "generic-images")  # PE-AV needs timm, which itself needs torchvision
    expected = {name: load(folders[name], CASES[name]) for name in names}
    expected = {name: encoder.embed(inputs_of(encoder, clips[:1])) for name, encoder in expected.items()}
    np.savez(tmp_path / "expected.npz", **expected)
    program = f"""
import sys
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("torchvision") else found(name, *rest)
sys.modules["torchvision"] = None
import numpy as np
from pathlib import Path
from alphafuse.data.streams import Stream
from alphafuse.extract.decoding.decode import decode_inputs
from alphafuse.extract.encoders.families import load_encoder
expected = np.load({str(tmp_path / "expected.npz")!r})
for name, folder in { ({name: str(folders[name]) for name in names})!r}.items():
    encoder = load_encoder(Stream("tiny", folder, "video"))
    frames = decode_inputs((Path({str(clips[0])!r}), ("tiny",), None), specs={{"tiny": encoder.spec}}).arrays["tiny"]
    np.testing.assert_allclose(encoder.embed([frames]), expected[name], atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
