"""Predictions of memory and disk at the size of Qwen1.5-MoE-A2.7B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_export.cli import main
from moe_export.errors import RecipeError
from moe_export.families import spec_of
from moe_export.passes.limits import LOGIT_BYTES
from moe_export.recipe.load import load_recipe, parse_recipe
from moe_export.runner.estimate import StageEstimate, estimate
from moe_export.runner.rates import (
    COPIED_PER_S,
    FLOPS_PER_S,
    LIBRARY_BYTES,
    TORCH_BYTES,
)
from moe_export.testing.synthetic_checkpoint import config_of

GIB = 2**30


def predicted(
    tmp_path: Path,
    scores: list[str],
    dtype: str,
    score: str | None = None,
    ranking: dict[str, Any] | None = None,
    tune: dict[str, Any] | None = None,
    top_k: int | None = None,
    quantize: dict[str, Any] | None = None,
    tied: bool = False,
    **prune: Any,
) -> dict[str, StageEstimate]:
    config = config_of("qwen2_moe", "qwen1.5-moe-a2.7b") | {"tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = {
        "model": {"source": str(tmp_path)},
        "tune": tune,
        "calibrate": {"sources": [{"demo": "text"}], "sequences": 16, "sequence_length": 512},
        "importance": {"scores": scores, "dtype": dtype, "batch_tokens": 2048},
        "plan": {"keep": 0.5, "score": score or scores[0], "top_k": top_k},
        "ranking": ranking or {},
        "prune": prune,
        "quantize": quantize or {"experts": "int4", "dense": "int8"},
        "export": {"dtype": "float16", "baseline": False, "pruned": False},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    found = estimate(load_recipe(tmp_path / "recipe.yaml"), tmp_path)
    return {each.stage: each for each in found}


def test_streaming_stays_within_the_limits_that_were_set_for_it(tmp_path: Path) -> None:
    found = predicted(tmp_path, ["fisher_margin"], "bfloat16")
    assert found["importance"].peak_bytes < 6 * GIB
    for stage in ("quantize", "export"):
        assert found[stage].peak_bytes < 2.5 * GIB
    refit = predicted(tmp_path, ["fisher_margin"], "bfloat16", distill_blocks=False)["prune"]
    assert refit.peak_bytes < 3 * GIB
    assert found["prune"].peak_bytes < 6.5 * GIB
    without = predicted(tmp_path, ["fisher_margin"], "bfloat16", refit=False)["prune"]
    assert without.peak_bytes < 2.5 * GIB
    assert found["prune"].disk_bytes == pytest.approx(2 * 8.0872e9, rel=1e-4)
    exported = found["export"].disk_bytes - LIBRARY_BYTES
    assert found["quantize"].disk_bytes == pytest.approx(exported, rel=1e-3)


def test_a_tied_model_is_predicted_with_the_quantized_head_that_it_gets(tmp_path: Path) -> None:
    tied, twin = (
        predicted(tmp_path, ["fisher_margin"], "bfloat16", tied=tied) for tied in (True, False)
    )
    table = 151_936 * 2048
    assert twin["prune"].disk_bytes - tied["prune"].disk_bytes == 2 * table
    for stage in ("quantize", "export"):
        assert tied[stage] == twin[stage]
    formats = {"experts": "int4", "embedding": "int8"}
    with pytest.raises(RecipeError, match=r"quantize\.embedding is int8"):
        predicted(tmp_path, ["fisher_margin"], "bfloat16", tied=True, quantize=formats)


def test_processes_share_the_arithmetic_of_importance_but_each_reads_all_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predicted(tmp_path, ["fisher_margin"], "bfloat16")
    one, four = found["importance"], found["importance"].among(4)
    weights = 2 * spec_of(json.loads((tmp_path / "config.json").read_text())).parameters
    assert one.read_bytes == four.read_bytes == 2 * weights
    fixed = 5 + one.read_bytes / COPIED_PER_S
    assert one.seconds - fixed == pytest.approx(4 * (four.seconds - fixed), rel=1e-9)
    assert one.seconds > 2 * four.seconds
    assert found["prune"].among(4) == found["prune"]
    recipe = str(tmp_path / "recipe.yaml")
    assert main(["run", recipe, "--dry-run", "--workers", "4"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[2:]}
    assert (rows["importance"][1], rows["prune"][1]) == ("4", "1")
    assert rows["importance"][-2:] == [f"{four.seconds:.0f}", "s"]
    assert main(["run", recipe, "--workers", "4"]) == RecipeError.exit_code
    assert "torchrun" in capsys.readouterr().err


def test_states_between_layers_are_counted_by_loss(tmp_path: Path) -> None:
    # 8,192 tokens of 2,048 elements in two bytes: the input of 24 layers and of the head, and
    # gradients at three places for each loss.
    state = 8192 * 2048 * 2
    one = predicted(tmp_path, ["fisher_margin"], "bfloat16")["importance"]
    two = predicted(tmp_path, ["fisher_margin", "fisher"], "bfloat16")["importance"]
    none = predicted(tmp_path, ["activation"], "bfloat16")["importance"]
    assert [each.partial_bytes // state for each in (one, two, none)] == [28, 31, 2]
    assert none.seconds < one.seconds < two.seconds
    wide = predicted(tmp_path, ["fisher_margin"], "float32")["importance"]
    assert wide.partial_bytes == 2 * one.partial_bytes
    assert wide.peak_bytes > one.peak_bytes
    assert wide.seconds > one.seconds


def test_code_for_shapes_is_counted_in_bfloat16_alone(tmp_path: Path) -> None:
    wide, half = (
        predicted(tmp_path, ["fisher_margin"], dtype)["importance"].peak_bytes
        for dtype in ("float32", "bfloat16")
    )
    fixed = TORCH_BYTES + LOGIT_BYTES
    # Four products with 64 numbers of tokens: the multiples of 32 up to the 2,048 of a batch.
    code = 4 * 64 * (180 + 800) * 1024
    assert half == fixed + (wide - fixed) // 2 + code
    # Found with three of the layers, see docs/log.md; one at a time is in memory.
    assert 1 / 1.2 < 2.44 * GIB / half < 1.2


def test_planning_is_counted_by_rows_and_rounding_by_what_is_held_ahead(tmp_path: Path) -> None:
    found = predicted(tmp_path, ["fisher_margin"], "bfloat16")
    # Found with all 24 layers, see docs/results/full_size.md.
    assert 1 / 1.1 < 188.7 / 1024 * GIB / found["plan"].peak_bytes < 1.1
    assert 1 / 1.1 < 1.31 * GIB / found["quantize"].peak_bytes < 1.1
    # Tensors of 128 MiB wait to be written, and threads that round hold 32 MiB.
    without = predicted(tmp_path, ["fisher_margin"], "bfloat16", refit=False)
    assert found["quantize"].peak_bytes - without["prune"].peak_bytes == 160 << 20


def test_fitting_is_counted_by_its_tokens_and_steps(tmp_path: Path) -> None:
    without, refit, few, many = (
        predicted(tmp_path, ["fisher_margin"], "bfloat16", **words)["prune"]
        for words in (
            {"refit": False},
            {"distill_blocks": False},
            *({"distill_blocks": {"steps": steps, "tokens_per_step": 100}} for steps in (10, 30)),
        )
    )
    # Two streams of 8,192 tokens of 2,048 floats, before and after a layer.
    assert (without.partial_bytes, refit.partial_bytes) == (0, 4 * 8192 * 2048 * 4)
    assert without.seconds < refit.seconds < few.seconds
    # A token of a step goes forward and back through 4 experts of half their width.
    active = (many.seconds - few.seconds) * FLOPS_PER_S["float32"] / (6 * 20 * 100)
    assert active == pytest.approx(24 * 4 * 3 * 704 * 2048, rel=1e-3)
    # A step needs five copies of the kept weights of a layer, 60 experts of half their width.
    assert many.peak_bytes - refit.peak_bytes > 4 * 2.5 * 60 * 3 * 704 * 2048
    assert refit.disk_bytes == without.disk_bytes


def test_distilling_routers_is_counted_by_its_steps(tmp_path: Path) -> None:
    plain, few, many = (
        predicted(tmp_path, ["fisher_margin"], "bfloat16", refit=False, **words)["prune"]
        for words in ({}, {"distill_router": {"steps": 10}}, {"distill_router": {"steps": 30}})
    )
    assert plain.partial_bytes == 0
    # Three states of all 8,192 tokens, and 26 of a step's 4,096, of 2,048 floats.
    assert few.partial_bytes == many.partial_bytes == (3 * 8192 + 26 * 4096) * 2048 * 4
    # A step reads 8.09 B parameters in two bytes twice, at 400 MB/s; it computes as long again.
    assert (many.seconds - few.seconds) / 20 > 2 * 2 * 8.0872e9 / 400e6
    assert few.peak_bytes < 6 * GIB
    assert few.disk_bytes == plain.disk_bytes


def test_tuning_by_layer_holds_one_layer_and_keeps_its_streams_on_the_disk(tmp_path: Path) -> None:
    section = {
        "method": "compressed_experts",
        "objective": "distill",
        "only": "vectors_and_routers",
        "sources": [{"demo": "text"}],
        "documents": 100,
        "held_out": 0.1,
        "batch_tokens": 2048,
    }
    few, many = (
        predicted(tmp_path, ["fisher_margin"], "bfloat16", tune=section | {"steps": steps})["tune"]
        for steps in (10, 20)
    )
    routers = section | {"method": "full", "only": "routers", "steps": 10}
    fewer = predicted(tmp_path, ["fisher_margin"], "bfloat16", tune=routers, top_k=2)["tune"]
    assert fewer.partial_bytes == few.partial_bytes
    assert 4 * 0.57e9 < fewer.peak_bytes < 6 * GIB
    # The largest layer has 0.57 B parameters in float32; the model has 14.3 B.
    assert 4 * 0.57e9 < few.peak_bytes < 6 * GIB
    # Eight states of 2,048 floats of a step's tokens, and of 5,120 held-out tokens.
    assert few.partial_bytes == 8 * (20480 + 5120) * 2048 * 4
    assert many.partial_bytes - few.partial_bytes == 8 * 20480 * 2048 * 4
    # A step goes forward and back through 2 experts of a layer; a token in two layers and one.
    active = (many.seconds - few.seconds) * FLOPS_PER_S["float32"] / 20480
    assert active > 6 * 24 * 2 * 3 * 1408 * 2048
    assert few.read_bytes == pytest.approx(2 * 2 * 14.32e9, rel=1e-2)


def test_a_choice_among_rankings_is_counted_by_its_candidates_and_finalists(tmp_path: Path) -> None:
    sizes = {"first": 2, "held_out": 8}
    few, many, refitted = (
        predicted(
            tmp_path,
            ["fisher"],
            "bfloat16",
            "auto",
            sizes | {"scores": scores, "finalists": 2, "fitting_tokens": 4096},
            refit=refit,
        )["ranking"]
        for scores, refit in (
            (["fisher", "reap"], False),
            (["fisher", "reap", "activation"], False),
            (["fisher", "reap"], True),
        )
    )
    # 2.69 B parameters are multiplied with a token; the model has 14.3 B in two bytes.
    token_s, read_s = 2 * 2.69e9 / 60e9, 2 * 14.316e9 / 400e6
    # Two more candidates run over 2 sequences of 512 tokens.
    more_s = 2 * (1024 * token_s + read_s)
    assert many.seconds - few.seconds == pytest.approx(more_s, rel=0.01)
    # Two finalists are refitted on 4,096 tokens, in three passes.
    assert refitted.seconds - few.seconds == pytest.approx(2 * 3 * 4096 * token_s, rel=0.01)
    assert few.peak_bytes < refitted.peak_bytes < 6 * GIB
    assert "ranking" not in predicted(tmp_path, ["fisher"], "bfloat16")


def test_validation_is_predicted_with_the_logits_and_the_float32_copies_of_every_export(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("qwen2_moe", "qwen1.5-moe-a2.7b")))

    def peak(items: int, dtype: str) -> int:
        recipe = parse_recipe(
            {
                "model": {"source": str(tmp_path)},
                "calibrate": {
                    "sources": [{"demo": "text"}],
                    "sequences": 16,
                    "sequence_length": 512,
                },
                "plan": {"keep": 0.5},
                "export": {"dtype": dtype, "baseline": True},
                "validate": {"tasks": [{"demo": "text", "items": items}]},
            },
            (),
        )
        (validate,) = (e for e in estimate(recipe, tmp_path) if e.stage == "validate")
        return validate.peak_bytes

    # A batch of logits has at most 256 MiB; one document of 512 tokens has more than that here.
    assert peak(1, "float32") == peak(64, "float32")
    # 28.6 and 16.2 GB in float16, of which attention and heads double on the CPU.
    assert 45 * GIB < peak(1, "float16") < 48 * GIB
    assert peak(1, "float32") > 83 * GIB
