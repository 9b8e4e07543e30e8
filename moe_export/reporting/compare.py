"""Comparison of several runs, from their reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from moe_export.artifacts.comparison import Column, ComparedTask, Comparison
from moe_export.artifacts.measurements import SpeedSetting, headline_setting
from moe_export.artifacts.report import Report
from moe_export.artifacts.report_memory import ResidentMemory, VariantMemory
from moe_export.artifacts.report_plan import PlanFacts
from moe_export.artifacts.report_results import AccuracyFacts
from moe_export.errors import ArtifactError
from moe_export.reporting import html
from moe_export.reporting.build_headline import rates_at
from moe_export.reporting.sentences import speed_words
from moe_export.reporting.tables import Table
from moe_export.reporting.units import figures, percent, ratio, size
from moe_export.variants import BASELINE

TITLE = "Runs compared"


def compare(runs: Sequence[Path]) -> Comparison:
    """Compares runs, with one column per exported variant; a shared baseline is listed once.

    Raises:
        ArtifactError: a directory holds no report, or a report is damaged or of another version.
    """
    reports = {name: _load(run) for name, run in zip(_names(runs), runs, strict=True)}
    setting = _common_setting(list(reports.values()))
    columns: list[Column] = []
    for run, report in reports.items():
        for memory in report.memory.variants:
            if memory.disk_weights_bytes is None:
                continue
            column = _column(run, report, memory, memory.disk_weights_bytes, setting)
            is_known = any(column.is_same_model(other) for other in columns)
            if memory.variant != BASELINE or not is_known:
                columns.append(column)
    tasks = dict.fromkeys(task.task for column in columns for task in column.tasks)
    return Comparison(
        runs=tuple(reports),
        tasks=tuple(tasks),
        speed_setting=setting,
        notes=tuple(_notes(list(reports.values()), setting)),
        columns=tuple(columns),
    )


def to_table(comparison: Comparison) -> Table:
    """Lists figures down, variants of runs across."""
    columns = comparison.columns
    lines: list[tuple[str, list[str]]] = [
        ("variant", [column.variant for column in columns]),
        ("ranking", [column.score or "" for column in columns]),
        ("kept", [percent(column.kept) for column in columns]),
        *_shared_lines(columns),
        ("format", [column.format for column in columns]),
        ("weights", [size(column.weights_bytes) for column in columns]),
        ("read per token", [size(column.active_bytes_per_token) for column in columns]),
        ("load peak", [size(column.load_peak_bytes) for column in columns]),
        ("steady memory", [size(column.steady_resident_bytes) for column in columns]),
        *_device_lines(columns),
        *(_task_line(columns, task) for task in comparison.tasks),
        ("mean exact match", [percent(column.mean_exact_match) for column in columns]),
        ("recovery", [percent(column.recovery) for column in columns]),
        ("prefill tok/s", [figures(column.prefill_tokens_per_s) for column in columns]),
        ("decode tok/s", [figures(column.decode_tokens_per_s) for column in columns]),
        ("decode ratio", [ratio(column.decode_ratio) for column in columns]),
        ("gates", [_gates(column.gates_passed) for column in columns]),
    ]
    head = ["run", *(column.run for column in columns)]
    return Table(head, [[name, *cells] for name, cells in lines])


def _shared_lines(columns: Sequence[Column]) -> Iterator[tuple[str, list[str]]]:
    """Yields the share kept of shared experts, if one is pruned."""
    kept = [column.shared_expert_kept for column in columns]
    if any(share is not None and share < 1 for share in kept):
        yield "shared expert kept", [percent(share) for share in kept]


def _device_lines(columns: Sequence[Column]) -> Iterator[tuple[str, list[str]]]:
    """Yields the memory of the GPU, if a run used one."""
    lines = {
        "device loaded": [column.device_loaded_bytes for column in columns],
        "device peak": [column.device_peak_bytes for column in columns],
        "device KV cache": [column.device_kv_cache_bytes for column in columns],
    }
    for name, values in lines.items():
        if any(value is not None for value in values):
            yield name, [size(value) for value in values]


def _task_line(columns: Sequence[Column], task: str) -> tuple[str, list[str]]:
    """Shows the exact match of a task, or its loss if it has no answers."""
    scores = [column.task(task) for column in columns]
    rates = [score.exact_match if score else None for score in scores]
    if any(rate is not None for rate in rates):
        return task, [percent(rate) for rate in rates]
    return f"{task}, nats", [figures(score.loss_nats if score else None) for score in scores]


def text_rows(comparison: Comparison) -> list[list[str]]:
    """Returns the table as plain rows, the head first."""
    content = to_table(comparison)
    return [list(content.head), *(list(row) for row in content.rows)]


def to_html(comparison: Comparison) -> str:
    """Renders the comparison as a page."""
    from moe_export.reporting.figures_compare import comparison_bars  # noqa: PLC0415 - matplotlib

    blocks = [f"<h1>{escape(TITLE)}</h1>", html.paragraph(_speed_sentence(comparison), "muted")]
    blocks += [html.paragraph(note) for note in comparison.notes]
    blocks.append(html.figure(comparison_bars(comparison, wide=True) + comparison_bars(comparison)))
    blocks.append(html.table(to_table(comparison)))
    return html.page(TITLE, "\n".join(blocks))


def _load(run: Path) -> Report:
    folder = run / "report"
    if not (folder / Report.FILE).exists():
        raise ArtifactError(
            f"{run} holds no report ({folder / Report.FILE} is missing); run its recipe up to the "
            "report stage"
        )
    return Report.load(folder)


def _names(runs: Sequence[Path]) -> list[str]:
    """Returns the name of each run's folder, with as many parents as tell the runs apart."""
    parts = [run.resolve().parts for run in runs]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    names: list[str] = []
    for part in parts:
        name = "/".join(part[-depth:])
        names.append(name if name not in names else f"{name} ({names.count(name) + 1})")
    return names


def _common_setting(reports: Sequence[Report]) -> SpeedSetting | None:
    """Returns the setting of the compared speeds, one that every run was measured at."""
    measured = [{entry.setting for entry in report.speed} for report in reports]
    common = [
        entry
        for entry in reports[0].speed
        if all(entry.setting in settings for settings in measured)
    ]
    return headline_setting(common)


def _column(
    run: str,
    report: Report,
    memory: VariantMemory,
    weights_bytes: int,
    setting: SpeedSetting | None,
) -> Column:
    variant = memory.variant
    is_baseline = variant == BASELINE
    scores = _scores_of(report, variant)
    rates = rates_at(report.speed, setting)
    own, before = rates.get(variant), rates.get(BASELINE)
    resident = memory.resident[0] if memory.resident else None
    device = _on_device(memory)
    return Column(
        run=run,
        variant=variant,
        title=report.title,
        score=None if is_baseline else report.plan.score,
        kept=1.0 if is_baseline else report.plan.kept,
        shared_expert_kept=_shared_kept(report.plan, is_baseline=is_baseline),
        format=memory.format,
        weights_bytes=weights_bytes,
        active_bytes_per_token=memory.active_bytes_per_token,
        load_peak_bytes=resident.load_peak_bytes if resident else None,
        steady_resident_bytes=resident.steady_resident_bytes if resident else None,
        device_loaded_bytes=device.device_loaded_bytes if device else None,
        device_peak_bytes=device.device_peak_bytes if device else None,
        device_kv_cache_bytes=device.device_kv_cache_bytes if device else None,
        mean_exact_match=scores.mean_exact_match if scores else None,
        recovery=scores.recovery if scores else None,
        tasks=_tasks(scores) if scores else (),
        prefill_tokens_per_s=own.prefill.median if own else None,
        decode_tokens_per_s=own.decode.median if own else None,
        decode_ratio=own.decode.median / before.decode.median if own and before else None,
        gates_passed=None if is_baseline else report.headline.gates_passed,
    )


def _scores_of(report: Report, variant: str) -> AccuracyFacts | None:
    """Returns the scores of a variant on the first provider that has any."""
    return next((entry for entry in report.accuracy if entry.variant == variant), None)


def _on_device(memory: VariantMemory) -> ResidentMemory | None:
    """Returns the memory of the first provider that used a GPU."""
    return next((held for held in memory.resident if held.device_peak_bytes is not None), None)


def _tasks(scores: AccuracyFacts) -> tuple[ComparedTask, ...]:
    return tuple(
        ComparedTask(task=task.task, exact_match=task.exact_match, loss_nats=task.loss_nats)
        for task in scores.tasks
    )


def _shared_kept(plan: PlanFacts, *, is_baseline: bool) -> float | None:
    """Returns the fraction of the shared expert's rows over all layers; None without one."""
    if plan.shared_expert is None:
        return None
    kept = sum(layer.shared_width or 0 for layer in plan.layers)
    before = sum(layer.shared_width_before or 0 for layer in plan.layers)
    return 1.0 if is_baseline or not before else kept / before


def _notes(reports: Sequence[Report], setting: SpeedSetting | None) -> Iterator[str]:
    """Yields warnings that a reader needs before comparing."""
    different = "The runs were measured on different {}: their speed is not to be compared."
    if any(report.machine != reports[0].machine for report in reports):
        yield different.format("machines")
    if any(report.versions != reports[0].versions for report in reports):
        yield different.format("versions of the software")
    families = {report.model.family for report in reports}
    sizes = {report.model.parameters.before for report in reports}
    if len(families) > 1 or len(sizes) > 1:
        yield "The runs are of different models."
    if setting is None:
        yield "No speed was measured at a setting that all runs have in common."


def _speed_sentence(comparison: Comparison) -> str:
    setting = comparison.speed_setting
    if setting is None:
        return "Speed is not compared."
    return (
        f"Speed is the median at {speed_words(setting)}, a prompt of {setting.prompt_tokens} "
        f"tokens and {setting.new_tokens} new ones. A baseline stands once where it is the same "
        "model with the same scores; the decode ratio is against the run's own."
    )


def _gates(passed: bool | None) -> str:
    return "" if passed is None else "pass" if passed else "FAIL"
