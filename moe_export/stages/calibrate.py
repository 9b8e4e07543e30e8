"""The calibrate stage: token sequences from the recipe's sources, shared out by weight."""

from __future__ import annotations

import hashlib
import logging
from typing import TypeVar

import numpy as np

from moe_export.artifacts.calibration import (
    Calibration,
    CalibrationSource,
    CalibrationSummary,
    HeldOut,
)
from moe_export.documents.shares import sequence_counts
from moe_export.documents.sources import Drawn, draw
from moe_export.documents.tokens import TokenSequence
from moe_export.errors import CalibrationError
from moe_export.recipe import CalibrateSettings, Source
from moe_export.stages.job import Job

_LOG = logging.getLogger(__name__)

LARGEST_SHARE = 4
"""A source without sequences to spare holds out one of so many."""


def run(job: Job[CalibrateSettings]) -> None:
    """Writes the token sequences, those held out if asked for, and their counts and digests.

    Raises:
        CalibrationError: a source is empty, too short or unreadable, or its weight gives it no
            sequence.
    """
    settings = job.settings
    weights, held_out = settings.weights, settings.held_out or 0
    counts = sequence_counts(settings)
    parts: list[tuple[list[TokenSequence], list[TokenSequence]]] = []
    facts = []
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
        drawn = _draw(source, job, count, seed)
        used, apart = divided(drawn.sequences, count, held_out, source)
        parts.append((used, apart or used))
        tokens = np.concatenate([np.array(s.tokens, np.int32) for s in used])
        facts.append(
            CalibrationSource(
                name=source.name,
                sequences=len(used),
                tokens=int(tokens.size),
                bos=drawn.bos,
                truncated_sequences=drawn.truncated,
                dropped_documents=drawn.dropped,
                tokens_sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
                weight=weights[number] if weights else None,
                held_out_sequences=len(apart) if held_out else None,
            )
        )
    _together(Calibration, [used for used, _ in parts], weights).save(job.out)
    if held_out:
        _together(HeldOut, [apart for _, apart in parts], weights).save(job.out)
    CalibrationSummary(
        sequences=sum(source.sequences for source in facts),
        tokens=sum(source.tokens for source in facts),
        seed=settings.seed,
        sources=tuple(facts),
    ).save(job.out)
    job.progress(len(counts), len(counts), "done")


def _draw(source: Source, job: Job[CalibrateSettings], count: int, seed: int) -> Drawn:
    """Draws the sequences of a source, and more to hold out if it has as many."""
    length = job.settings.sequence_length
    try:
        total = count + (job.settings.held_out or 0)
        return draw(source, job.model, total, length, seed, "train")
    except CalibrationError:
        # Raises again if the source is unusable, or too small without any that are held out.
        return draw(source, job.model, count, length, seed, "train")


def divided(
    drawn: list[TokenSequence], count: int, held_out: int, source: Source
) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """Divides the sequences of a source into those for calibration and those held out.

    Windows of a text come in its order, so evenly spread ones are held out; documents come in
    random order, and the last are held out. A source that has no more than its count gives up to a
    quarter of it, and one of fewer than four sequences none.

    Args:
        drawn: Sequences of the source.
        count: Number wanted for calibration.
        held_out: Number to hold out.
        source: Source of a recipe.
    """
    spared = min(held_out, max(len(drawn) - count, len(drawn) // LARGEST_SHARE))
    if spared < held_out:
        _LOG.warning(
            "%s: rankings are compared on %s, as it has %d and ranking.held_out is %d; give more "
            "documents, or name a score in plan.score",
            source.name,
            f"{spared} of its sequences" if spared else "the sequences that they are made from",
            len(drawn),
            held_out,
        )
    if not spared:
        return drawn, []
    places = np.arange(len(drawn) - spared, len(drawn))
    if source.text is not None:
        places = (np.arange(spared) * 2 + 1) * len(drawn) // (2 * spared)
    apart = set(places.tolist())
    return (
        [sequence for place, sequence in enumerate(drawn) if place not in apart],
        [sequence for place, sequence in enumerate(drawn) if place in apart],
    )


CalibrationT = TypeVar("CalibrationT", bound=Calibration)


def _together(
    kind: type[CalibrationT], parts: list[list[TokenSequence]], weights: list[float]
) -> CalibrationT:
    """Sequences of all sources end to end."""
    sequences = [sequence for part in parts for sequence in part]
    lengths = [len(sequence.tokens) for sequence in sequences]
    return kind(
        tokens_N=np.concatenate([np.array(s.tokens, np.int32) for s in sequences]),
        offsets_S1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_S=np.array([s.prompt_tokens for s in sequences], np.int32),
        source_S=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]),
        weight_K=np.array(weights, np.float64),
    )
