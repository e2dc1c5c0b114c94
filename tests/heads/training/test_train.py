"""Training compared with autograd and PyTorch's Adam; a head depends on its seed alone, not on other heads."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from support.heads import head_config
from support.progress import RecordedProgress
from torch.nn import functional

from alphafuse.data.embeddings import Embeddings
from alphafuse.errors import EmptySplitError, ExperimentError
from alphafuse.heads.model.config import FUSED, HeadConfig
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.training import linear, stack
from alphafuse.heads.training import train as training
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import TrainedHead, train_heads
from alphafuse.system.progress import Progress

CLASSES = ("bark", "meow", "moo", "never in training")
DIMS = {"timesformer": 6, "ast": 4}
THREE = {**DIMS, "dino-s": 5}
QUICK = TrainSettings(epochs=3, learning_rate=1e-3)


def clips(count: int, *, seed: int, labels: tuple[str, ...] = CLASSES[:3]) -> Embeddings:
    rng = np.random.default_rng(seed)
    ids = tuple(f"{seed}clip{i}_000000" for i in range(count))
    arrays = {name: rng.normal(size=(count, dim)).astype(np.float32) for name, dim in DIMS.items()}
    chosen = tuple(str(label) for label in rng.choice(labels, count))
    arrays["dino-s"] = rng.normal(size=(count, THREE["dino-s"])).astype(np.float32)
    return Embeddings(ids, chosen, ids, arrays)


def without_audio(embeddings: Embeddings, rows: list[int]) -> Embeddings:
    ast = embeddings.features["ast"].copy()
    ast[rows] = np.nan
    return Embeddings(embeddings.clip_ids, embeddings.labels, embeddings.groups, {**embeddings.features, "ast": ast})


def config(**changes: object) -> HeadConfig:
    return head_config(**{"dims": DIMS, "classes": CLASSES, "hidden": (16, 8), **changes})  # type: ignore[arg-type]


TRAIN, VAL = clips(30, seed=1), clips(10, seed=2, labels=CLASSES)


def train(*configs: HeadConfig, seeds: tuple[int, ...] = (0,), **options: object) -> list[TrainedHead]:
    return train_heads(TRAIN, VAL, configs, seeds, **{"settings": QUICK, **options})  # type: ignore[arg-type]


def close(a: TrainedHead, b: TrainedHead) -> bool:
    """Return whether two heads are equal except for rounding."""
    columns = ("train_loss", "val_loss", "val_accuracy")
    same_history = all(np.allclose(getattr(a.history, c), getattr(b.history, c), rtol=1e-5) for c in columns)
    weights = zip(a.head.state_dict().values(), b.head.state_dict().values(), strict=True)
    return same_history and all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in weights)


class Reference:
    """The plain loop: autograd, the standard torch.optim.Adam, random numbers from the generators of each head."""

    def __init__(self, head_config: HeadConfig, settings: TrainSettings, seed: int) -> None:
        self.config, self.settings = head_config, settings
        self.head = AlphaFusion(head_config, generator=stack.generator(seed, "init"))
        self.masks, self.order, self.lots = (
            stack.generator(seed, stream) for stream in ("dropout", "order", "modality dropout")
        )
        self.mixing = np.random.default_rng(stack._state(seed, "mixup"))
        self.features = {name: torch.from_numpy(TRAIN.features[name]) for name in head_config.dims}
        self.targets = torch.tensor([CLASSES.index(label) for label in TRAIN.labels])
        self.auxiliary = stack.Stack(
            [(head_config, seed)],
            settings,
            steps=1,
            device=torch.device("cpu"),
            moments=[{}],
            class_weights=None,
        )._auxiliary
        if head_config.normalize in ("zscore", "variance"):
            share = sum(head_config.dims.values()) / len(head_config.dims)
            for name, x in self.features.items():
                y = self.head.transforms[name](x)
                std = y.std(dim=0, correction=0)
                if head_config.normalize == "variance":
                    std = (std.square().sum() / share).sqrt().expand_as(std)
                self.head.normalizations[name].mean.copy_(y.mean(dim=0))
                self.head.normalizations[name].std.copy_(std)

    def classify(self, x: torch.Tensor, first: list[torch.Tensor]) -> torch.Tensor:
        """The layers, with dropout drawn as training draws it; the first weight comes in parts, one per stream."""
        for index, layer in enumerate(self.head.linears):
            weight = torch.cat(first, dim=1) if index == 0 else layer.weight
            x = functional.linear(x, weight, layer.bias)
            if index + 1 < len(self.head.linears):
                kept = torch.rand(x.shape, generator=self.masks) >= self.config.settings.dropout
                x = torch.relu(x) * kept / (1 - self.config.settings.dropout)
        return x

    def batch(self, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Prepared embeddings and soft targets of a batch."""
        x = self.head.prepare({name: matrix[rows] for name, matrix in self.features.items()})
        soft = functional.one_hot(self.targets[rows], len(CLASSES)).float()
        if self.settings.class_weights == "balanced":
            counts = torch.bincount(self.targets, minlength=len(CLASSES))
            present = (counts > 0).sum()
            soft = soft * (len(self.targets) / (present * counts))[self.targets[rows]][:, None]
        if self.config.settings.modality_dropout:
            lots = torch.rand(len(rows), generator=self.lots)
            share = self.config.settings.modality_dropout / len(x)
            x["timesformer"] = x["timesformer"] * (lots >= share)[:, None]
            if len(x) == 3:
                x["ast"] = x["ast"] * ((lots < share) | (lots >= 2 * share))[:, None]
            last = list(x)[-1]
            x[last] = x[last] * (lots < 1 - share)[:, None]
        if self.settings.mixup:
            share = self.mixing.beta(self.settings.mixup, self.settings.mixup)
            partner = self.mixing.permutation(len(rows))
            x = {name: share * y + (1 - share) * y[partner] for name, y in x.items()}
            soft = share * soft + (1 - share) * soft[partner]
        smoothing = self.settings.label_smoothing
        return x, (1 - smoothing) * soft + smoothing * soft.sum(dim=1, keepdim=True) / len(CLASSES)

    def train(self) -> list[float]:
        weight = self.head.linears[0].weight.detach()
        widths = list(self.config.dims.values()) if self.config.experiment.fusion == "concat" else [weight.shape[1]]
        first = [part.clone().requires_grad_() for part in weight.split(widths, dim=1)]
        others = [p for p in self.head.parameters() if p is not self.head.linears[0].weight]
        rates = [dict(self.config.experiment.rates).get(name, 1.0) for name in self.config.dims]
        rate = self.settings.learning_rate
        groups = [{"params": [part], "lr": rate * r} for part, r in zip(first, rates, strict=False)]
        optimizer = torch.optim.Adam(
            [*groups, {"params": [*others, *self.auxiliary.parameters()]}],
            lr=rate,
            weight_decay=self.settings.weight_decay,
        )
        base = [group["lr"] for group in optimizer.param_groups]
        steps, done, losses = self.settings.total_epochs * math.ceil(len(TRAIN) / self.settings.batch_size), 0, []
        for _ in range(self.settings.total_epochs):
            total = 0.0
            for rows in torch.randperm(len(TRAIN), generator=self.order).split(self.settings.batch_size):
                factor = {
                    "constant": 1.0,
                    "cosine": 0.5 * (1 + math.cos(math.pi * done / steps)),
                    "two-phase": 1.0 if done < steps / 2 else 0.1,
                }[self.settings.schedule]
                for group, lr in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = lr * factor
                x, soft = self.batch(rows)
                main = self.loss(self.classify(self.head.fusion(x), first), soft)
                loss = main
                auxiliary = dict(self.config.experiment.auxiliary)
                if auxiliary:
                    experts = self.head.fusion.experts(x)
                    loss = auxiliary.get(FUSED, 1.0) * main
                    for name, classifier in self.auxiliary.items():
                        loss = loss + auxiliary[name] * self.loss(classifier(experts[name]), soft)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += main.item() * len(rows)
                done += 1
            losses.append(total / len(TRAIN))
        with torch.no_grad():
            self.head.linears[0].weight.copy_(torch.cat(first, dim=1))
        return losses

    @staticmethod
    def loss(logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
        return -(soft * logits.log_softmax(dim=1)).sum() / soft.sum()


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        ({"transform": "sqrt", "on": "ast"}, {}),
        ({"transform": "learned", "on": "timesformer", "alpha": 1.5}, {}),
        ({"transform": "learned-dim", "on": "all"}, {}),
        ({"transform": "learned-dim", "on": "ast,dino-s", "dims": THREE, "streams": ("dino-s", "ast")}, {}),
        ({"dims": THREE, "rates": {"dino-s": 3.0}, "normalize": "zscore"}, {}),
        ({"dims": THREE, "modality_dropout": 0.6, "absent": "zeros"}, {}),
        ({"dims": THREE, "fusion": "matrix", "transform": "sqrt", "on": "dino-s"}, {"mixup": 0.2}),
        ({"dims": THREE, "fusion": "gate", "auxiliary": {"fused": 0.5, "ast": 0.3, "dino-s": 0.2}}, {}),
        ({"dims": {"ast": 4}, "hidden": (12,), "dropout": 0.25}, {"weight_decay": 0.1}),
        ({"hidden": (), "dropout": 0.0}, {"schedule": "cosine"}),
        ({"normalize": "zscore", "transform": "signed-sqrt", "on": "ast"}, {"schedule": "two-phase", "epochs": 3}),
        ({"normalize": "variance", "dims": THREE}, {}),
        ({"normalize": "l2"}, {"label_smoothing": 0.1}),
        ({}, {"class_weights": "balanced", "label_smoothing": 0.2}),
        ({}, {"mixup": 0.4, "class_weights": "balanced"}),
        ({"modality_dropout": 0.4, "absent": "zeros"}, {}),
        ({"rates": {"ast": 3.0, "timesformer": 0.5}}, {"schedule": "cosine"}),
        ({"fusion": "add"}, {}),
        ({"fusion": "matrix"}, {"mixup": 0.2}),
        ({"fusion": "attention", "normalize": "zscore"}, {}),
        ({"fusion": "gate", "modality_dropout": 0.3}, {}),
        ({"fusion": "gate", "auxiliary": {"fused": 0.5, "ast": 0.3, "timesformer": 0.2}}, {"label_smoothing": 0.1}),
    ],
)
def test_training_equals_a_plain_autograd_loop(changes: dict[str, object], settings: dict[str, object]) -> None:
    chosen = TrainSettings(**{"epochs": 6, "learning_rate": 3e-3, **settings})  # type: ignore[arg-type]
    (trained,) = train(config(**changes), settings=chosen, seeds=(7,))
    reference = Reference(config(**changes), chosen, seed=7)
    losses = reference.train()
    np.testing.assert_allclose(trained.history.train_loss, losses, rtol=1e-4)
    for ours, theirs in zip(trained.head.parameters(), reference.head.parameters(), strict=True):
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


def test_a_head_trained_alone_equals_the_one_trained_with_others_in_any_order() -> None:
    first, learned, small = config(), config(transform="learned", on="ast"), config(dims={"ast": 4}, hidden=(5,))
    scaled = config(transform="scale", alpha=0.5, on="ast", normalize="zscore")
    company = train(learned, first, small, scaled, seeds=(4, 2))
    assert [(head.head.config, head.seed) for head in company] == [
        (head_config, seed) for head_config in (learned, first, small, scaled) for seed in (4, 2)
    ]
    torch.manual_seed(99)
    for position, trained in enumerate(company):
        (alone,) = train(trained.head.config, seeds=(trained.seed,))
        assert close(alone, trained), position
    assert not close(company[2], company[3])


@pytest.mark.parametrize("regularised", [{}, {"mixup": 0.3, "class_weights": "balanced", "label_smoothing": 0.1}])
def test_stacked_heads_equal_heads_one_by_one(monkeypatch: pytest.MonkeyPatch, regularised: dict[str, object]) -> None:
    settings = TrainSettings(epochs=4, learning_rate=1e-3, **regularised)  # type: ignore[arg-type]
    heads = [config(modality_dropout=0.2, rates=rates) for rates in ({}, {"ast": 2.0})]
    heads += [config(transform="pos-scalar", on="ast", modality_dropout=0.2)]
    stacked = train(*heads, seeds=(0, 1), settings=settings)
    monkeypatch.setattr(training, "STACK_CPU", 1)
    monkeypatch.setattr(stack, "PREPARED_BYTES", 0)  # and prepared batch by batch
    monkeypatch.setattr(linear, "PIECE_BYTES", 100)  # and updated piece by piece
    assert all(close(a, b) for a, b in zip(stacked, train(*heads, seeds=(0, 1), settings=settings), strict=True))


@pytest.mark.slow
def test_processes_and_threads_give_the_same_heads_and_report_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = config(), config(transform="sqrt", on="ast")
    monkeypatch.setattr(training, "STACK_CPU", 1)
    counts = {"alone": RecordedProgress(), "threads": RecordedProgress(), "processes": RecordedProgress()}
    alone = train(*heads, seeds=(0, 1), workers=1, progress=counts["alone"])
    threads = train(*heads, seeds=(0, 1), workers=2, progress=counts["threads"])
    monkeypatch.setattr(training, "MAX_THREADS", 1)
    monkeypatch.setattr(training, "PROCESS_START_SECONDS", -1.0)
    processes = train(*heads, seeds=(0, 1), workers=2, progress=counts["processes"])
    assert all(close(a, b) and close(a, c) for a, b, c in zip(alone, threads, processes, strict=True))
    assert {name: sum(found.done) for name, found in counts.items()} == dict.fromkeys(counts, 2 * 2 * QUICK.epochs)


def test_early_stopping_takes_the_epoch_of_lowest_validation_loss() -> None:
    progress = RecordedProgress()
    settings = TrainSettings(epochs=60, learning_rate=1e-2, patience=3)
    heads = train(config(), seeds=(0, 1, 2), settings=settings, progress=progress)
    assert sum(progress.done) == 3 * 60
    for trained in heads:
        losses = trained.history.val_loss
        assert trained.epoch == np.argmin(losses) + 1 == len(losses) - 3 < 57
        logits = torch.from_numpy(trained.head.predict_logits(VAL))
        targets = torch.tensor([CLASSES.index(label) for label in VAL.labels])
        assert losses[trained.epoch - 1] == pytest.approx(functional.cross_entropy(logits, targets).item(), rel=1e-5)


def test_variance_gives_all_streams_the_same_total_variance_and_keeps_the_ratios_within_each() -> None:
    features = {name: TRAIN.features[name] * scale + 3 for name, scale in zip(THREE, (0.01, 100, 1), strict=True)}
    features["ast"][:, 1] = 5  # constant
    rows = Embeddings(TRAIN.clip_ids, TRAIN.labels, TRAIN.groups, features)
    constant_ast = {**features, "ast": np.full((30, 4), 7, np.float32)}
    silent = Embeddings(TRAIN.clip_ids, TRAIN.labels, TRAIN.groups, constant_ast)
    both = [config(dims=THREE, normalize="variance"), config(dims=THREE, normalize="zscore")]
    head, other = (one.head for one in train_heads(rows, rows, both, [0], settings=QUICK))
    (constant,) = train_heads(silent, silent, both[:1], [0], settings=QUICK)
    for name, x in features.items():
        normalised = head.normalizations[name](torch.from_numpy(x)).numpy()
        mean, scale = x.mean(axis=0, dtype=np.float64), np.sqrt(x.var(axis=0, dtype=np.float64).sum() / 5)  # 15 / 3
        np.testing.assert_allclose(normalised, (x - mean) / scale, rtol=1e-4, atol=1e-4)
        assert normalised.var(axis=0).sum() == pytest.approx(5, rel=1e-4)
        np.testing.assert_allclose(other.normalizations[name].std, np.where(x.std(axis=0), x.std(axis=0), 1), rtol=1e-4)
    found = constant.head.normalizations["ast"]
    np.testing.assert_array_equal(found.std, 1)
    np.testing.assert_allclose(found.mean, 7)


@pytest.mark.parametrize("normalize", ["zscore", "variance"])
def test_scalar_alphas_vanish_under_standardisation(normalize: str) -> None:
    def losses(**changes: object) -> np.ndarray:
        return train(config(normalize=normalize, **changes))[0].history.val_loss

    np.testing.assert_allclose(losses(), losses(transform="scale", alpha=7.0, on="ast"), rtol=1e-4)
    assert not np.allclose(losses(), losses(transform="sqrt", on="ast"), rtol=1e-3)


def test_modality_dropout_makes_one_head_serve_clips_without_audio() -> None:
    """Either stream alone identifies the label; a head that never lacked one depends on both."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=400)
    arrays = {m: np.eye(3)[labels] @ rng.normal(size=(3, d)) for m, d in DIMS.items()}
    arrays = {m: (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32) for m, x in arrays.items()}
    arrays["timesformer"] *= 0.3  # audio has the larger values
    ids = tuple(f"c{i}" for i in range(400))
    both = Embeddings(ids, tuple(CLASSES[i] for i in labels), ids, arrays)
    deaf = without_audio(both, list(range(400)))
    settings, accuracy = TrainSettings(epochs=20, learning_rate=1e-2), {}
    for share in (0.0, 0.5):
        (trained,) = train_heads(both, both, [config(absent="zeros", modality_dropout=share)], [0], settings=settings)
        predicted = trained.head.predict_logits(deaf).argmax(axis=1)
        accuracy[share] = float(np.mean(predicted == labels))
    assert accuracy[0.5] > accuracy[0.0] + 0.1


def test_an_interrupt_ends_all_threads_at_their_next_step() -> None:
    class Interrupt(Progress):
        def advance(self, count: int = 1, **of_which: int) -> None:
            raise KeyboardInterrupt

    settings = TrainSettings(epochs=100_000)
    with pytest.raises(KeyboardInterrupt):
        train(config(hidden=(2000, 200)), seeds=(0, 1, 2, 3), settings=settings, progress=Interrupt(), workers=2)


def test_training_does_not_change_torchs_threads_and_random_state() -> None:
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
    assert close(trained, expected)
    (sight,) = train_heads(silent, silent_val, [config(dims={"timesformer": 6})], [0], settings=QUICK)
    assert sight.dropped == {"train": 0, "val": 0}


def test_clips_without_audio_train_with_zeros_when_asked() -> None:
    (trained,) = train_heads(without_audio(TRAIN, [0, 5]), VAL, [config(absent="zeros")], [0], settings=QUICK)
    zeroed = TRAIN.features["ast"].copy()
    zeroed[[0, 5]] = 0
    filled = Embeddings(TRAIN.clip_ids, TRAIN.labels, TRAIN.groups, {**TRAIN.features, "ast": zeroed})
    (expected,) = train_heads(filled, VAL, [config(absent="zeros")], [0], settings=QUICK)
    assert trained.dropped == {"train": 0, "val": 0}
    assert close(trained, expected)


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
        ({"modality_dropout": 1.0}, "modality_dropout must be in"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"mixup": math.inf}, "mixup must be 0 or more"),
        ({"patience": 0}, "patience must be a whole number of at least 1"),
        ({"memory_gb": 0.0}, "memory_gb must be above 0"),
        ({"schedule": "linear"}, "choose from constant, cosine, two-phase"),
        ({"class_weights": "sqrt"}, "choose from none, balanced"),
        ({"normalize": "minmax"}, "choose from none, zscore, variance, l2"),
        ({"absent": "mean"}, "choose from drop, zeros"),
        ({"device": "gpu"}, "choose from auto, cpu, cuda"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        TrainSettings(**changes)  # type: ignore[arg-type]


def test_settings_survive_a_round_trip_through_json() -> None:
    settings = TrainSettings(hidden=(), schedule="cosine", patience=4, memory_gb=1.5)
    assert TrainSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(ExperimentError, match="unknown training setting 'epoch'"):
        TrainSettings.from_json({"epoch": 3})


def test_learning_rates_per_stream_refuse_weight_decay() -> None:
    with pytest.raises(ExperimentError, match="don't go with weight_decay"):
        train(config(rates={"ast": 2.0}), settings=TrainSettings(weight_decay=0.1))


def test_bad_seeds_and_empty_grids_are_named() -> None:
    with pytest.raises(ExperimentError, match="a seed must be a whole number of at least 0, not -1"):
        train(config(), seeds=(-1,))
    with pytest.raises(ExperimentError, match="at least one head and one seed"):
        train()
