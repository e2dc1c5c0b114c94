"""The explorer of the report page: a trained head that recomputes its predictions in the browser.

An alpha, which readers know as a weight, is a factor on a stream before fusion. If fusion is linear without bias
(`concat`, `add`), the product of the first layer splits into one part per stream, for any transform and normalisation
before it; for two streams S and A:

    z1 = W1 fuse(aS S, aA A) + b1 = aS (W1 fuse(S, 0)) + aA (W1 fuse(0, A)) + b1

These parts are computed once per clip, in Python. The page needs neither embeddings nor W1: it adds the parts, applies
ReLU and the layers that follow. The page stores parts and weights as int16 with a scale per row.

Measured on the demo's untransformed and sqrt-ast heads (192 clips, 192-1024-512-16), at 81 pairs of alphas from 0 to 2,
the worse of the two heads:

    parts, weights     bytes in the page     predictions as the head's     largest difference of a probability
    int8, int8         1.2 MB                99.85%                        0.0085
    int16, int8        1.8 MB                99.90%                        0.0054
    int8, int16        1.9 MB                99.89%                        0.0056
    int16, int16       2.5 MB                100%                          0.00003

Readers examine the few clips whose prediction changes, and int8 gets these wrong. Each page states its own measurement.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from scipy.special import softmax

from alphafuse.data.embeddings import Embeddings
from alphafuse.data.splits import Ceiling
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import usable_clips
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.scoring.statistics import wilson_interval
from alphafuse.report.looks import Looks, capitalised, listed, look_of
from alphafuse.report.tables import percent

from .votes import in_memory

TEMPLATES = Path(__file__).parent / "templates"
EXPLORABLE = ("concat", "add")  # fusions that are linear without bias
MAX_CLIPS = 400  # with 309 classes: 0.15 s per recomputation on a busy core of an Intel Xeon, 4.1 MB of page
MAX_PAGE_BYTES = 12_000_000  # limit of parts and weights as written into the page
HIGHEST_ALPHA = 2.0
ALPHA_STEP = 0.05  # step of the sliders
MAP_ALPHAS = tuple(np.linspace(0, HIGHEST_ALPHA, 9).tolist())  # of one or two streams
COARSE_ALPHAS = MAP_ALPHAS[
    ::2
]  # of each pair of more streams: three take 3 s on two cores with 9 x 9 alphas, ten 5 min
MAP_PIXELS = 306  # side of a map
QUANTA = 32_767  # largest int16


@dataclass(frozen=True)
class Agreement:
    """Agreement of the packed head with the original head, on the clips in the page.

    Attributes:
        clips: number of clips.
        points: number of compared combinations of alphas, each on all clips.
        at_one: share of equal predictions at alpha 1, in [0, 1].
        over_points: share of equal predictions over all points, in [0, 1].
        largest_difference: largest difference of a class's probability at any point, in [0, 1].
    """

    clips: int
    points: int
    at_one: float
    over_points: float
    largest_difference: float


@dataclass(frozen=True)
class Packed:
    """A quantised matrix: `quanta` (rows, columns) int16 times `scales` (rows,) float32."""

    quanta: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, matrix: np.ndarray) -> Packed:
        """Quantise `matrix`, (rows, columns) of finite floats, to the nearest values."""
        largest = np.abs(matrix).max(axis=1, initial=0)
        scales = np.where(largest > 0, largest / QUANTA, 1).astype(np.float32)
        quanta = np.rint(matrix.astype(np.float64) / scales[:, None])
        return cls(np.clip(quanta, -QUANTA, QUANTA).astype("<i2"), scales)

    @functools.cached_property
    def unpacked(self) -> np.ndarray:
        """Return (rows, columns) float32, as the page computes it."""
        return self.quanta.astype(np.float32) * self.scales[:, None]

    def to_json(self) -> dict[str, str]:
        """Return both arrays as base64 of little-endian numbers."""
        return {"quanta": _base64(self.quanta), "scales": _base64(self.scales.astype("<f4"))}


@dataclass(frozen=True)
class PackedHead:
    """A quantised head, with its first layer already applied to some clips.

    Attributes:
        parts: stream -> (clips, width of the first layer): the stream's part of that layer's output.
        bias: (width,) float32, bias of that layer.
        layers: the layers that follow: weights (outputs, inputs) and bias (outputs,) float32 of each.
    """

    parts: Mapping[str, Packed]
    bias: np.ndarray
    layers: tuple[tuple[Packed, np.ndarray], ...]

    @classmethod
    @torch.no_grad()
    def of(cls, head: AlphaFusion, embeddings: Embeddings) -> PackedHead:
        """Split the first layer's product by stream; the head must be able to use all clips of `embeddings`."""
        streams = head.config.streams
        first, *others = head.linears
        device = first.weight.device
        features = {name: torch.from_numpy(embeddings.features[name]).to(device) for name in streams}
        parts = {}
        for stream in streams:
            fused = head.fuse(features, {name: float(name == stream) for name in streams})  # (clips, fused dim)
            parts[stream] = Packed.of((fused @ first.weight.T).cpu().numpy())
        return cls(
            parts,
            first.bias.cpu().numpy(),
            tuple((Packed.of(layer.weight.cpu().numpy()), layer.bias.cpu().numpy()) for layer in others),
        )

    def logits(self, alphas: Mapping[str, float]) -> np.ndarray:
        """Return logits (clips, C) float32 at these alphas, as the page computes them."""
        x = self.bias + sum(alphas[name] * part.unpacked for name, part in self.parts.items())
        for weight, bias in self.layers:
            x = np.maximum(x, 0) @ weight.unpacked.T + bias
        return x.astype(np.float32, copy=False)

    def to_json(self) -> dict[str, Any]:
        """Return the json that the page reads."""
        return {
            "parts": {name: part.to_json() for name, part in self.parts.items()},
            "bias": _base64(self.bias.astype("<f4")),
            "layers": [weight.to_json() | {"bias": _base64(bias.astype("<f4"))} for weight, bias in self.layers],
        }


def explored_clip_ids(heads: Sequence[AlphaFusion], embeddings: EmbeddingSource) -> tuple[str, ...]:
    """Return the clips that `explorer_html` shows, in the order of `embeddings`; make thumbnails of these.

    All clips that the head can use; of more than 400, a random sample of 400, the same at every call.

    Raises:
        ExperimentError: the head can't be explored.
    """
    return tuple(embeddings.clip_ids[i] for i in _explored_rows(heads, embeddings))


def explorer_html(
    heads: Sequence[AlphaFusion],
    embeddings: EmbeddingSource,
    *,
    looks: Looks,
    ceiling: Ceiling,
    title: str,
    note: str = "",
    thumbnails: Mapping[str, str] | None = None,
    split: str = "test",
) -> str:
    """Return the explorer as html: `<section id="explorer">` with its own style, data and script.

    It loads nothing. Colours and typefaces are the custom properties `--ink`, `--muted`, `--paper`,
    `--panel`, `--line`, `--sight`, `--sound`, `--fused`, `--good`, `--bad`, `--accent`, `--mono` and `--sans` if the
    page defines them.

    Args:
        heads: heads of one experiment, ordered by seed; the first one is explored.
        embeddings: embeddings of the split. Clips that the head can't use are left out; of more than 400 others, a
            random sample of 400 is shown.
        looks: role -> how it is called and coloured.
        ceiling: ceiling on these clips (`explored_clip_ids`).
        title: title of the head: "sqrt on ast".
        note: a sentence that says why this head is explored, or "".
        thumbnails: clip_id -> `data:image/...` URI; clips may be missing.
        split: name of the split.

    Raises:
        ExperimentError: the head can't be explored: its fusion is not concat or add, it has more than 12 MB of weights,
            it can use no clip, or the embeddings have other dimensions.
        ValueError: a thumbnail is not a `data:image/` URI.
    """
    rows = _explored_rows(heads, embeddings)
    head, clips = heads[0], in_memory(embeddings, rows.tolist())
    streams, classes = head.config.streams, head.config.classes
    packed = PackedHead.of(head, clips)
    grids = _grids(streams)
    ones = dict.fromkeys(streams, 1.0)
    alone = {name: {other: float(other == name) for other in streams} for name in streams} if len(streams) > 1 else {}
    points = list(
        {tuple(point.values()): point for point in (*itertools.chain(*grids.values()), *alone.values())}.values()
    )
    exact = [head.predict_logits(clips, point) for point in points]
    position = {label: index for index, label in enumerate(classes)}
    targets = np.array([position.get(label, -1) for label in clips.labels])  # -1: a label that the head does not know
    right = [int((logits.argmax(axis=1) == targets).sum()) for logits in exact]
    at_one = points.index(ones)
    votes = {name: exact[points.index(point)].argmax(axis=1).tolist() for name, point in alone.items()}
    shown = {clip_id: thumbnails[clip_id] for clip_id in clips.clip_ids if clip_id in thumbnails} if thumbnails else {}
    for clip_id, address in shown.items():
        if not address.startswith("data:image/"):
            raise ValueError(f"the thumbnail of {clip_id} must be a data:image/ address, not {address[:40]!r}")
    data = {
        "streams": [
            {"id": name, "sense": look.sense, "short": look.short, "color": look.color}
            for name, look in ((name, look_of(looks, name)) for name in streams)
        ],
        "classes": list(classes),
        "clips": [
            {"id": clip_id, "label": label, "target": int(target), "thumbnail": shown.get(clip_id)}
            for clip_id, label, target in zip(clips.clip_ids, clips.labels, targets, strict=True)
        ],
        "votes": votes,
        "head": packed.to_json(),
    }
    usable = int(usable_clips(embeddings, head.config).sum())
    return (
        _environment()
        .get_template("explorer.html.j2")
        .render(
            title=title,
            note=note,
            split=split,
            style=Markup((TEMPLATES / "explorer.css").read_text(encoding="utf-8")),
            script=Markup((TEMPLATES / "explorer.js").read_text(encoding="utf-8")),
            data=htmlsafe_json_dumps(data, separators=(",", ":")),
            streams=data["streams"],
            presets=_presets(streams, looks),
            highest=HIGHEST_ALPHA,
            step=ALPHA_STEP,
            seeds=len(heads),
            clips=len(rows),
            usable=usable,
            unusable=len(embeddings) - usable,
            source_videos=len(set(clips.groups)),
            ceiling=ceiling,
            right=right[at_one],
            interval=wilson_interval(right[at_one], len(rows)),
            maps=[
                _map(pair, grid, [right[points.index(point)] for point in grid], len(rows), looks)
                for pair, grid in grids.items()
            ],
            side=MAP_PIXELS,
            listed=listed,
            agreement=_agreement(packed, points, exact, at_one),
        )
    )


def _explored_rows(heads: Sequence[AlphaFusion], embeddings: EmbeddingSource) -> np.ndarray:
    """Return the positions of the clips in the page; raise `ExperimentError` if the head can't be explored."""
    if not heads:
        raise ExperimentError("the explorer needs a head")
    config = heads[0].config
    if config.experiment.fusion not in EXPLORABLE:
        raise ExperimentError(
            f"fusion '{config.experiment.fusion}' can't be explored in the page: it isn't linear, as "
            f"{' and '.join(EXPLORABLE)} are"
        )
    for stream, dim in config.dims.items():
        if embeddings.dims.get(stream, dim) != dim:
            raise ExperimentError(
                f"the head was made for {dim}-d {stream} embeddings, not {embeddings.dims[stream]}-d ones: extract "
                "with the encoder it was trained on"
            )
    rows = np.flatnonzero(usable_clips(embeddings, config))
    if not len(rows):
        raise ExperimentError(f"none of the {len(embeddings)} clips has the embeddings that the head reads")
    if len(rows) > MAX_CLIPS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_CLIPS, replace=False))
    widths = [layer.out_features for layer in heads[0].linears]
    numbers = len(rows) * len(config.streams) * widths[0] + sum(a * b for a, b in itertools.pairwise(widths))
    if (page_bytes := numbers * 2 * 4 // 3) > MAX_PAGE_BYTES:  # int16, then base64
        raise ExperimentError(
            f"the head is too large for a page: {page_bytes / 1e6:.0f} MB, of at most "
            f"{MAX_PAGE_BYTES / 1e6:.0f} MB (hidden layers {', '.join(map(str, config.settings.hidden))})"
        )
    return rows


def _agreement(
    packed: PackedHead, points: Sequence[Mapping[str, float]], exact: Sequence[np.ndarray], at_one: int
) -> Agreement:
    equal, difference = [], 0.0
    for point, logits in zip(points, exact, strict=True):
        approximate = packed.logits(point)
        equal.append(float((approximate.argmax(axis=1) == logits.argmax(axis=1)).mean()))
        difference = max(difference, float(np.abs(softmax(approximate, axis=1) - softmax(logits, axis=1)).max()))
    return Agreement(len(exact[0]), len(points), equal[at_one], float(np.mean(equal)), difference)


def _grids(streams: Sequence[str]) -> dict[tuple[str, ...], list[dict[str, float]]]:
    """Return, for each pair of streams (or the only one), the alphas of its map; other streams have alpha 1."""
    alphas = MAP_ALPHAS if len(streams) <= 2 else COARSE_ALPHAS
    ones = dict.fromkeys(streams, 1.0)
    pairs: list[tuple[str, ...]] = list(itertools.combinations(streams, 2)) or [tuple(streams)]
    return {
        pair: [ones | dict(zip(pair, point, strict=True)) for point in itertools.product(alphas, repeat=len(pair))]
        for pair in pairs
    }


def _presets(streams: Sequence[str], looks: Looks) -> list[dict[str, str]]:
    """Return buttons: their text and the weights they set, as json."""
    ones = dict.fromkeys(streams, 1.0)
    presets = [("as trained", ones)]
    for kept in streams if len(streams) > 1 else ():
        presets.append((f"{look_of(looks, kept).short} only", ones | {name: 0.0 for name in streams if name != kept}))
    if len(streams) > 2:
        presets += [(f"without {look_of(looks, name).short}", ones | {name: 0.0}) for name in streams]
    return [{"text": text, "alphas": json.dumps(alphas)} for text, alphas in presets]


def _map(
    pair: Sequence[str], points: Sequence[Mapping[str, float]], right: Sequence[int], clips: int, looks: Looks
) -> dict[str, Any]:
    """Return accuracy over the alphas of one or two streams for the template: x is the last one's alpha, y the other's.

    `shade` is in [0, 1], from the lowest accuracy of the map to its highest.
    """
    low, high = min(right), max(right)
    alphas = sorted({point[pair[-1]] for point in points})
    cells = []
    for point, count in zip(points, right, strict=True):
        column = alphas.index(point[pair[-1]])
        row = alphas.index(point[pair[0]]) if len(pair) > 1 else 0
        cells.append(
            {
                "column": column,
                "row": row,
                "accuracy": count / clips,
                "shade": (count - low) / (high - low) if high > low else 0.0,
                "alphas": ", ".join(f"{look_of(looks, name).sense} {point[name]:g}" for name in pair),
            }
        )
    return {"pair": pair, "cells": cells, "columns": len(alphas), "low": low / clips, "high": high / clips}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "capitalised": capitalised, "share": _share, "bound": _bound}
    return environment


def _share(share: float) -> str:
    """Format a share, rounded down: 1.0 -> "all", 0.99958 -> "99.95%"."""
    return "all" if share == 1 else f"{math.floor(10_000 * share) / 100:.2f}%"


def _bound(difference: float) -> str:
    """Round up to one significant digit: 0.0000312 -> "0.00004"."""
    if difference <= 0:
        return "0"
    digits = -math.floor(math.log10(difference))
    return f"{math.ceil(difference * 10**digits) / 10**digits:.{digits}f}"


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
