"""Tests of routers with sigmoids, a bias of the choice, and groups by their two best experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from moe_export.checkpoint import Checkpoint, CheckpointWriter, overwrite
from moe_export.errors import CheckpointError
from moe_export.families import open_checkpoint, spec_of
from moe_export.graph import build_decoder
from moe_export.testing.families import DEEPSEEK_V3
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import StreamedModel, load_torch_model
from moe_export.torch_model.routing import route

SPEC = spec_of(DEEPSEEK_V3.config | {"n_group": 3, "topk_group": 1})
LOGITS_TE = torch.logit(torch.tensor([[0.5, 0.4, 0.8, 0.05, 0.3, 0.3]]))


def test_the_two_best_of_a_group_choose_it_and_weights_are_divided_and_scaled() -> None:
    # Sums of two: 0.9, 0.85, 0.6. The best single expert, 0.8, is in the second group.
    weight_TK, expert_TK = route(LOGITS_TE, SPEC, torch.zeros(6))
    assert expert_TK.tolist() == [[0, 1]]
    expected = [1.7 * 0.5 / 0.9, 1.7 * 0.4 / 0.9]
    np.testing.assert_allclose(weight_TK[0], expected, rtol=1e-6)


def test_the_bias_chooses_and_does_not_weigh() -> None:
    bias_E = torch.tensor([0, 0, 0, 0, 0.4, 0.5])
    weight_TK, expert_TK = route(LOGITS_TE, SPEC, bias_E)
    assert expert_TK.tolist() == [[5, 4]]
    np.testing.assert_allclose(weight_TK[0], [0.85, 0.85], rtol=1e-6)


def test_experts_of_other_groups_are_not_chosen_when_all_sums_are_negative() -> None:
    spec = replace(SPEC, top_k=2)
    _, expert_TK = route(LOGITS_TE, spec, torch.full((6,), -3.0))
    assert sorted(expert_TK[0].tolist()) == [0, 1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source"), base=DEEPSEEK_V3.config)


def test_the_bias_stays_in_float32_in_torch_and_in_the_graph(source: Path) -> None:
    checkpoint, spec = open_checkpoint(source)
    name = spec.name("choice_bias", 1)
    model = load_torch_model(source, torch.bfloat16)
    assert model.state_dict()[name].dtype == torch.float32
    streamed = StreamedModel(source, torch.bfloat16)
    with streamed.layer(1):
        block = streamed.block(1)
        assert block is not None
        assert block.choice_bias is not None
        assert block.choice_bias.dtype == torch.float32
    graph = build_decoder(spec, "float16", checkpoint).graph
    assert graph.initializers[name].dtype.value == onnx.TensorProto.FLOAT


def test_without_the_bias_other_experts_are_chosen(source: Path, tmp_path: Path) -> None:
    base = DEEPSEEK_V3.config
    other = tiny_checkpoint(tmp_path / "other", base=base)
    spec = spec_of(base)
    names = [spec.name("choice_bias", layer) for layer in (1, 2)]
    overwrite(other, {name: np.zeros(6, np.float32) for name in names})
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        first, second = (load_torch_model(m, torch.float32)(tokens).logits for m in (source, other))
    assert float((first - second).abs().max()) > 0.1


def with_layer_ahead(source: Path, directory: Path, layer: int) -> Path:
    """Copy of a checkpoint with one tensor of a layer after the last one."""
    checkpoint = Checkpoint(source)
    directory.mkdir()
    with CheckpointWriter(directory, checkpoint.config, num_shards=1) as writer:
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
        tensors[f"model.layers.{layer}.eh_proj.weight"] = np.zeros((2, 2), np.float32)
        writer.write_shard(tensors)
    return directory


def test_a_layer_that_predicts_ahead_is_dropped_with_the_reason(
    source: Path, tmp_path: Path
) -> None:
    checkpoint, _ = open_checkpoint(with_layer_ahead(source, tmp_path / "ahead", 3))
    (reason,) = checkpoint.dropped.values()
    assert "num_nextn_predict_layers" in reason


def test_a_layer_beyond_those_of_the_config_is_unknown(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.layers\.4\.eh_proj\.weight .* is unknown"):
        open_checkpoint(with_layer_ahead(source, tmp_path / "beyond", 4))
