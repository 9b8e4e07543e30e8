"""Several runs side by side, from their `report.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import SCHEMA, load_json
from moe_export.errors import ArtifactError
from moe_export.reporting import html
from moe_export.reporting.build import headline_speed, speed_setting
from moe_export.reporting.build_validation import DEVICE_KEYS
from moe_export.reporting.markdown import escaped
from moe_export.reporting.markdown import table as markdown_table
from moe_export.reporting.sentences import speed_words
from moe_export.reporting.tables import Table
from moe_export.reporting.units import figures, percent, ratio, size
from moe_export.variants import BASELINE

TITLE = "Runs compared"


def compare(runs: Sequence[Path]) -> dict[str, Any]:
    """One column per exported variant of every run; a baseline that is the same is shown once.

    Returns:
        Plain JSON values, with the keys that docs/reference/report.md tells of.

    Raises:
        ArtifactError: a directory holds no report.
    """
    reports = {name: _load(run) for name, run in zip(_names(runs), runs, strict=True)}
    at = _common_speed(list(reports.values()))
    columns: list[dict[str, Any]] = []
    for run, report in reports.items():
        for memory in report["memory"]["variants"]:
            if memory["disk_weights_bytes"] is None:
                continue
            column = _column(run, report, memory, at)
            if memory["variant"] != BASELINE or not any(_same(column, other) for other in columns):
                columns.append(column)
    tasks = dict.fromkeys(task["task"] for column in columns for task in column["tasks"])
    return {
        "schema": SCHEMA,
        "runs": list(reports),
        "tasks": list(tasks),
        "speed_setting": at,
        "notes": list(_notes(reports, at)),
        "columns": columns,
    }


def to_table(comparison: Mapping[str, Any]) -> Table:
    """Numbers down, variants of runs across."""
    columns = comparison["columns"]
    lines: list[tuple[str, list[str]]] = [
        ("variant", [column["variant"] for column in columns]),
        ("ranking", [column["score"] or "" for column in columns]),
        ("kept", [percent(column["kept"]) for column in columns]),
        *_shared_lines(columns),
        ("format", [column["format"] for column in columns]),
        ("weights", [size(column["weights_bytes"]) for column in columns]),
        ("read per token", [size(column["active_bytes_per_token"]) for column in columns]),
        ("load peak", [size(column["load_peak_bytes"]) for column in columns]),
        ("steady memory", [size(column["steady_resident_bytes"]) for column in columns]),
    ]
    for name, key in zip(("loaded", "peak", "KV cache"), DEVICE_KEYS, strict=True):
        if any(column[key] is not None for column in columns):
            lines.append((f"device {name}", [size(column[key]) for column in columns]))
    for task in comparison["tasks"]:
        scores = [_score_of(column, task) for column in columns]
        if any(score.get("exact_match") is not None for score in scores):
            lines.append((task, [percent(score.get("exact_match")) for score in scores]))
        else:
            lines.append((f"{task}, nats", [figures(score.get("loss_nats")) for score in scores]))
    lines += [
        ("mean exact match", [percent(column["mean_exact_match"]) for column in columns]),
        ("recovery", [percent(column["recovery"]) for column in columns]),
        ("prefill tok/s", [figures(column["prefill_tokens_per_s"]) for column in columns]),
        ("decode tok/s", [figures(column["decode_tokens_per_s"]) for column in columns]),
        ("decode ratio", [ratio(column["decode_ratio"]) for column in columns]),
        ("gates", [_gates(column["gates_passed"]) for column in columns]),
    ]
    head = ["run", *(column["run"] for column in columns)]
    return Table(head, [[name, *cells] for name, cells in lines])


def _shared_lines(columns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """What is kept of shared experts, where one is pruned."""
    kept = [column["shared_expert_kept"] for column in columns]
    if any(share is not None and share < 1 for share in kept):
        yield "shared expert kept", [percent(share) for share in kept]


def text_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """The table as plain rows, the head first."""
    content = to_table(comparison)
    return [list(content.head), *(list(row) for row in content.rows)]


def to_markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    blocks = [
        f"# {TITLE}",
        markdown_table(to_table(comparison)),
        escaped(_speed_sentence(comparison)),
    ]
    return "\n\n".join([*blocks, *map(escaped, comparison["notes"])]) + "\n"


def to_html(comparison: Mapping[str, Any]) -> str:
    """The comparison as a page of its own."""
    from moe_export.reporting.figures_compare import comparison_bars  # noqa: PLC0415 - matplotlib

    blocks = [f"<h1>{escape(TITLE)}</h1>", html.paragraph(_speed_sentence(comparison), "muted")]
    blocks += [html.paragraph(note) for note in comparison["notes"]]
    blocks.append(html.figure(comparison_bars(comparison, wide=True) + comparison_bars(comparison)))
    blocks.append(html.table(to_table(comparison)))
    return html.page(TITLE, "\n".join(blocks))


def _load(run: Path) -> dict[str, Any]:
    path = run / "report" / "report.json"
    if not path.exists():
        raise ArtifactError(
            f"{run} holds no report ({path} is missing); run its recipe up to the report stage"
        )
    return load_json(path)


def _names(runs: Sequence[Path]) -> list[str]:
    """The name of each run's folder, with its parents' as far as it takes to tell them apart."""
    parts = [run.resolve().parts for run in runs]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    names: list[str] = []
    for part in parts:
        name = "/".join(part[-depth:])
        names.append(name if name not in names else f"{name} ({names.count(name) + 1})")
    return names


def _common_speed(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The setting to compare speed at: one that every run was measured at."""
    common = [
        entry
        for entry in reports[0]["speed"]
        if all(speed_setting(entry) in map(speed_setting, other["speed"]) for other in reports)
    ]
    return headline_speed(common)


def _column(
    run: str, report: Mapping[str, Any], memory: Mapping[str, Any], at: Mapping[str, Any] | None
) -> dict[str, Any]:
    variant = memory["variant"]
    is_baseline = variant == BASELINE
    scores = next((e for e in report["accuracy"] if e["variant"] == variant), None)
    speed = {e["variant"]: e for e in report["speed"] if at is not None and speed_setting(e) == at}
    rates = {
        phase: speed[variant][f"{phase}_tokens_per_s"]["median"] if variant in speed else None
        for phase in ("prefill", "decode")
    }
    resident = memory["resident"][0] if memory["resident"] else {}
    device: Mapping[str, Any] = next(
        (e for e in memory["resident"] if e["device_peak_bytes"] is not None), {}
    )
    before = speed[BASELINE]["decode_tokens_per_s"]["median"] if BASELINE in speed else None
    return {
        "run": run,
        "variant": variant,
        "title": report["title"],
        "score": None if is_baseline else report["plan"]["score"],
        "kept": 1.0 if is_baseline else report["plan"]["kept"],
        "shared_expert_kept": _shared_kept(report["plan"], is_baseline),
        "format": memory["format"],
        "weights_bytes": memory["disk_weights_bytes"],
        "active_bytes_per_token": memory["active_bytes_per_token"],
        "load_peak_bytes": resident.get("load_peak_bytes"),
        "steady_resident_bytes": resident.get("steady_resident_bytes"),
        **{key: device.get(key) for key in DEVICE_KEYS},
        "mean_exact_match": scores["mean_exact_match"] if scores else None,
        "recovery": scores["recovery"] if scores else None,
        "tasks": [
            {key: task[key] for key in ("task", "exact_match", "loss_nats")}
            for task in (scores["tasks"] if scores else [])
        ],
        "prefill_tokens_per_s": rates["prefill"],
        "decode_tokens_per_s": rates["decode"],
        "decode_ratio": rates["decode"] / before if rates["decode"] and before else None,
        "gates_passed": None if is_baseline else report["headline"]["gates_passed"],
    }


def _shared_kept(plan: Mapping[str, Any], is_baseline: bool) -> float | None:
    """The fraction of the shared expert's rows, over all layers; None without such an expert."""
    if plan["shared_expert"] is None:
        return None
    kept, before = (
        sum(layer[key] for layer in plan["layers"])
        for key in ("shared_width", "shared_width_before")
    )
    return 1.0 if is_baseline or not before else kept / before


def _same(column: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two columns are the same model with the same scores, whatever its speed."""
    keys = ("variant", "format", "weights_bytes", "tasks")
    return all(column[key] == other[key] for key in keys)


def _notes(reports: Mapping[str, Mapping[str, Any]], at: Mapping[str, Any] | None) -> Iterator[str]:
    """What a reader must know before comparing."""
    for key, words in (("machine", "machines"), ("versions", "versions of the software")):
        if len({repr(sorted(report[key].items(), key=str)) for report in reports.values()}) > 1:
            yield f"The runs were measured on different {words}: their speed is not to be compared."
    families = {report["model"]["family"]: None for report in reports.values()}
    sizes = {report["model"]["parameters"]["before"] for report in reports.values()}
    if len(families) > 1 or len(sizes) > 1:
        yield "The runs are of different models."
    if at is None:
        yield "No speed was measured at a setting that all runs have in common."


def _speed_sentence(comparison: Mapping[str, Any]) -> str:
    at = comparison["speed_setting"]
    if at is None:
        return "Speed is not compared."
    return (
        f"Speed is the median at {speed_words(at)}, a prompt of {at['prompt_tokens']} tokens and "
        f"{at['new_tokens']} new ones. A baseline stands once where it is the same model with the "
        "same scores; the decode ratio is against the run's own."
    )


def _score_of(column: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    return next((score for score in column["tasks"] if score["task"] == task), {})


def _gates(passed: bool | None) -> str:
    return "" if passed is None else "pass" if passed else "FAIL"
