"""Shares of one answer: what each stream brings to the lead of the answer over the second label.

A share is a Shapley value, and so needs answers without the streams that haven't joined. A head that is linear gives
them exactly, because its training clips' mean embedding is the answer without a stream. A trained head gives them only
for streams that it has learned to miss. No other head is asked: muted, it would show what it makes of an input that it
has never seen, and not what a stream brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from alphafuse.data.embeddings import Embeddings
from alphafuse.heads.model.config import HeadConfig
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.scoring.contribution import margin_shares, shapley_values, subsets_of

from .prediction import Prediction

LN2 = float(np.log(2))
CLEAR = 0.1  # bits of lead below which nothing decided: the second label has more than 93% of the answer's probability
DECIDES = 0.5  # streams that bring at least this part of the largest share decide together
MOST_LEARNED = 2  # modality dropout takes one stream at a time: of three, a head has never missed two
WEIGHED = "use the head of `alphafuse weigh`"


@dataclass(frozen=True)
class Shares:
    """What each stream brings to the lead of the answer over the second label, in bits: log2 of their odds.

    Attributes:
        second: the label with the second highest probability.
        lead: log2 of (probability of the answer / probability of `second`), a mean over heads.
        base: the lead without any stream.
        streams: stream -> its share; together with `base` they sum to `lead`. Negative: it speaks for `second`.
    """

    second: str
    lead: float
    base: float
    streams: Mapping[str, float]

    @property
    def decided(self) -> tuple[str, ...]:
        """The streams that bring at least half as much as the one that brings most.

        () if none brings anything, or if the answer hardly leads the second label.
        """
        most = max(self.streams.values())
        some = self.lead >= CLEAR and most > 0
        return tuple(name for name, share in self.streams.items() if some and share >= DECIDES * most)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values."""
        return {**asdict(self), "streams": dict(self.streams)}


def no_shares(config: HeadConfig) -> str:
    """Return why heads of this configuration have no shares, in one line; "" if they have."""
    if len(config.classes) < 2:
        return "there is only one label"
    if is_linear(config):
        if config.normalize not in ("none", "l2"):
            return ""
        return f"these heads don't keep their clips' mean: train with --normalize zscore, or {WEIGHED}"
    if len(config.streams) > MOST_LEARNED:
        return f"these heads never learned to miss several streams: {WEIGHED}"
    if len(config.streams) == 1 or config.settings.modality_dropout:
        return ""
    return f"these heads never learned to miss one: train with --modality-dropout, or {WEIGHED}"


def is_linear(config: HeadConfig) -> bool:
    """Whether logits are a matrix times each stream's prepared vector, summed over streams."""
    return not config.settings.hidden and config.experiment.fusion in ("concat", "add")


def shares_of(
    heads: Sequence[AlphaFusion], rows: Embeddings, predictions: Sequence[Prediction], classes: Sequence[str]
) -> list[Shares | None]:
    """Return the shares of each prediction's answer; None for one without an answer, or for heads without shares.

    Args:
        heads: heads of one configuration, in eval mode.
        rows: the clips' embeddings.
        predictions: predictions of these heads for them.
        classes: C labels.
    """
    config = heads[0].config
    answered = [i for i, one in enumerate(predictions) if one.top]
    found: list[Shares | None] = [None] * len(predictions)
    if no_shares(config) or not answered:
        return found
    kept = rows.take(np.array(answered))
    order = np.argsort(-np.stack([predictions[i].probabilities for i in answered]), axis=1, kind="stable")
    top, second = order[:, 0], order[:, 1]
    of_heads = _linear if is_linear(config) else _learned
    measured = [of_heads(head, kept, top, second) for head in heads]
    base = np.mean([one for one, _ in measured], axis=0) / LN2
    streams = {name: np.mean([shares[name] for _, shares in measured], axis=0) / LN2 for name in config.streams}
    present = {name: kept.present(name) for name in config.streams}
    for place, i in enumerate(answered):
        own = {name: float(share[place]) for name, share in streams.items() if present[name][place]}
        found[i] = Shares(classes[second[place]], float(base[place]) + sum(own.values()), float(base[place]), own)
    return found


Measured = tuple[np.ndarray, dict[str, np.ndarray]]  # (clips,) without any stream, and stream -> (clips,), in nats


@torch.no_grad()
def _linear(head: AlphaFusion, rows: Embeddings, top: np.ndarray, second: np.ndarray) -> Measured:
    (output,) = head.linears
    names, start = head.config.streams, 0
    weights = {}
    for name in head.fusion.streams:
        if head.config.experiment.fusion == "add":
            projections = cast(nn.ModuleDict, head.fusion.projections)  # of the shorter vectors
            shorter = cast(nn.Linear, projections[name]).weight if name in projections else None
            weights[name] = output.weight if shorter is None else output.weight @ shorter
        else:
            weights[name] = output.weight[:, start : start + head.config.dims[name]]
            start += head.config.dims[name]
    read = rows.read_rows(np.arange(len(rows)))
    prepared = head.prepare({name: torch.from_numpy(read[name]) for name in names})  # their mean over training is 0
    bias = output.bias.double().numpy()
    shares = margin_shares(
        {name: weight.double().numpy() for name, weight in weights.items()},
        {name: prepared[name].double().numpy() for name in names},
        top,
        second,
    )
    return bias[top] - bias[second], shares


def _learned(head: AlphaFusion, rows: Embeddings, top: np.ndarray, second: np.ndarray) -> Measured:
    """Ask a head that has learned to miss a stream; without any, it leaves the two labels alike."""
    names = head.config.streams
    clips = np.arange(len(rows))
    present = {name: rows.present(name) for name in names}
    game = {}
    for some in subsets_of(names):
        margin = np.zeros(len(rows))
        if some:
            logits = head.predict_logits(rows, {name: 0.0 for name in names if name not in some}).astype(np.float64)
            is_asked = np.logical_or.reduce([present[name] for name in some])
            margin = np.where(is_asked, logits[clips, top] - logits[clips, second], 0)
        game[some] = margin
    return np.zeros(len(rows)), shapley_values(game, names)
