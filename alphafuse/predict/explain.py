"""Explanations of predictions: the same clip with streams blank, and along alpha."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphafuse.data.embeddings import Embeddings
from alphafuse.errors import ExperimentError

from .prediction import Prediction, Ranked

ALPHAS = tuple(step / 4 for step in range(9))  # 0, 0.25, ..., 2: around 1, the alpha in training
MAX_STREAMS = 10  # Shapley values need the answers with every subset of the streams blank: 2^10 for each clip
Ask = Callable[[Embeddings, Mapping[str, float] | None], np.ndarray]


@dataclass(frozen=True)
class ChangedAnswer:
    """The prediction for a changed clip.

    Attributes:
        top: the most probable label of the changed clip, and its probability.
        probability: probability of the label predicted for the unchanged clip.
    """

    top: Ranked
    probability: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values."""
        return {"label": self.top.label, "label_probability": self.top.probability, "probability": self.probability}


@dataclass(frozen=True)
class Explanation:
    """How a prediction depends on each stream.

    Attributes:
        prediction: prediction for the unchanged clip.
        blanked: stream -> prediction with this stream blank (black frames, silence) and the other unchanged.
        blank: prediction with all streams blank.
        shares: stream -> its share of the answer's probability over that of the blank clip: exact Shapley values of
            the game whose players are the streams (Lundberg and Lee 2017; MM-SHAP, Parcalabescu and Frank 2023). They
            sum to probability - `blank.probability` and may be negative.
        along: stream -> (alpha, prediction) with this stream multiplied by alpha before fusion; 1 is `prediction`.

    >>> from alphafuse import AlphaFuse, find_clips
    >>> model = AlphaFuse.from_pretrained("demo/runs/sqrt-ast")
    >>> (why,) = model.explain(find_clips(["demo/clips"])[:1])
    >>> sorted(why.shares), [alpha for alpha, _ in why.along["ast"]]
    (['ast', 'timesformer'], [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0])
    """

    prediction: Prediction
    blanked: Mapping[str, ChangedAnswer]
    blank: ChangedAnswer
    shares: Mapping[str, float]
    along: Mapping[str, tuple[tuple[float, ChangedAnswer], ...]]

    @property
    def decided(self) -> tuple[str, ...]:
        """The streams that change the answer when they alone are blank."""
        return tuple(name for name, changed in self.blanked.items() if changed.top.label != self.prediction.label)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values."""
        return {
            "decided": list(self.decided),
            "blanked": {stream: changed.to_json() for stream, changed in self.blanked.items()},
            "blank": self.blank.to_json(),
            "shares": dict(self.shares),
            "along": {
                stream: [{"alpha": alpha, **changed.to_json()} for alpha, changed in points]
                for stream, points in self.along.items()
            },
        }


def require_few(names: Sequence[str]) -> None:
    """Raise `ExperimentError` for more streams than can be explained."""
    if len(names) > MAX_STREAMS:
        raise ExperimentError(
            f"explaining {len(names)} streams takes the answers with each of their 2^{len(names)} subsets blank, and "
            f"{MAX_STREAMS} streams are the most: explain a run of fewer streams (`alphafuse fit --stream NAME,NAME`)"
        )


def explain(
    predictions: Sequence[Prediction],
    rows: Embeddings,
    blank: Embeddings,
    ask: Ask,
    *,
    classes: Sequence[str],
    names: Sequence[str],
    alphas: Sequence[float],
) -> list[Explanation | Prediction]:
    """Explain predictions; a prediction without an answer, or without a stream to change, is returned unchanged.

    Args:
        predictions: predictions of the clips.
        rows: the clips' embeddings.
        blank: embeddings of black frames and silence, in the same order; NaN where a clip lacks the stream, or where
            the encoder makes no finite embedding of black frames or silence: then the stream isn't changed.
        ask: (embeddings, stream -> alpha) -> probabilities (heads, clips, C) float64.
        classes: C labels.
        names: streams that the heads use, at most `MAX_STREAMS`.
        alphas: factors on a stream before fusion.
    """
    require_few(names)

    def changed(probabilities: np.ndarray, answer: int) -> ChangedAnswer:
        best = int(probabilities.argmax())
        return ChangedAnswer(Ranked(classes[best], float(probabilities[best])), float(probabilities[answer]))

    subsets = [frozenset(some) for size in range(1, len(names) + 1) for some in itertools.combinations(names, size)]
    answers = np.array([classes.index(one.top[0].label) if one.top else 0 for one in predictions])
    shown = {some for some in subsets if len(some) in (1, len(names))}  # the others are only for the shares
    without: dict[frozenset[str], np.ndarray] = {}  # streams that are blank -> (clips, C)
    values: dict[frozenset[str], np.ndarray] = {}  # streams that are blank -> probability of each clip's answer
    for some in subsets:
        probabilities = ask(_mixed(rows, blank, some), None).mean(axis=0)
        values[some] = probabilities[np.arange(len(answers)), answers]
        if some in shown:
            without[some] = probabilities
    values[frozenset()] = np.array([one.top[0].probability if one.top else np.nan for one in predictions])
    shares = {name: _shapley(values, name, names) for name in names}  # stream -> (clips,)
    along = {name: [(alpha, ask(rows, {name: alpha}).mean(axis=0)) for alpha in alphas] for name in names}
    present = {name: blank.present(name) for name in names}
    explained: list[Explanation | Prediction] = []
    for i, prediction in enumerate(predictions):
        own = [name for name in names if present[name][i]]
        if not prediction.top or not own:
            explained.append(prediction)
            continue
        answer = int(answers[i])
        explained.append(
            Explanation(
                prediction,
                {name: changed(without[frozenset((name,))][i], answer) for name in own},
                changed(without[frozenset(names)][i], answer),
                {name: float(shares[name][i]) for name in own},
                {name: tuple((a, changed(p[i], answer)) for a, p in along[name]) for name in own},
            )
        )
    return explained


def _mixed(rows: Embeddings, blank: Embeddings, streams: Iterable[str]) -> Embeddings:
    """Return the rows, with the embeddings of some streams replaced by blank ones where a clip has these."""
    features = dict(rows.features)
    for name in streams:
        features[name] = np.where(blank.present(name)[:, None], blank.features[name], features[name])
    return Embeddings(rows.clip_ids, rows.labels, rows.groups, features, (), rows.recipes)


def _shapley(values: Mapping[frozenset[str], np.ndarray], name: str, names: Sequence[str]) -> np.ndarray:
    """Return the Shapley value of one stream for each clip: (clips,).

    It is the mean, over all orders in which streams may join the blank clip, of what this one adds when it joins.
    One that a clip lacks adds nothing.

    Args:
        values: set of blank streams, one for every subset -> (clips,) probability of each clip's answer.
        name: the stream.
        names: all streams.
    """
    others, share = [other for other in names if other != name], np.zeros_like(values[frozenset()])
    for size in range(len(others) + 1):  # number of streams that are still blank when it has joined
        orders = math.factorial(size) * math.factorial(len(others) - size) / math.factorial(len(names))
        for blank in map(frozenset, itertools.combinations(others, size)):
            share += orders * (values[blank] - values[blank | {name}])
    return share
