"""The tables of a report, as text cells: the Markdown and the page show the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_export.reporting.palette import class_colour
from moe_export.reporting.units import (
    NONE,
    count,
    figures,
    percent,
    plain,
    points,
    seconds,
    size,
)

Report = Mapping[str, Any]

SCOPES = {
    "model": "over the whole model",
    "layer": "within each layer",
    "expert": "within each expert",
}

GATES = {
    "max_logit_error": ("largest logit error", "at most"),
    "min_greedy_agreement": ("greedy agreement with torch", "at least"),
    "max_quantized_kl_nats": ("KL of the quantized model from torch, nats", "at most"),
    "min_quantized_top1_agreement": (
        "top-1 agreement of the quantized model with torch",
        "at least",
    ),
    "max_kl_nats": ("largest KL from the baseline, nats", "at most"),
    "min_recovery": ("recovery", "at least"),
}
"""What a gate holds, in words, and on which side of its limit a value passes."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a head.

    Attributes:
        head: names of the columns; the first column is flush left.
        rows: as wide as the head.
        words: how many columns from the left hold words, and so are flush left.
        keys: per row, the name of the colour that its first cell is marked with.
        strong: (row, column) of the cells to stand out.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    keys: Sequence[str] = ()
    strong: frozenset[tuple[int, int]] = frozenset()


def memory_table(report: Report) -> Table:
    """Weights by class for every variant, with the total on disk and as predicted."""
    variants = report["memory"]["variants"]
    columns = [{e["class"]: e["weights_bytes"] for e in entry["classes"]} for entry in variants]
    more = report["memory"]["unpruned_quantized"]
    heads = [entry["variant"] for entry in variants]
    if more["weights_bytes"] is not None:
        # What quantizing alone would give stands beside what was exported.
        columns.append({e["class"]: e["weights_bytes"] for e in more["classes"]})
        heads.append("unpruned, quantized")
        predicted = {
            "predicted_weights_bytes": more["weights_bytes"],
            "active_bytes_per_token": more["active_bytes_per_token"],
        }
        nothing = dict.fromkeys(("disk_weights_bytes", "graph_bytes"), None)
        variants = [*variants, nothing | predicted]
    names = list(dict.fromkeys(n for column in columns for n, bytes_ in column.items() if bytes_))
    rows = [[name.replace("_", " "), *(size(c.get(name)) for c in columns)] for name in names]
    for label, key in (
        ("on disk, bytes", "disk_weights_bytes"),
        ("predicted, bytes", "predicted_weights_bytes"),
    ):
        rows.append([label, *(count(entry[key]) for entry in variants)])
    rows.append(["read per token", *(size(e["active_bytes_per_token"]) for e in variants)])
    rows.append(["graph", *(size(entry["graph_bytes"]) for entry in variants)])
    keys = [class_colour(name) for name in names]
    return Table(["", *heads], rows, keys=keys)


def resident_table(report: Report) -> Table:
    """Resident memory of every variant and provider."""
    rows = [
        [
            f"{entry['variant']}, {held['provider']}",
            size(held["load_peak_bytes"]),
            size(held["steady_resident_bytes"]),
            size(entry["predicted_resident_bytes"]),
            _difference(entry["predicted_resident_bytes"], held["steady_resident_bytes"]),
        ]
        for entry in report["memory"]["variants"]
        for held in entry["resident"]
    ]
    return Table(["resident memory", "load peak", "steady", "predicted", "off by"], rows)


def device_table(report: Report) -> Table:
    """Memory of the GPU, for every variant that ran on one."""
    rows = [
        [
            f"{entry['variant']}, {held['provider']}",
            size(held["device_loaded_bytes"]),
            size(held["device_peak_bytes"]),
            size(held["device_kv_cache_bytes"]),
        ]
        for entry in report["memory"]["variants"]
        for held in entry["resident"]
        if held["device_peak_bytes"] is not None
    ]
    return Table(["device memory", "loaded", "peak", "KV cache"], rows)


def accuracy_tables(report: Report) -> dict[str, Table]:
    """By provider, every task under every variant."""
    tables = {}
    for provider in dict.fromkeys(entry["provider"] for entry in report["accuracy"]):
        entries = [entry for entry in report["accuracy"] if entry["provider"] == provider]
        rows = []
        for position, task in enumerate(entries[0]["tasks"]):
            for entry in entries:
                scores = entry["tasks"][position]
                rows.append(
                    [
                        task["task"],
                        entry["variant"],
                        count(scores["items"]),
                        _rate(scores["exact_match"], scores["exact_match_stderr"]),
                        figures(scores["loss_nats"]),
                        figures(scores["perplexity"]),
                        figures(scores["kl_nats"]),
                        percent(scores["top1_agreement"]),
                    ]
                )
        rows += [
            ["mean", entry["variant"], "", percent(entry["mean_exact_match"]), "", "", "", ""]
            for entry in entries
        ]
        head = ["task", "", "items", "exact match", "loss, nats", "perplexity", "KL, nats", "top-1"]
        tables[provider] = Table(head, rows, words=2)
    return tables


def speed_table(report: Report) -> Table:
    """Prefill and decode at every setting."""
    rows = [
        [
            entry["variant"],
            entry["provider"],
            entry["path"],
            str(entry["batch_size"]),
            str(entry["threads"]),
            _spread(entry["prefill_tokens_per_s"]),
            _spread(entry["decode_tokens_per_s"]),
        ]
        for entry in report["speed"]
    ]
    head = [
        "variant",
        "provider",
        "path that ran",
        "batch",
        "threads",
        "prefill tok/s",
        "decode tok/s",
    ]
    return Table(head, rows, words=3)


def gates_table(report: Report) -> Table:
    """Limits of the recipe, what was found, and whether it passed."""
    rows = []
    for gate in report["gates"]:
        words, side = GATES.get(gate["name"], (gate["name"], "limit"))
        # Every lower limit is a share.
        show = percent if gate["name"].startswith("min_") else figures
        rows.append(
            [
                words,
                gate["provider"],
                f"{side} {show(gate['limit'])}",
                show(gate["value"]),
                "pass" if gate["passed"] else "FAIL",
            ]
        )
    return Table(["gate", "provider", "limit", "found", ""], rows, words=2)


def parity_table(report: Report) -> Table:
    """The exported models against torch."""
    rows = [
        [
            entry["variant"],
            entry["provider"],
            figures(entry["max_logit_error"]),
            figures(entry["kl_nats"]),
            percent(entry["top1_agreement"]),
            count(entry["compared_tokens"]),
            percent(entry["greedy_agreement"]),
            NONE
            if entry["greedy_prompts"] is None
            else f"{entry['greedy_prompts']} × {entry['greedy_new_tokens']}",
            "none" if entry["first_bad_layer"] is None else str(entry["first_bad_layer"]),
        ]
        for entry in report["parity"]
    ]
    head = [
        "variant", "provider", "largest logit error", "KL, nats", "top-1", "tokens compared",
        "greedy agreement", "prompts × tokens", "first bad layer",
    ]  # fmt: skip
    return Table(head, rows, words=2)


def layer_table(report: Report) -> Table:
    """Widths, importance and coverage by layer."""
    shared = report["plan"]["shared_expert"] == "prune"
    rows = [
        [
            str(layer["layer"]),
            f"{count(layer['rows_before'])} → {count(layer['rows_after'])}",
            percent(layer["rows_after"] / layer["rows_before"]),
            f"{layer['width_min']} / {plain(layer['width_median'])} / {layer['width_max']}",
            *([f"{layer['shared_width']} of {layer['shared_width_before']}"] if shared else []),
            percent(layer["importance_kept"]),
            f"{count(min(layer['tokens_per_expert']))} – {count(max(layer['tokens_per_expert']))}",
            ", ".join(map(str, layer["unknown_experts"])) or "none",
        ]
        for layer in report["plan"]["layers"]
    ]
    head = [
        "layer", "dimensions", "kept", "width min / median / max",
        *(["shared expert"] if shared else []),
        "importance kept", "tokens per expert", "unknown experts",
    ]  # fmt: skip
    return Table(head, rows)


def calibration_table(report: Report) -> Table:
    """Where the calibration tokens came from."""
    rows = [
        [
            source["name"],
            count(source["sequences"]),
            count(source["tokens"]),
            count(source["truncated_sequences"]),
        ]
        for source in report["calibration"]["sources"]
    ]
    return Table(["calibration source", "sequences", "tokens", "truncated"], rows)


def stage_table(report: Report) -> Table:
    """Time, peak memory and output of each stage before this one, predicted and found."""
    rows = []
    for stage in report["stages"]:
        predicted = stage["predicted"] or {}
        rows.append(
            [
                stage["stage"],
                f"{seconds(predicted.get('wall_s'))} / {seconds(stage['wall_s'])}",
                *(
                    f"{size(predicted.get(key))} / {size(stage[key])}"
                    for key in ("peak_resident_bytes", "output_bytes")
                ),
            ]
        )
    head = ["stage", "time, predicted / found", "peak memory", "output"]
    return Table(head, rows)


def machine_table(report: Report) -> Table:
    """The machine and the versions."""
    machine = report["machine"]
    rows = [
        ["processor", machine["cpu"]],
        ["cores", str(machine["cores"])],
        ["memory", size(machine["memory_bytes"])],
        ["GPU", machine["gpu"] or "none"],
        ["system", machine["system"]],
    ]
    rows += [[name, version] for name, version in report["versions"].items()]
    return Table(["measured on", ""], rows, words=2)


def methods_table(report: Report) -> Table:
    """How each number was measured."""
    rows = [[entry["quantity"], entry["method"]] for entry in report["methods"]]
    return Table(["number", "how it was measured"], rows, words=2)


def _difference(predicted: float, measured: float) -> str:
    """How far a prediction is from what was measured.

    >>> _difference(103, 100), _difference(98.5, 100)
    ('+3.0 %', '−1.5 %')
    """
    share = 100 * (predicted / measured - 1)
    return f"{'+' if share >= 0 else '−'}{abs(share):.1f} %"


def _rate(rate: float | None, stderr: float | None) -> str:
    if rate is None or stderr is None:
        return percent(rate)
    return f"{points(rate)} ± {points(stderr)} %"


def _spread(spread: Mapping[str, float]) -> str:
    low, middle, high = (figures(spread[key]) for key in ("min", "median", "max"))
    return f"{middle} ({low}–{high})"
