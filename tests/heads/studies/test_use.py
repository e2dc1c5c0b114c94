"""The additive part of a head, against the answers to all pairs of clips; `use_of_run` is tested with `contribute`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.heads import head_config

from alphafuse.heads.model.head import AlphaFusion
from alphafuse.heads.scoring.contribution import additive_logits
from alphafuse.heads.studies.use import additive_parts, is_additive


@pytest.mark.parametrize("fusion", ["concat", "add", "gate", "matrix"])
def test_a_heads_additive_logits_are_those_of_all_its_answers(fusion: str) -> None:
    rng = np.random.default_rng(0)
    rows = {"timesformer": rng.normal(size=(9, 4)), "ast": rng.normal(size=(9, 3))}
    features = {name: x.astype(np.float32) for name, x in rows.items()}
    hidden = (6, 5) if fusion != "gate" else ()
    config = head_config({"timesformer": 4, "ast": 3}, "pqr", fusion=fusion, hidden=hidden)
    head = AlphaFusion(config).eval()
    assert not is_additive(head) and is_additive(
        AlphaFusion(replace(config, settings=replace(config.settings, hidden=())))
    ) is (fusion in ("concat", "add"))
    found = additive_logits(*additive_parts(head, features), head.config.streams, 9)
    pairs = np.stack(
        [head.logits_of({"timesformer": features["timesformer"], "ast": features["ast"][[j] * 9]}) for j in range(9)],
        axis=1,
    )  # (sight of clip, sound of clip, C)
    expected = pairs.mean(axis=1) + pairs.mean(axis=0) - pairs.mean(axis=(0, 1))
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)


def test_the_additive_logits_of_an_additive_head_are_its_own() -> None:
    rng = np.random.default_rng(0)
    features = {"timesformer": rng.normal(size=(9, 4)), "ast": rng.normal(size=(9, 3)), "clap": rng.normal(size=(9, 2))}
    rows = {name: x.astype(np.float32) for name, x in features.items()}
    config = head_config({name: x.shape[1] for name, x in rows.items()}, "pqr", transform="sqrt", on="ast", hidden=())
    head = AlphaFusion(config).eval()
    assert is_additive(head)
    found = additive_logits(*additive_parts(head, rows), head.config.streams, 9)
    np.testing.assert_allclose(found.logits, head.logits_of(rows), atol=1e-5)
