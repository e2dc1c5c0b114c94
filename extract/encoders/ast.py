"""AST: loading, input, and forward pass up to the pooled output.

The spectrogram is computed from samples on the model's device, by the same code on the CPU and on CUDA.

Shapes: b clips, n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from alphafuse.data.coverage import Hearing
from alphafuse.data.streams import Stream
from alphafuse.errors import EncoderError
from alphafuse.extract.decoding.specs import AudioSpec

from .encoder import Encoder, Placement, freeze, load_pretrained
from .transformer import Attention, Block, Mlp, run_blocks

SAMPLE_RATE_HZ = 16_000  # AST was trained at 16 kHz (Gong et al. 2021, section 3.1)
WINDOW_SAMPLES = 400  # Kaldi's filter bank window: 25 ms at 16 kHz
HOP_SAMPLES = 160  # Kaldi's hop: 10 ms
PREEMPHASIS = 0.97  # Kaldi's default
FFT_SAMPLES = 512  # Kaldi's default: the window rounded up to a power of two
LOWEST_HZ = 20.0  # Kaldi's default
DECIBEL_FFT = 2048  # samples; librosa's default, which the notebook kept
DECIBEL_RANGE = 80.0  # dB; librosa's default (`top_db`), which the notebook kept


@dataclass(frozen=True)
class SpectrogramSpec:
    """Preprocessing of a waveform into AST's input.

    The defaults are AST's published AudioSet values: 128 mel bands, 1024 frames of 10 ms, and the mean and standard
    deviation of AudioSet's log filter banks.

    Attributes:
        mel_bins: mel bands.
        max_length: number of frames; shorter clips are padded with zeros before normalisation, longer ones cut.
        mean, std: the result is (x - mean) / (2 std).
        spectrogram: "kaldi" (natural logarithm, `filter_banks`) or "decibel" (the notebook's,
            `decibel_spectrogram`).
    """

    mel_bins: int = 128
    max_length: int = 1024
    mean: float = -4.2677393
    std: float = 4.5689974
    spectrogram: str = "kaldi"

    @property
    def audio(self) -> AudioSpec:
        """The waveform: all of it for the notebook, because its decibels are relative to the loudest moment."""
        longest = (self.max_length - 1) * HOP_SAMPLES + WINDOW_SAMPLES
        return AudioSpec(SAMPLE_RATE_HZ, None if self.spectrogram == "decibel" else longest, WINDOW_SAMPLES)

    @property
    def seconds(self) -> float:
        """Seconds of its frames: 10.24 for the published AST."""
        return self.max_length * HOP_SAMPLES / SAMPLE_RATE_HZ

    @classmethod
    def notebook(cls, *, mel_bins: int, max_length: int) -> SpectrogramSpec:
        """Return the notebook's: decibels, normalised by AudioSet's (rounded) statistics of natural logarithms."""
        return cls(mel_bins=mel_bins, max_length=max_length, mean=-4.26, std=4.57, spectrogram="decibel")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, mel_bins: int, max_length: int) -> SpectrogramSpec:
        """Read HuggingFace's AST feature extractor settings; absent ones take the published values.

        Raises:
            EncoderError: the sample rate isn't 16 kHz, or the size isn't that of the model.
        """
        rate = config.get("sampling_rate", SAMPLE_RATE_HZ)
        if rate != SAMPLE_RATE_HZ:
            raise EncoderError(
                f"preprocessor_config.json wants audio at {rate} Hz: only {SAMPLE_RATE_HZ} is implemented"
            )
        given = (config.get("num_mel_bins", mel_bins), config.get("max_length", max_length))
        if given != (mel_bins, max_length):
            raise EncoderError(
                f"preprocessor_config.json makes {given[0]} mel bins x {given[1]} frames, config.json takes "
                f"{mel_bins} x {max_length}: make them agree"
            )
        normalize = config.get("do_normalize", True)
        return cls(
            mel_bins=mel_bins,
            max_length=max_length,
            mean=config.get("mean", cls.mean) if normalize else 0.0,
            std=config.get("std", cls.std) if normalize else 0.5,
        )


def load_ast(stream: Stream, placement: Placement | None = None) -> Encoder:
    """Load an AST: hub id, folder or "compact"; any input length and strides.

    The embedding is the mean of the CLS and the distillation token after the final norm. Option `protocol`:
    "notebook" prepares audio as the paper's notebook did.

    Raises:
        EncoderError: it can't be loaded, isn't an AST, lacks weights, or has settings that aren't implemented.
    """
    from transformers import ASTModel

    model, config, preprocessor = load_pretrained(stream, ASTModel)
    size = {"mel_bins": config.num_mel_bins, "max_length": config.max_length}
    is_notebook = stream.protocol == "notebook"
    spec = SpectrogramSpec.notebook(**size) if is_notebook else SpectrogramSpec.from_config(preprocessor, **size)
    return freeze_ast(stream, model, spec, placement)


def freeze_ast(stream: Stream, model: Any, spec: SpectrogramSpec, placement: Placement | None = None) -> Encoder:
    """Make the encoder of a `transformers.ASTModel`; it takes over the weights."""
    return freeze(
        stream,
        model,
        PooledAst,
        spec=spec.audio,
        prepare=partial(audio_inputs, spec=spec),
        placement=placement,
        details={"protocol": stream.protocol, "pool": "cls", **asdict(spec)},
        hearing=Hearing(spec.seconds, pads_to=spec.seconds),
    )


class PooledAst(nn.Module):
    """AST up to its pooled output: the mean of CLS and distillation token after the final norm."""

    def __init__(self, model: Any) -> None:
        """Take over the weights of a `transformers.ASTModel`."""
        super().__init__()
        self.embeddings = model.embeddings
        self.blocks = nn.ModuleList([_ast_block(layer, model.config) for layer in model.layers])
        self.norm = model.layernorm

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """Map (b, max_length, mel_bins) float32 to (b, d) float32."""
        x = run_blocks(self.blocks, self.embeddings(input_values), 2)  # (b, 2, d): CLS, distillation
        return self.norm(x).mean(dim=1)


def _ast_block(layer: Any, config: Any) -> Block:
    own = layer.attention
    attention = Attention([own.q_proj, own.k_proj, own.v_proj], own.o_proj, config.num_attention_heads)
    mlp = Mlp(layer.mlp.fc1, layer.mlp.fc2, layer.mlp.activation_fn, config)
    return Block((layer.layernorm_before, layer.layernorm_after), attention, mlp)


# audio


def audio_inputs(waveforms: Sequence[np.ndarray], spec: SpectrogramSpec, *, device: torch.device) -> torch.Tensor:
    """Turn the waveforms of a batch into AST's `input_values`.

    Args:
        waveforms: each (samples,) float32, mono, 16 kHz, at least 400 samples (`AudioSpec.check`).
        spec: sizes, statistics and kind of spectrogram.
        device: device of the samples and all computations.

    Returns:
        float32: (clips, max_length, mel_bins) for "kaldi"; (clips, mel_bins, max_length), transposed as the notebook
        fed it, for "decibel". Clips shorter than that are padded with zeros before normalisation.
    """
    if spec.spectrogram == "kaldi":
        banks = filter_banks(waveforms, spec.mel_bins, frames=spec.max_length, device=device)
    else:
        spectrograms = [
            decibel_spectrogram(torch.from_numpy(waveform).to(device), spec.mel_bins)[:, : spec.max_length]
            for waveform in waveforms
        ]
        # in relative decibels, 0 is the loudest value
        banks = torch.stack([F.pad(item, (0, spec.max_length - item.shape[1])) for item in spectrograms])
    return (banks - spec.mean) / (spec.std * 2)


def filter_banks(waveforms: Sequence[np.ndarray], mel_bins: int, *, frames: int, device: torch.device) -> torch.Tensor:
    """Kaldi's log mel filter banks: 25 ms Hann window, 10 ms hop, natural logarithm of the power.

    Equals torchaudio's Kaldi-compatible `fbank`, which HuggingFace's ASTFeatureExtractor calls for each clip.

    Args:
        waveforms: each (samples,) float32, mono, 16 kHz, at least 400 samples.
        mel_bins: mel bands.
        frames: frames of the result; samples beyond them are not used.
        device: device of the computation.

    Returns:
        (clips, frames, mel_bins) float32; 0 after a clip's last frame.
    """
    most = (frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES
    counts = torch.tensor([1 + (min(len(waveform), most) - WINDOW_SAMPLES) // HOP_SAMPLES for waveform in waveforms])
    longest = int(counts.max())
    samples = torch.zeros(len(waveforms), (longest - 1) * HOP_SAMPLES + WINDOW_SAMPLES)
    for row, waveform in zip(samples, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform[: len(row)])
    windows = samples.to(device).unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)  # (clips, longest, 400)
    windows = windows - windows.mean(dim=2, keepdim=True)
    before = F.pad(windows, (1, 0), mode="replicate")[..., :-1]
    windows = (windows - PREEMPHASIS * before) * torch.hann_window(WINDOW_SAMPLES, periodic=False, device=device)
    power = torch.fft.rfft(windows, n=FFT_SAMPLES).abs().square()  # (clips, longest, 257)
    banks = (power @ _kaldi_filters(mel_bins).to(device)).clamp(min=torch.finfo(torch.float32).eps).log()
    beyond = (torch.arange(longest) >= counts[:, None]).to(device)
    banks = banks.masked_fill(beyond[..., None], 0.0)
    return F.pad(banks, (0, 0, 0, frames - longest))


@lru_cache(maxsize=4)
def _kaldi_filters(mel_bins: int) -> torch.Tensor:
    """Return (257, mel_bins) float32; Kaldi doesn't use the Nyquist frequency."""
    from torchaudio.compliance import kaldi

    filters, _ = kaldi.get_mel_banks(mel_bins, FFT_SAMPLES, SAMPLE_RATE_HZ, LOWEST_HZ, 0.0, 100.0, -500.0, 1.0)
    return F.pad(filters, (0, 1)).T


def decibel_spectrogram(waveform: torch.Tensor, mel_bins: int) -> torch.Tensor:
    """Return the notebook's mel spectrogram, in decibels relative to the clip's loudest cell, cut off at -80.

    Equals librosa 0.10's `power_to_db(melspectrogram(y, sr=16000, n_mels=mel_bins, hop_length=160), ref=max)`:
    2048-point periodic Hann window, centred with zeros, power, Slaney's mel scale and norm up to 8 kHz, floor 1e-10.
    Computed in float64, because float32 can't represent 10^-3 dB at -80 dB.

    Args:
        waveform: (samples,) float32, mono, 16 kHz.
        mel_bins: mel bands.

    Returns:
        (mel_bins, 1 + samples // 160) float32 in [-80, 0].
    """
    spectrum = torch.stft(
        waveform.double(),
        n_fft=DECIBEL_FFT,
        hop_length=HOP_SAMPLES,
        window=torch.hann_window(DECIBEL_FFT, dtype=torch.float64, device=waveform.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )  # (1 + DECIBEL_FFT / 2, 1 + samples // 160)
    power = _slaney_filters(mel_bins).to(waveform.device).T @ spectrum.abs().square()
    decibels = 10 * (power.clamp(min=1e-10).log10() - power.max().clamp(min=1e-10).log10())
    return decibels.clamp(min=-DECIBEL_RANGE).float()


@lru_cache(maxsize=4)
def _slaney_filters(mel_bins: int) -> torch.Tensor:
    """Return (1 + DECIBEL_FFT / 2, mel_bins) float64."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        1 + DECIBEL_FFT // 2, mel_bins, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters)
