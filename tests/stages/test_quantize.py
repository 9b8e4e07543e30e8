"""Tests of the quantize stage, and of its models in torch and in ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe_export.artifacts.formats import TensorFormats
from moe_export.artifacts.quantization import QuantizationRecord
from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.errors import CheckpointError, ResourceError
from moe_export.families import check_tensors, spec_of
from moe_export.families.stored import part_names, read_quantized, read_values
from moe_export.formats import GRIDS
from moe_export.graph import predicted_bytes
from moe_export.quantization import Quantization, read_quantization
from moe_export.recipe import QuantizeSettings
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.stages.quantize import run
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.helpers.artifacts import plan_with
from tests.helpers.decoding import Decoder, exported

WIDTHS = ((24, 0, 1, 7, 16, 24),) * 3
IDS = np.random.default_rng(3).integers(0, 256, (2, 12))

INT4 = QuantizeSettings()
EVERYTHING = QuantizeSettings(experts="int8", dense="int4", embedding="int8", method="mse")
ASYMMETRIC = QuantizeSettings(experts="uint4", dense="uint8", lm_head="float", group_size=64)
NF4 = QuantizeSettings(experts="nf4", dense="uint4", lm_head="int8", method="mse", group_size=64)
ALL_SETTINGS = pytest.mark.parametrize("settings", [INT4, EVERYTHING, ASYMMETRIC, NF4])

LIMITS = {8: 0.01, 4: 0.2}
"""Largest error of a matrix relative to its norm, by bits of a code."""


def quantized(pruned: Path, out: Path, settings: QuantizeSettings) -> Path:
    out.mkdir()
    run(Job(settings, pruned, {"prune": pruned}, out))
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def pruned(source: Path) -> Path:
    return pruned_checkpoint(source, source.parent / "pruned", WIDTHS)


def median_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Median over tokens of the logits' relative error.

    Rounding activations to int8 adds an error of about 1.2 % per product
    (docs/reference/operator.md), and about ten products follow each other. The median ignores
    tokens that choose another expert, whose logits differ much and are right.
    """
    lost = np.linalg.norm(actual.astype(np.float64) - expected, axis=-1)
    return float(np.median(lost / np.linalg.norm(expected.astype(np.float64), axis=-1)))


def torch_logits(checkpoint: Path) -> NDArray[np.float32]:
    with torch.no_grad():
        model = load_torch_model(checkpoint, torch.float32)
        logits: NDArray[np.float32] = model(torch.from_numpy(IDS)).logits.numpy()
    return logits


@ALL_SETTINGS
def test_the_record_holds_every_tensor_and_the_error_of_the_quantized(
    pruned: Path, tmp_path: Path, settings: QuantizeSettings
) -> None:
    out = quantized(pruned, tmp_path / "out", settings)
    before, after = Checkpoint(pruned), Checkpoint(out)
    spec = spec_of(after.config)
    check_tensors(after, spec)
    record = QuantizationRecord.load(out)
    assert record.tensors.keys() == before.tensors.keys()
    assert record.counts.kept + record.counts.quantized == len(before.tensors)
    assert record.tensor_bytes == sum(info.size_bytes for info in after.tensors.values())
    for name, entry in record.tensors.items():
        values, found = before.read(name), read_values(after, spec, name)
        lost = float(np.linalg.norm((found - values).astype(np.float64)))
        if entry.action == "kept":
            assert lost == 0.0
            continue
        norm = float(np.linalg.norm(values.astype(np.float64)))
        assert entry.relative_error == pytest.approx(lost / norm if norm else 0.0)
        assert lost <= norm * LIMITS[GRIDS[entry.format].code_bits]
        parts = [after.tensors[part] for part in part_names(spec, name)]
        assert entry.bytes == sum(part.size_bytes for part in parts)
    assert (out / "tokenizer.json").read_bytes() == (pruned / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("experts", "dense"), [("int4", "int4"), ("uint4", "uint4"), ("nf4", "uint4")]
)
def test_searching_scales_loses_less(
    pruned: Path, tmp_path: Path, experts: Any, dense: Any
) -> None:
    errors = {}
    for method in ("rtn", "mse"):
        settings = QuantizeSettings(experts=experts, dense=dense, method=method)
        out = quantized(pruned, tmp_path / method, settings)
        classes = QuantizationRecord.load(out).classes
        errors[method] = {name: sums.relative_error for name, sums in classes.items()}
    assert errors["mse"].keys() == {"experts", "shared_expert", "attention", "embeddings"}
    for name, lost in errors["mse"].items():
        assert lost < errors["rtn"][name], name


@pytest.mark.parametrize("experts", ["int8", "int4"])
def test_exported_without_rounding_of_activations_it_is_the_torch_model(
    pruned: Path, tmp_path: Path, experts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_EXPORT_ACTIVATIONS", "exact")
    checkpoint = quantized(pruned, tmp_path / "out", QuantizeSettings(experts=experts))
    found = Decoder(exported(checkpoint, tmp_path / "onnx"), native=True).start(IDS)
    expected = torch_logits(checkpoint)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - torch_logits(pruned)).max() > 1e-3, "nothing was quantized"


@ALL_SETTINGS
def test_predicted_bytes_are_the_bytes_on_disk(
    pruned: Path, tmp_path: Path, settings: QuantizeSettings
) -> None:
    checkpoint = quantized(pruned, tmp_path / "out", settings)
    directory = exported(checkpoint, tmp_path / "onnx")
    predicted = predicted_bytes(spec_of(Checkpoint(checkpoint).config), "float32")
    assert (directory / "model.onnx.data").stat().st_size == predicted.total_bytes
    assert predicted.by_class["scales"] > 0


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("experts", ["int8", "int4"])
@pytest.mark.parametrize("dense", ["float", "int8", "int4"])
def test_stock_onnx_runtime_and_the_library_run_it(
    pruned: Path, tmp_path: Path, experts: Any, dense: Any, dtype: Any, native: bool
) -> None:
    settings = QuantizeSettings(experts=experts, dense=dense)
    checkpoint = quantized(pruned, tmp_path / "out", settings)
    decoder = Decoder(exported(checkpoint, tmp_path / "onnx", dtype), native=native)
    prompt = decoder.start(IDS[:, :-1])
    found = np.concatenate([prompt, decoder.go_on(IDS[:, -1:])], axis=1)
    expected = torch_logits(checkpoint)
    error = median_error(found, expected)
    assert error <= 0.05
    if native:
        assert error > 1e-4, "activations were not rounded, so the kernels were not used"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("experts", ["uint8", "uint4", "nf4"])
@pytest.mark.parametrize("dense", ["float", "uint8", "uint4"])
def test_stock_onnx_runtime_runs_formats_with_zero_points_and_with_a_codebook(
    pruned: Path, tmp_path: Path, experts: Any, dense: Any, dtype: Any
) -> None:
    settings = QuantizeSettings(experts=experts, dense=dense)
    checkpoint = quantized(pruned, tmp_path / "out", settings)
    decoder = Decoder(exported(checkpoint, tmp_path / "onnx", dtype))
    prompt = decoder.start(IDS[:, :-1])
    found = np.concatenate([prompt, decoder.go_on(IDS[:, -1:])], axis=1)
    # Of both classes in 4 bits a token in two chooses another expert somewhere: seen, 0.05. Without
    # the zero points all would be off by more than their size.
    assert median_error(found, torch_logits(checkpoint)) <= 0.1


def test_the_lm_head_may_have_a_format_of_its_own(pruned: Path, tmp_path: Path) -> None:
    settings = QuantizeSettings(experts="float", dense="float", lm_head="uint8")
    checkpoint = quantized(pruned, tmp_path / "out", settings)
    tensors = QuantizationRecord.load(checkpoint).tensors
    found = {name: e.format for name, e in tensors.items() if e.action == "quantized"}
    assert found == {"lm_head.weight": "uint8"}
    decoder = Decoder(exported(checkpoint, tmp_path / "onnx"))
    # One product by rounded activations, of which 1.2 % is usual.
    assert 1e-4 < median_error(decoder.start(IDS), torch_logits(checkpoint)) <= 0.02


@pytest.mark.parametrize("layout", ["portable", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_experts_may_be_in_bfloat16_whatever_the_rest_is(
    pruned: Path, tmp_path: Path, dtype: Any, layout: Any
) -> None:
    checkpoint = quantized(pruned, tmp_path / "out", QuantizeSettings(experts="bfloat16"))
    after = Checkpoint(checkpoint)
    spec = spec_of(after.config)
    for name, entry in QuantizationRecord.load(checkpoint).tensors.items():
        values, found = Checkpoint(pruned).read(name), after.read(name)
        is_expert = spec.tensors[name].tensor_class in ("experts", "shared_expert")
        is_expert &= spec.tensors[name].role != "shared_router"
        assert entry.action == ("quantized" if is_expert else "kept")
        assert found.dtype == (ml_dtypes.bfloat16 if is_expert else values.dtype)
        # Eight bits of a bfloat16 are of the number.
        wide = values.astype(np.float64)
        assert np.linalg.norm(found.astype(np.float64) - wide) <= 2.0**-8 * np.linalg.norm(wide)
    export_model(checkpoint, tmp_path / "onnx", dtype, layout=layout)
    predicted = predicted_bytes(spec, dtype, layout)
    assert (tmp_path / "onnx" / "model.onnx.data").stat().st_size == predicted.total_bytes
    expected = torch_logits(checkpoint)
    assert np.abs(expected - torch_logits(pruned)).max() > 1e-4, "nothing was rounded"
    for native in [True] if layout == "packed" else [False, True]:
        found = Decoder(tmp_path / "onnx", native=native).start(IDS)
        assert median_error(found, expected) <= (1e-5 if dtype == "float32" else 0.01)


@pytest.mark.parametrize(
    ("experts", "native"),
    [
        (("int4", "float", "int8"), False),
        (("int4", "float", "int8"), True),
        (("nf4", "uint4", "uint8"), False),
        (("bfloat16", "float", "int4"), False),
        (("bfloat16", "float", "int4"), True),
    ],
)
def test_layers_of_different_formats_run_side_by_side(
    pruned: Path, tmp_path: Path, experts: Any, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_EXPORT_ACTIVATIONS", "exact")
    mixed = Quantization(experts=experts, group_size=64)
    plan_with(quantization=TensorFormats.of(mixed)).save(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    settings = QuantizeSettings(experts="auto", group_size=64)
    run(Job(settings, pruned, {"prune": pruned, "plan": tmp_path}, out))
    spec = spec_of(Checkpoint(out).config)
    assert spec.quantization == mixed
    directory = exported(out, tmp_path / "onnx")
    data_bytes = (directory / "model.onnx.data").stat().st_size
    assert data_bytes == predicted_bytes(spec, "float32").total_bytes
    found = Decoder(directory, native=native).start(IDS)
    expected = torch_logits(out)
    # MatMulNBits, of which the function body is made, rounds activations whatever the library does.
    assert median_error(found, expected) <= (1e-5 if native else 0.05)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_int8_embedding_is_looked_up_as_it_is_dequantized(
    pruned: Path, tmp_path: Path, dtype: str
) -> None:
    settings = QuantizeSettings(experts="float", embedding="int8")
    checkpoint = quantized(pruned, tmp_path / "out", settings)
    directory = exported(checkpoint, tmp_path / "onnx", dtype)
    found = Decoder(directory).start(IDS)
    expected = torch_logits(checkpoint)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 if dtype == "float32" else 0.1)
    assert np.abs(expected - torch_logits(pruned)).max() > 1e-3, "nothing was quantized"
    spec = spec_of(Checkpoint(checkpoint).config)
    before = predicted_bytes(spec_of(Checkpoint(pruned).config), dtype)
    after = predicted_bytes(spec, dtype)
    # A byte and a 32nd of a scale for each value in place of a float.
    itemsize = np.dtype(dtype).itemsize
    assert after.embedding_bytes == before.embedding_bytes // itemsize * (1 + itemsize / 32)


def test_a_config_without_the_lm_head_means_that_it_is_as_the_dense_matrices() -> None:
    older = {"experts": "int4", "dense": "uint8", "embedding": "float", "group_size": 32}
    found = read_quantization({"quantization": older}, 2)
    assert found.format_of("lm_head") == "uint8"
    assert found.as_config() == older
    given = read_quantization({"quantization": older | {"lm_head": "float"}}, 2)
    assert given.format_of("lm_head") is None
    assert given.format_of("q", 0) == "uint8"
    assert given.as_config() == older | {"lm_head": "float"}
    assert not Quantization(lm_head="int8").is_float
    assert Quantization(lm_head="float").is_float


def test_a_list_of_formats_has_one_for_each_layer() -> None:
    listed = {
        "quantization": {
            "experts": ["int4"] * 2,
            "dense": "float",
            "embedding": "float",
            "group_size": 32,
        }
    }
    assert read_quantization(listed, 2).experts == ("int4", "int4")
    with pytest.raises(CheckpointError, match="each of 3 layers"):
        read_quantization(listed, 3)


@pytest.mark.parametrize("method", ["rtn", "mse"])
@pytest.mark.parametrize("experts", GRIDS)
def test_quantizing_then_pruning_is_pruning_then_quantizing(
    source: Path, pruned: Path, tmp_path: Path, experts: Any, method: Any
) -> None:
    settings = QuantizeSettings(experts=experts, method=method)
    last = quantized(pruned, tmp_path / "pruned_first", settings)
    # All widths equal: the checkpoint before anything is removed, in per-expert tensors.
    whole = pruned_checkpoint(source, tmp_path / "whole", ((24,) * 6,) * 3)
    first = Checkpoint(quantized(whole, tmp_path / "quantized_first", settings))
    found, spec = Checkpoint(last), spec_of(Checkpoint(last).config)
    first_spec = spec_of(first.config)
    compared = 0
    for name, tensor in spec.tensors.items():
        if tensor.role not in ("gate", "up"):
            continue
        # Groups lie along D, which pruning leaves alone, so each column keeps its groups.
        width = tensor.shape[0]
        cut = read_quantized(first, first_spec, name).columns(slice(width))
        for ours, theirs in zip(read_quantized(found, spec, name).parts, cut.parts, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.tobytes() == theirs.tobytes()
        compared += 1
    assert compared == 36


def test_a_quantized_checkpoint_is_refused_by_transformers_in_a_sentence(
    pruned: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    import moe_export  # noqa: F401 - makes transformers know pruned checkpoints

    out = quantized(pruned, tmp_path / "out", INT4)
    with pytest.raises(CheckpointError, match="transformers cannot load codes"):
        AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"experts": "int3"}, "quantization is"),
        ({"dense": "nf4"}, "quantization is"),
        ({"lm_head": "nf4"}, "quantization is"),
        ({"lm_head": "int8"}, "config.json asks for"),
        ({"experts": "uint4"}, "zero_point is missing"),
        ({"zero": 0}, "quantization is"),
        ({"group_size": 48}, "quantization is"),
        ({"experts": "int8"}, "config.json asks for"),
        ({"group_size": 64}, "config.json asks for"),
    ],
)
def test_a_config_that_does_not_fit_the_codes_is_refused(
    pruned: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    out = quantized(pruned, tmp_path / "out", INT4)
    config = json.loads((out / "config.json").read_text())
    config["quantization"] |= change
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=sentence):
        check_tensors(Checkpoint(out), spec_of(Checkpoint(out).config))


def test_a_full_disk_is_told_of_before_anything_is_written(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ResourceError, match="the disk has 100 free"):
        quantized(pruned, tmp_path / "out", INT4)
    assert not list((tmp_path / "out").iterdir())


def test_weights_too_large_for_a_scale_are_named(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    whole = pruned_checkpoint(source, tmp_path / "pruned", ((24,) * 6,) * 3)
    checkpoint = Checkpoint(whole)
    name = spec_of(checkpoint.config).name("gate", 1, 2)
    tensors = {n: checkpoint.read(n) for n in checkpoint.tensors}
    tensors[name] = tensors[name] * np.float32(1e6)
    shutil.rmtree(whole)
    whole.mkdir()
    with CheckpointWriter(whole, checkpoint.config, num_shards=1) as writer:
        writer.write_shard(tensors)
    with pytest.raises(CheckpointError, match=f"{name}: weights reach"):
        quantized(whole, tmp_path / "out", INT4)
