"""Tables that the commands print on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moe_export.artifacts.plan import Plan, PlanLayer
from moe_export.cli.console import print_table, say_line
from moe_export.reporting.units import size
from moe_export.runner.estimate import StageEstimate
from moe_export.runner.run import State

MOST_WIDTHS = 16
"""Number of experts up to which every width of a layer is printed."""


def print_states(states: Iterable[State]) -> None:
    """Prints one line per step: fresh, missing, or stale and why."""
    for state in states:
        word = "fresh" if state.fresh else ("missing" if state.reason == "missing" else "stale")
        reason = f": {state.reason}" if word == "stale" else ""
        say_line(f"{state.step.folder:<20} {word}{reason}")


def print_estimates(estimates: Sequence[StageEstimate], workers: int = 1) -> None:
    """Prints predicted disk space, memory and time, one row per step.

    Args:
        estimates: Predictions for one process.
        workers: Number of processes; with several, the table says how many share a step.
    """
    head = ["stage", "reads", "writes", "meanwhile", "peak memory", "time"]
    rows = [_estimate_row(each.among(workers)) for each in estimates]
    if workers > 1:
        head.insert(1, "processes")
        for row, each in zip(rows, estimates, strict=True):
            row.insert(1, str(workers if each.shared_s else 1))
    print_table("predicted for each process" if workers > 1 else "predicted", head, rows)


def _estimate_row(each: StageEstimate) -> list[str]:
    return [
        each.stage,
        size(each.read_bytes) if each.read_bytes else "",
        size(each.disk_bytes),
        size(each.partial_bytes) if each.partial_bytes else "",
        size(each.peak_bytes),
        f"{each.seconds:.0f} s",
    ]


def print_plan(plan: Plan) -> None:
    """Prints the rows kept and the widths of every layer, and predicted bytes."""
    shared = ("shared expert",) if plan.prunes_shared else ()
    experts = (f"experts {dtype}" for dtype in plan.export_bytes)
    print_table(
        f"{plan.score}, scope {plan.scope}: {plan.kept:.1%} of all rows kept",
        ("layer", "rows kept", "widths", *shared, *experts, ""),
        [_layer_row(plan, layer) for layer in plan.layers if layer.widths],
    )
    for dtype, models in plan.export_bytes.items():
        planned = models.by_variant().values()
        total = " → ".join(size(model.total_bytes) for model in planned)
        say_line(f"exported weights, {dtype}: {total}")
        active = " → ".join(size(model.active_bytes_per_token) for model in planned)
        say_line(f"read per token, {dtype}: {active}")


def _layer_row(plan: Plan, layer: PlanLayer) -> tuple[str, ...]:
    widths = layer.widths
    shared = (f"{layer.shared_width} of {layer.shared_width_before}",)
    return (
        str(layer.layer),
        f"{layer.rows_after} of {layer.rows_before}",
        f"{min(widths)} – {max(widths)}",
        *(shared if plan.prunes_shared else ()),
        *(size(layer.expert_bytes[dtype]) for dtype in plan.export_bytes),
        " ".join(map(str, widths)) if len(widths) <= MOST_WIDTHS else "",
    )
