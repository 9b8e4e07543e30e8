"""Sentences of a report, each made from the figures that it states."""

from __future__ import annotations

from collections.abc import Sequence

from moe_export.artifacts.measurements import SpeedSetting
from moe_export.artifacts.quantization import Fallback
from moe_export.artifacts.report import Report
from moe_export.artifacts.report_making import DistillFacts, RefitFacts
from moe_export.artifacts.report_plan import PlanFacts
from moe_export.ort.execution import PLAIN_KERNELS, PLAIN_PATH
from moe_export.reporting.tables import SCOPES, gate_words
from moe_export.reporting.units import (
    count,
    figures,
    parameters,
    percent,
    plain,
    points,
    ratio,
    size,
)
from moe_export.variants import BASELINE


def summary(report: Report) -> str:
    """Describes the model and the ranking in the line under the title."""
    model, plan = report.model, report.plan
    layers = f"{model.layers} layers"
    if len(plan.layers) < model.layers:
        layers += f", {len(plan.layers)} of them"
    before = model.experts_per_token_before
    source = (
        "" if before in (None, model.experts_per_token) else f" ({before} in the unpruned model)"
    )
    return (
        f"{model.family}, {layers} × {model.experts_per_layer} experts, "
        f"{model.experts_per_token} per token{source}. {parameters(model.parameters.before)} "
        f"parameters before, {parameters(model.parameters.after)} after. Ranked by "
        f"{plan.score} {SCOPES.get(plan.scope, plan.scope)}, by {plan.unit}; "
        f"exported in {report.memory.dtype}.{_formats(report)}"
    )


def _formats(report: Report) -> str:
    """Names the formats of the quantized variants; empty without any."""
    return "".join(
        f" The {entry.variant} model has {entry.format}."
        for entry in report.memory.variants
        if entry.format != report.memory.dtype
    )


def strip(report: Report) -> list[tuple[str, str, str]]:
    """Returns the headline figures: label, figure, and the words below it."""
    head, memory = report.headline, report.memory
    before, after = head.baseline_weights_bytes, head.product_weights_bytes
    exported = any(
        entry.variant == BASELINE and entry.disk_weights_bytes is not None
        for entry in memory.variants
    )
    at = head.speed_setting
    speed = "not measured"
    if at is not None:
        speed = f"{figures(head.product_decode_tokens_per_s)} tok/s, {speed_words(at)}"
    decode = ratio(head.decode_ratio)
    if head.decode_ratio is None and at is not None:
        decode = figures(head.product_decode_tokens_per_s)
        speed = f"tok/s, {speed_words(at)}; no baseline"
    accuracy = "no task with answers"
    if head.product_exact_match is not None:
        accuracy = f"{percent(head.product_exact_match)} exact match"
        if head.baseline_exact_match is not None:
            accuracy = (
                f"{points(head.baseline_exact_match)} → {percent(head.product_exact_match)} "
                "exact match"
            )
    return [
        (
            "kept",
            percent(head.kept),
            f"of {count(report.plan.rows_before)} expert dimensions",
        ),
        (
            "weights",
            ratio(after / before),
            f"{size(before)} → {size(after)}" + ("" if exported else " (before: predicted)"),
        ),
        ("accuracy recovery", percent(head.recovery), accuracy),
        ("decode", decode, speed),
    ]


def speed_words(at: SpeedSetting) -> str:
    """Describes a speed setting."""
    threads = "1 thread" if at.threads == 1 else f"{at.threads} threads"
    return f"{at.provider}, batch {at.batch_size}, {threads}"


def gates_sentence(report: Report) -> str:
    """Counts the gates that passed."""
    gates = report.gates
    failed = [gate_words(gate.name)[0] for gate in gates if not gate.passed]
    if not gates:
        return "The recipe sets no gates."
    if not failed:
        return {1: "The gate passed.", 2: "Both gates passed."}.get(
            len(gates), f"All {len(gates)} gates passed."
        )
    details = "".join(
        f" {gate.detail[0].upper()}{gate.detail[1:]}." for gate in gates if gate.detail
    )
    return f"{len(failed)} of {len(gates)} gates failed: {', '.join(failed)}.{details}"


def warning_sentence(report: Report) -> str:
    """Warns of a result that no limit guards; empty where one does, or the default one is met."""
    warning = report.warning
    if warning is None or warning.passed:
        return ""
    found = f"KL cannot be computed: {warning.detail}"
    if warning.value is not None:
        found = (
            f"the KL from the unpruned model is {figures(warning.value)} nats, more than "
            f"{figures(warning.limit)}"
        )
    return (
        "Nothing guards what this model can do: the recipe limits neither recovery nor KL nor a "
        f"task of lm-eval, and {found}. The gates above compare the exported files with torch."
    )


def answer_ends_sentence(report: Report) -> str:
    """Names the tasks whose answers need not end with a token; empty without any."""
    open_ended = [ends for ends in report.answer_ends or () if not ends.required]
    if not open_ended:
        return ""
    each = ", ".join(dict.fromkeys(f"{e.task} ({e.foreseen} of {e.documents})" for e in open_ended))
    return (
        "Answers need not end with an end-of-sequence token where the unpruned model seldom "
        f"writes one: {each}."
    )


def execution_sentence(report: Report) -> str:
    """Names the implementation of the experts that ran."""
    entries = report.execution
    if not entries:
        return "No speed was measured, so which path runs was not observed."
    paths = sorted({entry.path for entry in entries})
    if len(paths) == 1:
        where = sorted({entry.provider for entry in entries})
        sentence = f"The experts of every variant ran as the {paths[0]} ({', '.join(where)})."
    else:
        each = "; ".join(f"{e.variant} on {e.provider}: {e.path}" for e in entries)
        sentence = f"The experts ran as: {each}."
    is_plain = any(path.startswith(PLAIN_PATH) for path in paths)
    return f"{sentence} {PLAIN_KERNELS}" if is_plain else sentence


def evaluation_sentence(report: Report) -> str:
    """States version and extent of lm-eval's tasks; empty without any."""
    facts = report.evaluation
    if facts is None:
        return ""
    extent = "all documents" if facts.limit is None else f"at most {count(facts.limit)} documents"
    return (
        f"lm-eval {facts.lm_eval}, {extent} of each task, greedy answers; source and checkpoint "
        "(the pruned one) ran in torch."
    )


def widths_sentence(report: Report) -> str:
    """Describes the spread of the widths."""
    plan = report.plan
    return (
        f"Widths run from {plan.width_min} to {plan.width_max} with a median of "
        f"{plain(plan.width_median)}; {experts(plan.empty_experts)} empty and "
        f"{experts(plan.whole_experts)} kept whole, of {count(report.coverage.experts)}."
        f"{_shared_words(plan)}"
    )


def _shared_words(plan: PlanFacts) -> str:
    """Describes the widths of the shared expert; empty if it is not pruned."""
    if not plan.prunes_shared:
        return ""
    widths = [layer.shared_width or 0 for layer in plan.layers]
    before = plan.layers[0].shared_width_before or 0
    kept = sum(widths) / (before * len(widths))
    return (
        f" The shared expert keeps {min(widths)} to {max(widths)} of {before} dimensions, "
        f"{percent(kept)} over all layers."
    )


def importance_sentence(report: Report) -> str:
    """States the importance that the kept dimensions hold."""
    importance = report.importance
    if importance.importance_kept is None:
        return "No importance is known."
    return (
        f"The {percent(importance.rows_kept)} of dimensions that were kept hold "
        f"{percent(importance.importance_kept)} of the importance."
    )


def compensation_sentence(report: Report) -> str:
    """Describes the weights that were fitted after pruning; empty without any."""
    facts = report.compensation
    if facts is None:
        return ""
    sentences = []
    if facts.refit is not None:
        sentences.append(_refit_words(facts.refit))
    if facts.distill is not None:
        sentences.append(_distill_words(facts.distill))
    return " ".join(sentences)


def _refit_words(refit: RefitFacts) -> str:
    left = f" and left in {count(refit.left)}" if refit.left else ""
    words = f"After removal, down was refitted in {count(refit.experts)} experts{left}"
    if refit.left:
        words += " that too few tokens reach, or whose block was no better for it"
    if refit.distilled_blocks:
        words += f", and the kept weights of {count(refit.distilled_blocks)} blocks were distilled"
    elif refit.distilled_blocks == 0:
        words += ", and no block was better for being distilled"
    if refit.error_pruned is None or refit.error_fitted is None:
        return f"{words}."
    return (
        f"{words}. On held-out tokens the squared error of a block's output, over the output's "
        f"square, fell from {refit.error_pruned:.3g} to {refit.error_fitted:.3g} (means over "
        "blocks)."
    )


def _distill_words(distill: DistillFacts) -> str:
    outcome = (
        f"{count(distill.routers)} routers were distilled"
        if distill.routers
        else "Distilled routers were no better and not taken"
    )
    kl = distill.held_out_kl_nats
    return (
        f"{outcome}: on {count(distill.held_out_tokens)} calibration tokens that were not trained "
        f"on, the KL from the unpruned model is {figures(kl.before)} nats with the routers "
        f"as they were and {figures(kl.after)} nats with the distilled ones."
    )


def coverage_sentence(report: Report) -> str:
    """Describes the calibration set and the experts that it reached."""
    coverage, calibration = report.coverage, report.calibration
    unknown = coverage.unknown_experts
    reached = (
        "every expert was reached"
        if unknown == 0
        else f"{experts(unknown)} never reached, so nothing is known of what they do"
    )
    least, middle, most = (
        count(tokens)
        for tokens in (
            coverage.tokens_per_expert_min,
            coverage.tokens_per_expert_median,
            coverage.tokens_per_expert_max,
        )
    )
    return (
        f"{count(calibration.sequences)} sequences, {count(calibration.tokens)} tokens (seed "
        f"{calibration.seed}); {reached}. Tokens per expert: {least} to {most}, median {middle}."
    )


def prediction_sentence(report: Report) -> str:
    """Compares the bytes that the plan predicted with those on disk."""
    checked = [
        entry
        for entry in report.memory.variants
        if entry.predicted_weights_bytes is not None and entry.disk_weights_bytes is not None
    ]
    off = [e for e in checked if e.predicted_weights_bytes != e.disk_weights_bytes]
    if off:
        return "The predicted bytes are not those on disk: " + "; ".join(
            f"{e.variant} {e.disk_weights_bytes} instead of {e.predicted_weights_bytes}"
            for e in off
        )
    *others, last = [entry.variant for entry in checked]
    names = f"{', '.join(others)} and {last}" if others else last
    return f"The plan predicted the bytes on disk exactly ({names})."


def cache_sentence(report: Report) -> str:
    """States the memory of a sequence at several lengths."""
    cache = report.memory.kv_cache
    sizes = ", ".join(
        f"{size(at.cache_bytes)} at {count(at.tokens)} tokens" for at in cache.lengths
    )
    fixed = f" and {size(cache.fixed_bytes)} that do not grow" if cache.fixed_bytes else ""
    text = (
        f"The KV cache of a sequence is apart from these: {sizes}; "
        f"{count(cache.bytes_per_token)} bytes per token{fixed}."
    )
    last = cache.lengths[-1]
    if last.every_head_bytes is None:
        return text
    return (
        f"{text} It holds latent vectors; keys and values of every head would take "
        f"{size(last.every_head_bytes)} at {count(last.tokens)} tokens."
    )


FALLBACKS_NAMED = 6


def quantization_sentence(report: Report) -> str:
    """Describes the losses of quantization; empty if nothing was quantized."""
    facts = report.quantization
    if facts is None:
        return ""
    lost = ", ".join(
        f"{entry.name.replace('_', ' ')} {percent(entry.relative_error)}" for entry in facts.classes
    )
    text = (
        f"{count(facts.matrices)} matrices were quantized (method {facts.method}); the "
        f"weights' error is {lost}."
    )
    if facts.fallbacks:
        return text + _fallbacks_words(facts.fallbacks)
    if facts.method == "gptq":
        return f"{text} Every expert was reached by enough calibration tokens."
    return text


def _fallbacks_words(fallbacks: Sequence[Fallback]) -> str:
    """Names the first matrices that another method rounded."""
    named = "; ".join(_fallback_words(entry) for entry in fallbacks[:FALLBACKS_NAMED])
    rest = len(fallbacks) - FALLBACKS_NAMED
    return (
        f" {count(len(fallbacks))} of them were reached by fewer calibration tokens than they "
        f"have inputs and were rounded to the nearest code instead ({named}"
        + (f"; and {count(rest)} more)." if rest > 0 else ").")
    )


def _fallback_words(entry: Fallback) -> str:
    name = entry.tensor.removesuffix(".weight").rsplit(".", 1)[-1]
    expert = "" if entry.expert is None else f", expert {entry.expert}"
    layer = "" if entry.layer is None else f"layer {entry.layer}{expert}, "
    return f"{layer}{name}: {count(entry.tokens)} tokens"


def active_sentence(report: Report) -> str:
    """States the parameters that a token uses."""
    active = report.model.active_parameters_per_token
    if active.before is None or active.after is None:
        return "No calibration token was routed, so active parameters are not known."
    return (
        f"A token uses {parameters(active.before)} parameters before and "
        f"{parameters(active.after)} after, on average over the calibration tokens."
    )


def experts(number: int) -> str:
    """Returns a number of experts with its verb.

    >>> experts(0), experts(1), experts(3)
    ('no expert is', '1 expert is', '3 experts are')
    """
    return {0: "no expert is", 1: "1 expert is"}.get(number, f"{count(number)} experts are")
