"""Fusions compared with NumPy in float64, and properties that a fair comparison of fusions needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import erf

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

from alphafuse.errors import ExperimentError
from alphafuse.heads.model.config import FUSIONS, check_fusion
from alphafuse.heads.model.fusion import LAYERS, Fusion, Gate, build_fusion

UNEQUAL = {"timesformer": 6, "ast": 4}
SWAPPED = {"timesformer": 4, "ast": 7}
EQUAL = {"timesformer": 5, "ast": 5}
WIDE = {"timesformer": 300, "ast": 40}  # wider than a token of `attention`
THREE = {"timesformer": 6, "ast": 4, "dino-s": 7}
FOUR = {"timesformer": 5, "ast": 5, "clap": 3, "dino-s": 5}
LONE = {"clap": 4}
JOINING = [name for name in FUSIONS if name != "concat"]

Weights = Mapping[str, np.ndarray]
Reference = Callable[[Mapping[str, np.ndarray], Weights], np.ndarray]


def features(dims: Mapping[str, int], clips: int = 7) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(3)
    return {name: torch.tensor(rng.normal(size=(clips, dim)), dtype=torch.float32) for name, dim in dims.items()}


def built(name: str, dims: Mapping[str, int], seed: int = 0) -> Fusion:
    fusion = build_fusion(name, dims)
    fusion.reset_parameters(torch.Generator().manual_seed(seed))
    return fusion


def moved(name: str, dims: Mapping[str, int]) -> Fusion:
    """Return a fusion away from its initial state, where identities and zeros would hide mistakes."""
    fusion = built(name, dims)
    with torch.no_grad():
        for parameter in fusion.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return fusion


def concat_reference(x: Mapping[str, np.ndarray], w: Weights) -> np.ndarray:
    return np.hstack(list(x.values()))


def add_reference(x: Mapping[str, np.ndarray], w: Weights) -> np.ndarray:
    longest = max(part.shape[1] for part in x.values())
    total = np.zeros((7, longest))
    for name, part in x.items():
        total += part if part.shape[1] == longest else part @ w[f"projections.{name}.weight"].T
    return total


def matrix_reference(x: Mapping[str, np.ndarray], w: Weights) -> np.ndarray:
    """Compute each fused number as bilinear forms: x M_i + sum over pairs of s^T (sum_r P_ir u_r v_r^T) a."""
    names = list(x)
    m = block_diag(*(w[f"influence.{name}"] for name in names))
    fused = np.hstack(list(x.values())) @ m.T
    pairs = [(one, other) for i, one in enumerate(names) for other in names[i + 1 :]]
    assert w["spread"].shape == (len(m), 64 * len(pairs))
    for number, (one, other) in enumerate(pairs):
        spread = w["spread"][:, 64 * number : 64 * (number + 1)]
        forms = np.einsum("ir,rs,ra->isa", spread, w[f"factors.{one}.weight"], w[f"factors.{other}.weight"])
        fused += np.einsum("bs,isa,ba->bi", x[one], forms, x[other])
    return fused


def gate_reference(x: Mapping[str, np.ndarray], w: Weights) -> np.ndarray:
    rows = []
    for parts in zip(*x.values(), strict=True):
        scores = np.exp(w["gate.weight"] @ np.concatenate(parts) + w["gate.bias"])
        experts = [
            np.maximum(w[f"layers.{name}.weight"] @ part + w[f"layers.{name}.bias"], 0)
            for name, part in zip(x, parts, strict=True)
        ]
        rows.append(sum(score * expert for score, expert in zip(scores, experts, strict=True)) / scores.sum())
    return np.array(rows)


def attention_reference(x: Mapping[str, np.ndarray], w: Weights) -> np.ndarray:
    """Compute one clip, one attention head and one token at a time."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + np.array([erf(value / 2**0.5) for value in x]))

    rows = []
    for parts in zip(*x.values(), strict=True):
        tokens = [linear(part, f"tokens.{name}") for name, part in zip(x, parts, strict=True)]
        width = len(tokens[0])
        size = width // 4
        normed = [norm(token, "attention_norm") for token in tokens]
        queries, keys, values = ([linear(x, name) for x in normed] for name in ("queries", "keys", "values"))
        after = []
        for position, token in enumerate(tokens):
            seen = np.zeros(width)
            for start in range(0, width, size):
                part = slice(start, start + size)
                scores = np.exp([queries[position][part] @ key[part] / size**0.5 for key in keys])
                seen[part] = scores @ [value[part] for value in values] / scores.sum()
            token = token + linear(seen, "attention_output")
            token = token + linear(gelu(linear(norm(token, "mlp_norm"), "mlp_hidden")), "mlp_output")
            after.append(norm(token, "final_norm"))
        rows.append(np.concatenate(after))
    return np.array(rows)


REFERENCES: dict[str, Reference] = {
    "concat": concat_reference,
    "add": add_reference,
    "matrix": matrix_reference,
    "gate": gate_reference,
    "attention": attention_reference,
}


@pytest.mark.parametrize("dims", [UNEQUAL, SWAPPED, EQUAL, WIDE, THREE, FOUR], ids=str)
@pytest.mark.parametrize("name", FUSIONS)
def test_fusion_equals_its_formula_in_numpy(name: str, dims: dict[str, int]) -> None:
    fusion, x = moved(name, dims), features(dims)
    weights = {key: value.double().numpy() for key, value in fusion.state_dict().items()}
    expected = REFERENCES[name]({name: part.double().numpy() for name, part in x.items()}, weights)
    ours = fusion(x).detach()
    assert ours.shape == (7, fusion.output_dim) and ours.dtype == torch.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dims", [UNEQUAL, FOUR], ids=str)
@pytest.mark.parametrize("name", FUSIONS)
def test_the_order_of_the_given_streams_does_not_matter(name: str, dims: dict[str, int]) -> None:
    one, other = built(name, dims), built(name, dict(reversed(dims.items())))
    x = features(dims)
    assert torch.equal(one(x), other(dict(reversed(x.items()))))


@pytest.mark.parametrize("name", FUSIONS)
def test_initial_parameters_are_a_function_of_the_generator_alone(name: str) -> None:
    torch.manual_seed(1)
    one = built(name, UNEQUAL, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = built(name, UNEQUAL, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "a fusion draws from the global generator"
    first = {key: value.clone() for key, value in one.state_dict().items()}
    for key, value in two.state_dict().items():
        assert torch.isfinite(value).all() and torch.equal(value, first[key])
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.fill_(float("nan"))
    one.reset_parameters(torch.Generator().manual_seed(5))
    for key, value in one.state_dict().items():
        assert torch.equal(value, first[key]), f"{key} isn't reset"


@pytest.mark.parametrize("name", ["add", "matrix", "gate", "attention"])
def test_drawn_weights_are_uniform_within_pytorchs_bound(name: str) -> None:
    layers = [m for m in built(name, {"timesformer": 300, "ast": 200}).modules() if isinstance(m, torch.nn.Linear)]
    assert layers
    for layer in layers:
        bound = layer.in_features**-0.5
        assert layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        if layer.bias is not None:
            assert 0 < layer.bias.abs().max().item() <= bound


@pytest.mark.parametrize("dims", [UNEQUAL, EQUAL, THREE], ids=str)
@pytest.mark.parametrize("name", JOINING)
def test_gradients_reach_every_parameter(name: str, dims: dict[str, int]) -> None:
    fusion, x = moved(name, dims), features(dims)
    weights = torch.randn(7, fusion.output_dim, generator=torch.Generator().manual_seed(1))
    loss = (fusion(x) * weights).sum()
    if loss.requires_grad:
        loss.backward()
    assert (name, dims) == ("add", EQUAL) or list(fusion.parameters())
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-4, key


@pytest.mark.parametrize("absent", [("timesformer",), ("ast",), ("timesformer", "ast"), ("timesformer", "dino-s")])
@pytest.mark.parametrize("name", FUSIONS)
def test_absent_streams_give_finite_numbers_and_gradients(name: str, absent: tuple[str, ...]) -> None:
    dims = THREE if "dino-s" in absent else UNEQUAL
    fusion, x = moved(name, dims), features(dims)
    for stream in absent:
        x[stream].zero_()
    fused = fusion(x)
    assert torch.isfinite(fused).all()
    if fused.requires_grad:
        fused.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in fusion.parameters() if p.grad is not None)


def test_an_absent_stream_adds_nothing_to_sums_and_matrices() -> None:
    x = features(EQUAL)
    silent = {**x, "ast": torch.zeros(7, 5)}
    torch.testing.assert_close(built("add", EQUAL)(silent), x["timesformer"])
    matrix = moved("matrix", EQUAL)
    expected = x["timesformer"] @ matrix.state_dict()["influence.timesformer"].T
    torch.testing.assert_close(matrix(silent), torch.cat([expected, torch.zeros(7, 5)], dim=1))
    two, three = moved("add", EQUAL), moved("add", {**EQUAL, "clap": 5})
    torch.testing.assert_close(three({**x, "clap": torch.zeros(7, 5)}), two(x))


@pytest.mark.parametrize("dims", [UNEQUAL, EQUAL, THREE], ids=str)
def test_matrix_starts_as_concat_and_leaves_it_at_the_first_step(dims: dict[str, int]) -> None:
    matrix, x = built("matrix", dims), features(dims)
    expected = build_fusion("concat", dims)(x)
    assert torch.equal(matrix(x), expected)
    optimizer = torch.optim.SGD(matrix.parameters(), lr=0.1)
    for _ in range(2):  # P leaves zero at the first step, U and V move from the second on
        before = {key: value.clone() for key, value in matrix.state_dict().items()}
        optimizer.zero_grad()
        matrix(x).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(value, before[key]) for key, value in matrix.state_dict().items())


def test_gate_weighs_the_outputs_of_its_experts() -> None:
    fusion, x = moved("gate", UNEQUAL), features(UNEQUAL)
    assert isinstance(fusion, Gate)
    experts, weights = fusion.experts(x), fusion.weights(x)
    assert list(experts) == ["timesformer", "ast"]
    assert all(output.shape == (7, fusion.output_dim) and output.min() >= 0 for output in experts.values())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(7))
    assert weights.std(dim=0).min() > 0.01, "the gate ignores its input"
    torch.testing.assert_close(fusion(x), weights[:, :1] * experts["timesformer"] + weights[:, 1:] * experts["ast"])
    lone = Gate.experts(fusion, {**x, "ast": torch.zeros(7, 4)})
    assert torch.equal(lone["timesformer"], experts["timesformer"]), "an expert reads only its own stream"


def test_each_attention_token_sees_the_other() -> None:
    fusion, x = moved("attention", FOUR), features(FOUR)
    width = fusion.output_dim // 4
    changed = fusion({**x, "ast": x["ast"] + 1}) - fusion(x)
    assert all(part.abs().max() > 1e-3 for part in changed.split(width, dim=1))


@pytest.mark.parametrize(
    ("dims", "width"), [((6, 4), 8), ((4, 3), 4), ((1, 1), 4), ((257, 3), 256), ((768, 768), 256), ((192, 768), 256)]
)
def test_attention_tokens_divide_among_the_heads_for_any_dims(dims: tuple[int, int], width: int) -> None:
    fusion = built("attention", {"timesformer": dims[0], "ast": dims[1]})
    assert fusion.output_dim == 2 * width
    assert fusion(features({"timesformer": dims[0], "ast": dims[1]})).shape == (7, 2 * width)


@pytest.mark.parametrize(
    ("name", "count", "output_dim"),
    [
        ("concat", 0, 1536),
        ("add", 0, 768),
        ("matrix", 1_376_256, 1536),  # 2 * 768^2 + 2 * 64 * 768 + 1536 * 64
        ("gate", 1_184_258, 768),  # 2 * (768 + 1) * 768 + (1536 + 1) * 2
        ("attention", 1_183_744, 512),  # 2 * (768 + 1) * 256 + 12 * 256^2 + (2 + 1 + 4 + 1) * 256 + 3 * 2 * 256
    ],
)
def test_parameter_counts_equal_those_of_the_docstrings(name: str, count: int, output_dim: int) -> None:
    fusion = build_fusion(name, {"timesformer": 768, "ast": 768})
    assert (sum(p.numel() for p in fusion.parameters()), fusion.output_dim) == (count, output_dim)
    assert not count or f"{count:,} parameters" in str(LAYERS[name].__doc__)


def test_add_projects_only_the_shorter_vector() -> None:
    shapes = {key: tuple(value.shape) for key, value in built("add", SWAPPED).state_dict().items()}
    assert shapes == {"projections.timesformer.weight": (7, 4)}


@pytest.mark.parametrize("name", JOINING)
def test_a_fusion_that_joins_streams_refuses_one(name: str) -> None:
    message = f"fusion '{name}' joins streams, but the head reads only ast: use concat"
    with pytest.raises(ExperimentError, match=message):
        check_fusion(name, ("ast",))
    with pytest.raises(ExperimentError, match=message):
        build_fusion(name, {"ast": 4})


def test_concat_passes_one_stream_unchanged() -> None:
    x = features(LONE)
    check_fusion("concat", tuple(LONE))
    assert torch.equal(build_fusion("concat", LONE)(x), x["clap"])


def test_an_unknown_fusion_is_an_error_that_names_the_choices() -> None:
    message = r"unknown fusion 'gates' \(did you mean 'gate'\?\): choose from concat, add, matrix, gate, attention"
    with pytest.raises(ExperimentError, match=message):
        check_fusion("gates", ("timesformer", "ast"))
    with pytest.raises(ExperimentError, match=message):
        build_fusion("gates", UNEQUAL)
