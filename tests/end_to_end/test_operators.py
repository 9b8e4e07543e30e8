"""Tests of exported files, run by the native library and as standard operators."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import moe_export
from moe_export.errors import DependencyError
from moe_export.op import library
from moe_export.op.spec import Dtype
from moe_export.ort.session import OrtModel
from moe_export.quantization import words_for
from moe_export.recipe import QuantizeSettings
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.stages.quantize import run as quantize
from moe_export.testing.c_library import available_kernels
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint

WIDTHS = [[0, 1, 24, 7, 16, 3], [24, 24, 0, 0, 5, 9], [8, 8, 8, 8, 8, 8]]
SEQUENCES = [list(range(40)), [7, 7, 7], [200]]

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11}


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_the_library_runs_every_dtype_that_the_exporter_writes(
    tmp_path: Path, dtype: Dtype
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    directory = tmp_path / "onnx"
    export_model(pruned_checkpoint(source, tmp_path / "pruned", WIDTHS), directory, dtype)
    native = OrtModel(directory, operator="native").logits(SEQUENCES)
    portable = OrtModel(directory, operator="portable").logits(SEQUENCES)
    for ours, theirs in zip(native, portable, strict=True):
        # Three layers of sums of about 100 products each, with logits of that size.
        limit = 100 * UNIT_ROUNDOFF[dtype] * np.abs(theirs).max()
        assert np.abs(ours - theirs).max() <= limit
    assert any(not np.array_equal(a, b) for a, b in zip(native, portable, strict=True)), (
        "bit-equal logits mean that the same kernels ran twice"
    )


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize("experts", words_for("experts")[1:])
def test_the_library_runs_every_format_that_the_exporter_writes(
    tmp_path: Path, experts: str, dtype: Dtype
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    pruned = pruned_checkpoint(source, tmp_path / "pruned", WIDTHS)
    quantized, directory = tmp_path / "quantized", tmp_path / "onnx"
    quantized.mkdir()
    settings = QuantizeSettings(experts=experts, dense="float")
    quantize(Job(settings=settings, model=pruned, folders={"prune": pruned}, out=quantized))
    export_model(quantized, directory, dtype)
    native = OrtModel(directory, operator="native").logits(SEQUENCES)
    portable = OrtModel(directory, operator="portable").logits(SEQUENCES)
    for ours, theirs in zip(native, portable, strict=True):
        # Experts are a part of what a layer adds, and activations rounded to int8 cost 1 to 2 % of
        # it in either; with nf4 and bfloat16 nothing is rounded but by the dtype.
        exact = experts in ("nf4", "bfloat16")
        share = 100 * UNIT_ROUNDOFF[dtype] if exact else 0.02
        assert np.abs(ours - theirs).max() <= share * np.abs(theirs).max()
    assert any(not np.array_equal(a, b) for a, b in zip(native, portable, strict=True))


def test_the_package_tells_where_its_library_is() -> None:
    assert moe_export.library_path().name == library.LIBRARY_NAME
    assert library.describe().kernel == available_kernels(moe_export.library_path())[0]


def test_an_absent_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY_NAME", "libabsent.so")
    with pytest.raises(DependencyError, match=r"libabsent\.so is not installed"):
        library.library_path()
