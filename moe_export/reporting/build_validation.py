"""Sections of a report about the results of validation: accuracy, parity and execution."""

from __future__ import annotations

from collections.abc import Iterable

from moe_export.artifacts.evaluation import Evaluation
from moe_export.artifacts.measurements import Speed
from moe_export.artifacts.report_results import (
    AccuracyFacts,
    AnswerEndFacts,
    EvaluationFacts,
    ExecutionFacts,
    GateFacts,
    ParityFacts,
    TaskFacts,
)
from moe_export.artifacts.validation import (
    Gate,
    Greedy,
    Parity,
    TaskScores,
    Validation,
    VariantScores,
)
from moe_export.evaluation.tally import recovery
from moe_export.variants import BASELINE, ordered


def accuracy_facts(validation: Validation) -> tuple[AccuracyFacts, ...]:
    """Lists the scores by provider and variant, with the variant's recovery."""
    return tuple(
        _accuracy(provider, variant, results.variants[variant], results.variants.get(BASELINE))
        for provider, results in validation.providers.items()
        for variant in ordered(results.variants)
    )


def _accuracy(
    provider: str, variant: str, scores: VariantScores, baseline: VariantScores | None
) -> AccuracyFacts:
    return AccuracyFacts(
        provider=provider,
        variant=variant,
        mean_exact_match=scores.mean_exact_match,
        recovery=recovery(scores.tasks, baseline.tasks) if baseline else None,
        tasks=tuple(_task(name, task) for name, task in scores.tasks.items()),
    )


def _task(name: str, scores: TaskScores) -> TaskFacts:
    return TaskFacts(
        task=name,
        kl_nats=scores.kl_nats,
        top1_agreement=scores.top1_agreement,
        items=scores.items,
        answer_tokens=scores.answer_tokens,
        exact_match=scores.exact_match,
        exact_match_stderr=scores.exact_match_stderr,
        loss_nats=scores.loss_nats,
        perplexity=scores.perplexity,
        loss_nats_stderr=scores.loss_nats_stderr,
        kl_nats_stderr=scores.kl_nats_stderr,
        first_token_match=scores.first_token_match,
        first_token_match_stderr=scores.first_token_match_stderr,
        choice_accuracy=scores.choice_accuracy,
        choice_accuracy_stderr=scores.choice_accuracy_stderr,
    )


def parity_facts(validation: Validation) -> tuple[ParityFacts, ...]:
    """Lists the distances from torch by provider and variant."""
    return tuple(
        _parity(provider, variant, results.parity[variant], results.greedy[variant])
        for provider, results in validation.providers.items()
        for variant in ordered(results.parity)
    )


def _parity(provider: str, variant: str, parity: Parity, greedy: Greedy | None) -> ParityFacts:
    return ParityFacts(
        provider=provider,
        variant=variant,
        max_logit_error=parity.max_logit_error,
        kl_nats=parity.kl_nats,
        top1_agreement=parity.top1_agreement,
        compared_tokens=parity.tokens,
        first_bad_layer=parity.first_bad_layer,
        greedy_prompts=greedy.prompts if greedy else None,
        greedy_new_tokens=greedy.new_tokens if greedy else None,
        greedy_agreement=greedy.agreement if greedy else None,
    )


def evaluation_facts(evaluation: Evaluation | None) -> EvaluationFacts | None:
    """Returns the scores of lm-eval's tasks; None if none was run."""
    if evaluation is None:
        return None
    return EvaluationFacts(
        lm_eval=evaluation.lm_eval,
        tasks=evaluation.tasks,
        limit=evaluation.limit,
        models=evaluation.models,
    )


def answer_end_facts(validation: Validation) -> tuple[AnswerEndFacts, ...]:
    """Lists the ends of answers by provider and task."""
    return tuple(
        AnswerEndFacts(
            provider=provider,
            task=task,
            documents=ends.documents,
            foreseen=ends.foreseen,
            required=ends.required,
        )
        for provider, results in validation.providers.items()
        for task, ends in (results.answer_ends or {}).items()
    )


def warning_facts(validation: Validation, evaluation: Evaluation | None) -> GateFacts | None:
    """Returns the default limit of a result that neither validation nor lm-eval's tasks guard."""
    if validation.warning is None or (evaluation is not None and evaluation.gates):
        return None
    return gate_facts([validation.warning])[0]


def gate_facts(gates: Iterable[Gate]) -> tuple[GateFacts, ...]:
    """Returns the limits of the recipe and their outcome."""
    return tuple(
        GateFacts(
            name=gate.name,
            provider=gate.provider,
            limit=gate.limit,
            value=gate.value,
            passed=gate.passed,
            detail=gate.detail,
        )
        for gate in gates
    )


def execution_facts(speed: Iterable[Speed]) -> tuple[ExecutionFacts, ...]:
    """Lists the implementation of the experts for every timed variant and provider."""
    seen = dict.fromkeys((entry.variant, entry.provider, entry.path) for entry in speed)
    order = ordered(variant for variant, _, _ in seen)
    return tuple(
        ExecutionFacts(variant=variant, provider=provider, path=path)
        for variant, provider, path in sorted(seen, key=lambda key: order.index(key[0]))
    )
