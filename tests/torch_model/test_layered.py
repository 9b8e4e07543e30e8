"""Tests that a model streamed layer by layer equals the model in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.errors import CheckpointError
from moe_export.families.axis import Axis
from moe_export.scores import SCORES, scores_named
from moe_export.scoring.collect import collect_importance
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import LayeredModel, StreamedModel, load_torch_model
from tests.helpers.torch_models import UNEQUAL, some_tokens
from tests.scores.test_scores import LENGTHS, calibration_of


@pytest.fixture(scope="module", params=["stock", "tied", "pruned"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layered")
    stock = tiny_checkpoint(folder / "stock", tie_word_embeddings=request.param == "tied")
    if request.param != "pruned":
        return stock
    return pruned_checkpoint(stock, folder / "pruned", UNEQUAL)


def logits_of(model: LayeredModel, tokens_BL: torch.Tensor) -> torch.Tensor:
    *_, (hidden_BLD,) = model.states([tokens_BL])
    with model.head() as (norm, head), torch.no_grad():
        return head(norm(hidden_BLD))


def test_the_logits_are_those_of_the_whole_model(directory: Path) -> None:
    tokens_BL = some_tokens(2, 17)
    whole = load_torch_model(directory, torch.float32)
    with torch.no_grad():
        expected = whole(tokens_BL).logits
    assert torch.equal(logits_of(StreamedModel(directory, torch.float32), tokens_BL), expected)
    assert torch.equal(logits_of(LayeredModel(whole), tokens_BL), expected)
    with torch.no_grad():
        assert torch.equal(whole(tokens_BL).logits, expected)


def test_only_what_is_in_use_is_in_memory(directory: Path) -> None:
    model = StreamedModel(directory, torch.float32)

    def held() -> set[str]:
        return {name for name, p in model.model.named_parameters() if not p.is_meta}

    assert held() == set()
    for _ in model.begin([some_tokens(1, 3)]):
        assert held() == {"model.embed_tokens.weight"}
    with model.layer(1):
        names = held()
        assert len(names) > 20
        assert all(name.startswith("model.layers.1.") for name in names)
    with model.head():
        assert held() == {"model.norm.weight", "lm_head.weight"}
    assert held() == set()


def test_importance_of_the_streamed_model_is_that_of_the_whole(
    directory: Path, tmp_path: Path
) -> None:
    streamed = StreamedModel(directory, torch.float32)
    spec = streamed.spec
    models: dict[str, LayeredModel] = {
        "streamed": streamed,
        "whole": LayeredModel(load_torch_model(directory, torch.float32)),
    }
    actual: dict[str, Any] = {}
    calibration = replace(
        calibration_of(LENGTHS),
        source_S=(np.arange(len(LENGTHS)) % 2).astype(np.int32),
        weight_K=np.array([3.0, 1.0]),
    )
    for name, model in models.items():
        (tmp_path / name).mkdir()
        actual[name] = collect_importance(
            model,
            Axis(spec),
            calibration,
            scores_named(SCORES),
            30,
            tmp_path / name,
        )
    for layer, tokens_E in enumerate(actual["whole"].tokens_per_expert):
        np.testing.assert_array_equal(actual["streamed"].tokens_per_expert[layer], tokens_E)
        for name in SCORES:
            np.testing.assert_array_equal(
                actual["streamed"].scores[name][layer], actual["whole"].scores[name][layer], name
            )
    for name, share_K in actual["whole"].source_shares.items():
        np.testing.assert_array_equal(actual["streamed"].source_shares[name], share_K)


def test_a_damaged_tensor_stops_the_stream_and_leaves_nothing_in_memory(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path)
    model = StreamedModel(directory, torch.float32)
    shard = directory / model.checkpoint.tensors["model.layers.2.mlp.gate.weight"].shard
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"), model.layer(2):
        pass
    assert all(parameter.is_meta for parameter in model.model.parameters())
