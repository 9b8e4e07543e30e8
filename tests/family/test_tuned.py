"""Every method of tuning, from the tune stage to an int4 export, in every family that takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.artifacts.tuning import Tuning
from moe_export.errors import RecipeError
from moe_export.families import open_checkpoint, spec_of
from moe_export.recipe import QuantizeSettings
from moe_export.stages import tune
from moe_export.stages.job import Job
from moe_export.stages.quantize import run as quantize
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import load_torch_model
from moe_export.tuning.methods import check_method
from tests.helpers.decoding import Decoder, exported
from tests.helpers.small_tuning import tune_settings

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen_router": {},
    "esft": {"esft": {"share": 0.5}},
    "dense_mixer": {},
    "condenser": {"condenser": {"count": 1}},
    "compressed_experts": {"compressed": {"auxiliary": 1}},
}
IDS = np.random.default_rng(6).integers(0, 256, (1, 12))


def takes(row: FamilyRow, method: str) -> bool:
    settings = tune_settings(method, **METHODS[method])
    try:
        check_method(spec_of(row.config), settings)
    except RecipeError:
        return False
    return True


def chosen() -> list[tuple[FamilyRow, str]]:
    """Every family with one method, and every method with some family."""
    names = list(METHODS)
    pairs = []
    for number, row in enumerate(ROWS):
        turn = [*names[number % len(names) :], *names[: number % len(names)]]
        pairs.append((row, next(method for method in turn if takes(row, method))))
    return pairs


@pytest.mark.parametrize(
    ("row", "method"), chosen(), ids=[f"{row.model_type}-{method}" for row, method in chosen()]
)
def test_a_tuned_pruned_int4_model_equals_torch(
    row: FamilyRow, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "model", base=row.config)
    tuned, small, out = (tmp_path / name for name in ("tune", "pruned", "quantized"))
    for folder in (tuned, tmp_path / "tune.partial", out):
        folder.mkdir()
    settings = tune_settings(method, steps=2, **METHODS[method])
    tune.run(Job(settings, source, {}, tuned))
    assert Tuning.load(tuned).changed
    _, spec = open_checkpoint(tuned)
    widths = [[w - 5 * (e % 3) for e, w in enumerate(of)] for of in spec.widths]
    pruned_checkpoint(tuned, small, widths)
    quantize(Job(QuantizeSettings(experts="int4"), tuned, {"prune": small}, out))
    with torch.no_grad():
        expected = load_torch_model(out, torch.float32)(torch.from_numpy(IDS)).logits.numpy()
    monkeypatch.setenv("MOE_EXPORT_ACTIVATIONS", "exact")
    actual = Decoder(exported(out, tmp_path / "onnx"), native=True).start(IDS)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_every_method_is_chosen() -> None:
    assert {method for _, method in chosen()} == set(METHODS)
