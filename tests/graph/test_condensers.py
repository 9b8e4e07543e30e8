"""Tests of router biases and condensers in ONNX Runtime, in every family that can have them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from moe_export.families import spec_of
from moe_export.families.extensions import cannot_bias
from moe_export.graph.predict import predicted_bytes
from moe_export.planning.shares import uniform_shares
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import CONFIG, tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.helpers.decoding import Decoder, exported

IDS = np.random.default_rng(6).integers(0, 256, (2, 12))
OWN = [row for row in ROWS if cannot_bias(spec_of(row.config).family, in_weights=True) is None]
LIMIT = 1e-4


def keys(row: FamilyRow, **changes: Any) -> dict[str, Any]:
    """Config keys of a tiny model with a router bias."""
    return {"model_type": f"moe_export_{row.model_type}", "router_bias": True} | changes


def logits_of(directory: Path) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = load_torch_model(directory, torch.float32)(
            torch.from_numpy(IDS)
        ).logits.numpy()
    return logits


@pytest.mark.parametrize("row", OWN, ids=lambda row: row.model_type)
def test_condensers_of_every_family_equal_torch(row: FamilyRow, tmp_path: Path) -> None:
    layers = 3 - len(row.dense_layers)
    added = keys(row, condenser_experts=[[1, 4]] * layers)
    source = tiny_checkpoint(tmp_path / "added", base=row.config | added)
    expected = logits_of(source)
    decoder = Decoder(exported(source, tmp_path / "onnx"))
    np.testing.assert_allclose(decoder.start(IDS), expected, rtol=0, atol=LIMIT)
    bias = tiny_checkpoint(tmp_path / "bias", base=row.config | keys(row))
    assert np.abs(logits_of(bias) - expected).max() > 100 * LIMIT


@pytest.mark.parametrize("in_weights", [True, False])
@pytest.mark.parametrize("native", [False, True])
def test_kept_budget_and_a_bias_for_the_choice_alone(
    in_weights: bool, native: bool, tmp_path: Path
) -> None:
    changes = {"condenser_budget": "kept", "router_bias_in_weights": in_weights}
    row = next(row for row in OWN if row.model_type == "qwen3_moe")  # normalizes the weights
    added = keys(row, condenser_experts=[[2]] * 3, **changes)
    source = tiny_checkpoint(tmp_path / "kept", base=row.config | added)
    folder = exported(source, tmp_path / "onnx", layout="packed" if native else "portable")
    decoder = Decoder(folder, native=native)
    np.testing.assert_allclose(decoder.start(IDS), logits_of(source), rtol=0, atol=LIMIT)


def test_the_graph_has_one_bias_and_one_softmax_per_layer(tmp_path: Path) -> None:
    added = {
        "model_type": "moe_export_qwen2_moe",
        "router_bias": True,
        "condenser_experts": [[1, 4]] * 3,
    }
    source = tiny_checkpoint(tmp_path / "source", base=CONFIG | added)
    plain = tiny_checkpoint(tmp_path / "plain")
    counts = [
        Counter(
            node.op_type
            for node in onnx.load(
                exported(each, tmp_path / f"onnx-{each.name}") / "model.onnx",
                load_external_data=False,
            ).graph.node
        )
        for each in (source, plain)
    ]
    assert counts[0]["Softmax"] == counts[1]["Softmax"]
    assert counts[0]["Add"] == counts[1]["Add"] + 3
    model = onnx.load(tmp_path / "onnx-source" / "model.onnx", load_external_data=False)
    names = [i.name for i in model.graph.initializer if i.name.endswith("gate.bias")]
    assert len(names) == 3


def test_condensers_are_read_by_every_token(tmp_path: Path) -> None:
    plain = spec_of(CONFIG)
    ours = CONFIG | {"model_type": "moe_export_qwen2_moe", "router_bias": True}
    added, kept = (
        spec_of(ours | {"condenser_experts": [[1]] * 3, "condenser_budget": budget})
        for budget in ("added", "kept")
    )
    read = {}
    for name, spec in {"plain": plain, "added": added, "kept": kept}.items():
        read[name] = predicted_bytes(spec, "float32").active_bytes(spec, uniform_shares(spec))
    biases = 3 * 6 * 4
    expert = 3 * 24 * 64 * 4
    assert read["added"] - read["plain"] == pytest.approx(3 * expert + biases, abs=2)
    assert read["kept"] - read["plain"] == pytest.approx(biases, abs=2)
