"""Tables and reports in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from moe_export.artifacts.report import Report
from moe_export.reporting import sentences, tables
from moe_export.reporting.harness_table import harness_table
from moe_export.reporting.ranking_table import ranking_sentence, ranking_table
from moe_export.reporting.tables import Table
from moe_export.reporting.tuning_table import tuning_sentence, tuning_table
from moe_export.system.text import printable


def report_markdown(report: Report) -> str:
    """Renders `report.md` from a report alone."""
    return printable("\n\n".join(_blocks(report)), keep="\n") + "\n"


def _blocks(report: Report) -> Iterator[str]:
    yield f"# {escaped(report.title)}"
    yield escaped(sentences.summary(report))
    strip = [(label, figure, words) for label, figure, words in sentences.strip(report)]
    yield table(Table(["", "", ""], strip, words=3))
    yield escaped(f"{sentences.gates_sentence(report)} {sentences.execution_sentence(report)}")
    if warning := sentences.warning_sentence(report):
        yield f"**{escaped(warning)}**"
    yield "## Widths"
    yield f"{sentences.widths_sentence(report)} {sentences.importance_sentence(report)}"
    if report.compensation is not None:
        yield sentences.compensation_sentence(report)
    yield table(tables.layer_table(report))
    if report.tuning is not None:
        yield "## Tuning"
        yield escaped(tuning_sentence(report.tuning))
        yield table(tuning_table(report.tuning))
    if report.ranking is not None:
        yield "## Choice of the ranking"
        yield escaped(ranking_sentence(report.ranking))
        yield table(ranking_table(report.ranking))
    yield "## Memory"
    yield f"{sentences.prediction_sentence(report)} {sentences.active_sentence(report)}"
    if report.quantization is not None:
        yield escaped(sentences.quantization_sentence(report))
    yield table(tables.memory_table(report))
    yield from _unless_empty(tables.resident_table(report))
    yield from _unless_empty(tables.device_table(report))
    yield sentences.cache_sentence(report)
    yield "## Accuracy"
    for provider, scores in tables.accuracy_tables(report).items():
        yield f"Provider {provider}:"
        yield from _unless_empty(scores)
    if ends := sentences.answer_ends_sentence(report):
        yield escaped(ends)
    if (choices := tables.choice_table(report)).rows:
        yield table(choices)
    if report.evaluation is not None:
        yield "## Tasks of lm-eval"
        yield escaped(sentences.evaluation_sentence(report))
        yield table(harness_table(report.evaluation.tasks, report.evaluation.models))
    yield "## Speed"
    yield from _unless_empty(tables.speed_table(report))
    yield "## Checks"
    yield from _unless_empty(tables.gates_table(report))
    yield table(tables.parity_table(report))
    yield "## Calibration"
    yield escaped(sentences.coverage_sentence(report))
    yield table(tables.calibration_table(report))
    yield "## Stages"
    yield table(tables.stage_table(report))
    yield "## Machine and versions"
    yield table(tables.machine_table(report))
    yield "## How each number was measured"
    yield table(tables.methods_table(report))
    yield "## Settings"
    yield "```yaml\n" + settings_yaml(report).replace("```", "'''") + "```"
    yield f"moe-export {report.moe_export}"


def table(content: Table) -> str:
    """Renders a table in GitHub's Markdown."""
    rows = [list(content.head)]
    rows += [
        [
            f"**{escaped(cell)}**" if (number, column) in content.strong else escaped(cell)
            for column, cell in enumerate(row)
        ]
        for number, row in enumerate(content.rows)
    ]
    rule = ["---" if column < content.words else "---:" for column in range(len(content.head))]
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Escapes what Markdown, HTML or a terminal would act on."""
    # Brackets stay, so that ranges are readable: only `](` makes a link of them.
    line = printable(" ".join(text.split()))
    return re.sub(r"([\\|*`]|(?<=\])\()", r"\\\1", line).replace("<", "&lt;")


def settings_yaml(report: Report) -> str:
    """Renders the settings of every stage as a recipe writes them."""
    return str(yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True))


def _unless_empty(content: Table) -> Iterator[str]:
    yield table(content) if content.rows else "Not measured."
