from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_export.artifacts.formats import TensorFormats
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.measurements import Speed, SpeedSetting, Spread, headline_setting
from moe_export.artifacts.plan import Plan, PlanLayer
from moe_export.artifacts.report_plan import ActiveParameters
from moe_export.reporting.build_memory import format_words
from moe_export.reporting.build_plan import importance_facts, model_facts

PLAN = Plan(
    score="fisher",
    scope="model",
    unit="dimension",
    rows_before=4,
    rows_after=2,
    kept=0.5,
    widths_before=((2, 2),),
    layers=(
        PlanLayer(
            layer=0,
            widths=(1, 1),
            rows_before=4,
            rows_after=2,
            importance_kept=0.5,
            unknown_experts=(),
            expert_bytes={},
        ),
    ),
    checkpoint_tensor_bytes=0,
    export_bytes={},
    predicted_loss=None,
)


def importance(*scores: float, tokens: tuple[int, int] = (3, 1)) -> Importance:
    return Importance({"fisher": [np.array(scores)]}, [np.array(tokens)])


def test_importance_kept_is_that_of_the_rows_kept_in_each_expert() -> None:
    found = importance_facts(PLAN, importance(6.0, 3.0, 0.0, 1.0))
    assert found.rows_kept == 0.5
    assert found.importance_kept == pytest.approx(0.7)  # (6 + 1) / 10
    by_rows = {point.rows: point.importance for point in found.curve}
    assert by_rows[0.25] == pytest.approx(0.6)
    assert by_rows[0.5] == pytest.approx(0.9)
    assert by_rows[1.0] == 1.0


def test_rows_whose_importance_is_unknown_are_outside_the_curve() -> None:
    found = importance_facts(PLAN, importance(np.inf, np.inf, 3.0, 1.0))
    assert found.known_rows == 2
    assert found.rows_kept == 0.5
    assert found.importance_kept == pytest.approx(0.75)


def test_no_importance_at_all_gives_no_curve() -> None:
    found = importance_facts(PLAN, importance(0.0, 0.0, 0.0, 0.0))
    assert found.curve == ()
    assert found.importance_kept is None


def test_active_parameters_are_weighed_by_the_tokens_of_each_expert(run: Path) -> None:
    plan = Plan.load(run / "plan")
    tokens = [np.zeros(16, np.int64) for _ in range(4)]
    for layer in tokens:
        layer[[2, 5]] = 10  # 10 tokens, each sent to experts 2 and 5
    facts = model_facts(run / "prune", plan, Importance({}, tokens))
    widths = [layer.widths for layer in plan.layers]
    routed = 3 * 128 * sum(map(sum, widths))
    chosen = 3 * 128 * sum(layer[2] + layer[5] for layer in widths)
    expected = facts.parameters.after - routed + chosen
    assert facts.active_parameters_per_token.after == pytest.approx(expected)


def test_active_parameters_are_unknown_without_tokens(run: Path) -> None:
    plan = Plan.load(run / "plan")
    nothing = Importance({}, [np.zeros(16, np.int64)] * 4)
    facts = model_facts(run / "prune", plan, nothing)
    assert facts.active_parameters_per_token == ActiveParameters(before=None, after=None)


def test_the_headline_speed_is_the_smallest_batch_with_the_most_threads() -> None:
    spread = Spread(min=1.0, median=1.0, max=1.0)
    speed = [
        Speed(
            variant="pruned",
            provider=provider,
            threads=threads,
            path="portable function body",
            batch_size=batch,
            prompt_tokens=8,
            new_tokens=8,
            prefill_tokens_per_s=spread,
            decode_tokens_per_s=spread,
        )
        for provider in ("cpu", "cuda")
        for batch in (8, 1)
        for threads in (1, 4)
    ]
    assert headline_setting(speed) == SpeedSetting(
        provider="cpu", batch_size=1, threads=4, prompt_tokens=8, new_tokens=8
    )
    assert headline_setting([]) is None


def test_groups_are_told_of_where_something_has_them() -> None:
    formats = TensorFormats(experts="bfloat16", dense="float", embedding="float", group_size=32)
    assert format_words(formats, "float16") == "experts bfloat16, else float16"
    coded = formats.model_copy(update={"dense": "int8"})
    assert format_words(coded, "float16").endswith(
        "attention and lm_head int8 in groups of 32, else float16"
    )
