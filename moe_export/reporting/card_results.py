"""Measured results on a model's card, which is complete once the run has a report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moe_export.artifacts.report import Report
from moe_export.artifacts.report_results import AccuracyFacts, TaskFacts
from moe_export.evaluation.fall import unpruned_model
from moe_export.reporting.card import CARD_FILE, UNMEASURED
from moe_export.reporting.harness_table import harness_table
from moe_export.reporting.markdown import escaped, table
from moe_export.reporting.tables import Table, mean_text, rate_text, spread_text
from moe_export.reporting.units import NONE, count, size
from moe_export.system.disk import disk_error
from moe_export.variants import BASELINE, PRUNED

CARDS = "cards"
"""Folder of the complete cards within that of the report."""

CHECKPOINT = "checkpoint"
"""Name of the pruned checkpoint's card, and of that model among those that lm-eval has run."""


def write_cards(report: Report, export: Path, prune: Path, out: Path) -> None:
    """Writes `cards/VARIANT.md` for every exported model, and `cards/checkpoint.md`.

    A card is that of the model's own folder with the results of the run. The folder itself stays
    as its stage wrote it.

    Args:
        report: report of the run.
        export: folder of the exported models.
        prune: folder of the pruned checkpoint.
        out: folder of the report.

    Raises:
        ResourceError: a card cannot be written.
    """
    sources = {path.parent.name: path for path in sorted(export.glob(f"*/{CARD_FILE}"))}
    sources[CHECKPOINT] = prune / CARD_FILE
    try:
        (out / CARDS).mkdir(exist_ok=True)
        for name, source in sources.items():
            if source.is_file():
                card = complete(source.read_text(encoding="utf-8"), report, name)
                (out / CARDS / f"{name}.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, out / CARDS) from error


def complete(card: str, report: Report, name: str) -> str:
    """A card with the results of the run before the code, in place of a note that they come later.

    Args:
        card: card of the model's folder.
        report: report of the run.
        name: exported variant, or `checkpoint`.
    """
    head, code, rest = card.replace(f"{UNMEASURED}\n\n", "").partition("## Run it in this folder")
    return head + "\n\n".join(_blocks(report, name)) + "\n\n" + code + rest


def _blocks(report: Report, name: str) -> Iterator[str]:
    yield "## Measured"
    variant = PRUNED if name == CHECKPOINT else name
    machine = report.machine
    versions = ", ".join(f"{key} {value}" for key, value in report.versions.items())
    yield escaped(
        f"By the run that made this model, on {machine.cpu}, {machine.cores} cores; {versions}."
    )
    if (scores := _accuracy_table(report, variant)) is not None:
        unpruned = any(entry.variant == BASELINE for entry in report.accuracy)
        brackets = "; the unpruned model in brackets" if unpruned and variant != BASELINE else ""
        yield f"Held-out documents, in ONNX Runtime{brackets}:"
        yield table(scores)
    if (tasks := _harness_table(report, name)) is not None:
        yield "Tasks of lm-eval:"
        yield table(tasks)
    if name != CHECKPOINT and (costs := _cost_table(report, variant)).rows:
        yield table(costs)


def _accuracy_table(report: Report, variant: str) -> Table | None:
    """Scores of a variant on the first provider that ran it; None without any."""
    entries = {entry.variant: entry for entry in reversed(report.accuracy)}
    if variant not in entries or not entries[variant].tasks:
        return None
    before = (
        {task.task: task for task in _tasks(entries.get(BASELINE))} if variant != BASELINE else {}
    )
    rows = [_task_row(task, before.get(task.task)) for task in entries[variant].tasks]
    head = ["task", "items", "exact match", "likeliest choice", "loss, nats", "KL, nats"]
    return Table(head, rows)


def _tasks(entry: AccuracyFacts | None) -> tuple[TaskFacts, ...]:
    return entry.tasks if entry is not None else ()


def _task_row(task: TaskFacts, before: TaskFacts | None) -> list[str]:
    def against(now: str, then: str) -> str:
        return now if before is None or now == NONE else f"{now} ({then})"

    was = before or task
    return [
        task.task,
        count(task.items),
        against(
            rate_text(task.exact_match, task.exact_match_stderr),
            rate_text(was.exact_match, was.exact_match_stderr),
        ),
        against(
            rate_text(task.choice_accuracy, task.choice_accuracy_stderr),
            rate_text(was.choice_accuracy, was.choice_accuracy_stderr),
        ),
        against(
            mean_text(task.loss_nats, task.loss_nats_stderr),
            mean_text(was.loss_nats, was.loss_nats_stderr),
        ),
        mean_text(task.kl_nats, task.kl_nats_stderr),
    ]


def _harness_table(report: Report, name: str) -> Table | None:
    """Scores of a model and of the unpruned one on lm-eval's tasks; None if it was not run."""
    facts = report.evaluation
    if facts is None or not any(model.model == name for model in facts.models):
        return None
    unpruned = unpruned_model(facts.models)
    models = [unpruned] if unpruned is not None and unpruned.model != name else []
    models += [model for model in facts.models if model.model == name]
    return harness_table(facts.tasks, models)


def _cost_table(report: Report, variant: str) -> Table:
    """Memory and speed of a variant at every setting."""
    rows = [
        ["memory after a short generation", held.provider, size(held.steady_resident_bytes)]
        for entry in report.memory.variants
        if entry.variant == variant
        for held in entry.resident
    ]
    rows += [
        [
            "prompt, decode in tokens/s: median (range)",
            f"{entry.provider}, batch {entry.batch_size}, threads {entry.threads}, {entry.path}",
            f"{spread_text(entry.prefill_tokens_per_s)}, {spread_text(entry.decode_tokens_per_s)}",
        ]
        for entry in report.speed
        if entry.variant == variant
    ]
    return Table(["measured", "on", ""], rows, words=2)
