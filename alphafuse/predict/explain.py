"""Explanations of predictions: the same clip with a stream blank, and along alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphafuse.data.embeddings import Embeddings

from .prediction import Prediction, Ranked

ALPHAS = tuple(step / 4 for step in range(9))  # 0, 0.25, ..., 2: around 1, the alpha in training
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
    """How a prediction depends on video and on audio.

    Attributes:
        prediction: prediction for the unchanged clip.
        blanked: stream -> prediction with this stream blank (black frames, silence) and the other unchanged.
        blank: prediction with all streams blank.
        shares: stream -> its share of the answer's probability over that of the blank clip: Shapley values of the
            game whose players are the streams (Lundberg and Lee 2017; MM-SHAP, Parcalabescu and Frank 2023). They
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
        blank: embeddings of black frames and silence, in the same order.
        ask: (embeddings, stream -> alpha) -> probabilities (heads, clips, C) float64.
        classes: C labels.
        names: streams that the heads use.
        alphas: factors on a stream before fusion.
    """

    def changed(probabilities: np.ndarray, answer: int) -> ChangedAnswer:
        best = int(probabilities.argmax())
        return ChangedAnswer(Ranked(classes[best], float(probabilities[best])), float(probabilities[answer]))

    without = {
        frozenset(some): ask(_mixed(rows, blank, some), None).mean(axis=0)
        for some in (*((name,) for name in names), tuple(names))
    }
    along = {name: [(alpha, ask(rows, {name: alpha}).mean(axis=0)) for alpha in alphas] for name in names}
    present = {name: blank.present(name) for name in names}
    explained: list[Explanation | Prediction] = []
    for i, prediction in enumerate(predictions):
        own = [name for name in names if present[name][i]]
        if not prediction.top or not own:
            explained.append(prediction)
            continue
        answer = classes.index(prediction.top[0].label)
        value = {some: float(probabilities[i, answer]) for some, probabilities in without.items()}
        value[frozenset()] = prediction.top[0].probability
        explained.append(
            Explanation(
                prediction,
                {name: changed(without[frozenset((name,))][i], answer) for name in own},
                changed(without[frozenset(names)][i], answer),
                _shapley(value, names, own),
                {name: tuple((a, changed(p[i], answer)) for a, p in along[name]) for name in own},
            )
        )
    return explained


def _mixed(rows: Embeddings, blank: Embeddings, streams: Sequence[str]) -> Embeddings:
    """Return the rows, with the embeddings of some streams replaced by blank ones."""
    features = {name: blank.features[name] if name in streams else rows.features[name] for name in rows.features}
    return Embeddings(rows.clip_ids, rows.labels, rows.groups, features, (), rows.recipes)


def _shapley(blanked: Mapping[frozenset[str], float], names: Sequence[str], players: Sequence[str]) -> dict[str, float]:
    """Return the Shapley values of one or two players.

    Args:
        blanked: set of blank streams -> probability of the answer.
        names: all streams; blanking one that the clip lacks changes nothing.
        players: the streams that the clip has.
    """
    everything = frozenset(names)
    shares = {}
    for name in players:
        others = everything - {name}
        last = blanked[frozenset()] - blanked[frozenset((name,))]  # it joins the other stream
        first = blanked[others] - blanked[everything]  # it joins the blank clip
        shares[name] = (last + first) / 2
    return shares
