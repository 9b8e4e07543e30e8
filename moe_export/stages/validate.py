"""What the exported models are worth: parity, accuracy, memory and speed in ONNX Runtime."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.artifacts.base import save_json
from moe_export.documents.sources import TEST_SEED, draw, has_answers, task_names
from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation.gates import check_gates
from moe_export.evaluation.parity import Compared, compare_with_torch
from moe_export.evaluation.tally import Tally, batches, mean_exact_match, tally_document
from moe_export.ort.benchmark import probe
from moe_export.ort.session import OrtModel, require_execution
from moe_export.recipe import Task, ValidateSettings
from moe_export.stages.job import Job
from moe_export.system.machine import machine, versions
from moe_export.variants import BASELINE, PRUNED, QUANTIZED, exported

VALIDATION_FILE = "validation.json"
MEASUREMENTS_FILE = "measurements.json"
DOCUMENTS_FILE = "documents.json"

PARITY_SEQUENCES = 16

PARITY_TOKENS = 4096
"""At most so many tokens are held against torch, or one sequence: 2.5 GB of logits at a vocabulary
of 152 000."""


def run(job: Job[ValidateSettings]) -> None:
    """Writes `validation.json` and `documents.json` (the same in every run), and
    `measurements.json` (times and memory).

    Raises:
        DependencyError: a provider that the recipe names is absent.
    """
    settings = job.settings
    require_execution(settings.providers, settings.operator)
    variants = exported(job.folders["export"])
    product = list(variants)[-1]
    tasks = {
        name: draw(
            task, job.model, task.items, settings.sequence_length, TEST_SEED, "test"
        ).sequences
        for name, task in task_names(settings.tasks).items()
    }
    providers: dict[str, Any] = {}
    documents: dict[str, Any] = {}
    speed, memory = [], []
    for provider in settings.providers:
        job.progress(0, 3, f"{provider}: parity with torch")
        providers[provider] = _parity(job, variants, provider, tasks)
        job.progress(1, 3, f"{provider}: accuracy")
        models = {
            variant: OrtModel(directory, provider, operator=settings.operator)
            for variant, directory in variants.items()
        }
        tallies = _tallies(models, settings.tasks, tasks)
        providers[provider]["variants"] = _accuracy(tallies)
        documents[provider] = {
            variant: {name: asdict(tally.documents) for name, tally in of.items()}
            for variant, of in tallies.items()
        }
        del models
        for variant, directory in variants.items():
            job.progress(2, 3, f"{provider}: speed and memory, {variant}")
            speed_settings = settings.speed.model_dump(mode="json")
            cache = settings.cache_on(provider)
            measured = probe(directory, provider, settings.operator, cache, speed_settings)
            names = {"variant": variant, "provider": provider}
            memory.append(names | measured["memory"])
            speed += [names | result for result in measured["speed"]]
    job.progress(3, 3, "done")
    recovery = _recovery(providers, product)
    save_json(
        job.out / VALIDATION_FILE,
        {
            "providers": providers,
            "recovery": recovery,
            "gates": check_gates(
                settings.gates,
                {
                    name: {**found, "product": found["variants"][product]}
                    for name, found in providers.items()
                },
                recovery,
            ),
        },
    )
    save_json(job.out / DOCUMENTS_FILE, {"providers": documents})
    save_json(
        job.out / MEASUREMENTS_FILE,
        {"machine": machine(), "versions": versions(), "speed": speed, "memory": memory},
    )


def _parity(
    job: Job[ValidateSettings],
    variants: dict[str, Path],
    provider: str,
    tasks: dict[str, list[TokenSequence]],
) -> dict[str, Any]:
    """The exported models against torch on the first documents of the tasks.

    The quantized one is held against the model whose weights are the dequantized ones, so what is
    found is not what quantization costs, but how the exported file computes.
    """
    settings = job.settings
    sequences = [s.tokens for documents in zip(*tasks.values(), strict=False) for s in documents]
    prompts = [
        sequence.tokens[: sequence.prompt_tokens]
        for documents in zip(*tasks.values(), strict=False)
        for sequence in documents
        if sequence.prompt_tokens > 0
    ]
    compared = Compared(
        within(sequences[:PARITY_SEQUENCES], PARITY_TOKENS),
        prompts[: settings.greedy_prompts],
        settings.greedy_tokens,
    )
    parity, greedy = {}, {}
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
            )
    return {"parity": parity, "greedy": greedy}


def within(sequences: list[list[int]], tokens: int) -> list[list[int]]:
    """The first sequences, as many as have at most so many tokens together, but at least one."""
    ends = list(accumulate(len(sequence) for sequence in sequences))
    return sequences[: max(1, sum(end <= tokens for end in ends))]


def _tallies(
    models: dict[str, OrtModel], settings: tuple[Task, ...], tasks: dict[str, list[TokenSequence]]
) -> dict[str, dict[str, Tally]]:
    """Every variant on every task, with its divergence from the baseline where there is one."""
    vocabulary = next(iter(models.values())).session.get_outputs()[0].shape[-1]
    found: dict[str, dict[str, Tally]] = {name: {} for name in models}
    for name, task in task_names(settings).items():
        tallies = {variant: Tally(has_answers(task)) for variant in models}
        for batch in batches(tasks[name], vocabulary):
            tokens = [sequence.tokens for sequence in batch]
            logits = {variant: model.logits(tokens) for variant, model in models.items()}
            for row, sequence in enumerate(batch):
                reference = logits[BASELINE][row] if BASELINE in logits else None
                for variant, tally in tallies.items():
                    other = None if variant == BASELINE else reference
                    tally_document(tally, sequence, logits[variant][row], other)
        for variant, tally in tallies.items():
            found[variant][name] = tally
    return found


def _accuracy(tallies: dict[str, dict[str, Tally]]) -> dict[str, Any]:
    """The scores of every variant."""
    scores = {
        variant: {name: tally.as_dict() for name, tally in of.items()}
        for variant, of in tallies.items()
    }
    return {
        variant: {"tasks": result, "mean_exact_match": mean_exact_match(result)}
        for variant, result in scores.items()
    }


def _recovery(providers: dict[str, Any], product: str) -> float | None:
    """Mean over the tasks of the product's match rate over the baseline's, on the first provider;
    None where there is no baseline or it solves nothing.
    """
    variants = next(iter(providers.values()))["variants"]
    if BASELINE not in variants:
        return None
    rates = []
    for name, before in variants[BASELINE]["tasks"].items():
        after = variants[product]["tasks"][name]
        if before["exact_match"]:
            rates.append(after["exact_match"] / before["exact_match"])
    return float(np.mean(rates)) if rates else None
