"""lm-eval's client of completions at our server, as docs/guide/evaluating.md calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.harness_tasks import write_tasks
from tests.helpers.server import ServerProcess

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed; it is in the extra eval")
# The packages of lm-eval warn of each other.
pytestmark = pytest.mark.filterwarnings("default")

ITEMS = 6


def test_local_completions_score_as_our_adapter(
    server: ServerProcess, demo: Path, tmp_path: Path
) -> None:
    from lm_eval.tasks import TaskManager

    from moe_export.evaluation.harness.models import OrtHarness

    names = write_tasks(tmp_path / "tasks", ITEMS)
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    served = {
        "model": server.name,
        "base_url": f"{server.url}/completions",
        "tokenizer": str(demo),
        "add_bos_token": True,
        "max_length": 512,
        "num_concurrent": 4,
    }
    own = OrtHarness(demo, "cpu", "native", ITEMS, None, lambda count: None)
    first, second = (
        scores(lm_eval.simple_evaluate(model, arguments, tasks=list(names), task_manager=manager))
        for model, arguments in (("local-completions", served), (own, None))
    )
    assert len(first) == 3
    assert first == pytest.approx(second, rel=1e-5)
    for task in ("sums_answered", "facts_chosen"):
        assert first[task] == second[task] > 0.8


def scores(results: Any) -> dict[str, float]:
    """The metric of each task."""
    return {
        task: float(value)
        for task, values in results["results"].items()
        for key, value in values.items()
        if key.endswith(",none") and "stderr" not in key
    }
