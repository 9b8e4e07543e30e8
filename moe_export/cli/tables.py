"""Tables that the commands print on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

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


def print_estimates(estimates: Iterable[StageEstimate]) -> None:
    """Prints predicted disk space, memory and time, one row per step."""
    rows = [
        (
            e.stage,
            size(e.disk_bytes),
            size(e.partial_bytes) if e.partial_bytes else "",
            size(e.peak_bytes),
            f"{e.seconds:.0f} s",
        )
        for e in estimates
    ]
    print_table("predicted", ("stage", "writes", "meanwhile", "peak memory", "time"), rows)


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
