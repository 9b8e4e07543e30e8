"""Tests of the gradients of `method: dense_mixer`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.tuning.dense_mixer import mixed_densely


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> RaggedMoEBlock:
    source = tiny_checkpoint(tmp_path_factory.mktemp("dense") / "model", num_hidden_layers=1)
    model = load_torch_model(source, torch.float32)
    found = next(module for module in model.modules() if isinstance(module, RaggedMoEBlock))
    return found.double().requires_grad_(True)


@pytest.fixture(scope="module")
def x_TD() -> Tensor:
    return torch.randn(9, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradients(block: RaggedMoEBlock, output_TD: Tensor, slope_TD: Tensor) -> dict[str, Tensor]:
    block.zero_grad()
    (output_TD * slope_TD).sum().backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in block.named_parameters()
    }


def test_the_output_is_that_of_the_model_bit_for_bit(block: RaggedMoEBlock, x_TD: Tensor) -> None:
    expected = block(x_TD)
    with mixed_densely(block):
        assert torch.equal(block(x_TD), expected)
    assert "_routed_output" not in block.__dict__


def test_experts_learn_as_without_and_the_router_from_all_experts(
    block: RaggedMoEBlock,
    x_TD: Tensor,
) -> None:
    slope_TD = torch.randn_like(x_TD)
    plain = gradients(block, block(x_TD), slope_TD)
    with mixed_densely(block):
        mixed = gradients(block, block(x_TD), slope_TD)
    for name in plain:
        if name != "gate.weight":
            torch.testing.assert_close(mixed[name], plain[name], rtol=1e-9, atol=1e-12)

    def dense(router_ED: Tensor) -> float:
        share_TE = torch.softmax(x_TD @ router_ED.T, -1)
        said = [expert.forward(x_TD, lambda _, value: value) for expert in block.routed]
        with torch.no_grad():
            return float((torch.einsum("te,etd->td", share_TE, torch.stack(said)) * slope_TD).sum())

    router_ED = block.router.weight.detach()
    for expert, column in ((0, 5), (3, 17), (5, 63)):
        step = torch.zeros_like(router_ED)
        step[expert, column] = 1e-5
        slope = (dense(router_ED + step) - dense(router_ED - step)) / 2e-5
        assert mixed["gate.weight"][expert, column].item() == pytest.approx(slope, rel=1e-6)
        assert plain["gate.weight"][expert, column].item() != pytest.approx(slope, rel=1e-3)
