"""`report.html`, rendered from a report alone."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from moe_export.artifacts.report import Report
from moe_export.reporting import html, sentences, tables
from moe_export.reporting.harness_table import harness_table
from moe_export.reporting.markdown import settings_yaml
from moe_export.reporting.ranking_table import ranking_sentence, ranking_table
from moe_export.reporting.tuning_table import tuning_sentence, tuning_table


def report_html(report: Report) -> str:
    """Renders one document that holds its style, pictures and tables."""
    body = "\n".join(block for section in _SECTIONS for block in section(report))
    return html.page(report.title, body)


def _top(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.title)}</h1>"
    yield html.paragraph(sentences.summary(report), "muted")
    yield html.headline(sentences.strip(report))
    yield html.verdict(
        report.headline.gates_passed,
        sentences.gates_sentence(report),
        sentences.execution_sentence(report),
    )
    if warning := sentences.warning_sentence(report):
        yield html.verdict(False, warning)


def _widths(report: Report) -> Iterator[str]:
    from moe_export.reporting import figures, figures_widths  # noqa: PLC0415 - matplotlib

    yield "<h2>What was kept</h2>"
    yield html.paragraph(sentences.widths_sentence(report))
    if report.compensation is not None:
        yield html.paragraph(sentences.compensation_sentence(report))
    yield html.figure(
        figures_widths.widths_map(report) + figures_widths.widths_map(report, figures.HALF)
    )
    blocks = [html.figure(figures_widths.widths_profile(report))]
    if report.importance.curve:
        blocks.append(html.figure(figures_widths.importance_curve(report)))
    yield html.pair(*blocks)
    yield html.details("Every layer", html.table(tables.layer_table(report)))


def _tuning(report: Report) -> Iterator[str]:
    if report.tuning is None:
        return
    yield "<h2>Tuning</h2>"
    yield html.paragraph(tuning_sentence(report.tuning))
    yield html.table(tuning_table(report.tuning))


def _ranking(report: Report) -> Iterator[str]:
    if report.ranking is None:
        return
    yield "<h2>Choice of the ranking</h2>"
    yield html.paragraph(ranking_sentence(report.ranking))
    yield html.table(ranking_table(report.ranking))


def _memory(report: Report) -> Iterator[str]:
    from moe_export.reporting import figures_bars  # noqa: PLC0415 - matplotlib

    yield "<h2>Memory</h2>"
    yield html.paragraph(
        f"{sentences.prediction_sentence(report)} {sentences.active_sentence(report)}"
    )
    if report.quantization is not None:
        yield html.paragraph(sentences.quantization_sentence(report))
    held = (tables.resident_table(report), tables.device_table(report))
    right = "".join(html.table(table) for table in held if table.rows)
    right += html.paragraph(sentences.cache_sentence(report), "muted")
    yield html.pair(html.figure(figures_bars.memory_bars(report)), right)
    yield html.table(tables.memory_table(report))


def _accuracy(report: Report) -> Iterator[str]:
    from moe_export.reporting import figures_bars  # noqa: PLC0415 - matplotlib

    yield "<h2>Accuracy</h2>"
    scored = tables.accuracy_tables(report)
    if not any(scores.rows for scores in scored.values()):
        yield html.paragraph("No task was scored.")
        return
    for provider, scores in scored.items():
        if len(scored) > 1:
            yield f"<h3>{escape(provider)}</h3>"
        pictures = [
            figures_bars.accuracy_bars(report, provider),
            figures_bars.loss_bars(report, provider),
        ]
        yield html.pair(*(html.figure(picture) for picture in pictures if picture))
        yield html.table(scores)
    if ends := sentences.answer_ends_sentence(report):
        yield html.paragraph(ends, "muted")
    choices = tables.choice_table(report)
    if choices.rows:
        yield html.table(choices)


def _evaluation(report: Report) -> Iterator[str]:
    if report.evaluation is None:
        return
    yield "<h2>Tasks of lm-eval</h2>"
    yield html.paragraph(sentences.evaluation_sentence(report))
    yield html.table(harness_table(report.evaluation.tasks, report.evaluation.models))


def _speed(report: Report) -> Iterator[str]:
    from moe_export.reporting import figures_bars  # noqa: PLC0415 - matplotlib

    yield "<h2>Speed</h2>"
    yield html.paragraph(sentences.execution_sentence(report))
    providers = list(dict.fromkeys(entry.provider for entry in report.speed))
    for provider in providers:
        if len(providers) > 1:
            yield f"<h3>{escape(provider)}</h3>"
        pictures = [
            figures_bars.speed_bars(report, provider, phase) for phase in ("decode", "prefill")
        ]
        yield html.pair(*(html.figure(picture) for picture in pictures if picture))
    if providers:
        yield html.details("All measurements", html.table(tables.speed_table(report)))


def _checks(report: Report) -> Iterator[str]:
    yield "<h2>Checks</h2>"
    gates = tables.gates_table(report)
    if gates.rows:
        yield html.table(gates)
    yield "<h3>The exported model against torch</h3>"
    yield html.table(tables.parity_table(report))


def _making(report: Report) -> Iterator[str]:
    yield "<h2>How it was made</h2>"
    yield html.paragraph(sentences.coverage_sentence(report))
    yield html.table(tables.calibration_table(report))
    # Not side by side, which would hide the last column.
    yield html.table(tables.stage_table(report))
    yield html.details("Settings of every stage", html.preformatted(settings_yaml(report)))


def _measuring(report: Report) -> Iterator[str]:
    yield "<h2>How it was measured</h2>"
    yield html.table(tables.methods_table(report), "prose")
    yield html.details("Machine and versions", html.table(tables.machine_table(report), "prose"))
    yield f"<footer>moe-export {escape(report.moe_export)}</footer>"


_SECTIONS = (
    *(_top, _widths, _tuning, _ranking, _memory, _accuracy, _evaluation),
    *(_speed, _checks, _making, _measuring),
)
