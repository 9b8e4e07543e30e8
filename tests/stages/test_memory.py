"""Tests that streaming stages hold a few tensors in memory, not a layer or the model."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_export.artifacts.importance import Importance
from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.recipe import PruneSettings, QuantizeSettings
from moe_export.stages import prune, quantize
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.artifacts import PLAN, plan_with

SIZES = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 16}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("memory") / "model", dtype="float16", **SIZES)


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak bytes that Python and numpy allocate during the work."""
    work()  # once before, so that imports and caches are not counted
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def layer_bytes(spec: ModelSpec) -> int:
    return 2 * sum(tensor.elements for tensor in spec.tensors.values() if tensor.layer == 0)


def largest_bytes(spec: ModelSpec) -> int:
    return 2 * max(tensor.elements for tensor in spec.tensors.values())


def test_prune_holds_a_few_tensors(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "AHEAD_BYTES", 1)
    spec = spec_of(Checkpoint(source).config)
    rows = [table.rows for table in Axis(spec).tables]
    scores = [np.arange(count, dtype=np.float64) for count in rows]
    tokens = [np.ones(spec.num_experts, np.int64)] * spec.num_layers
    folders = {name: tmp_path / name for name in ("plan", "importance")}
    for folder in (*folders.values(), tmp_path / "prune"):
        folder.mkdir()
    Importance({"fisher_margin": scores}, tokens).save(folders["importance"])
    widths = (128,) * spec.num_experts
    pruned_bytes = sum(
        2 * tensor.elements // (2 if tensor.expert is not None else 1)
        for tensor in spec.tensors.values()
    )
    layer = PLAN.layers[0].model_copy(update={"widths": widths, "shared_width": None})
    plan_with(
        shared_expert=None,
        layers=(layer,) * spec.num_layers,
        checkpoint_tensor_bytes=pruned_bytes,
    ).save(folders["plan"])
    job = Job(PruneSettings(refit=False), source, folders, tmp_path / "prune")
    found = peak_bytes(lambda: prune.run(job))
    # Tensor that is read, its kept part, tensor that is written; then headers and the ledger.
    assert found < 4 * largest_bytes(spec) + (1 << 20)
    assert found < layer_bytes(spec)


def test_quantize_holds_a_few_tensors(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "AHEAD_BYTES", 1)
    spec = spec_of(Checkpoint(source).config)
    job = Job(QuantizeSettings(), source, {"prune": source}, tmp_path)
    found = peak_bytes(lambda: quantize.run(job))
    # Tensor that is read, its codes in a byte each and packed; then headers and the ledger.
    assert found < 3 * largest_bytes(spec) + (1 << 20)
    assert found < layer_bytes(spec)


def test_export_holds_a_few_tensors(source: Path, tmp_path: Path) -> None:
    spec = spec_of(Checkpoint(source).config)
    names = iter("ab")
    found = peak_bytes(lambda: export_model(source, tmp_path / next(names), "float16"))
    assert found < 6 * largest_bytes(spec) + (2 << 20)
    assert found < layer_bytes(spec)
