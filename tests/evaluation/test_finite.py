"""Tests of exported models whose logits are not finite, and of routers with equal logits."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from moe_export.artifacts.validation import Validation
from moe_export.checkpoint import Checkpoint, overwrite
from moe_export.cli import main
from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation.expected import write_logits
from moe_export.evaluation.finite import FiniteCheck
from moe_export.evaluation.parity import Compared, compare_with_torch
from moe_export.evaluation.tally import Tally, tally_document
from moe_export.families import spec_of
from moe_export.graph import first_overflow
from moe_export.ort.session import OrtModel
from moe_export.testing.families import DEEPSEEK_V3
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.decoding import exported
from tests.helpers.small_runs import recipe, write_recipe


def multiply(directory: Path, part: str, factor: float) -> Path:
    """Multiplies all tensors whose name contains a text."""
    checkpoint = Checkpoint(directory)
    names = [name for name in checkpoint.tensors if part in name]
    assert names
    overwrite(directory, {name: checkpoint.read(name) * np.float32(factor) for name in names})
    return directory


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Checkpoint whose weights fit float16, but not the output of the experts of layer 2."""
    source = multiply(tiny_checkpoint(tmp_path / "m"), "2.post_attention_layernorm", 300)
    return multiply(multiply(source, "2.mlp.experts", 60), "2.mlp.shared_expert.down", 1)


def test_activations_beyond_float16_fail_a_gate_with_layer_and_tensor(
    overflowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = {"max_quantized_kl_nats": 100, "min_quantized_top1_agreement": 0}
    settings = recipe(overflowing)["validate"] | {"gates": gates}
    path = write_recipe(tmp_path, overflowing, export={"dtype": "float16"}, validate=settings)
    assert main(["run", str(path), "--run", str(tmp_path / "run")]) == 5
    words = "; set export.dtype to float32, with quantize.experts: bfloat16"
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "validate.gates: finite_logits on cpu is " in error
    assert f"first in layer 2 at layers.2.moe{words}" in error
    validation = Validation.load(tmp_path / "run" / "validate")
    assert validation.first_provider.not_finite is not None
    found = validation.first_provider.not_finite["pruned"]
    assert 0 < found.positions <= found.of
    assert (found.first_layer, found.first_tensor) == (2, "layers.2.moe")
    for name in ("validation.json", "documents.json"):
        text = (tmp_path / "run" / "validate" / name).read_text()
        json.loads(text, parse_constant=pytest.fail)
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "share of positions with finite logits" in report
    assert "The logits of pruned are infinite or NaN" in report


def test_the_first_overflow_is_found_in_attention_experts_and_head(tmp_path: Path) -> None:
    for number, (part, factor, place) in enumerate(
        (
            ("1.self_attn.o_proj.weight", 3e5, (1, "layers.1.attention.out")),
            ("0.mlp.experts", 3e3, (0, "layers.0.moe")),
            ("lm_head", 3e4, (3, "logits")),
        )
    ):
        source = tiny_checkpoint(tmp_path / f"m{number}")
        directory = exported(multiply(source, part, factor), tmp_path / f"x{number}", "float32")
        assert first_overflow(directory, [1, 2, 3]) == (3, "logits")
        narrow = multiply(source, part, min(1.0, 6e4 / largest(source, part)))
        assert first_overflow(exported(narrow, tmp_path / f"y{number}", "float16"), [1, 2, 3]) == (
            place
        )


def largest(directory: Path, part: str) -> float:
    checkpoint = Checkpoint(directory)
    return max(np.abs(checkpoint.read(n)).max() for n in checkpoint.tensors if part in n)


def test_positions_without_finite_logits_are_counted_and_scored_as_uniform() -> None:
    check = FiniteCheck()
    good = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert check.checked([1, 2, 1, 2], good) is good
    assert check.outcome(Path("unused")) is None
    bad = good.copy()
    bad[1, 2], bad[2, 0], bad[3, 1] = np.nan, np.inf, -np.inf
    logits = check.checked([2, 1, 0, 1], bad)
    np.testing.assert_array_equal(logits, [[0, 1, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert (check.positions, check.not_finite, check.first) == (8, 3, [2, 1, 0, 1])
    tally = Tally(has_answers=False)
    tally_document(tally, TokenSequence([2, 1, 0, 1], 2), logits, good)
    assert tally.scores().loss_nats == pytest.approx(np.log(3))
    assert np.isfinite(tally.scores().kl_nats or np.nan)


def test_a_perplexity_beyond_floats_is_finite() -> None:
    tally = Tally(has_answers=False)
    logits = np.array([[0, 2000], [0, 2000]], np.float32)
    tally_document(tally, TokenSequence([0, 0], 0), logits, None)
    assert tally.scores().loss_nats == pytest.approx(2000)
    assert np.isfinite(tally.scores().perplexity)


@pytest.mark.parametrize("tied", [True, False])
def test_ties_of_the_router_are_counted_where_a_difference_begins(
    tmp_path: Path, tied: bool
) -> None:
    source = tiny_checkpoint(tmp_path / "m")
    directory = exported(source, tmp_path / "onnx")
    other = multiply(tiny_checkpoint(tmp_path / "other"), "2.mlp.gate.weight", 0 if tied else -1)
    sequence = [*range(20)]
    parity, _ = compare_with_torch(
        partial(OrtModel, directory, operator="portable"),
        directory,
        other,
        Compared([sequence], prompts=[], new_tokens=0),
        tmp_path / "logits",
        limit=1e-4,
    )
    assert parity.max_logit_error > 0.01
    assert parity.first_bad_layer == 2
    assert parity.tied_tokens == (20 if tied else None)


@pytest.mark.parametrize("tied", [True, False])
def test_the_bias_of_a_choice_makes_ties_and_breaks_them(tmp_path: Path, tied: bool) -> None:
    model = tiny_checkpoint(tmp_path / "m", base=DEEPSEEK_V3.config)
    spec = spec_of(DEEPSEEK_V3.config)
    gate, bias = spec.name("router", 2), spec.name("choice_bias", 2)
    # Equal sigmoids of 1/2 for all experts; the bias separates the second from the third, or not.
    values = np.array([3, 1, 1 if tied else 0.5, 0, 0, 0], np.float32)
    overwrite(model, {gate: np.zeros((6, 64), np.float32), bias: values})
    with (tmp_path / "logits").open("wb") as file:
        _, trace = write_logits(model, [[*range(20)]], [], file, trace=True)
    assert trace.tied_tokens[2] == (20 if tied else 0)
