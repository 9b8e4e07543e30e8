"""The calibrate stage: token sequences from the recipe's sources, shared out by weight."""

from __future__ import annotations

import hashlib

import numpy as np

from moe_export.artifacts.calibration import (
    Calibration,
    CalibrationSource,
    CalibrationSummary,
)
from moe_export.documents.sources import draw
from moe_export.errors import CalibrationError
from moe_export.recipe import CalibrateSettings
from moe_export.stages.job import Job


def run(job: Job[CalibrateSettings]) -> None:
    """Writes the token sequences, and their counts and digests.

    Raises:
        CalibrationError: a source is empty, too short or unreadable, or its weight gives it no
            sequence.
    """
    settings = job.settings
    weights = settings.weights
    counts = shares(weights or [1.0] * len(settings.sources), settings.sequences)
    sequences, source_of, facts = [], [], []
    for number, (source, count) in enumerate(zip(settings.sources, counts, strict=True)):
        job.progress(number, len(counts), source.name)
        if count == 0:
            raise CalibrationError(
                f"calibrate.sources.{number} ({source.name}): its weight {source.weight or 1.0} "
                f"gives it none of {settings.sequences} sequences; raise the weight or "
                "calibrate.sequences"
            )
        # Each source has its own seed; else two sources of one kind would draw the same documents.
        seed = settings.seed * 1000 + number
        drawn = draw(source, job.model, count, settings.sequence_length, seed, "train")
        sequences += drawn.sequences
        source_of += [number] * len(drawn.sequences)
        tokens = np.concatenate([np.array(s.tokens, np.int32) for s in drawn.sequences])
        facts.append(
            CalibrationSource(
                name=source.name,
                sequences=len(drawn.sequences),
                tokens=int(tokens.size),
                bos=drawn.bos,
                truncated_sequences=drawn.truncated,
                dropped_documents=drawn.dropped,
                tokens_sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
                weight=weights[number] if weights else None,
            )
        )
    lengths = [len(sequence.tokens) for sequence in sequences]
    Calibration(
        tokens_N=np.concatenate([np.array(s.tokens, np.int32) for s in sequences]),
        offsets_S1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_S=np.array([s.prompt_tokens for s in sequences], np.int32),
        source_S=np.array(source_of, np.int32),
        weight_K=np.array(weights, np.float64),
    ).save(job.out)
    CalibrationSummary(
        sequences=len(sequences),
        tokens=sum(lengths),
        seed=settings.seed,
        sources=tuple(facts),
    ).save(job.out)
    job.progress(len(counts), len(counts), "done")


def shares(weights: list[float], total: int) -> list[int]:
    """Divides a total by weight with the largest-remainder method; ties go to the earlier."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts
