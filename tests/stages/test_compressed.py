"""Compressed experts from importance to export: their vectors follow the rows that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.ledger import Ledger
from moe_export.artifacts.plan import Plan
from moe_export.checkpoint import Checkpoint, overwrite
from moe_export.errors import RecipeError
from moe_export.evaluation.masking import masked
from moe_export.experts import kept_rows
from moe_export.families import open_checkpoint
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.fitting import gptq_layers
from moe_export.fitting.block_data import BlockData
from moe_export.fitting.compact import compact_block
from moe_export.fitting.refit import refit_down
from moe_export.recipe import ImportanceSettings, PlanSettings, PruneSettings, QuantizeSettings
from moe_export.stages import importance, plan, prune, quantize
from moe_export.stages.job import Job
from moe_export.testing.tiny import CONFIG, tiny_checkpoint
from moe_export.torch_model import LayeredModel, load_torch_model
from tests.helpers.decoding import Decoder, exported
from tests.helpers.torch_models import some_tokens

LIMIT = 1e-4
DEAD = 5
"""Hidden unit whose factor is zero in the vectors of every expert."""

OURS = CONFIG | {"model_type": "moe_export_qwen2_moe", "num_experts_per_tok": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("compressed")
    found = {name: root / name for name in ("model", "calibrate", "importance")}
    tiny_checkpoint(found["model"], base=OURS, compressed_experts=2, compressed_form="tied")
    checkpoint, spec = open_checkpoint(found["model"])
    tables = {name: checkpoint.read(name) for name in roles(spec, "compressed_hidden")}
    for table_EW in tables.values():
        table_EW[:, DEAD] = 0
    overwrite(found["model"], tables)
    found["calibrate"].mkdir()
    tokens = np.random.default_rng(3).integers(0, 256, 32 * 32).astype(np.int32)
    zeros = np.zeros(32, np.int32)
    Calibration(tokens, np.arange(33, dtype=np.int64) * 32, zeros, zeros).save(found["calibrate"])
    return scored(found)


def roles(spec: ModelSpec, role: str) -> list[str]:
    return [name for name, tensor in spec.tensors.items() if tensor.role == role]


def scored(found: dict[str, Path]) -> dict[str, Path]:
    found["importance"].mkdir()
    settings = ImportanceSettings(scores=("fisher_margin",), batch_tokens=256)
    importance.run(Job(settings, found["model"], found, found["importance"]))
    return found


def pruned(folders: dict[str, Path], root: Path, keep: float = 0.5, **settings: Any) -> Path:
    for name in ("plan", "prune"):
        (root / name).mkdir(parents=True)
    rule = PlanSettings(dtype="float32", keep=keep, score="fisher_margin")
    plan.run(Job(rule, folders["model"], folders, root / "plan"))
    made = PruneSettings(**{"refit": False, "distill_blocks": False} | settings)
    prune.run(Job(made, folders["model"], folders | {"plan": root / "plan"}, root / "prune"))
    return root / "prune"


def kept_of(folders: dict[str, Path], root: Path) -> list[list[NDArray[np.int64]]]:
    _, spec = open_checkpoint(folders["model"])
    of_plan, scores = Plan.load(root / "plan"), Importance.load(folders["importance"]).scores
    axis = Axis(spec)
    return [
        kept_rows(scores[of_plan.score][layer], axis.tables[layer], widths)
        for layer, widths in enumerate(of_plan.axis_widths_after)
    ]


def logits_of(model: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(some_tokens(2, 20)).logits.numpy()
    return logits


def float32(folder: Path) -> Any:
    return load_torch_model(folder, torch.float32)


def test_a_hidden_unit_that_the_vectors_switch_off_has_no_importance(
    folders: dict[str, Path],
) -> None:
    scores = Importance.load(folders["importance"]).scores["fisher_margin"]
    for score_R in scores:
        score_EW = score_R.reshape(6, 24)
        reached = score_EW.max(axis=1) > 0
        assert reached.sum() > 2
        # The vectors' mean is zero up to a rounding of float32.
        assert score_EW[:, DEAD].max() < 1e-9 * score_EW.max()
        assert (np.delete(score_EW[reached], DEAD, axis=1) > 0).all()


def test_removed_rows_equal_masked_ones_also_when_pruned_twice(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    first = pruned(folders, tmp_path / "once")
    kept = kept_of(folders, tmp_path / "once")
    checkpoint, spec = open_checkpoint(first)
    for layer, name in enumerate(roles(spec, "compressed_units")):
        units = checkpoint.read(name)
        assert units.dtype == np.float32
        np.testing.assert_array_equal(units, np.concatenate(kept[layer]))
    # Some expert keeps other rows than its first ones, so that their positions matter.
    assert any((rows != np.arange(len(rows))).any() for layer in kept for rows in layer)
    ledger = Ledger.load(first)
    assert ledger.tensors["model.layers.0.mlp.compressed.hidden"].action == "kept"
    again = folders | {"model": first, "importance": tmp_path / "importance"}
    second = pruned(scored(again), tmp_path / "twice")
    for source, found, root in ((folders, first, "once"), (again, second, "twice")):
        model = float32(source["model"])
        with torch.no_grad(), masked(model, kept_of(source, tmp_path / root)):
            expected = logits_of(model)
        np.testing.assert_allclose(logits_of(float32(found)), expected, rtol=0, atol=LIMIT)
    decoder = Decoder(exported(second, tmp_path / "onnx"), native=True)
    actual = decoder.start(some_tokens(2, 20).numpy())
    np.testing.assert_allclose(actual, logits_of(float32(second)), rtol=0, atol=LIMIT)


@pytest.mark.parametrize("form", ["tied", "three"])
def test_refitted_weights_are_the_minimum_of_the_block_that_scales(
    form: str, tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, base=OURS, compressed_experts=2, compressed_form=form)
    _, spec = open_checkpoint(tmp_path)
    whole = LayeredModel(float32(tmp_path)).block(0)
    assert whole is not None
    random = np.random.default_rng(8)
    kept = {(0, e): np.sort(random.permutation(24)[:12]) for e in range(6)}
    x_TD = torch.randn(400, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted_TD = whole(x_TD)
    small = replace(spec, widths=((12,) * 6, *spec.widths[1:]))
    block = compact_block(whole, small, kept)
    downs = [expert.down.weight for expert in block.routed]

    def slopes() -> float:
        for down in downs:
            down.requires_grad_(True)
        loss = (block(x_TD) - wanted_TD).square().mean()
        found = torch.autograd.grad(loss, downs)
        for down in downs:
            down.requires_grad_(False)
        return max(float(slope.abs().max()) for slope in found)

    before = slopes()
    data = BlockData(x_TD, wanted_TD, torch.ones(400))
    refit_down(block, data, frozenset(range(6)), ridge=1e-9)
    assert slopes() < 1e-3 * before


@pytest.mark.parametrize("form", ["tied", "three"])
def test_gptq_sees_the_inputs_that_the_vectors_scale(form: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, base=OURS, compressed_experts=2, compressed_form=form)
    _, spec = open_checkpoint(tmp_path)
    block = LayeredModel(float32(tmp_path)).block(0)
    assert block is not None
    x_TD = torch.randn(40, 64, generator=torch.Generator().manual_seed(4))
    seen: dict[str, Tensor] = {}

    def fit(_model: Any, names: Sequence[str], x_NK: Tensor, _spec: ModelSpec) -> dict[str, Any]:
        seen.update(dict.fromkeys(names, x_NK))
        return {}

    gptq_layers._experts(block, spec, 0, block, {gptq_layers.BLOCK: gathered(x_TD)}, fit)
    with torch.no_grad():
        weight_TK, expert_TK, scales = block.routed_and_scaled(x_TD)
    token_N, place_N = torch.nonzero(expert_TK == 2, as_tuple=True)
    assert len(token_N) > 5
    share_N1 = weight_TK[token_N, place_N][:, None]
    up_TD = scales.input_ND if scales.up_ND is None else scales.up_ND
    for role, scale_TD in (("gate", scales.input_ND), ("up", up_TD)):
        assert scale_TD is not None
        expected = x_TD[token_N] * scale_TD[token_N] * share_N1
        torch.testing.assert_close(seen[spec.name(role, 0, 2)], expected)
    gate, up, _ = block.routed[2]
    rows = {role: seen[spec.name(role, 0, 2)] / share_N1 for role in ("gate", "up")}
    h_NW = torch.nn.functional.silu(gate(rows["gate"])) * up(rows["up"])
    assert scales.hidden_NW is not None
    h_NW = h_NW * scales.hidden_NW[token_N] * share_N1
    torch.testing.assert_close(seen[spec.name("down", 0, 2)], h_NW, rtol=1e-4, atol=1e-5)


def gathered(x_TD: Tensor) -> Any:
    inputs = gptq_layers._MatrixInputs()
    inputs.x.append(x_TD)
    return inputs


def test_a_quantized_pruned_model_equals_torch(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_prune = pruned(folders, tmp_path, keep=0.6)
    out = tmp_path / "quantize"
    out.mkdir()
    settings = QuantizeSettings(experts="int4", method="gptq")
    quantize.run(Job(settings, of_prune, folders | {"prune": of_prune}, out))
    source, spec = open_checkpoint(folders["model"])
    for name in roles(spec, "compressed_hidden"):
        np.testing.assert_array_equal(Checkpoint(out).read(name), source.read(name))
    monkeypatch.setenv("MOE_EXPORT_ACTIVATIONS", "exact")
    decoder = Decoder(exported(out, tmp_path / "onnx"), native=True)
    actual = decoder.start(some_tokens(2, 20).numpy())
    np.testing.assert_allclose(actual, logits_of(float32(out)), rtol=0, atol=LIMIT)


def test_a_padded_twin_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"save_padded is for stock loaders, which would drop"):
        pruned(folders, tmp_path, save_padded=True)
