"""Train the compact TimeSformer and AST that ship in `extract/encoders/compact`.

    python benchmarks/train_compact.py --out DIR --only timesformer --epochs 8 --bfloat16
    python benchmarks/train_compact.py --out DIR --only ast --epochs 7

These commands made the weights, on one thread of a busy two-core AMD EPYC without a GPU. The AST was trained by an
earlier version of this file, with the same data, settings and loss but a different order of random draws. Accuracies
are for 1,000 clips of the training events with other seeds, from clean to noisy (difficulty 0 to 1.1):

    timesformer   528 s   shape 0.81, motion 0.95
    ast           640 s   timbre 0.77, rhythm 0.77, contour 0.73

To ship new weights, copy DIR/timesformer and DIR/ast over the folders in `extract/encoders/compact`. Expect similar
accuracies, not identical bytes: sums depend on the processor and on the library versions.

Both encoders learn to classify the factors of synthetic events from `data.sources.synthesis`: shape and motion of
visual events; timbre, rhythm and pitch contour of sound events. Combinations of factors that occur in the demo are
excluded from the training, so the demo's events are new to the encoders, although their factors are not. The
classifiers are discarded. The transformer is kept; the demo extracts its CLS embedding (TimeSformer) or its pooled
embedding (AST).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchaudio.compliance import kaldi
from transformers import ASTConfig, ASTModel, PreTrainedModel, TimesformerConfig, TimesformerModel

from alphafuse.data.sources.demo import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    FRAMES_PER_SECOND,
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    SOUND_EVENTS,
    VISUAL_EVENTS,
    draw_frame_count,
)
from alphafuse.data.sources.synthesis import (
    CONTOURS,
    MOTIONS,
    RHYTHMS,
    SHAPES,
    TIMBRES,
    SoundEvent,
    VisualEvent,
    draw_look,
    draw_voice,
    render_frames_and_mask,
    render_sound,
)

PATCHES = 4  # along each edge of the image: 64 / 16
CELLS = 3  # along each edge of a patch, for the auxiliary task of locating the shape
FRAMES = 8  # per clip, evenly spaced from the first to the last
IMAGE_SIZE = 64  # pixels
IMAGE_MEAN, IMAGE_STD = 0.45, 0.225  # TimeSformer's published values
SAMPLE_RATE_HZ = 16_000
MEL_BINS = 128
SPECTROGRAM_FRAMES = 256  # 10 ms each: the longest demo clip (2.5 s) has 248
SPECTROGRAM_MEAN, SPECTROGRAM_STD = -4.2677393, 4.5689974  # AST's published values, from AudioSet

TIMESFORMER_CONFIG = TimesformerConfig(
    image_size=IMAGE_SIZE,
    patch_size=16,
    num_frames=FRAMES,
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=384,
    initializer_range=0.1,  # 1 / sqrt(96): with the usual 0.02, made for width 768, the CLS token ignores the patches
    attention_type="divided_space_time",
)  # 0.71 M parameters
AST_CONFIG = ASTConfig(
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=384,
    initializer_range=0.1,  # 1 / sqrt(96): with the usual 0.02, made for width 768, the CLS token ignores the patches
    patch_size=16,
    frequency_stride=16,
    time_stride=16,
    max_length=SPECTROGRAM_FRAMES,
    num_mel_bins=MEL_BINS,
)  # 0.48 M parameters

TIMESFORMER_PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "VideoMAEImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": IMAGE_SIZE},
    "resample": 2,  # PIL's bilinear
    "do_center_crop": True,
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [IMAGE_MEAN] * 3,
    "image_std": [IMAGE_STD] * 3,
}
AST_PREPROCESSOR: dict[str, Any] = {
    "feature_extractor_type": "ASTFeatureExtractor",
    "feature_size": 1,
    "sampling_rate": SAMPLE_RATE_HZ,
    "num_mel_bins": MEL_BINS,
    "max_length": SPECTROGRAM_FRAMES,
    "do_normalize": True,
    "mean": SPECTROGRAM_MEAN,
    "std": SPECTROGRAM_STD,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
}


# -------------------------------------------------------------------------------------------------------------- events


def training_visual_events() -> list[VisualEvent]:
    """Return all combinations of shape and motion except the demo's: 12 x 12 - 8 = 136."""
    held_out = {(event.shape, event.motion) for event in VISUAL_EVENTS}
    pairs = [pair for pair in itertools.product(SHAPES, MOTIONS) if pair not in held_out]
    return [VisualEvent(f"{shape} {motion}", shape, motion) for shape, motion in pairs]


def training_sound_events() -> list[SoundEvent]:
    """Return all combinations of timbre, rhythm and contour except the demo's: 8 x 8 x 6 - 8 = 376."""
    held_out = {(event.timbre, event.rhythm, event.contour) for event in SOUND_EVENTS}
    triples = [triple for triple in itertools.product(TIMBRES, RHYTHMS, CONTOURS) if triple not in held_out]
    return [SoundEvent(" ".join(triple), *triple) for triple in triples]


def assert_disjoint() -> None:
    """Raise AssertionError if a training event also occurs in the demo."""
    seen = {(event.shape, event.motion) for event in training_visual_events()}
    heard = {(event.timbre, event.rhythm, event.contour) for event in training_sound_events()}
    assert not seen & {(event.shape, event.motion) for event in VISUAL_EVENTS}
    assert not heard & {(event.timbre, event.rhythm, event.contour) for event in SOUND_EVENTS}


# --------------------------------------------------------------------------------------------------------------- clips


class Example(NamedTuple):
    """One training clip."""

    inputs: np.ndarray  # frames (8, 64, 64, 3) uint8, or log-mel spectrogram (256, 128) float16; before scaling
    factors: list[int]  # indices of shape and motion, or of timbre, rhythm and contour
    covered: np.ndarray  # share of each cell of a patch that the shape covers, (8, 4, 4, 9) float32; (0,) for sounds


class Examples(NamedTuple):
    """Training clips, stacked."""

    inputs: Tensor  # (clips, ...) uint8 or float16
    factors: Tensor  # (clips, factors) int64
    covered: Tensor  # (clips, 8, 4, 4, 9) or (clips, 0) float32


def draw_visual_example(seed: int, difficulty: float) -> Example:
    """Draw one of the training's visual events, as input of the model."""
    rng = np.random.default_rng((1, seed))
    events = training_visual_events()
    event = events[rng.integers(len(events))]
    look = draw_look(rng, difficulty=difficulty)
    times = np.linspace(0, draw_frame_count(rng) - 1, FRAMES).astype(np.int64) / FRAMES_PER_SECOND
    frames, mask = render_frames_and_mask(event, look, rng, times=times, height=FRAME_HEIGHT, width=FRAME_WIDTH)
    left = (FRAME_WIDTH - FRAME_HEIGHT) // 2
    edge = FRAME_HEIGHT // (PATCHES * CELLS)  # pixels of the drawn frame in one cell
    square = mask[:, :, left : left + FRAME_HEIGHT]  # (8, 72, 72): the centre crop
    cells = square.reshape(FRAMES, PATCHES, CELLS, edge, PATCHES, CELLS, edge).mean((3, 6))  # (8, 4, 3, 4, 3)
    covered = cells.transpose(0, 1, 3, 2, 4).reshape(FRAMES, PATCHES, PATCHES, CELLS * CELLS)
    quality = int(rng.integers(30, 95))  # JPEG approximates H.264, which would need all frames in between
    pictures = np.stack([_resize_and_crop(_compress(frame, quality)) for frame in frames])
    factors = [list(SHAPES).index(event.shape), list(MOTIONS).index(event.motion)]
    return Example(pictures, factors, covered)


def _compress(frame: np.ndarray, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def _resize_and_crop(picture: Image.Image) -> np.ndarray:
    """Resize the shortest edge to 64 pixels, then crop the centre 64 x 64, as in TIMESFORMER_PREPROCESSOR."""
    scale = IMAGE_SIZE / min(picture.size)
    size = (int(picture.width * scale), int(picture.height * scale))
    small = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - IMAGE_SIZE) // 2, (size[1] - IMAGE_SIZE) // 2
    return np.asarray(small.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))


def draw_sound_example(seed: int, difficulty: float) -> Example:
    """Draw one of the training's sound events, as input of the model."""
    rng = np.random.default_rng((2, seed))
    events = training_sound_events()
    event = events[rng.integers(len(events))]
    voice = draw_voice(rng, difficulty=difficulty)
    seconds = float(rng.uniform(SHORTEST_SECONDS, LONGEST_SECONDS))
    wave = render_sound(event, voice, rng, seconds=seconds, sample_rate_hz=SAMPLE_RATE_HZ)
    mel = kaldi.fbank(
        torch.from_numpy(wave)[None],
        sample_frequency=SAMPLE_RATE_HZ,
        window_type="hanning",
        num_mel_bins=MEL_BINS,
    )  # (frames, 128)
    mel = nn.functional.pad(mel, (0, 0, 0, SPECTROGRAM_FRAMES - len(mel)))[:SPECTROGRAM_FRAMES]
    factors = [
        list(TIMBRES).index(event.timbre),
        list(RHYTHMS).index(event.rhythm),
        list(CONTOURS).index(event.contour),
    ]
    return Example(mel.numpy().astype(np.float16), factors, np.zeros(0, np.float32))


def draw_examples(draw: Callable[[int, float], Example], seeds: range) -> Examples:
    """Draw one example per seed, from easy to hard: 5 to 8 ms each (threads don't help, because of Python's lock)."""
    difficulties = np.linspace(0, 1.1, len(seeds))  # the demo is harder: LOOK_DIFFICULTY, VOICE_DIFFICULTY
    drawn = [draw(seed, float(level)) for seed, level in zip(seeds, difficulties, strict=True)]
    return Examples(
        torch.from_numpy(np.stack([example.inputs for example in drawn])),
        torch.tensor([example.factors for example in drawn]),
        torch.from_numpy(np.stack([example.covered for example in drawn])),
    )


def prepare_frames(pictures: Tensor, augment: bool) -> Tensor:
    """Pictures (batch, 8, 64, 64, 3) uint8 -> model inputs (batch, 8, 3, 64, 64) float32."""
    pixels = pictures.permute(0, 1, 4, 2, 3).float() / 255
    if augment:
        batch = len(pixels)
        channels = torch.stack([torch.randperm(3) for _ in range(batch)])  # factors don't depend on colour
        pixels = torch.gather(pixels, 2, channels[:, None, :, None, None].expand_as(pixels))
        gain, offset = torch.empty(2, batch, 1, 1, 1, 1).uniform_(-0.2, 0.2)
        shift_y, shift_x = (int(shift) for shift in torch.randint(-3, 4, (2,)))
        pixels = pixels.roll((shift_y, shift_x), (-2, -1)) * (1 + gain) + offset
    return (pixels - IMAGE_MEAN) / IMAGE_STD


def prepare_spectrograms(mel: Tensor, augment: bool) -> Tensor:
    """Log-mel spectrograms (batch, 256, 128) float16 -> model inputs (batch, 256, 128) float32."""
    mel = mel.float()
    if augment:
        sounding = mel != 0  # the padding stays zero
        mel = mel + sounding * torch.empty(len(mel), 1, 1).uniform_(-1.5, 1.5)  # louder or softer
        mel = torch.where(sounding, mel.roll(int(torch.randint(-4, 5, ())), -1), mel)  # higher or lower
    return (mel - SPECTROGRAM_MEAN) / (SPECTROGRAM_STD * 2)


# ------------------------------------------------------------------------------------------------------------ training


def timesformer_embedding(model: PreTrainedModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the CLS token after the final norm, (batch, 96), and the patches' tokens, (batch, 8, 4, 4, 96)."""
    tokens = model(pixels).last_hidden_state  # (batch, 1 + 4 * 4 * 8, 96), the frame is the fastest index
    patches = tokens[:, 1:].unflatten(1, (PATCHES, PATCHES, FRAMES))
    return tokens[:, 0], patches.permute(0, 3, 1, 2, 4)


def ast_embedding(model: PreTrainedModel, mel: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the CLS and distillation tokens after the final norm, (batch, 96), and (batch, 0, 96)."""
    pooled = model(mel).pooler_output
    return pooled, pooled[:, None][:, :0]


def train_encoder(
    model: PreTrainedModel,
    embed: Callable[[PreTrainedModel, Tensor], tuple[Tensor, Tensor]],
    prepare: Callable[[Tensor, bool], Tensor],
    examples: Examples,
    held_out: Examples,
    *,
    epochs: int,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    bfloat16: bool = False,
) -> list[float]:
    """Train `model` in place on the factors of `examples`; return each factor's accuracy on the `held_out` clips.

    If the examples have `covered`, there are two auxiliary tasks: the covered tokens alone predict the factors, and
    every token predicts the coverage of its cells. With the CLS token alone the TimeSformer learns nothing for many
    epochs.
    """
    inputs, factors, covered = examples
    classes = [int(count) + 1 for count in factors.amax(0)]
    heads = nn.ModuleList(nn.Linear(model.config.hidden_size, count) for count in classes)
    finder = nn.Linear(model.config.hidden_size, CELLS * CELLS)
    parameters = [*model.parameters(), *heads.parameters(), *finder.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    steps = epochs * (len(inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.08)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    start = time.monotonic()
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for rows in _batches(len(inputs), batch_size, mixing=0.2 + epoch):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                features, tokens = embed(model, prepare(inputs[rows], True))
            losses = [loss_function(head(features.float()), factors[rows, i]) for i, head in enumerate(heads)]
            loss = named = torch.stack(losses).sum()
            if tokens.numel():
                tokens, cells = tokens.float(), covered[rows]  # (batch, 8, 4, 4, 96) and (batch, 8, 4, 4, 9)
                share = cells.mean(-1)
                moving = torch.einsum("bfhwd,bfhw->bd", tokens, share) / (share.sum((1, 2, 3))[:, None] + 1e-3)
                losses = [loss_function(head(moving), factors[rows, i]) for i, head in enumerate(heads)]
                found = nn.functional.binary_cross_entropy_with_logits(finder(tokens), cells)
                loss = named + torch.stack(losses).sum() + 4 * found
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += named.item() * batch_size / len(inputs)
        accuracies = measure(model, embed, prepare, heads, held_out)
        shown = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        print(f"epoch {epoch + 1:2d}  loss {total:.3f}  accuracy {shown}  {time.monotonic() - start:.0f} s", flush=True)
    return accuracies


@torch.no_grad()
def whiten_patches(projection: nn.Conv2d, images: Tensor) -> None:
    """Initialise the patch embedding with whitened principal components of `images`, (images, channels, height, width).

    With the usual random initialisation, for thousands of steps the embedding is little more than a patch's mean
    colour.
    """
    size = projection.kernel_size[0]
    patches = nn.functional.unfold(images, size, stride=size).transpose(1, 2).flatten(0, 1)  # (patches, inputs)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    kept = projection.out_channels
    weight = (vectors[:, -kept:] / (values[-kept:] + 1e-3).sqrt()).T  # (out, inputs)
    weight = nn.init.orthogonal_(torch.empty(kept, kept)) @ weight  # makes all outputs equally important
    projection.weight.copy_(0.5 * weight.reshape(projection.weight.shape))
    assert projection.bias is not None
    projection.bias.copy_(-0.5 * weight @ mean)


@torch.no_grad()
def scatter_positions(model: PreTrainedModel) -> None:
    """Initialise the position and time embeddings at random instead of zero, so that tokens differ from the start."""
    for name, parameter in model.named_parameters():
        if name in ("embeddings.position_embeddings", "embeddings.time_embeddings", "embeddings.cls_token"):
            parameter.normal_(0, 0.3)


def _batches(count: int, batch_size: int, mixing: float) -> Iterator[Tensor]:
    """Yield the rows of one epoch's full batches: `mixing` 0 keeps the order from easy to hard, larger ones shuffle."""
    order = (torch.linspace(0, 1, count) + mixing * torch.rand(count)).argsort()
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    embed: Callable[[PreTrainedModel, Tensor], tuple[Tensor, Tensor]],
    prepare: Callable[[Tensor, bool], Tensor],
    heads: nn.ModuleList,
    clips: Examples,
) -> list[float]:
    """Return the accuracy of each factor's head on `clips`, in [0, 1]."""
    model.eval()
    features = torch.cat([embed(model, prepare(part, False))[0] for part in clips.inputs.split(128)])
    return [float((head(features).argmax(1) == clips.factors[:, i]).float().mean()) for i, head in enumerate(heads)]


def save_encoder(model: PreTrainedModel, preprocessor: dict[str, Any], folder: Path) -> None:
    """Write config.json, model.safetensors (float32) and preprocessor_config.json in HuggingFace's layout."""
    model.eval().float().save_pretrained(folder)
    text = json.dumps(preprocessor, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the compact TimeSformer and AST.")
    parser.add_argument("--out", type=Path, required=True, help="output folder for timesformer/ and ast/")
    parser.add_argument("--only", choices=["timesformer", "ast"], help="train only this encoder")
    parser.add_argument("--clips", type=int, default=5_000, help="clips drawn for each encoder")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16 (the weights stay float32)")
    options = parser.parse_args()
    assert_disjoint()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    held_out_seeds = range(10_000_000, 10_000_000 + 1_000)
    for name in ["timesformer", "ast"] if options.only is None else [options.only]:
        start = time.monotonic()
        is_video = name == "timesformer"
        model = TimesformerModel(TIMESFORMER_CONFIG) if is_video else ASTModel(AST_CONFIG)
        draw = draw_visual_example if is_video else draw_sound_example
        examples = draw_examples(draw, range(options.clips))
        sample = examples.inputs[:: max(1, options.clips // 500)]
        if is_video:
            images = prepare_frames(sample, False).flatten(0, 1)  # (clips * 8, 3, 64, 64)
        else:
            images = prepare_spectrograms(sample, False).transpose(1, 2)[:, None]  # (clips, 1, 128, 256)
        whiten_patches(model.embeddings.patch_embeddings.projection, images)
        if is_video:
            scatter_positions(model)
        held_out = draw_examples(draw, held_out_seeds)
        print(f"{name}: drew {options.clips} clips in {time.monotonic() - start:.0f} s", flush=True)
        train_encoder(
            model,
            timesformer_embedding if is_video else ast_embedding,
            prepare_frames if is_video else prepare_spectrograms,
            examples,
            held_out,
            epochs=options.epochs,
            bfloat16=options.bfloat16,
        )
        save_encoder(model, TIMESFORMER_PREPROCESSOR if is_video else AST_PREPROCESSOR, options.out / name)
        print(f"{name}: {time.monotonic() - start:.0f} s in total", flush=True)


if __name__ == "__main__":
    main()
