"""How a trained run uses its streams: what its heads lose when a stream is that of other clips, or a mere sum remains.

    run -> perceptual score of each stream, and EMAP gap -> `Use`

No head is trained anew. What a stream could be worth to another head is `contribute`'s question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alphafuse.data.dataset import Dataset
from alphafuse.data.store.lazy import EmbeddingSource
from alphafuse.errors import ExperimentError
from alphafuse.heads.closed.mixture import fit_temperature, log_probabilities
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.scoring.contribution import (
    Figure,
    Worth,
    additive_logits,
    gain_worth,
    partners_of,
    permuted_across,
    sampling_error,
    worths,
)
from alphafuse.heads.scoring.statistics import accuracy_interval
from alphafuse.heads.training.train import class_indices
from alphafuse.system.progress import NO_PROGRESS, Progress

from .evaluate import load_run
from .permuted_stream import PermutedStream
from .predictions import load_embeddings_of

PERMUTATIONS = 10  # of each stream for the perceptual score


@dataclass(frozen=True)
class Use:
    """How a trained run uses its streams, on test clips.

    Attributes:
        run: the run folder.
        heads: number of its heads.
        n: test clips.
        accuracy: of its single heads, a mean.
        perceptual: stream -> perceptual score: what is lost when the stream comes from clips of other source videos.
        permutations: number of permutations of each stream.
        is_additive: whether the heads add up a term per stream; then there is no interaction to use.
        interaction: EMAP gap of the first head: what is lost when it is replaced by the additive function closest to
            it; None for additive heads.
        partners: clips over which that function was averaged, per clip.
        partner_error: standard error of the gap's accuracy from sampling them; 0 if all clips were partners.
    """

    run: Path
    heads: int
    n: int
    accuracy: Figure
    perceptual: Mapping[str, Worth]
    permutations: int
    is_additive: bool
    interaction: Worth | None
    partners: int
    partner_error: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as json-able values."""
        return {
            "run": str(self.run),
            "heads": self.heads,
            "n": self.n,
            "accuracy": asdict(self.accuracy),
            "perceptual_score": {stream: worth.to_json() for stream, worth in self.perceptual.items()},
            "permutations": self.permutations,
            "is_additive": self.is_additive,
            "emap_gap": self.interaction and self.interaction.to_json(),
            "emap_partners": self.partners,
            "emap_accuracy_error": self.partner_error,
        }


def use_of_run(
    run: Path,
    dataset: Dataset,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Use:
    """Measure how a trained run uses its streams, on the test clips that have all of them.

    Its probabilities get a temperature on validation clips first, one per head.

    Args:
        run: folder of a trained run.
        dataset: the dataset whose test clips are used.
        permutations: permutations of each stream.
        seed: seed of the permutations.
        progress: counts passes over the test clips.
    """
    heads = load_run(run, dataset, "test").heads
    names = heads[0].config.streams
    rows = {split: load_embeddings_of(dataset, split) for split in ("val", "test")}
    for split, of_split in rows.items():
        complete = np.logical_and.reduce([of_split.present(name) for name in names])
        if not complete.any():
            raise ExperimentError(f"no {split} clip has all streams that the heads of {run} read")
        rows[split] = of_split.take(complete)
    test, targets = rows["test"], class_indices(rows["test"].labels, heads[0].config.classes)
    of_val = class_indices(rows["val"].labels, heads[0].config.classes)
    temperatures = [fit_temperature(head.predict_logits(rows["val"]).astype(np.float64), of_val) for head in heads]
    groups = tuple(test.groups)

    def answers(source: EmbeddingSource) -> tuple[np.ndarray, np.ndarray]:
        """Return (heads, clips) bits of the labels' probability, and right or not."""
        logits = [head.predict_logits(source) for head in heads]
        bits = [log_probabilities(one, targets, own) / np.log(2) for one, own in zip(logits, temperatures, strict=True)]
        return np.stack(bits), np.stack([one.argmax(axis=1) == targets for one in logits]).astype(np.float64)

    additive = is_additive(heads[0])
    passes = len(names) * (permutations + (0 if additive else partners_of(len(targets))))
    progress.start(f"what {run.name} uses", total=passes, unit="pass")
    try:
        bits, hits = answers(test)
        perceptual = {}
        for place, name in enumerate(names):
            lost = np.zeros((2, len(targets)))
            for i in range(permutations):
                partners = permuted_across(groups, np.random.default_rng([seed, place, i]))
                moved = answers(PermutedStream.of(test, name, partners))
                lost += np.stack([(bits - moved[0]).mean(axis=0), (hits - moved[1]).mean(axis=0)]) / permutations
                progress.advance(1)
            perceptual[name] = worths(lost[:1], lost[1:], groups)[0]
        interaction, partners_used, error = None, 0, 0.0
        if not additive:
            interaction, partners_used, error = _interaction(
                heads[0], temperatures[0], test, targets, groups, seed, progress.advance
            )
    finally:
        progress.stop()
    return Use(
        run=run,
        heads=len(heads),
        n=len(targets),
        accuracy=Figure(float(hits.mean()), accuracy_interval(hits, groups)),
        perceptual=perceptual,
        permutations=permutations,
        is_additive=additive,
        interaction=interaction,
        partners=partners_used,
        partner_error=error,
    )


def is_additive(head: AlphaFusion) -> bool:
    """Whether a head's logits are a sum of one term per stream."""
    experiment = head.config.experiment
    joins = len(head.config.streams) > 1 and experiment.fusion not in ("concat", "add")
    return len(head.config.streams) == 1 or (not head.config.settings.hidden and not joins)


def _interaction(
    head: AlphaFusion,
    temperature: float,
    test: EmbeddingSource,
    targets: np.ndarray,
    groups: Sequence[str],
    seed: int,
    advance: Callable[[int], None],
) -> tuple[Worth, int, float]:
    """Return the EMAP gap of a head, the partners of each clip, and the gap's error from sampling them."""
    means, last = additive_parts(head, test.read_rows(np.arange(len(test))), advance)
    names = head.config.streams
    found = additive_logits(means, last, names, len(test), seed=seed)
    logits = head.predict_logits(test)

    def bits(logits: np.ndarray) -> np.ndarray:
        return log_probabilities(logits, targets, temperature) / np.log(2)

    def right(logits: np.ndarray) -> np.ndarray:
        return (logits.argmax(axis=1) == targets).astype(np.float64)

    hits = right(logits)
    gap = gain_worth(bits(logits) - bits(found.logits), hits, right(found.logits), groups)
    error = sampling_error([float((hits - right(part)).mean()) for part in found.parts])
    return gap, found.partners, error


def additive_parts(
    head: AlphaFusion, features: Mapping[str, np.ndarray], advance: Callable[[int], None] = lambda partners: None
) -> tuple[Callable[[str, np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Return `means` and `last` of `additive_logits` for a head and clips that have all streams.

    With fusion concat the first layer is a sum over streams, so each stream passes it once, not once per partner.

    Args:
        head: in eval mode, on the CPU.
        features: stream -> (clips, dim) float32.
        advance: called after each partner.
    """
    *hidden, output = head.linears
    names = head.config.streams
    with torch.no_grad():
        prepared = head.prepare({name: torch.from_numpy(features[name]) for name in names})
        joined = bool(hidden) and head.config.experiment.fusion == "concat"
        if joined:
            ends = np.cumsum([0, *(head.config.dims[name] for name in head.fusion.streams)])
            columns = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(head.fusion.streams)}
            prepared = {name: prepared[name] @ hidden[0].weight[:, columns[name]].T for name in names}

    @torch.no_grad()
    def means(stream: str, partners: np.ndarray) -> np.ndarray:
        own = prepared[stream]
        total: torch.Tensor | None = None
        for partner in partners:
            mixed = {name: own if name == stream else prepared[name][partner].expand(len(own), -1) for name in names}
            if joined:
                x = torch.relu(sum(mixed.values()) + hidden[0].bias)
                later = hidden[1:]
            else:
                x, later = head.fusion(mixed), hidden
            for layer in later:
                x = torch.relu(layer(x))
            total = x.double() if total is None else total.add_(x)
            advance(1)
        assert total is not None
        return (total / len(partners)).numpy()

    @torch.no_grad()
    def last(x: np.ndarray) -> np.ndarray:
        return output(torch.from_numpy(x.astype(np.float32))).numpy()

    return means, last
