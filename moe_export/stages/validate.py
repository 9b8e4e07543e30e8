"""The validate stage: parity, accuracy, memory and speed of the exported models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.documents import Documents
from moe_export.artifacts.measurements import Machine, Measurements, ProcessMemory, Speed
from moe_export.artifacts.validation import (
    AnswerEnds,
    Greedy,
    NotFinite,
    Parity,
    ProviderResults,
    Validation,
    VariantScores,
)
from moe_export.checkpoint import read_config
from moe_export.documents.sources import TEST_SEED, draw, has_answers, task_names
from moe_export.documents.special_tokens import end_ids
from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation.answer_ends import answer_ends, without_ends
from moe_export.evaluation.choices import right_choices
from moe_export.evaluation.finite import FiniteCheck
from moe_export.evaluation.gates import check_gates, check_unguarded
from moe_export.evaluation.parity import Compared, compare_with_torch
from moe_export.evaluation.prompts import greedy_prompts, interleaved
from moe_export.evaluation.tally import (
    Tally,
    batches,
    mean_exact_match,
    recovery,
    tally_document,
)
from moe_export.families import spec_of
from moe_export.ort.benchmark import Measured, probe
from moe_export.ort.measuring import Setup
from moe_export.ort.session import OrtModel, require_execution
from moe_export.recipe import Task, ValidateSettings
from moe_export.stages.job import Job
from moe_export.system.machine import machine, versions
from moe_export.variants import BASELINE, PRUNED, QUANTIZED, exported

PARITY_SEQUENCES = 16

PARITY_TOKENS = 4096
"""Most tokens that are compared with torch, beyond the first sequence: 2.5 GB of logits at a
vocabulary of 152 000."""

Tallies = dict[str, dict[str, Tally]]
"""Tally by variant and task."""


def run(job: Job[ValidateSettings]) -> None:
    """Writes `Validation`, `Documents` (both the same in every run) and `Measurements`.

    Raises:
        DependencyError: an execution provider that the recipe names is absent.
    """
    settings = job.settings
    require_execution(settings.providers, settings.operator)
    variants = exported(job.folders["export"])
    tasks = {
        name: draw(
            task, job.model, task.items, settings.sequence_length, TEST_SEED, "test"
        ).sequences
        for name, task in task_names(settings.tasks).items()
    }
    providers: dict[str, ProviderResults] = {}
    tallies: dict[str, Tallies] = {}
    measured: list[Measured] = []
    for provider in settings.providers:
        job.progress(0, 3, f"{provider}: parity with torch")
        checks = {variant: FiniteCheck() for variant in variants}
        parity, greedy = _parity(job, variants, provider, tasks, checks)
        job.progress(1, 3, f"{provider}: accuracy")
        models = {
            variant: OrtModel(directory, provider, operator=settings.operator)
            for variant, directory in variants.items()
        }
        ends = _answer_ends(models, settings, tasks, checks, end_ids(job.model))
        tallies[provider] = _tallies(
            models, settings, _as_required(tasks, ends, end_ids(job.model)), checks
        )
        del models
        providers[provider] = ProviderResults(
            parity=parity,
            greedy=greedy,
            variants=_scores(tallies[provider]),
            not_finite=_not_finite(variants, checks),
            answer_ends=ends or None,
        )
        for variant, directory in variants.items():
            job.progress(2, 3, f"{provider}: speed and memory, {variant}")
            measured.append(
                probe(
                    Setup(
                        directory=directory,
                        provider=provider,
                        operator=settings.operator,
                        cache=settings.cache_on(provider),
                        speed=settings.speed,
                    )
                )
            )
    job.progress(3, 3, "done")
    _validation(settings, providers, product=list(variants)[-1]).save(job.out)
    _documents(tallies).save(job.out)
    _measurements(measured).save(job.out)


def _validation(
    settings: ValidateSettings, providers: dict[str, ProviderResults], product: str
) -> Validation:
    """Holds the gates against the results of all providers."""
    name, results = next(iter(providers.items()))
    first = results.variants
    recovered = recovery(first[product].tasks, first[BASELINE].tasks) if BASELINE in first else None
    return Validation(
        providers=providers,
        recovery=recovered,
        gates=check_gates(settings.gates, providers, product, recovered),
        warning=check_unguarded(settings.gates, results, name, product),
    )


def _not_finite(
    variants: Mapping[str, Path], checks: Mapping[str, FiniteCheck]
) -> dict[str, NotFinite] | None:
    """Returns the variants with logits that are not finite; None if there are none."""
    outcomes = {variant: checks[variant].outcome(folder) for variant, folder in variants.items()}
    return {variant: outcome for variant, outcome in outcomes.items() if outcome} or None


def _documents(tallies: Mapping[str, Tallies]) -> Documents:
    return Documents(
        providers={
            provider: {
                variant: {task: tally.document_scores() for task, tally in by_task.items()}
                for variant, by_task in by_variant.items()
            }
            for provider, by_variant in tallies.items()
        }
    )


def _measurements(measured: list[Measured]) -> Measurements:
    speed: tuple[Speed, ...] = tuple(entry for each in measured for entry in each.speed)
    memory: tuple[ProcessMemory, ...] = tuple(each.memory for each in measured)
    return Measurements(
        machine=Machine(**machine()), versions=versions(), speed=speed, memory=memory
    )


def _parity(
    job: Job[ValidateSettings],
    variants: dict[str, Path],
    provider: str,
    tasks: dict[str, list[TokenSequence]],
    checks: Mapping[str, FiniteCheck],
) -> tuple[dict[str, Parity], dict[str, Greedy | None]]:
    """Compares the exported models with torch on the first documents of the tasks.

    The quantized model is compared with torch on the dequantized weights, which shows how the
    exported file computes and not what quantization costs. Without tasks nothing is compared.
    """
    settings = job.settings
    sequences = [sequence.tokens for sequence in interleaved(tasks.values())]
    if not sequences:
        return {}, {}
    # The last of the new tokens is not run, so it needs no place in the context.
    longest = spec_of(read_config(job.model)).max_positions - settings.greedy_tokens + 1
    compared = Compared(
        within(sequences[:PARITY_SEQUENCES], PARITY_TOKENS),
        greedy_prompts(tasks.values(), settings.greedy_prompts, longest),
        settings.greedy_tokens,
    )
    parity: dict[str, Parity] = {}
    greedy: dict[str, Greedy | None] = {}
    for variant, stage in ((PRUNED, "prune"), (QUANTIZED, "quantize")):
        if variant in variants:
            parity[variant], greedy[variant] = compare_with_torch(
                partial(
                    OrtModel,
                    variants[variant],
                    provider,
                    operator=settings.operator,
                    cache=settings.cache_on(provider),
                ),
                variants[variant],
                job.folders[stage],
                compared,
                job.partial / "logits",
                settings.gates.max_logit_error if variant == PRUNED else None,
                checks[variant],
            )
    return parity, greedy


def within(sequences: list[list[int]], tokens: int) -> list[list[int]]:
    """Returns the leading sequences that have at most this many tokens, but at least one."""
    ends = list(accumulate(len(sequence) for sequence in sequences))
    return sequences[: max(1, sum(end <= tokens for end in ends))]


def _answer_ends(
    models: Mapping[str, OrtModel],
    settings: ValidateSettings,
    tasks: Mapping[str, list[TokenSequence]],
    checks: Mapping[str, FiniteCheck],
    ends: list[int],
) -> dict[str, AnswerEnds]:
    """Looks how the unpruned model ends the answers of tasks that leave it open."""
    if BASELINE not in models:
        return {}
    open_tasks = [
        name
        for name, task in task_names(settings.tasks).items()
        if task.eos is None and has_answers(task)
    ]
    logits_of = partial(_logits, models[BASELINE], checks[BASELINE])
    vocabulary = _vocabulary(models)
    found = {name: answer_ends(logits_of, tasks[name], ends, vocabulary) for name in open_tasks}
    return {name: each for name, each in found.items() if each is not None}


def _as_required(
    tasks: Mapping[str, list[TokenSequence]], ends: Mapping[str, AnswerEnds], end_tokens: list[int]
) -> dict[str, list[TokenSequence]]:
    """Documents without the end-of-sequence token where it is not required."""
    return {
        name: without_ends(sequences, end_tokens)
        if name in ends and not ends[name].required
        else sequences
        for name, sequences in tasks.items()
    }


def _vocabulary(models: Mapping[str, OrtModel]) -> int:
    return int(next(iter(models.values())).session.get_outputs()[0].shape[-1])


def _tallies(
    models: Mapping[str, OrtModel],
    settings: ValidateSettings,
    tasks: dict[str, list[TokenSequence]],
    checks: Mapping[str, FiniteCheck],
) -> Tallies:
    """Scores every variant on every task, with its divergence from any baseline."""
    by_task = {
        name: _tallies_of(models, task, tasks[name], checks)
        for name, task in task_names(settings.tasks).items()
    }
    return {
        variant: {name: tallies[variant] for name, tallies in by_task.items()} for variant in models
    }


def _tallies_of(
    models: Mapping[str, OrtModel],
    task: Task,
    sequences: list[TokenSequence],
    checks: Mapping[str, FiniteCheck],
) -> dict[str, Tally]:
    """Scores every variant on one task."""
    vocabulary = _vocabulary(models)
    tallies = {variant: Tally(has_answers(task)) for variant in models}
    for batch in batches(sequences, vocabulary):
        _tally_batch(tallies, models, batch, checks)
    if task.choices_field is not None:
        # In the order of the batches above, so that all lists of documents agree.
        ordered = [sequence for batch in batches(sequences, vocabulary) for sequence in batch]
        for variant, model in models.items():
            tallies[variant].choices_by_document = right_choices(
                partial(_logits, model, checks[variant]), ordered, vocabulary
            )
    return tallies


def _tally_batch(
    tallies: Mapping[str, Tally],
    models: Mapping[str, OrtModel],
    batch: list[TokenSequence],
    checks: Mapping[str, FiniteCheck],
) -> None:
    """Scores every variant on a batch, whose logits are gone before those of the next are made."""
    tokens = [sequence.tokens for sequence in batch]
    logits = {
        variant: list(map(checks[variant].checked, tokens, model.logits(tokens)))
        for variant, model in models.items()
    }
    for row, sequence in enumerate(batch):
        baseline = logits[BASELINE][row] if BASELINE in logits else None
        for variant, tally in tallies.items():
            reference = None if variant == BASELINE else baseline
            tally_document(tally, sequence, logits[variant][row], reference)


def _logits(
    model: OrtModel, check: FiniteCheck, sequences: list[TokenSequence]
) -> list[NDArray[np.float32]]:
    tokens = [sequence.tokens for sequence in sequences]
    return [check.checked(*pair) for pair in zip(tokens, model.logits(tokens), strict=True)]


def _scores(tallies: Tallies) -> dict[str, VariantScores]:
    """Returns the scores of every variant."""
    by_variant = {
        variant: {name: tally.scores() for name, tally in by_task.items()}
        for variant, by_task in tallies.items()
    }
    return {
        variant: VariantScores(tasks=scores, mean_exact_match=mean_exact_match(scores))
        for variant, scores in by_variant.items()
    }
