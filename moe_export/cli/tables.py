"""Tables that the commands print on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moe_export.artifacts.planned import prunes_shared
from moe_export.cli.console import console, print_table
from moe_export.reporting.units import size
from moe_export.runner.estimate import StageEstimate
from moe_export.runner.run import State
from moe_export.variants import PLANNED

MOST_WIDTHS = 16
"""Number of experts up to which every width of a layer is printed."""


def print_states(states: Iterable[State]) -> None:
    """Prints one line per step: fresh, missing, or stale and why."""
    for state in states:
        word = "fresh" if state.fresh else ("missing" if state.reason == "missing" else "stale")
        reason = f": {state.reason}" if word == "stale" else ""
        console.print(f"{state.step.folder:<20} {word}{reason}")


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


def print_plan(plan: Mapping[str, Any]) -> None:
    """Prints the rows kept and the widths of every layer, and predicted bytes."""
    rows = []
    shared = prunes_shared(plan)
    for layer in plan["layers"]:
        widths = layer["widths"]
        if not widths:
            continue  # no experts in this layer
        rows.append(
            (
                str(layer["layer"]),
                f"{layer['rows_after']} of {layer['rows_before']}",
                f"{min(widths)} – {max(widths)}",
                *([f"{layer['shared_width']} of {layer['shared_width_before']}"] if shared else []),
                *(size(layer["expert_bytes"][dtype]) for dtype in plan["export_bytes"]),
                " ".join(map(str, widths)) if len(widths) <= MOST_WIDTHS else "",
            )
        )
    bytes_by_dtype = (f"experts {dtype}" for dtype in plan["export_bytes"])
    head = (
        *("layer", "rows kept", "widths", *(["shared expert"] if shared else [])),
        *(*bytes_by_dtype, ""),
    )
    print_table(
        f"{plan['score']}, scope {plan['scope']}: {plan['kept']:.1%} of all rows kept", head, rows
    )
    for dtype, sizes in plan["export_bytes"].items():
        steps = " → ".join(size(sizes[s]["total_bytes"]) for s in PLANNED.values() if s in sizes)
        console.print(f"exported weights, {dtype}: {steps}")
        steps = " → ".join(
            size(sizes[s]["active_bytes_per_token"]) for s in PLANNED.values() if s in sizes
        )
        console.print(f"read per token, {dtype}: {steps}")
