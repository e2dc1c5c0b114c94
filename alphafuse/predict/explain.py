"""Explanations of predictions: shares of the streams, the same clip with streams blank, and along alpha."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphafuse.data.embeddings import Embeddings
from alphafuse.system.results import Shown

from .prediction import Prediction, Ranked
from .shares import Shares

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
class Explanation(Shown):
    """How a prediction depends on each stream.

    Attributes:
        prediction: prediction for the unchanged clip.
        blanked: stream -> prediction with this stream blank (black frames, silence) and the other unchanged.
        blank: prediction with all streams blank.
        shares: what each stream brings to the lead of the answer over the second label; None if the heads can't say.
        no_shares: why there are none.
        along: stream -> (alpha, prediction) with this stream multiplied by alpha before fusion; 1 is `prediction`.

    >>> from alphafuse import AlphaFuse, find_clips
    >>> model = AlphaFuse.from_pretrained("demo/runs/sqrt-ast")
    >>> (why,) = model.explain(find_clips(["demo/clips"])[:1])
    >>> why.shares is None, why.no_shares
    (True, 'these heads never learned to miss one: train with --modality-dropout, or use the head of `alphafuse weigh`')
    >>> why.decided, why.changed_by  # without shares, nothing says what decided
    ((), ('timesformer',))
    >>> [alpha for alpha, _ in why.along["ast"]]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    """

    prediction: Prediction
    blanked: Mapping[str, ChangedAnswer]
    blank: ChangedAnswer
    shares: Shares | None
    no_shares: str
    along: Mapping[str, tuple[tuple[float, ChangedAnswer], ...]]

    def __repr__(self) -> str:
        what = f"decided by {self.decided}" if self.shares else f"changed by {self.changed_by}"
        return f"Explanation({self.prediction!r}, {what})"

    @property
    def decided(self) -> tuple[str, ...]:
        """The streams that decided the answer by their shares, see `Shares.decided`; () without shares."""
        return self.shares.decided if self.shares else ()

    @property
    def changed_by(self) -> tuple[str, ...]:
        """The streams that change the answer when they alone are blank. Heads may never have met such a clip."""
        return tuple(name for name, changed in self.blanked.items() if changed.top.label != self.prediction.label)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values."""
        return {
            "decided": list(self.decided),
            "changed_by": list(self.changed_by),
            "blanked": {stream: changed.to_json() for stream, changed in self.blanked.items()},
            "blank": self.blank.to_json(),
            "shares": self.shares and self.shares.to_json(),
            "no_shares": self.no_shares,
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
    shares: Sequence[Shares | None],
    no_shares: str,
) -> list[Explanation | Prediction]:
    """Explain predictions; a prediction without an answer, or without a stream to change, is returned unchanged.

    Args:
        predictions: predictions of the clips.
        rows: the clips' embeddings.
        blank: embeddings of black frames and silence, in the same order; NaN where a clip lacks the stream, or where
            the encoder makes no finite embedding of black frames or silence: then the stream isn't changed.
        ask: (embeddings, stream -> alpha) -> probabilities (heads, clips, C) float64.
        classes: C labels.
        names: streams that the heads use.
        alphas: factors on a stream before fusion.
        shares, no_shares: of each prediction, and why there are none.
    """

    def changed(probabilities: np.ndarray, answer: int) -> ChangedAnswer:
        best = int(probabilities.argmax())
        return ChangedAnswer(Ranked(classes[best], float(probabilities[best])), float(probabilities[answer]))

    answers = [classes.index(one.top[0].label) if one.top else 0 for one in predictions]
    blanked = {name: ask(_mixed(rows, blank, (name,)), None).mean(axis=0) for name in names}  # (clips, C) each
    all_blank = blanked[names[0]] if len(names) == 1 else ask(_mixed(rows, blank, names), None).mean(axis=0)
    along = {name: [(alpha, ask(rows, {name: alpha}).mean(axis=0)) for alpha in alphas] for name in names}
    present = {name: blank.present(name) for name in names}
    explained: list[Explanation | Prediction] = []
    for i, prediction in enumerate(predictions):
        own = [name for name in names if present[name][i]]
        if not prediction.top or not own:
            explained.append(prediction)
            continue
        answer = answers[i]
        explained.append(
            Explanation(
                prediction,
                {name: changed(blanked[name][i], answer) for name in own},
                changed(all_blank[i], answer),
                shares[i],
                no_shares,
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
