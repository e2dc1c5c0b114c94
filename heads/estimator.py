"""A fusion head as a scikit-learn classifier, for `GridSearchCV`, `cross_val_score` and pipelines.

    X (clips, columns) = [timesformer | ast], y (clips,) -> train_heads -> predict, predict_proba

    from sklearn.model_selection import GridSearchCV
    search = GridSearchCV(AlphaFusionClassifier("scale", on="ast", random_state=0), {"alpha": [0.5, 1, 2]})

The head is `train_heads`' own, seed by seed. Folds should keep a source video's clips together: give the search
scikit-learn's GroupKFold, and its `fit` the source videos as `groups`. An estimator doesn't see them and so can't set
validation clips aside honestly: there is no early stopping here, and `epochs` is tuned like the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from alphafuse.data.embeddings import Embeddings
from alphafuse.data.streams import MODALITIES
from alphafuse.errors import AlphafuseError, ExperimentError
from alphafuse.heads.model.head import PREDICT_ROWS, HeadConfig, usable_clips
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import TrainedHead, train_heads


class EstimatorError(ExperimentError, ValueError):
    """An `ExperimentError` that is a ValueError too, which scikit-learn expects of bad parameters and data."""


class AlphaFusionClassifier(ClassifierMixin, BaseEstimator):
    """A fusion head over one matrix of embeddings, [timesformer | ast] by default.

    Defaults are the paper's, and do for a few columns too: of 300 points in three overlapping blobs, 0.94 are right
    after 950 steps. Steps are what counts: with far fewer clips give more `epochs` or a higher `learning_rate`.

    Args:
        transform, on, alpha, fusion, normalize, hidden, dropout, modality_dropout, rates, auxiliary: as in
            `HeadConfig`.
        modalities: what X's columns hold, in this order: both modalities, or one.
        timesformer_dim: how many of the columns are TimeSformer's. None with two modalities: half of them; of an odd
            number, AST takes the one more, with a warning.
        epochs, batch_size, learning_rate, schedule, weight_decay, label_smoothing, mixup, device: as in
            `TrainSettings`.
        class_weight: None (clips count alike), "balanced" (n / (C n_class)), or label -> weight above 0, 1 for others.
        absent: "drop": NaN in X is an error, since every row must be predicted. "zeros": a row with NaN in a modality's
            columns lacks that modality's embedding, and zeros take the place of what it would be fused as. A row that
            lacks all of them isn't trained on, and is predicted from zeros alone.
        random_state: a whole number is the seed, as in `train_heads`; else the seed is drawn, from NumPy's global
            generator (None) or from the `RandomState` given.

    Attributes:
        classes_: (C,) labels of y, sorted.
        head_: the trained `AlphaFusion`, in eval mode on the CPU; `head_.save_pretrained(folder)` keeps it. Its classes
            are `classes_` as text.
        loss_curve_: (epochs,) float64 training loss of each epoch, as in `History`.
        n_features_in_: columns of X.
        feature_names_in_: their names, where X has any.

    Raises:
        EstimatorError: from `fit`, parameters that don't exist or don't fit X, a single class, or a loss that stops
            being finite.
        ValueError: X or y aren't what scikit-learn asks for.

    >>> import numpy as np
    >>> from alphafuse import AlphaFusionClassifier
    >>> X, y = np.random.default_rng(0).normal(size=(20, 6)), ["bark", "meow"] * 10
    >>> AlphaFusionClassifier("sqrt", on="ast", random_state=0).fit(X, y).predict_proba(X).shape
    (20, 2)
    """

    def __init__(
        self,
        transform: str = HeadConfig.transform,
        *,
        on: str | None = HeadConfig.on,
        alpha: float | None = HeadConfig.alpha,
        fusion: str = HeadConfig.fusion,
        modalities: Sequence[str] = MODALITIES,
        timesformer_dim: int | None = None,
        normalize: str = HeadConfig.normalize,
        hidden: Sequence[int] = HeadConfig.hidden,
        dropout: float = HeadConfig.dropout,
        modality_dropout: float = HeadConfig.modality_dropout,
        rates: Mapping[str, float] | None = HeadConfig.rates,
        auxiliary: Mapping[str, float] | None = HeadConfig.auxiliary,
        epochs: int = TrainSettings.epochs,
        batch_size: int = TrainSettings.batch_size,
        learning_rate: float = TrainSettings.learning_rate,
        schedule: str = TrainSettings.schedule,
        weight_decay: float = TrainSettings.weight_decay,
        label_smoothing: float = TrainSettings.label_smoothing,
        mixup: float = TrainSettings.mixup,
        class_weight: str | Mapping[Any, float] | None = None,
        absent: str = HeadConfig.absent,
        random_state: int | np.random.RandomState | None = None,
        device: str = TrainSettings.device,
    ) -> None:
        self.transform = transform
        self.on = on
        self.alpha = alpha
        self.fusion = fusion
        self.modalities = modalities
        self.timesformer_dim = timesformer_dim
        self.normalize = normalize
        self.hidden = hidden
        self.dropout = dropout
        self.modality_dropout = modality_dropout
        self.rates = rates
        self.auxiliary = auxiliary
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.class_weight = class_weight
        self.absent = absent
        self.random_state = random_state
        self.device = device

    @property
    def transform(self) -> str:
        """The parameter, which can be set, but is read with `get_params`: AttributeError.

        scikit-learn takes whatever has an attribute of this name for a transformer, and calls it.
        """
        raise AttributeError("the parameter 'transform' of a classifier is read with get_params()['transform']")

    @transform.setter
    def transform(self, value: str) -> None:
        self.__dict__["transform"] = value

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameter -> value; there are no estimators inside, which `deep` would ask for."""
        return {name: vars(self)[name] for name in self._get_param_names()}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.absent == "zeros"
        return tags

    def fit(self, X: Any, y: Any) -> AlphaFusionClassifier:
        """Train a head on clips X (clips, columns) with labels y (clips,)."""
        X, y = validate_data(self, X, y, dtype=np.float32, ensure_all_finite=_finite(self.absent))
        check_classification_targets(y)
        classes, targets = np.unique(y, return_inverse=True)
        try:
            weights = compute_class_weight(self.class_weight, classes=classes, y=y)
            trained = self._train(X, tuple(str(label) for label in classes), targets, weights)
        except AlphafuseError as error:
            raise EstimatorError(str(error)) from None
        self.classes_, self.head_, self.loss_curve_ = classes, trained.head, trained.history.train_loss
        return self

    def _train(self, X: np.ndarray, classes: tuple[str, ...], targets: np.ndarray, weights: np.ndarray) -> TrainedHead:
        """Train on X (clips, columns) float32 with targets (clips,), positions in `classes`, and weights (C,)."""
        if len(classes) < 2:
            raise ExperimentError(f"y has only one class, {classes[0]}: a head needs clips of at least two")
        parameters = _plain(self.get_params())
        dims = _dims(X.shape[1], parameters["modalities"], parameters["timesformer_dim"])
        config = HeadConfig(dims=dims, classes=classes, **_of(HeadConfig, parameters))
        settings = TrainSettings(**_of(TrainSettings, parameters))
        ids = tuple(str(row) for row in range(len(X)))
        train = Embeddings(ids, tuple(classes[target] for target in targets), ids, _features(X, dims))
        # nothing depends on the validation history here, and one clip is the cheapest
        val = train.take(np.flatnonzero(usable_clips(train, config))[:1])
        (trained,) = train_heads(
            train,
            val,
            [config],
            [_seed(self.random_state)],
            settings=settings,
            class_weights=None if self.class_weight is None else dict(zip(classes, weights, strict=True)),
            workers=1,
        )
        return trained

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each clip, (clips,) of the labels' own type."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities (clips, C) float32 in [0, 1], in the order of `classes_`; rows sum to 1."""
        return torch.from_numpy(self._logits(X)).softmax(dim=1).numpy()

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (clips, C) float32; of two classes, how far the second's is above the first's, (clips,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def _logits(self, X: Any) -> np.ndarray:
        """(clips, C) float32."""
        check_is_fitted(self)
        config = self.head_.config
        X = validate_data(self, X, dtype=np.float32, ensure_all_finite=_finite(config.absent), reset=False)
        parts = [
            self.head_.logits_of(_features(part, config.dims))
            for part in np.split(X, range(PREDICT_ROWS, len(X), PREDICT_ROWS))
        ]
        return np.concatenate(parts)


def _finite(absent: str) -> bool | str:
    """What scikit-learn's validation does about NaN: refuse or allow it; infinity is refused in any case."""
    return "allow-nan" if absent == "zeros" else True


def _plain(value: Any) -> Any:
    """Without NumPy's numbers and arrays, which parameter grids are made of."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple, np.ndarray)) else value


def _of(settings: type, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are fields of this dataclass."""
    return {field.name: parameters[field.name] for field in fields(settings) if field.name in parameters}


def _seed(random_state: Any) -> int:
    """A whole number is the seed itself."""
    draws = check_random_state(random_state)
    return int(random_state) if isinstance(random_state, Integral) else int(draws.randint(np.iinfo(np.int32).max))


def _dims(columns: int, modalities: Sequence[str], timesformer_dim: int | None) -> dict[str, int]:
    """Modality -> its number of columns, in their order in X.

    Raises:
        ExperimentError: modalities named twice, or a number of columns that can't be shared out like this.
    """
    modalities = (modalities,) if isinstance(modalities, str) else tuple(modalities)
    if len(set(modalities)) < len(modalities):
        raise ExperimentError(f"modalities must be different from each other, not {', '.join(modalities)}")
    if len(modalities) != 2:
        if timesformer_dim is not None:
            raise ExperimentError(
                f"timesformer_dim parts X's columns among two modalities, and there is only {', '.join(modalities)}: "
                "leave it out"
            )
        return dict.fromkeys(modalities, columns)
    if columns < 2:
        raise ExperimentError(
            f"X has {columns} feature(s), and {' and '.join(modalities)} need at least one each: if X holds one "
            "modality alone, say which with modalities=('timesformer',) or ('ast',)"
        )
    if timesformer_dim is None:
        if columns % 2:
            warnings.warn(
                f"an odd number of columns, {columns}, has no halves: TimeSformer gets {columns // 2}, AST the others; "
                "say how many with timesformer_dim",
                stacklevel=4,
            )
        timesformer_dim = columns // 2
    if isinstance(timesformer_dim, bool) or not isinstance(timesformer_dim, int) or not 0 < timesformer_dim < columns:
        raise ExperimentError(
            f"timesformer_dim must be a whole number from 1 to {columns - 1}, as X has {columns} features, not "
            f"{timesformer_dim!r}"
        )
    rest = columns - timesformer_dim
    return {name: timesformer_dim if name == "timesformer" else rest for name in modalities}


def _features(X: np.ndarray, dims: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Modality -> its columns of X (clips, columns), copied for PyTorch: (clips, dim) float32; absent rows all NaN."""
    parts = np.split(X, np.cumsum(list(dims.values()))[:-1], axis=1)
    features = {name: np.array(part, order="C") for name, part in zip(dims, parts, strict=True)}
    for part in features.values():
        part[np.isnan(part).any(axis=1)] = np.nan
    return features
