"""Transforms compared with NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from alphafuse.errors import ExperimentError
from alphafuse.heads.model.head import AlphaTransform
from alphafuse.heads.model.transforms import TRANSFORMS, check_transform

DIM = 6
X = np.array(
    [[-4.0, -0.5, 0.0, 1e-30, 0.25, 9.0], [3.0, -2.0, 1.0, 0.5, -0.1, 0.0], [0.0] * DIM], dtype=np.float32
)  # (3, DIM); its last row is an absent embedding

REFERENCES: list[tuple[str, float | None, Callable[[np.ndarray], np.ndarray]]] = [
    ("none", None, lambda x: x),
    ("sqrt", None, lambda x: np.sqrt(np.where(x > 0, x, 0))),
    ("signed-sqrt", None, lambda x: np.where(x < 0, -1, 1) * np.sqrt(np.abs(x))),
    ("power", 1.0, lambda x: x),
    ("power", 0.3, lambda x: np.where(x < 0, -1, 1) * np.power(np.abs(x), 0.3)),
    ("power", 2.0, lambda x: x * np.abs(x)),
    ("log1p", None, lambda x: np.where(x < 0, -1, 1) * np.log(1 + np.abs(x))),
    ("tanh", None, np.tanh),
    ("tanh", 0.4, lambda x: (np.exp(0.8 * x) - 1) / (np.exp(0.8 * x) + 1)),
    ("l2", None, lambda x: np.stack([row / np.sqrt((row**2).sum()) if row.any() else row for row in x])),
    ("pos-scalar", None, lambda x: 1.5 * x),
    ("neg-scalar", None, lambda x: 0.75 * x),
    ("scale", -0.3, lambda x: -0.3 * x),
    ("learned", None, lambda x: x),
    ("learned", 0.6, lambda x: 0.6 * x),
    ("learned-dim", None, lambda x: x),
    ("learned-dim", 0.6, lambda x: 0.6 * x),
]
ALPHAS = {name: alpha for name, alpha, _ in REFERENCES}  # the last of each


def test_every_transform_has_a_reference() -> None:
    assert set(ALPHAS) == set(TRANSFORMS)


@pytest.mark.parametrize(("name", "alpha", "reference"), REFERENCES)
def test_transform_equals_its_formula_in_numpy(
    name: str, alpha: float | None, reference: Callable[[np.ndarray], np.ndarray]
) -> None:
    ours = AlphaTransform(name, alpha, DIM)(torch.from_numpy(X)).detach()
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, reference(X.astype(np.float64)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_leading_dimensions_do_not_matter(name: str) -> None:
    transform = AlphaTransform(name, ALPHAS[name], DIM)
    heads = torch.from_numpy(X).expand(2, 3, DIM)
    torch.testing.assert_close(transform(heads), transform(torch.from_numpy(X)).expand(2, 3, DIM), rtol=0, atol=0)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_zeros_stay_zeros_so_that_an_absent_embedding_stays_absent(name: str) -> None:
    transform = AlphaTransform(name, ALPHAS[name], DIM)
    y = transform(torch.zeros(2, DIM))
    assert torch.equal(y, torch.zeros(2, DIM))
    for parameter in transform.parameters():
        (gradient,) = torch.autograd.grad(y.sum(), parameter)
        assert torch.equal(gradient, torch.zeros_like(parameter))


def test_signed_sqrt_is_power_one_half() -> None:
    x = torch.from_numpy(X)
    torch.testing.assert_close(AlphaTransform("power", 0.5)(x), AlphaTransform("signed-sqrt")(x))


def test_learned_alpha_per_dimension_multiplies_each_dimension_by_its_own() -> None:
    transform = AlphaTransform("learned-dim", dim=DIM)
    alphas = np.linspace(-1, 2, DIM).astype(np.float32)
    with torch.no_grad():
        transform.alpha.copy_(torch.from_numpy(alphas))
    np.testing.assert_allclose(transform(torch.from_numpy(X)).detach(), X * alphas, rtol=1e-6)


def test_gradient_of_a_learned_alpha_is_the_sum_over_the_multiplied_values() -> None:
    weights = np.random.default_rng(0).normal(size=X.shape)
    products = X.astype(np.float64) * weights
    for name, expected in (("learned", products.sum()), ("learned-dim", products.sum(axis=0))):
        transform = AlphaTransform(name, 0.5, DIM)
        loss = (transform(torch.from_numpy(X)) * torch.from_numpy(weights)).sum()
        (gradient,) = torch.autograd.grad(loss, transform.alpha)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_only_learned_alphas_are_parameters_with_the_given_shape_and_start() -> None:
    shapes = {name: [tuple(p.shape) for p in AlphaTransform(name, ALPHAS[name], DIM).parameters()] for name in ALPHAS}
    assert {name: shape for name, shape in shapes.items() if shape} == {"learned": [()], "learned-dim": [(DIM,)]}
    assert {name for name, transform in TRANSFORMS.items() if transform.learns} == {"learned", "learned-dim"}
    assert AlphaTransform("learned-dim", 0.25, 3).alpha.tolist() == [0.25] * 3
    assert AlphaTransform("learned-dim", dim=3).alpha.tolist() == [1.0] * 3
    assert list(AlphaTransform("learned-dim", dim=3).state_dict()) == ["alpha"]
    assert not AlphaTransform("tanh", 2.0).state_dict()


@pytest.mark.parametrize("name", ["learned", "learned-dim"])
def test_reset_restores_a_learned_alpha(name: str) -> None:
    transform = AlphaTransform(name, 0.25, DIM)
    with torch.no_grad():
        transform.alpha.add_(3)
    transform.reset_parameters()
    assert (transform.alpha == 0.25).all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_standardisation_undoes_exactly_the_transforms_declared_as_scaling(name: str) -> None:
    alpha = {"scale": 0.3}.get(name, ALPHAS[name])
    transform = AlphaTransform(name, alpha, DIM)
    if name == "learned-dim":
        with torch.no_grad():
            transform.alpha.copy_(torch.arange(1.0, DIM + 1))
    x = np.random.default_rng(1).normal(size=(50, DIM))
    y = transform(torch.from_numpy(x)).detach().numpy()
    same = np.allclose((x - x.mean()) / x.std(), (y - y.mean()) / y.std())  # one mean and one deviation for all
    assert same == (TRANSFORMS[name].is_scale or name == "none")


@pytest.mark.parametrize(
    ("name", "alpha", "message"),
    [
        ("sqr", None, r"unknown transform 'sqr' \(did you mean 'sqrt'\?\): choose from none, sqrt, signed-sqrt, power"),
        ("power", None, r"transform 'power' needs an alpha: give one \(--alpha 1.25\)"),
        ("scale", None, "transform 'scale' needs an alpha"),
        ("power", 0.0, "needs an alpha above 0, not 0.0"),
        ("power", -1.0, "needs an alpha above 0, not -1.0"),
        ("power", 1e-50, "needs an alpha above 0, not 1e-50"),
        ("power", float("nan"), "finite number"),
        ("tanh", float("inf"), "finite number"),
        ("learned-dim", 1e39, "finite number that float32 can hold"),
        ("l2", 2.0, "takes no alpha: leave --alpha out, or use one of power, tanh, scale, learned, learned-dim"),
        ("log1p", 2.0, "takes no alpha"),
        ("pos-scalar", 2.0, r"transform 'pos-scalar' \(1.5 x\) takes no alpha"),
    ],
)
def test_a_transform_and_an_alpha_that_do_not_fit_are_a_one_line_error(
    name: str, alpha: float | None, message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        check_transform(name, alpha)
    with pytest.raises(ExperimentError, match=message):
        AlphaTransform(name, alpha)
