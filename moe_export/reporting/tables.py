"""Tables of a report as text cells, shown by the Markdown and by the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moe_export.artifacts.measurements import Speed, Spread
from moe_export.artifacts.report import Report
from moe_export.artifacts.report_making import StageCost
from moe_export.artifacts.report_memory import ClassBytes, UnprunedQuantized, VariantMemory
from moe_export.artifacts.stage_mark import PredictedCost
from moe_export.reporting.palette import class_colour
from moe_export.reporting.units import (
    NONE,
    count,
    figures,
    percent,
    plain,
    points,
    ratio,
    seconds,
    size,
)
from moe_export.variants import BASELINE

SCOPES = {
    "model": "over the whole model",
    "layer": "within each layer",
    "expert": "within each expert",
}

GATES = {
    "finite_logits": ("share of positions with finite logits", "at least"),
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
"""Limited quantity of each gate in words, and the side of the limit on which a value passes."""


def gate_words(name: str) -> tuple[str, str]:
    """Limited quantity of a gate in words, and the side of the limit on which a value passes.

    >>> gate_words("eval.gsm8k")
    ('fall of gsm8k from the unpruned model', 'at most')
    """
    stage, _, task = name.partition(".")
    if stage == "eval" and task:
        return f"fall of {task} from the unpruned model", "at most"
    return GATES.get(name, (name, "limit"))


@dataclass(frozen=True)
class Table:
    """Rows of text under a head.

    Attributes:
        head: names of the columns; the first column is flush left.
        rows: cells of each row, as many as the head has.
        words: number of columns from the left that hold words, and so are flush left.
        keys: name of the colour that marks the first cell, per row.
        strong: row and column of each cell in bold.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    keys: Sequence[str] = ()
    strong: frozenset[tuple[int, int]] = frozenset()


def memory_table(report: Report) -> Table:
    """Lists the weights by class for every variant, with the total on disk and as predicted.

    The prediction for quantization alone stands beside the exported variants.
    """
    columns = [_memory_column(entry) for entry in report.memory.variants]
    if report.memory.unpruned_quantized.weights_bytes is not None:
        columns.append(_unpruned_quantized_column(report.memory.unpruned_quantized))
    names = list(
        dict.fromkeys(name for column in columns for name, count in column.classes.items() if count)
    )
    rows = [
        [name.replace("_", " "), *(size(c.classes.get(name)) for c in columns)] for name in names
    ]
    rows.append(["on disk, bytes", *(count(column.on_disk) for column in columns)])
    rows.append(["predicted, bytes", *(count(column.predicted) for column in columns)])
    rows.append(["read per token", *(size(column.active) for column in columns)])
    rows.append(["graph", *(size(column.graph) for column in columns)])
    keys = [class_colour(name) for name in names]
    return Table(["", *(column.name for column in columns)], rows, keys=keys)


@dataclass(frozen=True)
class _MemoryColumn:
    """Bytes of one variant; None stands for what was not exported or predicted.

    Attributes:
        name: head of the column.
        classes: bytes by class of tensors.
        on_disk: size of `model.onnx.data`.
        predicted: size that the plan predicted.
        active: bytes of weights that a token reads.
        graph: size of `model.onnx`.
    """

    name: str
    classes: Mapping[str, int]
    on_disk: int | None
    predicted: int | None
    active: int | None
    graph: int | None


def _memory_column(entry: VariantMemory) -> _MemoryColumn:
    return _MemoryColumn(
        entry.variant,
        _by_class(entry.classes),
        entry.disk_weights_bytes,
        entry.predicted_weights_bytes,
        entry.active_bytes_per_token,
        entry.graph_bytes,
    )


def _unpruned_quantized_column(entry: UnprunedQuantized) -> _MemoryColumn:
    return _MemoryColumn(
        "unpruned, quantized",
        _by_class(entry.classes),
        None,
        entry.weights_bytes,
        entry.active_bytes_per_token,
        None,
    )


def _by_class(classes: Iterable[ClassBytes]) -> dict[str, int]:
    return {entry.name: entry.weights_bytes for entry in classes}


def resident_table(report: Report) -> Table:
    """Lists the resident memory of every variant and provider."""
    rows = [
        [
            f"{entry.variant}, {held.provider}",
            size(held.load_peak_bytes),
            size(held.steady_resident_bytes),
            size(entry.predicted_resident_bytes),
            _difference(entry.predicted_resident_bytes, held.steady_resident_bytes),
        ]
        for entry in report.memory.variants
        for held in entry.resident
    ]
    return Table(["resident memory", "load peak", "steady", "predicted", "off by"], rows)


def device_table(report: Report) -> Table:
    """Lists the memory of the GPU for every variant that ran on one."""
    rows = [
        [
            f"{entry.variant}, {held.provider}",
            size(held.device_loaded_bytes),
            size(held.device_peak_bytes),
            size(held.device_kv_cache_bytes),
        ]
        for entry in report.memory.variants
        for held in entry.resident
        if held.device_peak_bytes is not None
    ]
    return Table(["device memory", "loaded", "peak", "KV cache"], rows)


def accuracy_tables(report: Report) -> dict[str, Table]:
    """Returns by provider the scores of every variant on every task."""
    tables = {}
    for provider in report.providers:
        entries = [entry for entry in report.accuracy if entry.provider == provider]
        rows = []
        for position, task in enumerate(entries[0].tasks):
            for entry in entries:
                scores = entry.tasks[position]
                rows.append(
                    [
                        task.task,
                        entry.variant,
                        count(scores.items),
                        rate_text(scores.exact_match, scores.exact_match_stderr),
                        rate_text(scores.first_token_match, scores.first_token_match_stderr),
                        mean_text(scores.loss_nats, scores.loss_nats_stderr),
                        figures(scores.perplexity),
                        mean_text(scores.kl_nats, scores.kl_nats_stderr),
                        percent(scores.top1_agreement),
                    ]
                )
        rows += [
            ["mean", entry.variant, "", percent(entry.mean_exact_match), "", "", "", "", ""]
            for entry in entries
        ]
        head = [
            "task", "", "items", "exact match", "first token", "loss, nats", "perplexity",
            "KL, nats", "top-1",
        ]  # fmt: skip
        tables[provider] = Table(head, rows, words=2)
    return tables


def choice_table(report: Report) -> Table:
    """Returns the choices and first tokens of every task with choices; empty without any."""
    rows = [
        [
            entry.provider,
            scores.task,
            entry.variant,
            rate_text(scores.choice_accuracy, scores.choice_accuracy_stderr),
            rate_text(scores.first_token_match, scores.first_token_match_stderr),
            rate_text(scores.exact_match, scores.exact_match_stderr),
        ]
        for entry in report.accuracy
        for scores in entry.tasks
        if scores.choice_accuracy is not None
    ]
    return Table(["", "task", "", "likeliest choice", "first token", "all tokens"], rows, words=3)


def speed_table(report: Report) -> Table:
    """Lists prefill and decode at every setting, and decode beside what bytes predict.

    One sequence is predicted to decode faster by the ratio of the bytes of weights that a token
    reads in the baseline and in the variant.
    """
    rows = [
        [
            entry.variant,
            entry.provider,
            entry.path,
            str(entry.batch_size),
            str(entry.threads),
            spread_text(entry.prefill_tokens_per_s),
            spread_text(entry.decode_tokens_per_s),
            ratio(_decode_of_baseline(report, entry)),
            ratio(_predicted_of_baseline(report, entry)),
        ]
        for entry in report.speed
    ]
    head = [
        "variant",
        "provider",
        "path that ran",
        "batch",
        "threads",
        "prefill tok/s",
        "decode tok/s",
        "of baseline",
        "predicted",
    ]
    return Table(head, rows, words=3)


def _decode_of_baseline(report: Report, entry: Speed) -> float | None:
    """Ratio of the decoding speeds of a variant and of the baseline at one setting."""
    for other in report.speed:
        if other.variant == BASELINE and other.setting == entry.setting:
            return entry.decode_tokens_per_s.median / other.decode_tokens_per_s.median
    return None


def _predicted_of_baseline(report: Report, entry: Speed) -> float | None:
    """Ratio of the bytes that a token reads; None for batches, whose tokens share weights."""
    read = {held.variant: held.active_bytes_per_token for held in report.memory.variants}
    whole, own = read.get(BASELINE), read.get(entry.variant)
    return whole / own if whole and own and entry.batch_size == 1 else None


def gates_table(report: Report) -> Table:
    """Lists the limits of the recipe with the measured values and the outcome."""
    rows = []
    for gate in report.gates:
        words, side = gate_words(gate.name)
        # Every lower limit is a share.
        show = percent if side == "at least" else figures
        rows.append(
            [
                words,
                gate.provider,
                f"{side} {show(gate.limit)}",
                f"cannot be computed: {gate.detail}" if gate.value is None else show(gate.value),
                "pass" if gate.passed else "FAIL",
            ]
        )
    return Table(["gate", "provider", "limit", "found", ""], rows, words=2)


def parity_table(report: Report) -> Table:
    """Lists the distance of each exported model from torch."""
    rows = [
        [
            entry.variant,
            entry.provider,
            figures(entry.max_logit_error),
            figures(entry.kl_nats),
            percent(entry.top1_agreement),
            count(entry.compared_tokens),
            percent(entry.greedy_agreement),
            NONE
            if entry.greedy_prompts is None
            else f"{entry.greedy_prompts} × {entry.greedy_new_tokens}",
            "none" if entry.first_bad_layer is None else str(entry.first_bad_layer),
        ]
        for entry in report.parity
    ]
    head = [
        "variant", "provider", "largest logit error", "KL, nats", "top-1", "tokens compared",
        "greedy agreement", "prompts × tokens", "first bad layer",
    ]  # fmt: skip
    return Table(head, rows, words=2)


def layer_table(report: Report) -> Table:
    """Lists widths, importance and coverage by layer."""
    shared = report.plan.prunes_shared
    rows = [
        [
            str(layer.layer),
            f"{count(layer.rows_before)} → {count(layer.rows_after)}",
            percent(layer.rows_after / layer.rows_before),
            f"{layer.width_min} / {plain(layer.width_median)} / {layer.width_max}",
            *([f"{layer.shared_width} of {layer.shared_width_before}"] if shared else []),
            percent(layer.importance_kept),
            f"{count(min(layer.tokens_per_expert))} – {count(max(layer.tokens_per_expert))}",
            ", ".join(map(str, layer.unknown_experts)) or "none",
        ]
        for layer in report.plan.layers
    ]
    head = [
        "layer", "dimensions", "kept", "width min / median / max",
        *(["shared expert"] if shared else []),
        "importance kept", "tokens per expert", "unknown experts",
    ]  # fmt: skip
    return Table(head, rows)


def calibration_table(report: Report) -> Table:
    """Lists the sources of the calibration tokens with their shares of the plan's score."""
    sources, shares = report.calibration.sources, report.importance.source_shares
    rows = [
        [
            source.name,
            count(source.sequences),
            count(source.truncated_sequences),
            count(source.tokens),
            NONE if source.weight is None else f"{source.weight:g}",
            percent(source.tokens / report.calibration.tokens),
            percent(shares[number]) if shares else NONE,
        ]
        for number, source in enumerate(sources)
    ]
    head = [
        "calibration source", "sequences", "truncated", "tokens", "weight", "share of tokens",
        "share of importance",
    ]  # fmt: skip
    return Table(head, rows)


def stage_table(report: Report) -> Table:
    """Lists time, peak memory and output of each stage, predicted and measured."""
    rows = [_stage_row(stage, stage.predicted or PredictedCost()) for stage in report.stages]
    head = ["stage", "time, predicted / found", "peak memory", "output"]
    if any(stage.threads for stage in report.stages):
        head.append("threads its bytes depend on")
        for row, stage in zip(rows, report.stages, strict=True):
            row.append(NONE if stage.threads is None else str(stage.threads))
    return Table(head, rows)


def _stage_row(stage: StageCost, predicted: PredictedCost) -> list[str]:
    return [
        stage.stage,
        f"{seconds(predicted.wall_s)} / {seconds(stage.wall_s)}",
        f"{size(predicted.peak_resident_bytes)} / {size(stage.peak_resident_bytes)}",
        f"{size(predicted.output_bytes)} / {size(stage.output_bytes)}",
    ]


def machine_table(report: Report) -> Table:
    """Lists the machine and the versions."""
    machine = report.machine
    rows = [
        ["processor", machine.cpu],
        ["cores", str(machine.cores)],
        ["memory", size(machine.memory_bytes)],
        ["GPU", machine.gpu or "none"],
        ["system", machine.system],
    ]
    rows += [[name, version] for name, version in report.versions.items()]
    return Table(["measured on", ""], rows, words=2)


def methods_table(report: Report) -> Table:
    """Lists the method of measurement of each quantity."""
    rows = [[entry.quantity, entry.method] for entry in report.methods]
    return Table(["number", "how it was measured"], rows, words=2)


def _difference(predicted: float, measured: float) -> str:
    """Returns the deviation of a prediction from the measurement in percent.

    >>> _difference(103, 100), _difference(98.5, 100)
    ('+3.0 %', '−1.5 %')
    """
    share = 100 * (predicted / measured - 1)
    return f"{'+' if share >= 0 else '−'}{abs(share):.1f} %"


def rate_text(rate: float | None, stderr: float | None) -> str:
    """Formats a rate in percent with its standard error, if there is one."""
    if rate is None or stderr is None:
        return percent(rate)
    return f"{points(rate)} ± {points(stderr)} %"


def mean_text(value: float | None, stderr: float | None) -> str:
    """Formats a mean with its standard error, if there is one."""
    return figures(value) if stderr is None else f"{figures(value)} ± {figures(stderr)}"


def spread_text(spread: Spread) -> str:
    """Formats the median of several repeats with the least and the greatest value."""
    return f"{figures(spread.median)} ({figures(spread.min)}–{figures(spread.max)})"
