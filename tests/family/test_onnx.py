"""Tests of the families' exported models in ONNX Runtime against stock transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from moe_export.checkpoint import Checkpoint
from moe_export.families import open_checkpoint, spec_of
from moe_export.graph import build_decoder, predicted_bytes, save_model
from moe_export.quantization import EXPERT_ROLES
from moe_export.recipe import QuantizeSettings
from moe_export.stages import quantize
from moe_export.stages.job import Job
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.family.conftest import Subject, stock_model
from tests.helpers.decoding import Decoder, exported

LIMIT = 1e-4
"""Largest absolute error of float32 logits of up to about 15, as the project promises."""

RELATIVE_LIMIT = 1e-5
"""Largest error against transformers, of the largest logit. It holds for every family and variant;
observed: 0.4e-6 to 2.3e-6."""

IDS = np.random.default_rng(5).integers(0, 256, (2, 12))

PADDED = [
    [[0] * 5 + [1] * 7, [1] * 12],
    [[1] * 9 + [0] * 3, [1] + [0] * 11],
    [[0] * 11 + [1], [1] * 4 + [0] * 8],
    [[0, 1] * 6, [0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0]],
]
"""Masks of two prompts: 1 for a token, 0 for padding."""

VARIANTS = [
    pytest.param(row, variant, id=f"{row.model_type}-{variant}")
    for row in ROWS
    for variant in row.variants
]


def logits_of(model: Any, ids: NDArray[np.int64] = IDS) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(ids)).logits.numpy()
    return logits


@pytest.fixture(scope="session")
def decoder(subject: Subject) -> Decoder:
    return Decoder(exported(subject.source, subject.folder / "onnx"))


def check(decoder: Decoder, expected: NDArray[np.float32], limit: float = LIMIT) -> None:
    """Compares logits of all tokens in one run, and of the last token after the others."""
    np.testing.assert_allclose(decoder.start(IDS), expected, rtol=0, atol=limit)
    np.testing.assert_allclose(decoder.start(IDS[:, :-1]), expected[:, :-1], rtol=0, atol=limit)
    np.testing.assert_allclose(decoder.go_on(IDS[:, -1:]), expected[:, -1:], rtol=0, atol=limit)


def test_logits_equal_torch_with_and_without_a_cache(subject: Subject, decoder: Decoder) -> None:
    expected = logits_of(subject.stock)
    assert np.abs(expected).max() > 1
    check(decoder, expected, RELATIVE_LIMIT * float(np.abs(expected).max()))


@pytest.mark.parametrize(("row", "variant"), VARIANTS)
def test_logits_of_a_variant_equal_torch(
    row: FamilyRow, variant: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=row.config, **variant)
    expected = logits_of(stock_model(source))
    limit = RELATIVE_LIMIT * float(np.abs(expected).max())
    check(Decoder(exported(source, tmp_path / "onnx")), expected, limit)


@pytest.mark.parametrize("mask", PADDED, ids=["left", "right", "mixed", "inside"])
def test_padded_rows_equal_rows_without_padding_in_torch(
    subject: Subject, decoder: Decoder, mask: list[list[int]]
) -> None:
    real = np.array(mask, bool)
    prompts, new = np.where(real, IDS, 258), IDS[:, :1]
    logits = decoder.start(prompts, real.astype(np.int64))
    next_logits = decoder.go_on(new)
    for row, is_real in enumerate(real):
        alone = np.concatenate([prompts[row, is_real], new[row]])[None]
        expected = logits_of(subject.stock, alone)[0]
        limit = RELATIVE_LIMIT * float(np.abs(expected).max())
        np.testing.assert_allclose(logits[row, is_real], expected[:-1], rtol=0, atol=limit)
        np.testing.assert_allclose(next_logits[row], expected[-1:], rtol=0, atol=limit)


def test_greedy_decoding_through_the_cache_equals_torch(subject: Subject, decoder: Decoder) -> None:
    prompt = IDS[:1, :6]
    with torch.no_grad():
        expected = subject.stock.generate(
            torch.from_numpy(prompt),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
            attention_mask=torch.ones(1, 6, dtype=torch.int64),
        )
    assert decoder.greedy(prompt, 16) == expected[0, 6:].tolist()


@pytest.mark.parametrize("native", [False, True])
def test_removed_dimensions_equal_zeroed_ones(
    subject: Subject, tmp_path: Path, native: bool
) -> None:
    pruned = Decoder(exported(subject.pruned, tmp_path / "onnx"), native=native)
    check(pruned, logits_of(stock_model(subject.masked)))


def test_a_model_without_any_dimension_left_still_runs(subject: Subject, tmp_path: Path) -> None:
    from moe_export.testing.tiny import masked_checkpoint, pruned_checkpoint

    nothing = subject.row.widths(0)
    shared = subject.shared_widths and tuple(w and 0 for w in subject.shared_widths)
    masked = masked_checkpoint(subject.source, tmp_path / "masked", nothing, shared)
    pruned = pruned_checkpoint(subject.source, tmp_path / "pruned", nothing, shared)
    check(Decoder(exported(pruned, tmp_path / "onnx")), logits_of(stock_model(masked)))


def test_float16_is_close_to_float32(subject: Subject, tmp_path: Path) -> None:
    wide = Decoder(exported(subject.pruned, tmp_path / "float32")).start(IDS)
    narrow = Decoder(exported(subject.pruned, tmp_path / "float16", "float16"))
    # About 40 tensors are rounded in turn, each by at most 2 ** -11 of its size.
    check(narrow, wide, 40 * 2**-11 * float(np.abs(wide).max()))


def test_quantized_models_are_those_of_torch(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_EXPORT_ACTIVATIONS", "exact")
    out = tmp_path / "quantized"
    out.mkdir()
    settings = QuantizeSettings(experts="int4", dense="float")
    quantize.run(Job(settings, subject.pruned, {"prune": subject.pruned}, out))
    expected = logits_of(load_torch_model(out, torch.float32))
    actual = Decoder(exported(out, tmp_path / "onnx"), native=True)
    check(actual, expected)
    assert np.abs(expected - logits_of(stock_model(subject.masked))).max() > 1e-2


@pytest.mark.parametrize(("experts", "dense"), [("int8", "int8"), ("nf4", "uint8")])
def test_every_dense_matrix_can_be_quantized(
    subject: Subject, tmp_path: Path, experts: Any, dense: Any
) -> None:
    out = tmp_path / "quantized"
    out.mkdir()
    settings = QuantizeSettings(experts=experts, dense=dense)
    quantize.run(Job(settings, subject.pruned, {"prune": subject.pruned}, out))
    spec = spec_of(Checkpoint(out).config)
    for tensor in spec.tensors.values():
        large = len(tensor.shape) == 2 and tensor.tensor_class not in ("embeddings", "router")
        # Matrices with few rows that decide much stay floats.
        few_rows = ("shared_router", "delta_gates", "delta_rate", "delta_decay")
        if large and tensor.role not in few_rows:
            in_format = experts if tensor.role in EXPERT_ROLES else dense
            assert spec.quantization.format_of(tensor.role) == in_format, tensor.role
    directory = exported(out, tmp_path / "onnx")
    expected = logits_of(load_torch_model(out, torch.float32))
    actual = Decoder(directory).start(IDS)
    # MatMulNBits may round activations to int8, an error of about 1.2 % per product.
    assert np.linalg.norm(actual - expected) < 0.2 * np.linalg.norm(expected)
    predicted = predicted_bytes(spec, "float32")
    assert (directory / "model.onnx.data").stat().st_size == predicted.total_bytes


def test_the_exported_model_passes_the_full_checker_and_has_the_predicted_size(
    subject: Subject, tmp_path: Path
) -> None:
    directory = exported(subject.pruned, tmp_path / "onnx", "float16")
    onnx.checker.check_model(directory / "model.onnx", full_check=True)
    spec = spec_of(Checkpoint(subject.pruned).config)
    predicted = predicted_bytes(spec, "float16")
    assert (directory / "model.onnx.data").stat().st_size == predicted.total_bytes
    stored = {spec.tensors[name].tensor_class for name in spec.tensors}
    assert {name for name, count in predicted.by_class.items() if count} >= stored


def test_fused_tensors_export_to_the_same_bytes(tmp_path: Path, subject: Subject) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    assert transformers
    subject.stock.save_pretrained(tmp_path / "fused", save_original_format=False)
    checkpoint, spec = open_checkpoint(tmp_path / "fused")
    assert any(info.part for info in checkpoint.tensors.values())
    (tmp_path / "onnx").mkdir()
    save_model(build_decoder(spec, "float32", checkpoint), tmp_path / "onnx")
    plain = exported(subject.source, tmp_path / "plain")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "onnx" / name).read_bytes() == (plain / name).read_bytes()
