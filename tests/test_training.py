"""Training against autograd and PyTorch's own Adam, and the promise that a head is a function of its seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from alphafuse.data.store import Embeddings
from alphafuse.errors import EmptySplitError, ExperimentError
from alphafuse.heads import training
from alphafuse.heads.head import AlphaFusion, HeadConfig
from alphafuse.heads.training import TrainedHead, TrainSettings, train_heads

CLASSES = ("bark", "meow", "moo", "never in training")
DIMS = {"timesformer": 6, "ast": 4}
QUICK = TrainSettings(epochs=3, learning_rate=1e-3)


def clips(count: int, *, seed: int, labels: tuple[str, ...] = CLASSES[:3]) -> Embeddings:
    rng = np.random.default_rng(seed)
    ids = tuple(f"{seed}clip{i}_000000" for i in range(count))
    arrays = {name: rng.normal(size=(count, dim)).astype(np.float32) for name, dim in DIMS.items()}
    return Embeddings(ids, tuple(str(label) for label in rng.choice(labels, count)), ids, arrays)


def without_audio(embeddings: Embeddings, rows: list[int]) -> Embeddings:
    ast = embeddings.features["ast"].copy()
    ast[rows] = np.nan
    return Embeddings(embeddings.clip_ids, embeddings.labels, embeddings.groups, {**embeddings.features, "ast": ast})


def config(**changes: object) -> HeadConfig:
    return HeadConfig(**{"dims": DIMS, "classes": CLASSES, "hidden": (16, 8), **changes})  # type: ignore[arg-type]


TRAIN, VAL = clips(30, seed=1), clips(10, seed=2, labels=CLASSES)


def train(*configs: HeadConfig, seeds: tuple[int, ...] = (0,), **options: object) -> list[TrainedHead]:
    return train_heads(TRAIN, VAL, configs, seeds, **{"settings": QUICK, **options})  # type: ignore[arg-type]


def equal(a: TrainedHead, b: TrainedHead) -> bool:
    columns = ("train_loss", "val_loss", "val_accuracy")
    same_history = all(np.array_equal(getattr(a.history, c), getattr(b.history, c)) for c in columns)
    weights = zip(a.head.state_dict().values(), b.head.state_dict().values(), strict=True)
    return same_history and all(torch.equal(x, y) for x, y in weights)


class MaskedHead(AlphaFusion):
    """The head with dropout drawn as training draws it, for autograd to go through."""

    masks: torch.Generator

    def classify(self, fused: torch.Tensor) -> torch.Tensor:
        x = fused
        for layer in self.linears[:-1]:
            x = torch.relu(layer(x))
            kept = torch.rand(x.shape, generator=self.masks) >= self.config.dropout
            x = x * kept / (1 - self.config.dropout)
        return self.linears[-1](x)


def reference_losses(head_config: HeadConfig, settings: TrainSettings, seed: int) -> tuple[list[float], AlphaFusion]:
    """The plain loop: autograd, torch.optim.Adam as it comes."""
    head = MaskedHead(head_config, generator=training._generator(seed, "init"))
    head.masks = training._generator(seed, "dropout")
    order = training._generator(seed, "order")
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    features = {name: torch.from_numpy(matrix) for name, matrix in TRAIN.features.items()}
    targets = torch.tensor([CLASSES.index(label) for label in TRAIN.labels])
    losses = []
    for _ in range(settings.epochs):
        total = 0.0
        for rows in torch.randperm(len(targets), generator=order).split(settings.batch_size):
            loss = functional.cross_entropy(head({name: x[rows] for name, x in features.items()}), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(targets))
    return losses, head


@pytest.mark.parametrize(
    ("changes", "weight_decay"),
    [
        ({}, 0.0),
        ({"transform": "sqrt", "on": "ast"}, 0.0),
        ({"transform": "learned", "on": "timesformer", "alpha": 1.5}, 0.0),
        ({"dims": {"ast": 4}, "hidden": (12,), "dropout": 0.25}, 0.1),
        ({"hidden": (), "dropout": 0.0}, 0.0),
    ],
)
def test_training_equals_a_plain_autograd_loop(changes: dict[str, object], weight_decay: float) -> None:
    settings = TrainSettings(epochs=6, learning_rate=1e-2, weight_decay=weight_decay)
    (trained,) = train(config(**changes), settings=settings, seeds=(7,))
    losses, head = reference_losses(config(**changes), settings, seed=7)
    np.testing.assert_allclose(trained.history.train_loss, losses, rtol=1e-4)
    for ours, theirs in zip(trained.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert losses[-1] < losses[0]


def test_a_learned_alpha_learns() -> None:
    (trained,) = train(
        config(transform="learned", on="ast", alpha=0.5), settings=TrainSettings(epochs=5, learning_rate=1e-2)
    )
    alpha = trained.head.state_dict()["transforms.ast.alpha"].item()
    assert alpha != 0.5 and math.isfinite(alpha)


def test_validation_history_is_that_of_the_head_without_dropout() -> None:
    (trained,) = train(config())
    logits = torch.from_numpy(trained.head.predict_logits(VAL))
    targets = torch.tensor([CLASSES.index(label) for label in VAL.labels])
    assert trained.history.val_loss[-1] == pytest.approx(functional.cross_entropy(logits, targets).item(), rel=1e-5)
    assert trained.history.val_accuracy[-1] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert trained.history.train_loss.shape == (3,)


def test_a_head_alone_equals_itself_in_company_and_in_any_order() -> None:
    first, learned, small = config(), config(transform="learned", on="ast"), config(dims={"ast": 4}, hidden=(5,))
    company = train(learned, first, small, seeds=(4, 2))
    assert [(head.head.config, head.seed) for head in company] == [
        (head_config, seed) for head_config in (learned, first, small) for seed in (4, 2)
    ]
    torch.manual_seed(99)
    for position, (head_config, seed) in enumerate(((learned, 4), (learned, 2), (first, 4), (first, 2), (small, 4))):
        assert equal(train(head_config, seeds=(seed,))[0], company[position])
    assert not equal(company[2], company[3])


def test_worker_processes_give_the_same_heads_and_report_progress() -> None:
    heads = config(), config(transform="sqrt", on="ast")
    here, apart = [], []
    alone = train(*heads, seeds=(0, 1), workers=1, progress=here.append)
    together = train(*heads, seeds=(0, 1), workers=2, progress=apart.append)
    assert all(equal(a, b) for a, b in zip(alone, together, strict=True))
    assert sum(here) == sum(apart) == 2 * 2 * QUICK.epochs


def test_only_long_work_goes_to_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    job = training._Job(
        0, config(), 0, training._prepare(TRAIN, config(), "train"), training._prepare(VAL, config(), "val")
    )
    assert training._worthwhile_workers([job], QUICK) == 1
    assert training._worthwhile_workers([job] * 4, QUICK) == 1
    assert training._worthwhile_workers([job] * 4, TrainSettings(epochs=10_000)) == 2


def test_training_leaves_torchs_threads_and_random_state_alone() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(config())
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_clips_without_audio_are_dropped_and_counted() -> None:
    silent, silent_val = without_audio(TRAIN, [0, 5]), without_audio(VAL, [1])
    (trained,) = train_heads(silent, silent_val, [config()], [0], settings=QUICK)
    assert trained.dropped == {"train": 2, "val": 1}
    kept = np.array([i not in (0, 5) for i in range(30)])
    (expected,) = train_heads(TRAIN.take(kept), VAL.take(np.arange(10) != 1), [config()], [0], settings=QUICK)
    assert equal(trained, expected)
    (sight,) = train_heads(silent, silent_val, [config(dims={"timesformer": 6})], [0], settings=QUICK)
    assert sight.dropped == {"train": 0, "val": 0}


def test_clips_without_audio_train_with_zeros_when_asked() -> None:
    (trained,) = train_heads(without_audio(TRAIN, [0, 5]), VAL, [config(absent="zeros")], [0], settings=QUICK)
    zeroed = TRAIN.features["ast"].copy()
    zeroed[[0, 5]] = 0
    filled = Embeddings(TRAIN.clip_ids, TRAIN.labels, TRAIN.groups, {**TRAIN.features, "ast": zeroed})
    (expected,) = train_heads(filled, VAL, [config(absent="zeros")], [0], settings=QUICK)
    assert trained.dropped == {"train": 0, "val": 0}
    assert equal(trained, expected)


def test_a_split_without_a_usable_clip_is_refused() -> None:
    with pytest.raises(EmptySplitError, match="none of the 10 val clips has the embeddings"):
        train_heads(TRAIN, without_audio(VAL, list(range(10))), [config()], [0], settings=QUICK)


def test_a_label_outside_of_the_classes_is_refused() -> None:
    with pytest.raises(ExperimentError, match="unknown label 'never in training'"):
        train(config(classes=CLASSES[:3]))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loss_that_stops_being_finite_names_the_head(workers: int) -> None:
    wild = TrainSettings(epochs=2, learning_rate=1e30)
    head = config(transform="pos-scalar", on="ast")
    with pytest.raises(
        ExperimentError, match=r"finite in epoch 1 of the head pos-scalar on ast, concat .* seed 3: lower"
    ):
        train_heads(TRAIN, VAL, [head], [3, 3], settings=wild, workers=workers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"dropout": 1.5}, "dropout must be in"),
        ({"absent": "mean"}, "choose from drop, zeros"),
        ({"device": "gpu"}, "choose from auto, cpu, cuda"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        TrainSettings(**changes)  # type: ignore[arg-type]


def test_bad_seeds_and_empty_grids_are_named() -> None:
    with pytest.raises(ExperimentError, match="a seed must be a whole number of at least 0, not -1"):
        train(config(), seeds=(-1,))
    with pytest.raises(ExperimentError, match="at least one head and one seed"):
        train()
