"""Documents of a tuning: those to train on, and those held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_export.documents.shares import shares
from moe_export.documents.sources import draw
from moe_export.documents.tokens import TokenSequence
from moe_export.errors import CalibrationError
from moe_export.recipe import Source, TuneSettings


@dataclass(frozen=True)
class TuningSet:
    """Documents of one source.

    Attributes:
        name: Short name of the source.
        weight: Share of the source, relative to the others.
        training: Documents to train on.
        held_out: Documents to judge by, none of which is trained on.
        dropped: Number of documents left out.
    """

    name: str
    weight: float
    training: list[TokenSequence]
    held_out: list[TokenSequence]
    dropped: int


def drawn(settings: TuneSettings, model: Path) -> list[TuningSet]:
    """Draws the documents of every source.

    Args:
        settings: Sources and their sizes.
        model: Checkpoint with the tokenizer.

    Raises:
        CalibrationError: A source is unusable, or has too few documents.
    """
    weights = [source.weight or 1.0 for source in settings.sources]
    counts = shares(weights, settings.documents)
    return [_drawn(settings, model, number, count) for number, count in enumerate(counts)]


def _drawn(settings: TuneSettings, model: Path, number: int, count: int) -> TuningSet:
    source = settings.sources[number]
    held_out = max(1, round(settings.held_out * count))
    if count <= held_out:
        raise CalibrationError(
            f"tune.sources.{number} ({source.name}): its weight gives it {count} of "
            f"{settings.documents} documents, {held_out} of which are held out; raise "
            "tune.documents or its weight"
        )
    # Each source has its own seed; else two sources of one kind would draw the same documents.
    seed = settings.seed * 1000 + number
    found = draw(source, model, count, settings.sequence_length, seed, "train")
    usable = [sequence for sequence in found.sequences if len(sequence.tokens) > 1]
    apart = usable[-held_out:]
    # A document that occurs twice must not be trained on and judged by.
    known = {tuple(sequence.tokens) for sequence in apart}
    training = [s for s in usable[:-held_out] if tuple(s.tokens) not in known]
    if not training:
        raise _too_few(number, source, len(usable))
    dropped = count - len(training) - len(apart)
    return TuningSet(source.name, source.weight or 1.0, training, apart, dropped)


def _too_few(number: int, source: Source, documents: int) -> CalibrationError:
    return CalibrationError(
        f"tune.sources.{number} ({source.name}): {documents} documents have room for an answer, "
        "and none is left to train on beside those held out; give more documents, or raise "
        "tune.sequence_length"
    )
