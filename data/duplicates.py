"""Signatures of clips, and the pairs of clips that they show to be near-identical.

A signature describes a clip's picture and sound in few bytes, so that every clip can be compared with every other.

Two signatures are near-identical if picture and sound, or the one that both have, are:

- picture: difference hash (dHash, N. Krawetz 2013) of 8 frames at 9 x 8 grey cells, each cell against its right
  neighbour, with two bits per pair (clearly brighter, clearly darker), so that flat areas don't flip bits at random,
  and the mean colour of every frame;
- sound: the same two bits for the log energies of 9 bands in 33 steps, each cell against the next step and the next
  band (after Haitsma and Kalker, "A highly robust audio fingerprinting system", ISMIR 2002), and each band's level.

Signatures tolerate encoding again (other codec, bit rate, frame size, frame rate, sampling rate), another container,
and a change in loudness by up to 6 dB. They don't tolerate cropping, mirroring, subtitles, trimming, another speed, or
another sound under the same picture: such clips count as different.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

FRAMES = 8
FROZEN_LEVELS = 6.0  # of 255; encoders change a still picture by up to 4.6, the least moving clip changes by 23
SILENT_PEAK_DBFS = -60.0  # 33 steps of a 16-bit sample; the noise of microphones is louder

COLOUR_TOLERANCE = 16.0  # of 255, for each frame and channel
LEVEL_TOLERANCE_DB = 9.0  # for each band
# A hash may differ in this share of the bits that either clip sets, or in this many where few are set. On VGGSound, 26
# clips encoded again (down to 144 lines, 32 kbit/s mono) differ from themselves in at most 0.18 (picture) and 0.21
# (sound); of any two of 51 different clips, also of one source video, picture or sound differ in at least 0.55.
HASH_TOLERANCE, HASH_SLACK_BITS = 0.35, 16
_PAIRS_AT_ONCE = 100_000  # hashes held at once: about 30 MB


@dataclass(frozen=True)
class Signature:
    """Compact description of one clip's picture and sound.

    Attributes:
        seconds: duration that its packets cover, the longer of video and audio.
        no_frames, no_waveform: reason why there is no picture or no sound, else "".
        picture: packed hash bits of the frames; empty without a picture.
        colours: mean red, green and blue of each frame, 3 * FRAMES values in [0, 255]; empty without a picture.
        movement: largest change of any of 16 x 18 cells between the sampled frames, grey levels.
        sound: packed hash bits of the waveform; empty without sound.
        levels: mean level of each band, dBFS; empty without sound.
        peak: largest absolute sample; 1 is full scale.
        sound_seconds: duration of the sound; 0 without.
    """

    seconds: float
    no_frames: str = ""
    no_waveform: str = ""
    picture: bytes = b""
    colours: tuple[float, ...] = ()
    movement: float = 0.0
    sound: bytes = b""
    levels: tuple[float, ...] = ()
    peak: float = 0.0
    sound_seconds: float = 0.0

    @property
    def is_frozen(self) -> bool:
        """Whether there is a picture and all sampled frames are almost equal."""
        return not self.no_frames and self.movement < FROZEN_LEVELS

    @property
    def is_silent(self) -> bool:
        """Whether there is a sound track and its peak is below `SILENT_PEAK_DBFS`."""
        return not self.no_waveform and self.peak < 10 ** (SILENT_PEAK_DBFS / 20)

    @property
    def peak_dbfs(self) -> float | None:
        """The peak in dB relative to full scale; None for digital silence."""
        return 20 * math.log10(self.peak) if self.peak > 0 else None


def near_identical_pairs(signatures: Mapping[str, Signature]) -> list[tuple[str, str]]:
    """Return pairs of clip_ids with near-identical signatures, in the mapping's order.

    Clips are compared in three sets: those with picture and sound, only picture, only sound. A k-d tree of
    colours and levels finds candidates, hashes decide.
    """
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for clip_id, signature in signatures.items():
        if signature.picture or signature.sound:
            kinds.setdefault((bool(signature.picture), bool(signature.sound)), []).append(clip_id)
    return [pair for clip_ids in kinds.values() for pair in _pairs(clip_ids, signatures)]


def _pairs(clip_ids: list[str], signatures: Mapping[str, Signature]) -> Iterator[tuple[str, str]]:
    """Yield near-identical pairs of clips that have the same streams."""
    chosen = [signatures[clip_id] for clip_id in clip_ids]
    coarse = np.array(
        [[c / COLOUR_TOLERANCE for c in s.colours] + [level / LEVEL_TOLERANCE_DB for level in s.levels] for s in chosen]
    )  # (clips, 3 * frames + bands): within 1 of each other = within tolerance
    candidates = cKDTree(coarse).query_pairs(1.0, p=np.inf, output_type="ndarray")  # (pairs, 2)
    hashes = [
        np.array([np.frombuffer(part, np.uint8) for part in parts])
        for parts in ([s.picture for s in chosen], [s.sound for s in chosen])
        if parts[0]
    ]  # each (clips, bytes)
    for start in range(0, len(candidates), _PAIRS_AT_ONCE):
        left, right = candidates[start : start + _PAIRS_AT_ONCE].T
        same = np.logical_and.reduce([_hashes_agree(rows[left], rows[right]) for rows in hashes])
        for i, j in sorted(zip(left[same].tolist(), right[same].tolist(), strict=True)):
            yield clip_ids[i], clip_ids[j]


def _hashes_agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (pairs,) bool: whether packed hashes (pairs, bytes) differ by little."""
    differing = _count_bits(a ^ b)
    return differing <= np.maximum(HASH_SLACK_BITS, HASH_TOLERANCE * _count_bits(a | b))


def _count_bits(packed: np.ndarray) -> np.ndarray:
    """Return (rows,): the number of set bits in each row of bytes."""
    return _BITS_OF_BYTE[packed].sum(axis=1, dtype=np.int64)


_BITS_OF_BYTE = np.array([byte.bit_count() for byte in range(256)], np.uint8)
