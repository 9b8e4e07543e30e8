"""Tests of quantized models whose lm_head was the embedding's table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe_export.artifacts.quantization import QuantizationRecord
from moe_export.checkpoint import Checkpoint
from moe_export.cli import main
from moe_export.errors import RecipeError
from moe_export.families import open_checkpoint
from moe_export.families.stored import read_values
from moe_export.graph import predicted_bytes
from moe_export.op.spec import Layout
from moe_export.recipe import QuantizeSettings
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.stages.quantize import run
from moe_export.testing.families import LFM2_MOE, MIXTRAL, PHIMOE
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import load_torch_model
from moe_export.variants import DATA_FILE
from tests.helpers.decoding import Decoder
from tests.helpers.small_runs import write_recipe
from tests.helpers.tied_heads import untied_twin
from tests.stages.test_gptq import calibration

IDS = np.random.default_rng(3).integers(0, 256, (2, 12))
LENGTHS = (50, 40, 33, 60, 50, 50, 41, 2)

# Phi-MoE has a bias of the lm_head; released LFM2 models name the tie by an older key as well.
MODELS = {
    "lfm2_moe": LFM2_MOE.config | {"tie_embedding": True},
    "mixtral": MIXTRAL.config | {"tie_word_embeddings": True},
    "phimoe": PHIMOE.config | {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module", params=MODELS)
def tied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pruned checkpoint, whose head is the embedding."""
    folder = tmp_path_factory.mktemp(request.param)
    source = tiny_checkpoint(folder / "model", base=MODELS[request.param])
    spec = open_checkpoint(source)[1]
    assert spec.tied_embeddings
    assert spec.lm_head_bias == (request.param == "phimoe")
    widths = [(24, 0, 1, 7, 16, 24)[: len(layer)] for layer in spec.widths]
    return pruned_checkpoint(source, folder / "pruned", widths)


def quantized(pruned: Path, out: Path, **settings: Any) -> Path:
    folders = {"prune": pruned}
    if settings.get("method") == "gptq":
        folders["calibrate"] = calibration(out.with_name(f"{out.name}-c"), LENGTHS)
    out.mkdir()
    run(Job(QuantizeSettings(**settings), pruned, folders, out))
    return out


def torch_logits(checkpoint: Path) -> NDArray[np.float32]:
    with torch.no_grad():
        model = load_torch_model(checkpoint, torch.float32)
        logits: NDArray[np.float32] = model(torch.from_numpy(IDS)).logits.numpy()
    return logits


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "settings",
    [
        {"experts": "float", "lm_head": "int8"},
        {"experts": "float", "lm_head": "int4", "embedding": "int8", "method": "mse"},
        {"experts": "int4", "lm_head": "uint4"},
        {"experts": "int4", "dense": "int8"},
        {"experts": "float", "dense": "int4", "method": "gptq"},
    ],
    ids=str,
)
def test_it_is_the_quantized_model_whose_head_was_stored_apart(
    tied: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    found = quantized(tied, tmp_path / "found", **settings)
    twin = quantized(untied_twin(tied, tmp_path / "twin"), tmp_path / "expected", **settings)
    (checkpoint, spec), (expected, expected_spec) = map(open_checkpoint, (found, twin))
    assert spec == expected_spec
    assert not spec.tied_embeddings
    assert spec.quantization.format_of("lm_head") in ("int8", "int4", "uint4")
    for key in spec.family.tie_keys:
        assert checkpoint.config[key] is False
    assert checkpoint.tensors.keys() == expected.tensors.keys()
    for name, entry in checkpoint.tensors.items():
        assert entry.dtype == expected.tensors[name].dtype
        np.testing.assert_array_equal(checkpoint.read(name), expected.read(name), err_msg=name)
    record, expected_record = map(QuantizationRecord.load, (found, twin))
    assert record == expected_record
    (head,) = [tensor for name, tensor in record.tensors.items() if name == spec.name("lm_head")]
    assert (head.action, head.method) == ("quantized", settings.get("method", "rtn"))


def test_it_computes_the_float_model_within_the_rounding_of_the_head(
    tied: Path, tmp_path: Path
) -> None:
    out = quantized(tied, tmp_path / "out", experts="float", lm_head="int8")
    checkpoint, spec = open_checkpoint(out)
    table = Checkpoint(tied).read(spec.name("embedding"))
    head = read_values(checkpoint, spec, spec.name("lm_head"))
    np.testing.assert_array_equal(read_values(checkpoint, spec, spec.name("embedding")), table)
    # Half a step of 254 to either side of the largest of 32 normal values, uniformly: 0.5 %.
    assert 0.002 < relative_error(head, table) < 0.008
    # Logits are products of the rounded rows with the same inputs.
    assert 0.001 < relative_error(torch_logits(out), torch_logits(tied)) < 0.01


@pytest.mark.parametrize("layout", ["portable", "packed"])
@pytest.mark.parametrize("head", ["int8", "int4", "uint4"])
def test_onnx_runtime_computes_the_dequantized_model_in_the_predicted_bytes(
    tied: Path, tmp_path: Path, layout: Layout, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_EXPORT_ACTIVATIONS", "exact")
    settings = {"experts": "int4", "lm_head": head, "embedding": "int8"}
    out = quantized(tied, tmp_path / "out", **settings)
    made = export_model(out, tmp_path / "onnx", "float32", layout=layout)
    predicted = predicted_bytes(open_checkpoint(out)[1], "float32", layout)
    assert (tmp_path / "onnx" / DATA_FILE).stat().st_size == predicted.total_bytes
    assert made.quantization is not None
    assert made.quantization.lm_head == head
    found = Decoder(tmp_path / "onnx", native=True).start(IDS)
    expected = torch_logits(out)
    if layout == "packed":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    # MatMulNBits rounds activations to int8, an error of about 1.2 %.
    assert relative_error(found, expected) < 0.02
    assert relative_error(torch_logits(tied), expected) > 0.02


def test_a_head_in_floats_stays_tied_and_is_stored_once(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_EXPORT_ACTIVATIONS", "exact")
    out = quantized(tied, tmp_path / "out", experts="int4", dense="int8", lm_head="float")
    checkpoint, spec = open_checkpoint(out)
    assert spec.tied_embeddings
    assert spec.name("lm_head") not in checkpoint.tensors
    assert checkpoint.config["tie_word_embeddings"] is True
    export_model(out, tmp_path / "onnx", "float32", layout="packed")
    predicted = predicted_bytes(spec, "float32", "packed")
    assert (tmp_path / "onnx" / DATA_FILE).stat().st_size == predicted.total_bytes
    table_bytes = 4 * spec.vocab_size * (spec.hidden_size + spec.lm_head_bias)
    assert predicted.by_class["embeddings"] == table_bytes
    found = Decoder(tmp_path / "onnx", native=True).start(IDS)
    np.testing.assert_allclose(found, torch_logits(out), rtol=0, atol=1e-4)


def test_a_checkpoint_of_before_keeps_the_tied_head_that_it_was_written_with(
    tied: Path, tmp_path: Path
) -> None:
    out = quantized(tied, tmp_path / "out", experts="int4", dense="int8", lm_head="float")
    expected = torch_logits(out)
    config = json.loads((out / "config.json").read_text())
    del config["quantization"]["lm_head"]  # then as `dense`, but a tied head was never rounded
    (out / "config.json").write_text(json.dumps(config))
    spec = open_checkpoint(out)[1]
    assert spec.quantization.format_of("lm_head") == "int8"
    assert spec.tied_embeddings
    np.testing.assert_array_equal(torch_logits(out), expected)


def test_a_table_that_is_the_head_in_floats_too_is_not_quantized(
    tied: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"^quantize.embedding is int8, but the lm_head of this"):
        quantized(tied, tmp_path / "out", embedding="int8", dense="int8", lm_head="float")


def test_a_table_of_both_uses_stops_a_run_before_its_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_checkpoint(tmp_path / "model", base=MODELS["mixtral"])
    recipe = write_recipe(tmp_path, model, quantize={"experts": "int4", "embedding": "int8"})
    run_folder = tmp_path / "run"
    assert main(["run", str(recipe), "--run", str(run_folder)]) == RecipeError.exit_code
    assert "quantize.embedding is int8, but the lm_head of this mixtral" in capsys.readouterr().err
    assert not (run_folder / "calibrate").exists()
