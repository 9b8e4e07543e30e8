"""Table and page of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from moe_export.artifacts.sweep import Point, Sweep
from moe_export.reporting import html
from moe_export.reporting.markdown import escaped
from moe_export.reporting.markdown import table as markdown_table
from moe_export.reporting.sentences import speed_words
from moe_export.reporting.sweep_front import front
from moe_export.reporting.sweep_verdicts import BUDGET, explanation, formats, sentence
from moe_export.reporting.tables import Table
from moe_export.reporting.units import figures, percent, ratio, size

TITLE = "Shares kept and formats, swept"


def sweep_markdown(sweep: Sweep) -> str:
    """Renders the tables and verdicts of a sweep in Markdown."""
    blocks = [f"# {TITLE}", escaped(introduction(sweep)), "## At equal bytes", explanation()]
    blocks += [escaped(sentence(sweep.points, verdict)) for verdict in sweep.verdicts]
    blocks += [markdown_table(budget_table(sweep)), "## Shares kept and formats"]
    blocks.append(markdown_table(grid_table(sweep)))
    return "\n\n".join(blocks) + "\n"


def sweep_html(sweep: Sweep) -> str:
    """Renders a sweep as a page with its picture."""
    from moe_export.reporting.figures_sweep import pareto  # noqa: PLC0415 - matplotlib

    blocks = [f"<h1>{escape(TITLE)}</h1>", html.paragraph(introduction(sweep), "muted")]
    blocks.append(html.figure(pareto(sweep, wide=True) + pareto(sweep)))
    blocks.append("<h2>At equal bytes</h2>")
    blocks.append(html.paragraph(explanation(), "muted"))
    blocks += [html.paragraph(sentence(sweep.points, verdict)) for verdict in sweep.verdicts]
    blocks.append(html.table(budget_table(sweep)))
    blocks += ["<h2>Shares kept and formats</h2>", html.table(grid_table(sweep))]
    return html.page(TITLE, "\n".join(blocks))


def grid_table(sweep: Sweep) -> Table:
    """Lists the unpruned model and the points whose share kept is given."""
    grid = [point for point in sweep.points if not point.name.startswith(BUDGET)]
    return _table(sweep, [sweep.unpruned, *grid])


def budget_table(sweep: Sweep) -> Table:
    """Lists the points whose bytes are given."""
    return _table(sweep, [p for p in sweep.points if p.name.startswith(BUDGET)])


def introduction(sweep: Sweep) -> str:
    """Describes the measurements, the documents and the machine."""
    at = sweep.speed_setting
    documents = ", ".join(f"{count} of {name}" for name, count in sweep.documents.items())
    speed = "Speed is left out."
    if at is not None:
        speed = (
            f"Speed is the median of decoding ({speed_words(at)}, after a prompt of "
            f"{at.prompt_tokens} tokens), its ratio that to the unpruned model measured next to "
            f"it. Measured on {sweep.machine.cpu}.{repeats_sentence(sweep.points)}"
        )
    return (
        "Every point is one exported model, pruned, quantized and measured in ONNX Runtime from "
        "one calibration; exact match is the mean over the tasks with answers. KL is from the "
        f"unpruned model, mean over the tasks. Documents: {documents}. "
        "A name in bold is of a point that no other beats in bytes and exact match both. "
        f"{speed}"
    )


def repeats_sentence(points: Sequence[Point]) -> str:
    """Describes the spread of the speed ratios of models that were measured several times."""
    ratios: dict[tuple[float | None, ...], list[float]] = {}
    for point in points:
        # Points of the same bytes and divergence are the same model.
        model = (point.weights_bytes, point.mean_kl_nats, point.mean_exact_match)
        if point.decode_ratio:
            ratios.setdefault(model, []).append(point.decode_ratio)
    spread = [max(repeats) / min(repeats) for repeats in ratios.values() if len(repeats) > 1]
    if not spread:
        return ""
    times = f"{max(spread):.2f} times"
    return f" The ratios of one model that was measured several times differ by up to {times}."


def _table(sweep: Sweep, points: Sequence[Point]) -> Table:
    before, timed = sweep.baseline.weights_bytes, sweep.speed_setting is not None
    routed = any(point.top_k is not None for point in sweep.points)
    on_front = {point.name for point in front(sweep.points)}
    rows, strong = [], set()
    for number, point in enumerate(points):
        if point.name in on_front:
            strong.add((number, 0))
        name = formats(point)
        text = [s.loss_nats for s in point.tasks.values() if s.exact_match is None]
        speed = (figures(point.decode_tokens_per_s), ratio(point.decode_ratio))
        rows.append(
            [
                name if point.experts != "auto" else f"the plan's: {name}",
                percent(point.kept),
                *(("" if point.top_k is None else str(point.top_k),) if routed else ()),
                size(point.weights_bytes),
                percent(point.weights_bytes / before),
                size(point.active_bytes_per_token),
                percent(point.mean_exact_match),
                figures(text[0], 4) if text else "",
                figures(point.mean_kl_nats),
                *(speed if timed else ()),
            ]
        )
    head = [
        "experts", "kept", *(("top-k",) if routed else ()), "weights", "of unpruned",
        "read per token", "exact match",
        "text loss, nats", "KL, nats", *(("decode tok/s", "ratio") if timed else ()),
    ]  # fmt: skip
    return Table(head, rows, strong=frozenset(strong))
