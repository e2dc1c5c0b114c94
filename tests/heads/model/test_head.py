"""Transforms, fusion and the head itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.heads import head_config
from torch import nn

from alphafuse.data.embeddings import Embeddings
from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import FUSIONS, Experiment, HeadConfig, HeadSettings
from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.training.settings import TrainSettings

DIMS = {"timesformer": 6, "ast": 4}
CLASSES = ("bark", "meow", "moo")


def config(**changes: object) -> HeadConfig:
    return head_config(**{"dims": DIMS, "classes": CLASSES, "hidden": (8, 5), **changes})  # type: ignore[arg-type]


def features(clips: int = 7) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(3)
    return {name: torch.tensor(rng.normal(size=(clips, dim)), dtype=torch.float32) for name, dim in DIMS.items()}


def embeddings(clips: int = 7, *, absent: int | None = None) -> Embeddings:
    arrays = {name: x.numpy().copy() for name, x in features(clips).items()}
    if absent is not None:
        arrays["ast"][absent] = np.nan
    ids = tuple(f"clip{i}_000000" for i in range(clips))
    return Embeddings(ids, tuple(CLASSES[i % 3] for i in range(clips)), ids, arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transform": "sqr", "on": "ast"},
            r"unknown transform 'sqr' \(did you mean 'sqrt'\?\): choose from none, sqrt",
        ),
        ({"transform": "scale", "on": "ast"}, "transform 'scale' needs an alpha"),
        ({"transform": "sqrt", "on": "ast", "alpha": 2.0}, "takes no alpha"),
        ({"transform": "scale", "on": "ast", "alpha": float("nan")}, "finite number"),
        ({"transform": "sqrt"}, r"needs a stream: --on NAME\[,NAME\] or --on all"),
        ({"transform": "sqrt", "streams": ("ast", "timesformer")}, r"needs a stream: --on timesformer\|ast"),
        ({"transform": "sqrt", "on": "audio"}, "unknown stream 'audio': choose from timesformer, ast"),
        ({"transform": "sqrt", "on": "ast,audio"}, "unknown stream 'audio'"),
        ({"transform": "sqrt", "on": "ast", "dims": {"clap": 6}}, "unknown stream 'ast': choose from clap"),
        ({"transform": "sqrt", "on": "ast", "streams": ("timesformer",)}, "the head reads only timesformer"),
        ({"streams": ("ats",)}, r"unknown stream 'ats' .did you mean 'ast'"),
        ({"streams": ("AST",)}, "'AST' can't name a stream"),
        ({"fusion": "gate", "dims": {"ast": 4}}, "'gate' joins streams, but the head reads only ast"),
        ({"fusion": "conca"}, r"unknown fusion 'conca' \(did you mean 'concat'\?\): choose from concat"),
        ({"dims": {}}, "at least one stream"),
        ({"dims": {"ast": 0}}, "dimension of ast must be a whole number"),
        ({"hidden": (8, 0)}, "hidden width must be a whole number of at least 1, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"classes": ("bark",)}, "at least two classes"),
        ({"classes": ("bark", "bark")}, "all different"),
        ({"absent": "skip"}, "choose from drop, zeros"),
        ({"normalize": "minmax"}, "choose from none, zscore, variance, l2"),
        ({"normalize": "zscore", "transform": "learned", "on": "ast"}, "learns its alpha, but zscore needs"),
        ({"modality_dropout": 1.0}, r"modality_dropout must be in \[0, 1\)"),
        ({"rates": {"audio": 2.0}}, "unknown stream 'audio'"),
        ({"rates": {"ast": 0.0}}, "the learning rate of ast must be above 0"),
        ({"rates": {"ast": 2.0}, "fusion": "gate"}, "need fusion 'concat', not 'gate'"),
        ({"auxiliary": {"ast": 0.5}}, "need fusion 'gate', which has an expert per stream, not 'concat'"),
        ({"auxiliary": {"sound": 0.5}, "fusion": "gate"}, "unknown auxiliary loss 'sound'"),
    ],
)
def test_bad_head_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        config(**changes)


def test_a_config_keeps_the_dimensions_that_its_experiment_reads() -> None:
    config = HeadConfig(DIMS, CLASSES, Experiment(streams=("ast",)))
    assert config.dims == {"ast": 4} and config.streams == ("ast",)
    assert HeadConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    swapped = HeadConfig({"clap": 3, "ast": 4, "timesformer": 6}, CLASSES, Experiment(streams=("clap", "ast")))
    assert list(swapped.dims.items()) == [("ast", 4), ("clap", 3)] and swapped.experiment.name == "ast+clap"
    assert HeadConfig({"timesformer": 6}, CLASSES).streams == ("timesformer",)
    with pytest.raises(ExperimentError, match="the experiment reads ast, and only timesformer has a dimension"):
        HeadConfig({"timesformer": 6}, CLASSES, config.experiment)


def test_an_experiments_normalisation_overrides_the_settings() -> None:
    settings = HeadSettings(normalize="l2")
    assert HeadConfig(DIMS, CLASSES, Experiment(normalize="zscore"), settings).normalize == "zscore"
    assert HeadConfig(DIMS, CLASSES, Experiment(), settings).normalize == "l2"


def test_a_config_keeps_only_the_settings_of_a_head() -> None:
    config = HeadConfig(DIMS, CLASSES, settings=TrainSettings(hidden=(8,), epochs=3))
    assert config == HeadConfig(DIMS, CLASSES, settings=HeadSettings(hidden=(8,)))
    assert "epochs" not in config.to_json()["settings"]


def test_the_papers_head_is_1536_1024_512_classes() -> None:
    head = AlphaFusion(HeadConfig(dims={"timesformer": 768, "ast": 768}, classes=tuple(str(i) for i in range(91))))
    shapes = [tuple(layer.weight.shape) for layer in head.linears]
    assert shapes == [(1024, 1536), (512, 1024), (91, 512)]
    assert sum(p.numel() for p in head.parameters()) == 2_145_371  # (1536+1)*1024 + (1024+1)*512 + (512+1)*91
    assert head({name: torch.zeros(4, 768) for name in DIMS}).shape == (4, 91)


@pytest.mark.parametrize("stream", DIMS)
def test_a_single_stream_head_reads_that_stream_alone(stream: str) -> None:
    head = AlphaFusion(config(dims={stream: DIMS[stream]})).eval()
    x = features()
    assert head.linears[0].in_features == DIMS[stream]
    np.testing.assert_array_equal(head({stream: x[stream]}).detach(), head(x).detach())


def test_normalisation_follows_the_transform_and_absent_embeddings_are_fused_as_zeros() -> None:
    head = AlphaFusion(config(transform="pos-scalar", on="ast", normalize="zscore", absent="zeros"))
    head.normalizations["ast"].mean.fill_(2.0)
    head.normalizations["ast"].std.fill_(4.0)
    x = features()
    x["timesformer"][1] = np.nan
    x["ast"][2] = np.nan
    prepared = head.prepare(x)
    expected = (1.5 * x["ast"].numpy() - 2) / 4
    expected[2] = 0
    np.testing.assert_allclose(prepared["ast"], expected, rtol=1e-6)
    assert not prepared["timesformer"][1].any() and prepared["timesformer"][0].all()
    unit = AlphaFusion(config(normalize="l2")).prepare(features())
    np.testing.assert_allclose(torch.linalg.vector_norm(unit["ast"], dim=1), 1, rtol=1e-6)


def test_head_equals_a_plain_sequential_on_transformed_vectors() -> None:
    head = AlphaFusion(config(transform="sqrt", on="ast")).eval()
    plain = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for target, source in zip(plain.parameters(), head.layers.parameters(), strict=True):
            target.copy_(source)
        x = features()
        expected = plain(torch.cat([x["timesformer"], torch.sqrt(torch.relu(x["ast"]))], dim=1))
        torch.testing.assert_close(head(x), expected)


@pytest.mark.parametrize(("on", "factors"), [("all", (2, 2, 2)), ("clap,timesformer", (2, 1, 2)), ("ast", (1, 2, 1))])
def test_a_transform_changes_the_streams_that_it_is_on(on: str, factors: tuple[int, ...]) -> None:
    dims = {"clap": 3, **DIMS}
    head = AlphaFusion(config(transform="scale", on=on, alpha=2.0, dims=dims))
    x = {**features(), "clap": torch.ones(7, 3)}
    parts = [factor * x[name] for factor, name in zip(factors, ("timesformer", "ast", "clap"), strict=True)]
    torch.testing.assert_close(head.fuse(x), torch.cat(parts, dim=1))


def test_dropout_is_active_in_training_only() -> None:
    head, x = AlphaFusion(config()), features(200)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))


def test_initial_weights_depend_on_the_generator_alone_and_stay_in_pytorchs_bounds() -> None:
    torch.manual_seed(1)
    one = AlphaFusion(config(hidden=(64,)), generator=torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    two = AlphaFusion(config(hidden=(64,)), generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    weight = one.linears[0].weight
    assert weight.abs().max() <= 10**-0.5
    assert weight.std().item() == pytest.approx(10**-0.5 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("transform", ["sqrt", "learned"])
def test_a_saved_head_comes_back_the_same(tmp_path: Path, transform: str) -> None:
    head = AlphaFusion(config(transform=transform, on="timesformer"), generator=torch.Generator().manual_seed(8)).eval()
    head.save_pretrained(tmp_path / "run" / "head")
    for folder in (tmp_path / "run", tmp_path / "run" / "head", str(tmp_path / "run")):
        loaded = AlphaFusion.from_pretrained(folder)
        assert loaded.config == head.config
        assert torch.equal(loaded(features()), head(features()))
    assert not list((tmp_path / "run" / "head").glob(".*"))


def test_a_missing_damaged_or_mismatched_head_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"no head in .*: train one with `alphafuse fit`"):
        AlphaFusion.from_pretrained(tmp_path)
    AlphaFusion(config()).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for part, change, message in (
        ("settings", {"hidden": [8, 6]}, r"holds layers.1.weight \(5, 8\), config.json asks for \(6, 8\)"),
        ("experiment", {"transform": "learned", "on": "ast"}, "alpha not at all"),
        ("experiment", {"transform": "cube", "on": "ast"}, "unknown transform 'cube'"),
        ("settings", {"width": 3}, "unknown field 'width'"),
        ("experiment", {"width": 3}, "unknown field 'width'"),
        ("settings", {"hidden": 3}, "train it again"),
    ):
        changed = {**content["head"], part: {**content["head"][part], **change}}
        (tmp_path / "config.json").write_text(json.dumps({**content, "head": changed}))
        with pytest.raises(ExperimentError, match=message):
            AlphaFusion.from_pretrained(tmp_path)
    for changed, message in (
        ({**content["head"], "width": 3}, "unknown field 'width'"),
        ({name: value for name, value in content["head"].items() if name != "dims"}, "'dims' is missing"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**content, "head": changed}))
        with pytest.raises(ExperimentError, match=message):
            AlphaFusion.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExperimentError, match="isn't a head's config"):
        AlphaFusion.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-20])
    with pytest.raises(ExperimentError, match="can't be used"):
        AlphaFusion.from_pretrained(tmp_path)


def test_embeddings_of_another_encoder_are_refused() -> None:
    head = AlphaFusion(config())
    with pytest.raises(ExperimentError, match="6-d timesformer embeddings, not 5-d ones"):
        head({"timesformer": torch.zeros(1, 5), "ast": torch.zeros(1, 4)})
    with pytest.raises(ExperimentError, match="reads ast, which isn't among timesformer"):
        head({"timesformer": torch.zeros(1, 6)})


def test_probabilities_are_float32_rows_that_sum_to_one() -> None:
    head = AlphaFusion(config())
    probabilities = head.predict_proba(embeddings())
    assert probabilities.shape == (7, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(probabilities, head.eval()(features()).softmax(1).detach(), rtol=1e-5)
    assert head.train().predict_proba(embeddings()).tolist() == probabilities.tolist()
    assert head.training


def test_prediction_of_a_clip_without_audio_is_nan_or_made_of_zeros() -> None:
    clips = embeddings(absent=2)
    dropped = AlphaFusion(config()).predict_logits(clips)
    assert np.flatnonzero(np.isnan(dropped).any(axis=1)).tolist() == [2]
    zeroed = AlphaFusion(config(absent="zeros"))
    x = features()
    x["ast"][2] = 0
    np.testing.assert_allclose(zeroed.predict_logits(clips), zeroed.eval()(x).detach(), rtol=1e-5, atol=1e-6)
    only = AlphaFusion(config(dims={"timesformer": 6}))
    assert np.isfinite(only.predict_logits(clips)).all()
    assert np.isnan(clips.features["ast"][2]).all(), "the store's arrays are not changed"


def test_embeddings_without_a_stream_are_refused() -> None:
    clips = embeddings()
    silent = Embeddings(clips.clip_ids, clips.labels, clips.groups, {"timesformer": clips.features["timesformer"]})
    with pytest.raises(ExperimentError, match=r"have no ast \(only timesformer\)"):
        AlphaFusion(config()).predict_proba(silent)


@pytest.mark.parametrize("fusion", ["concat", "add", "matrix", "gate", "attention"])
def test_an_alpha_of_1_changes_nothing_and_of_0_is_an_absent_stream(fusion: str) -> None:
    config = head_config(dims={"timesformer": 8, "ast": 8}, classes=("a", "b", "c"), fusion=fusion, normalize="zscore")
    head = AlphaFusion(config).eval()
    features = {"timesformer": torch.randn(5, 8), "ast": torch.randn(5, 8)}
    silent = {**features, "ast": torch.full((5, 8), torch.nan)}
    torch.testing.assert_close(head(features, {"ast": 1.0, "timesformer": 1.0}), head(features), rtol=0, atol=0)
    torch.testing.assert_close(head(features, {"ast": 0.0}), head(silent), rtol=0, atol=0)
    assert not torch.equal(head(features, {"ast": 0.5}), head(features))


def test_an_alpha_is_applied_after_transform_and_normalisation() -> None:
    config = head_config(dims={"ast": 6}, classes=("a", "b"), transform="sqrt", on="ast", normalize="l2", hidden=())
    head = AlphaFusion(config).eval()
    x = torch.rand(4, 6)
    fused = 1.5 * torch.nn.functional.normalize(x.sqrt(), dim=-1)
    torch.testing.assert_close(head({"ast": x}, {"ast": 1.5}), head.layers[0](fused))


@pytest.mark.parametrize(
    ("alphas", "message"),
    [({"timesformer": 1.0}, "unknown stream 'timesformer'.*: choose from ast"), ({"ast": math.nan}, "finite number")],
)
def test_an_alpha_that_fits_no_stream_is_refused(alphas: dict[str, float], message: str) -> None:
    head = AlphaFusion(head_config(dims={"ast": 6}, classes=("a", "b")))
    with pytest.raises(ExperimentError, match=message):
        head({"ast": torch.zeros(1, 6)}, alphas)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_prediction_for_a_clip_does_not_depend_on_the_other_clips(fusion: str) -> None:
    rng = np.random.default_rng(0)
    dims = {"timesformer": 96, "ast": 96}
    head = AlphaFusion(config(dims=dims, fusion=fusion, hidden=(64, 40)))
    ids = tuple(f"clip{i}_000000" for i in range(70))
    arrays = {name: rng.normal(size=(70, dim)).astype(np.float32) for name, dim in dims.items()}
    every = Embeddings(ids, tuple(CLASSES[i % 3] for i in range(70)), ids, arrays)
    together = head.predict_proba(every)
    for count in (1, 2, 3, 5, 8, 31, 33):
        some = np.arange(70 - count, 70)
        np.testing.assert_array_equal(head.predict_proba(every.take(some)), together[some], err_msg=str(count))
