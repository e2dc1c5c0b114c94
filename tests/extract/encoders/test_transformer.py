"""The forward passes are compared with HuggingFace's models, for every shape that these allow."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ASTConfig, ASTModel, TimesformerConfig, TimesformerModel

from alphafuse.extract.encoders.ast import PooledAst
from alphafuse.extract.encoders.timesformer import PooledTimesformer
from alphafuse.extract.encoders.transformer import model_flops, store_products_in

SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "initializer_range": 0.4}


def timesformer(**changes: Any) -> TimesformerModel:
    torch.manual_seed(0)  # the seed also decides the initial weights: tests do not depend on their order
    config = {"hidden_size": 48, "image_size": 32, "patch_size": 8, "num_frames": 4, **SMALL, **changes}
    return randomized(TimesformerModel(TimesformerConfig(**config)))


def ast(**changes: Any) -> ASTModel:
    torch.manual_seed(0)
    config = {"hidden_size": 48, "max_length": 64, "num_mel_bins": 32, "patch_size": 8, **SMALL, **changes}
    return randomized(ASTModel(ASTConfig(frequency_stride=5, time_stride=6, **config)))


def pooled(model: Any) -> torch.nn.Module:
    return (PooledTimesformer if model.config.model_type == "timesformer" else PooledAst)(model)


def randomized(model: Any, spread: float = 0.2) -> Any:
    """Move every weight away from its initial value: zero biases and unit norms would hide mistakes."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    return model.eval()


def pixels(clips: int = 3, frames: int = 4, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(clips, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def banks(clips: int = 3) -> torch.Tensor:
    return torch.randn(clips, 64, 32, generator=torch.Generator().manual_seed(1))


def expected(model: Any, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(inputs)
    return output.last_hidden_state[:, 0] if model.config.model_type == "timesformer" else output.pooler_output


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_type": "joint_space_time"},
        {"num_frames": 1},
        {"qkv_bias": False},
        {"hidden_act": "relu"},
        {"num_hidden_layers": 1},
        {"layer_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_timesformers_cls_token_is_huggingfaces(changes: dict[str, Any]) -> None:
    model = timesformer(**changes)
    inputs = pixels(frames=model.config.num_frames)
    with torch.inference_mode():
        ours = pooled(copy.deepcopy(model)).eval()(inputs)
    torch.testing.assert_close(ours, expected(model, inputs), rtol=0, atol=2e-5)


def test_frames_of_another_size_than_the_models_are_embedded_as_huggingface_does() -> None:
    model = timesformer()
    inputs = pixels(height=64, width=64)
    with torch.inference_mode():
        ours = pooled(copy.deepcopy(model)).eval()(inputs)
    torch.testing.assert_close(ours, expected(model, inputs), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": False}, {"hidden_act": "relu"}, {"num_hidden_layers": 1}, {"layer_norm_eps": 1e-2}],
    ids=str,
)
def test_asts_pooled_output_is_huggingfaces(changes: dict[str, Any]) -> None:
    model = ast(**changes)
    with torch.inference_mode():
        ours = pooled(copy.deepcopy(model)).eval()(banks())
    torch.testing.assert_close(ours, expected(model, banks()), rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["timesformer", "ast"])
def test_full_size_embeddings_are_huggingfaces_within_1e_5(kind: str) -> None:
    if kind == "timesformer":
        model, inputs = TimesformerModel(TimesformerConfig()), pixels(1, 8, 224, 224)
    else:
        model, inputs = ASTModel(ASTConfig()), torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(1))
    randomized(model, spread=0.03)  # with larger weights, models of this size are chaotic
    reference = expected(model, inputs)
    with torch.inference_mode():
        ours = pooled(model).eval()(inputs)
    assert reference.std() > 0.1
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [timesformer, ast])
def test_an_embedding_does_not_depend_on_the_batch(make: Any) -> None:
    model = pooled(make())
    inputs = pixels() if make is timesformer else banks()
    with torch.inference_mode():
        together = model(inputs)
        alone = torch.cat([model(clip[None]) for clip in inputs])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [timesformer, ast])
def test_inputs_are_not_changed(make: Any) -> None:
    model = pooled(make())
    inputs = pixels() if make is timesformer else banks()
    before, weights = inputs.clone(), copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        first = model(inputs)
        torch.testing.assert_close(model(inputs), first, rtol=0, atol=0)
    assert torch.equal(inputs, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [timesformer, ast])
def test_oneDNNs_products_give_the_same(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code path of AMD's CPUs on any CPU."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this PyTorch has no oneDNN")
    model = pooled(make())
    inputs = pixels() if make is timesformer else banks()
    results = []
    for choice in (True, False):
        monkeypatch.setattr("alphafuse.extract.encoders.transformer._onednn_is_faster", lambda choice=choice: choice)
        with torch.inference_mode():
            results.append(model(inputs))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [timesformer, ast])
def test_bf16_products_stay_close_and_norms_stay_in_float32(make: Any) -> None:
    model = pooled(make())
    inputs = pixels() if make is timesformer else banks()
    with torch.inference_mode():
        full = model(inputs)
        store_products_in(model, torch.bfloat16)
        half = model(inputs)
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert torch.cosine_similarity(full, half).min() > 0.99
    dtypes = {name.rpartition(".")[0].rpartition(".")[2]: tensor.dtype for name, tensor in model.state_dict().items()}
    assert dtypes["up"] == torch.bfloat16 and dtypes["norm"] == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("make", [timesformer, ast])
def test_compiled_models_give_the_same(make: Any) -> None:
    model = pooled(make(num_hidden_layers=2))
    inputs = pixels() if make is timesformer else banks()
    with torch.inference_mode():
        plain = model(inputs)
        try:
            compiled = torch.compile(model)(inputs)
        except Exception as error:
            if "compiler" in str(error).lower():
                pytest.skip("no C++ compiler found")
            raise
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [timesformer(), timesformer(attention_type="joint_space_time"), ast(attn_implementation="eager")],
    ids=["divided", "joint", "ast"],
)
def test_model_flops_equal_pytorchs_count_of_huggingfaces_forward_pass(model: Any) -> None:
    if model.config.model_type != "timesformer":
        model.set_attn_implementation("eager")  # PyTorch doesn't count the CPU's fused attention
    inputs = (pixels(1) if model.config.model_type == "timesformer" else banks(1)).clone()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    assert model_flops(model.config) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_shipped_compact_encoders_are_huggingfaces(tmp_path: Path) -> None:
    from alphafuse.extract.encoders.hub import COMPACT_FOLDER

    for kind, name, inputs in (
        (TimesformerModel, "timesformer", pixels(2, 8, 64, 64)),
        (ASTModel, "ast", torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(1))),
    ):
        model = kind.from_pretrained(COMPACT_FOLDER / name).eval()
        with torch.inference_mode():
            ours = pooled(copy.deepcopy(model)).eval()(inputs)
        torch.testing.assert_close(ours, expected(model, inputs), rtol=0, atol=1e-5)
