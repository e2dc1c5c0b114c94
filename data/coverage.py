"""How much of the clips' sound the streams hear; everything that says so asks this module.

An encoder of sound hears the first seconds of a clip, while the frames of an encoder of pictures are spread over all of
it. What an encoder hears is known once it is loaded (`alphafuse.extract.encoders.encoder.Encoder.hears`), and recorded
where its embeddings are stored. A clip's seconds are those of its sound where that was decoded, else of the longer of
its picture and its sound, which stores keep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alphafuse.system.files import one_line

from .dataset import Dataset
from .manifest import SPLITS
from .streams import title_of

HEARD = 0.95  # a clip counts as heard whole if this share of it is heard: recordings end a little late
SHORT = 0.5  # share of what a model pads to, below which padding is most of its input
_NAMED = 3  # clips in a sentence


@dataclass(frozen=True)
class Hearing:
    """What a stream hears of a clip.

    Attributes:
        seconds: from the clip's start; None = everything.
        pads_to: seconds up to which it pads shorter sounds; None = it takes them as they are.
    """

    seconds: float | None
    pads_to: float | None = None


@dataclass(frozen=True)
class Coverage:
    """What of some clips a stream hears.

    Attributes:
        stream: the stream.
        hears: seconds from a clip's start; None = everything.
        pads_to: seconds up to which it pads shorter sounds; None = it takes them as they are.
        clips: clips with sound of known length.
        cut: clip_id -> seconds that it doesn't hear, of clips of which it hears less than `HEARD`.
        short: clip_id -> seconds, of clips with less than half of what it pads to.
    """

    stream: str
    hears: float | None
    pads_to: float | None
    clips: int
    cut: Mapping[str, float]
    short: Mapping[str, float]

    @property
    def unheard_seconds(self) -> float:
        """Seconds of all these clips that it doesn't hear."""
        return math.fsum(self.cut.values())

    def sentences(self, watching: Sequence[str] = ()) -> list[str]:
        """Return what should be known, a sentence each; none if all clips are heard whole and none is short.

        `watching`: streams that see pictures of the whole clip.
        """
        name, found = title_of(self.stream), []
        if self.cut:
            seen = f", while the frames of {' and '.join(map(title_of, watching))} span all of it" if watching else ""
            verb = "is" if len(self.cut) == 1 else "are"
            most = sorted(self.cut.items(), key=lambda clip: -clip[1])
            found.append(
                f"{name} hears the first {self.hears:.1f} s of a clip{seen}: {len(self.cut)} of {self.clips} clips "
                f"{verb} longer, and {_duration(self.unheard_seconds)} of sound are not heard ({_named(most)})."
            )
        if self.short:
            verb, ends = ("has", "is") if len(self.short) == 1 else ("have", "are")
            least = sorted(self.short.items(), key=lambda clip: clip[1])
            found.append(
                f"{name} pads sounds to {self.pads_to:.1f} s: {len(self.short)} of {self.clips} clips {verb} less than "
                f"half of that ({_named(least)}), and {ends} mostly padding to it."
            )
        return found


def coverage_of(hearing: Mapping[str, Hearing], seconds: Mapping[str, float]) -> tuple[Coverage, ...]:
    """Return what streams hear of clips.

    Args:
        hearing: stream -> what it hears; others are left out.
        seconds: clip_id -> seconds of its sound; NaN or 0 = unknown, or no sound.

    >>> (found,) = coverage_of({"ast": Hearing(10.24, pads_to=10.24)}, {"film": 60.0, "clip": 10.1, "bark": 0.8})
    >>> {clip_id: round(unheard, 2) for clip_id, unheard in found.cut.items()}, dict(found.short)
    ({'film': 49.76}, {'bark': 0.8})
    """
    known = {clip_id: length for clip_id, length in seconds.items() if length > 0}
    found = []
    for stream, one in hearing.items():
        most, padded = math.inf if one.seconds is None else one.seconds, one.pads_to or 0.0
        cut = {clip_id: length - most for clip_id, length in known.items() if most < HEARD * length}
        short = {clip_id: length for clip_id, length in known.items() if length < SHORT * padded}
        found.append(Coverage(stream, one.seconds, one.pads_to, len(known), cut, short))
    return tuple(found)


def joined(found: Iterable[Coverage]) -> tuple[Coverage, ...]:
    """Return one coverage per stream from those of several sets of different clips."""
    streams: dict[str, Coverage] = {}
    for one in found:
        before = streams.get(one.stream)
        if before is not None:
            one = replace(
                one,
                clips=before.clips + one.clips,
                cut={**before.cut, **one.cut},
                short={**before.short, **one.short},
            )
        streams[one.stream] = one
    return tuple(streams.values())


def stored_hearing(dataset: Dataset) -> dict[str, Hearing]:
    """Return what the extracted streams of a root hear, as its stores record it; streams of pictures are left out."""
    found: dict[str, Hearing] = {}
    for split in SPLITS:
        store = dataset.store(split)
        recipes = store.recipes()
        if not recipes:
            continue
        encoders = store.provenance().get("encoders", {})
        for name, recipe in recipes.items():
            rate, most = recipe.get("rate"), recipe.get("max_samples")
            if dataset.media.get(name) != "audio" or name in found or not isinstance(rate, int) or rate < 1:
                continue
            made = encoders.get(name, {}).get("hears")
            if isinstance(made, dict):
                found[name] = Hearing(_number(made.get("seconds")), _number(made.get("pads_to")))
            elif isinstance(most, int):  # embeddings that don't record more
                found[name] = Hearing(most / rate)
    return found


def stored_seconds(dataset: Dataset, split: str, streams: Iterable[str]) -> dict[str, float]:
    """Return clip_id -> seconds, the longer of picture and sound, of clips of a split that one of the streams hears."""
    clips, store = dataset.manifest.of_split(split), dataset.store(split)
    if not clips or not store.recipes():
        return {}
    rows = store.open_rows(clips)
    heard = np.any([np.zeros(len(rows), bool), *(rows.present(name) for name in streams if name in rows.dims)], axis=0)
    columns = rows.take(heard).columns().pooled()
    return dict(zip(columns.clip_ids, np.nan_to_num(columns.windows[:, 1]).tolist(), strict=True))


def _number(value: object) -> float | None:
    """Return a positive number that a file gives, else None."""
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None


def _duration(value: float) -> str:
    return f"{value:.1f} s" if value < 600 else f"{value / 60:.0f} min"


def _named(clips: Sequence[tuple[str, float]]) -> str:
    more = f" and {len(clips) - _NAMED} more" if len(clips) > _NAMED else ""
    return ", ".join(f"{one_line(name, 80)}: {value:.1f} s" for name, value in clips[:_NAMED]) + more
