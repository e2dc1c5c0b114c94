"""The estimator passes scikit-learn's own checks, and trains the same heads as `train_heads`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, ParameterGrid, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from support.heads import head_config

from alphafuse.data.embeddings import Embeddings
from alphafuse.errors import ExperimentError
from alphafuse.heads.estimator import AlphaFusionClassifier
from alphafuse.heads.model.config import Experiment
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.training.settings import TrainSettings
from alphafuse.heads.training.train import train_heads

DIMS = {"timesformer": 5, "ast": 3}
CLASSES = ("bark", "meow", "moo")
QUICK = {"hidden": (16,), "learning_rate": 1e-2, "epochs": 4}


def clips(count: int = 60, *, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """X = [timesformer | ast]: both streams identify the class, TimeSformer weakly and AST noisily."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % len(classes)
    means = np.random.default_rng(99).normal(size=(len(classes), sum(DIMS.values())))
    X = (means[targets] + rng.normal(size=(count, 8)) * np.repeat([0.3, 3.0], [5, 3])) * np.repeat([0.1, 1], [5, 3])
    return X, np.array(classes)[targets]


X, Y = clips()


def estimator(**parameters: object) -> AlphaFusionClassifier:
    return AlphaFusionClassifier(**{"streams": DIMS, "random_state": 3, **QUICK, **parameters})  # type: ignore[arg-type]


def trained_directly(
    x: np.ndarray, y: np.ndarray, *, seed: int = 3, settings: dict[str, object] | None = None, **head: object
) -> AlphaFusion:
    """Return the head that `train_heads` trains on the same clips; the validation clips must not matter."""
    config = head_config(**{"dims": DIMS, "classes": CLASSES, "hidden": (16,), **head})  # type: ignore[arg-type]
    train, val = embeddings(x, y), embeddings(*clips(12, seed=1))
    chosen = TrainSettings(**{"epochs": 4, "learning_rate": 1e-2, **(settings or {})})  # type: ignore[arg-type]
    return train_heads(train, val, [config], [seed], settings=chosen)[0].head


def embeddings(x: np.ndarray, y: np.ndarray) -> Embeddings:
    ids = tuple(f"clip{i}" for i in range(len(x)))
    parts = {"timesformer": x[:, :5].astype(np.float32), "ast": x[:, 5:].astype(np.float32)}
    return Embeddings(ids, tuple(str(label) for label in y), ids, parts)


@parametrize_with_checks(
    [
        AlphaFusionClassifier(hidden=(32,), learning_rate=3e-3)  # otherwise the defaults
    ]
)
def test_scikit_learns_checks_pass(
    estimator: AlphaFusionClassifier, check: Callable[[AlphaFusionClassifier], None]
) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        AlphaFusionClassifier(
            "learned-dim",
            on="all",
            fusion="matrix",
            streams={"video": 1, "audio": -1},  # the checks use several numbers of columns
            absent="zeros",
            hidden=(32,),
            learning_rate=2e-3,
            epochs=10,
        ),
        AlphaFusionClassifier("tanh", on="x", normalize="zscore", hidden=(), learning_rate=1e-2),
    ]
)
def test_scikit_learns_checks_pass_with_other_heads(
    estimator: AlphaFusionClassifier, check: Callable[[AlphaFusionClassifier], None]
) -> None:
    check(estimator)


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ({}, {}),
        ({"transform": "sqrt", "on": "ast"}, {"schedule": "cosine", "weight_decay": 0.01}),
        ({"transform": "learned", "on": "timesformer", "alpha": 2.0}, {"label_smoothing": 0.1, "batch_size": 16}),
        ({"normalize": "zscore", "dropout": 0.1}, {"class_weights": "balanced"}),
        ({"rates": {"ast": 2.0}}, {"mixup": 0.3}),
        ({"fusion": "gate", "auxiliary": {"ast": 0.5}, "modality_dropout": 0.3}, {"schedule": "two-phase"}),
    ],
)
def test_probabilities_equal_those_of_the_head_that_train_heads_makes(
    head: dict[str, object], settings: dict[str, object]
) -> None:
    rows = np.arange(60) % 4 != 0  # classes of unequal size
    x, y = X[rows], Y[rows]
    weighing = "balanced" if "class_weights" in settings else None
    others = {name: value for name, value in settings.items() if name != "class_weights"}
    fitted = estimator(**head, **others, class_weight=weighing).fit(x, y)
    expected = trained_directly(x, y, settings=settings, **head)  # type: ignore[arg-type]
    np.testing.assert_array_equal(fitted.predict_proba(X), expected.predict_proba(embeddings(X, Y)))
    np.testing.assert_array_equal(
        fitted.predict(X), np.array(CLASSES)[expected.predict_logits(embeddings(X, Y)).argmax(1)]
    )
    assert fitted.loss_curve_.shape == (8 if settings.get("schedule") == "two-phase" else 4,)


def test_class_weights_as_a_dict_equal_balanced_ones() -> None:
    rows = np.arange(60) % 4 != 0
    x, y = X[rows], np.where(Y[rows] == "moo", "bark", Y[rows])
    weights = {label: len(y) / (2 * np.sum(y == label)) for label in ("bark", "meow")}
    balanced = estimator(class_weight="balanced").fit(x, y).predict_proba(X)
    np.testing.assert_array_equal(estimator(class_weight=weights).fit(x, y).predict_proba(X), balanced)
    assert not np.allclose(estimator().fit(x, y).predict_proba(X), balanced, rtol=1e-3)


def test_every_setting_of_heads_and_of_training_is_a_parameter_with_the_same_default() -> None:
    parameters = AlphaFusionClassifier().get_params()
    # needs a validation split; X is in memory; scikit-learn has another name; streams are blocks of columns
    left_out = {"patience", "memory_gb", "class_weights", "streams", "available"}
    names = {field.name for kind in (TrainSettings, Experiment) for field in fields(kind)} - left_out
    assert names <= set(parameters)
    for kind in (TrainSettings, Experiment):  # both have normalize: the parameter is that of the settings
        for field in fields(kind):
            if field.name not in left_out:
                assert parameters.pop(field.name, field.default) == field.default
    assert parameters == {"streams": None, "random_state": None, "class_weight": None}


def test_grid_search_over_transforms_and_alphas_equals_a_loop() -> None:
    grid = [{"transform": ["none", "sqrt"]}, {"transform": ["scale"], "alpha": np.array([0.0, 0.1])}]
    groups = np.arange(60) // 3
    folds = list(GroupKFold(3).split(X, Y, groups))
    search = GridSearchCV(estimator(on="ast"), grid, cv=GroupKFold(3)).fit(X, Y, groups=groups)
    expected = []
    for cell in ParameterGrid(grid):
        heads = [trained_directly(X[train], Y[train], on="ast", **cell) for train, _ in folds]
        right = [
            head.predict_logits(embeddings(X[test], Y[test])).argmax(1) == np.searchsorted(CLASSES, Y[test])
            for head, (_, test) in zip(heads, folds, strict=True)
        ]
        expected.append(np.mean([fold.mean() for fold in right]))
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected)
    assert len(set(expected)) > 2
    assert search.best_params_ == list(ParameterGrid(grid))[int(np.argmax(expected))]
    assert search.best_estimator_.get_params()["transform"] == search.best_params_["transform"]


@pytest.mark.slow
def test_cross_validation_in_worker_processes_gives_the_same_scores() -> None:
    alone = cross_val_score(estimator(), X, Y, cv=3, scoring="neg_log_loss")
    np.testing.assert_allclose(cross_val_score(estimator(), X, Y, cv=3, scoring="neg_log_loss", n_jobs=2), alone)
    assert np.all(np.isfinite(alone))


def test_in_a_pipeline_the_scaler_comes_first_and_parameters_keep_their_names() -> None:
    pipeline = make_pipeline(StandardScaler(), estimator())
    pipeline.set_params(alphafusionclassifier__transform="signed-sqrt", alphafusionclassifier__on="ast").fit(X, Y)
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    by_hand = trained_directly(scaled, Y, transform="signed-sqrt", on="ast").predict_proba(embeddings(scaled, Y))
    np.testing.assert_allclose(pipeline.predict_proba(X), by_hand, rtol=1e-4, atol=1e-6)
    assert not hasattr(pipeline, "transform")  # a classifier at its end makes it a classifier


def test_the_parameter_transform_does_not_make_the_classifier_a_transformer() -> None:
    classifier = AlphaFusionClassifier("sqrt", on="ast")
    assert not hasattr(classifier, "transform")
    assert clone(classifier).get_params() == classifier.get_params()
    assert classifier.get_params()["transform"] == "sqrt"
    assert repr(classifier.set_params(transform="power")) == "AlphaFusionClassifier(on='ast', transform='power')"


def test_probabilities_are_the_softmax_of_the_decision_function() -> None:
    fitted = estimator().fit(X, Y)
    np.testing.assert_allclose(softmax(fitted.decision_function(X), axis=1), fitted.predict_proba(X), rtol=1e-5)
    x, y = clips(classes=("meow", "bark"))
    fitted = estimator(epochs=20).fit(x, y)
    assert list(fitted.classes_) == ["bark", "meow"]
    np.testing.assert_allclose(expit(fitted.decision_function(x)), fitted.predict_proba(x)[:, 1], rtol=1e-5)
    assert fitted.score(x, y) > 0.9


def test_rows_of_nan_are_absent_embeddings_when_zeros_replace_them() -> None:
    x = X.copy()
    x[:10, 5:] = np.nan
    x[10:15, :5] = np.nan
    whole = x.copy()
    x[15, 6] = np.nan  # one number of AST's three: its embedding is absent
    whole[15, 5:] = np.nan
    fitted = estimator(absent="zeros", normalize="zscore").fit(x, Y)
    expected = trained_directly(whole, Y, absent="zeros", normalize="zscore")
    np.testing.assert_array_equal(fitted.predict_proba(x), expected.predict_proba(embeddings(whole, Y)))


def test_a_row_without_any_embedding_is_not_trained_on_and_predicted_from_zeros() -> None:
    x = X.copy()
    x[7] = np.nan
    fitted = estimator(absent="zeros").fit(x, Y)
    others = np.arange(60) != 7
    without = estimator(absent="zeros").fit(x[others], Y[others])
    np.testing.assert_array_equal(fitted.predict_proba(X), without.predict_proba(X))
    np.testing.assert_array_equal(fitted.predict_proba(x[7:8]), fitted.predict_proba(np.zeros((1, 8))))


def test_nan_is_refused_unless_zeros_replace_it() -> None:
    x = X.copy()
    x[3, 5:] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        estimator().fit(x, Y)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        estimator().fit(X, Y).predict(x)
    with pytest.raises(ValueError, match="Input X contains infinity"):
        estimator(absent="zeros").fit(np.where(np.isnan(x), np.inf, x), Y)


def test_columns_follow_the_order_of_the_streams() -> None:
    usual = estimator(transform="sqrt", on="ast").fit(X, Y)
    swapped = estimator(transform="sqrt", on="ast", streams={"ast": 3, "timesformer": -1})
    x = np.hstack([X[:, 5:], X[:, :5]])
    np.testing.assert_array_equal(swapped.fit(x, Y).predict_proba(x), usual.predict_proba(X))


def test_three_streams_are_three_blocks_of_columns() -> None:
    dims = {"sound": 2, "ast": 3, "sight": 3}
    fitted = estimator(streams=dims, transform="sqrt", on="ast,sight", fusion="matrix").fit(X, Y)
    assert fitted.streams_ == dims and fitted.head_.config.streams == ("ast", "sight", "sound")
    ids = tuple(map(str, range(60)))
    parts = {"sound": X[:, :2], "ast": X[:, 2:5], "sight": X[:, 5:]}
    train = Embeddings(ids, tuple(Y), ids, {name: part.astype(np.float32) for name, part in parts.items()})
    config = head_config(dims, CLASSES, hidden=(16,), transform="sqrt", on="ast,sight", fusion="matrix")
    (expected,) = train_heads(train, train, [config], [3], settings=TrainSettings(epochs=4, learning_rate=1e-2))
    np.testing.assert_array_equal(fitted.predict_proba(X), expected.head.predict_proba(train))


def test_without_blocks_all_columns_are_one_stream() -> None:
    fitted = estimator(streams=None, transform="sqrt", on="all").fit(X[:, 5:], Y)
    expected = trained_directly(X, Y, dims={"ast": 3}, transform="sqrt", on="ast")
    np.testing.assert_array_equal(fitted.predict_proba(X[:, 5:]), expected.predict_proba(embeddings(X, Y)))
    assert fitted.streams_ == {"x": 3}


def test_a_grid_search_may_choose_the_blocks() -> None:
    blocks = [{"timesformer": 5, "ast": 3}, {"timesformer": 4, "ast": 4}, None]
    search = GridSearchCV(estimator(), {"streams": blocks}, cv=3).fit(X, Y)
    assert search.best_params_["streams"] in blocks and clone(search.best_estimator_).get_params()["streams"] in blocks


def test_a_seed_determines_the_head_and_a_random_state_draws_seeds() -> None:
    def probabilities(random_state: object) -> np.ndarray:
        return estimator(random_state=random_state).fit(X, Y).predict_proba(X)

    np.testing.assert_array_equal(probabilities(np.int64(5)), probabilities(5))
    state = np.random.RandomState(0)
    first, second = probabilities(state), probabilities(state)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(probabilities(np.random.RandomState(0)), first)
    np.random.seed(0)
    np.testing.assert_array_equal(probabilities(None), first)


def test_numpy_numbers_are_accepted_in_grids() -> None:
    numpys = {
        "epochs": np.int64(4),
        "hidden": np.array([16]),
        "rates": {"ast": np.float32(2)},
        "transform": np.str_("none"),
    }
    fitted = estimator(**numpys).fit(X, Y)
    np.testing.assert_array_equal(fitted.predict_proba(X), estimator(rates={"ast": 2.0}).fit(X, Y).predict_proba(X))
    fitted.head_.config.to_json()


def test_names_of_columns_are_remembered_and_compared() -> None:
    names = [f"column {i}" for i in range(8)]
    fitted = estimator().fit(pyarrow.table(dict(zip(names, X.T, strict=True))), Y)
    assert list(fitted.feature_names_in_) == names
    with pytest.raises(ValueError, match="must be in the same order"):
        fitted.predict(pyarrow.table(dict(zip(names[::-1], X.T, strict=True))))


def test_a_fitted_estimator_survives_pickling_and_its_head_a_folder(tmp_path: Path) -> None:
    fitted = estimator(transform="learned", on="ast", fusion="attention").fit(X, Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), fitted.predict_proba(X))
    fitted.head_.save_pretrained(tmp_path)
    loaded = AlphaFusion.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(embeddings(X, Y)), fitted.predict_proba(X))
    assert loaded.config.classes == CLASSES


def test_a_failed_fit_keeps_the_previous_head() -> None:
    fitted = estimator().fit(X, Y)
    before = fitted.predict_proba(X)
    with pytest.raises(ValueError, match="only one class, bark"):
        fitted.fit(X, np.full(60, "bark"))
    np.testing.assert_array_equal(fitted.predict_proba(X), before)
    assert list(fitted.classes_) == list(CLASSES)


def test_more_rows_than_fit_into_one_step_are_predicted_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = estimator().fit(X, Y)
    whole = fitted.predict_proba(X)
    monkeypatch.setattr("alphafuse.heads.estimator.PREDICT_ROWS", 7)
    np.testing.assert_allclose(fitted.predict_proba(X), whole, rtol=1e-5)


def test_the_prediction_for_a_row_does_not_depend_on_the_other_rows() -> None:
    x = np.random.default_rng(0).normal(size=(60, 192)).astype(np.float32)
    fitted = estimator(streams={"timesformer": 96, "ast": 96}, hidden=(64, 40)).fit(x, Y)
    whole = fitted.predict_proba(x)
    for count in (1, 2, 3, 5):
        np.testing.assert_array_equal(fitted.predict_proba(x[-count:]), whole[-count:])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"transform": "sqr", "on": "ast"}, r"unknown transform 'sqr' \(did you mean 'sqrt'\?\)"),
        ({"transform": "sqrt"}, "transform 'sqrt' needs a stream"),
        ({"transform": "scale", "on": "ast"}, "needs an alpha"),
        ({"fusion": "sum"}, "unknown fusion 'sum'"),
        ({"on": "clap", "transform": "sqrt"}, "unknown stream 'clap': choose from timesformer, ast"),
        ({"streams": ("timesformer", "ast")}, "must map each stream's name to the number of its columns"),
        ({"streams": {}}, "must map each stream's name"),
        ({"streams": {"Video": 8}}, "'Video' can't name a stream"),
        ({"streams": {"ast": 8, "clap": 1}}, r"X has 8 feature.s., which don't divide into the streams: ast 8, clap 1"),
        ({"streams": {"ast": 8, "clap": -1}}, "don't divide into the streams: ast 8, clap the rest"),
        ({"streams": {"ast": 4}}, "don't divide into the streams: ast 4"),
        ({"streams": {"ast": -1, "clap": -1}}, "only one stream can take the rest of the columns, not ast and clap"),
        ({"streams": {"ast": 2.5}}, "not 2.5"),
        ({"streams": {"ast": 0}}, "at least 1, or -1 for the rest, not 0"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"class_weight": {"bark": 0.0}}, "the weight of class bark must be above 0"),
        ({"learning_rate": 1e30, "epochs": 20}, "the loss stopped being finite"),
    ],
)
def test_bad_parameters_are_named_as_scikit_learn_and_alphafuse_expect(
    parameters: dict[str, object], message: str
) -> None:
    for expected in (ValueError, ExperimentError):
        with pytest.raises(expected, match=message):
            estimator(**parameters).fit(X, Y)


def test_clips_that_no_head_can_be_trained_on_are_refused() -> None:
    with pytest.raises(ExperimentError, match=r"X has 1 feature\(s\), which don't divide into the streams"):
        AlphaFusionClassifier(streams={"video": 1, "audio": -1}).fit(X[:, :1], Y)
    with pytest.raises(ExperimentError, match="none of the 60 train clips"):
        estimator(absent="zeros").fit(np.full_like(X, np.nan), Y)
    with pytest.raises(NotFittedError):
        AlphaFusionClassifier().predict(X)
