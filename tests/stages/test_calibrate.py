"""Tests of the calibrate stage: weights of the sources among sequences and in scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_export.artifacts.calibration import Calibration, CalibrationSummary, HeldOut
from moe_export.documents.tokens import TokenSequence
from moe_export.errors import CalibrationError
from moe_export.recipe import CalibrateSettings, CalibrateSource, Source
from moe_export.stages import calibrate
from moe_export.stages.job import Job
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.text_models import write_rows


def calibrated(
    folder: Path, *weights: float | None, held_out: int | None = None, own: int | None = None
) -> tuple[Calibration, CalibrationSummary]:
    """Writes 8 sequences of two sources with the given weights, and those held out.

    The second source has a number of its own beside them if `own` is given.
    """
    kinds = ("sums", "strings")
    sources = [
        CalibrateSource(demo=kind, weight=weight, sequences=number)
        for kind, weight, number in zip(kinds, weights, (None, own), strict=True)
    ]
    settings = CalibrateSettings(
        sources=tuple(sources), sequences=8, sequence_length=64, held_out=held_out
    )
    out = folder / "calibrate"
    out.mkdir(parents=True)
    calibrate.run(Job(settings, tiny_checkpoint(folder / "model"), {}, out))
    return Calibration.load(out), CalibrationSummary.load(out)


@pytest.mark.parametrize(
    ("weights", "sequences", "in_scores"),
    [
        ((None, None), [4, 4], []),
        ((3.0, 1.0), [6, 2], [3, 1]),
        ((1.0, 1.0), [4, 4], [1, 1]),
        ((3.0, None), [6, 2], [3, 1]),
    ],
)
def test_weights_share_out_sequences_and_are_kept_for_scores(
    tmp_path: Path, weights: tuple[float | None, ...], sequences: list[int], in_scores: list[float]
) -> None:
    calibration, summary = calibrated(tmp_path, *weights)
    assert np.bincount(calibration.source_S).tolist() == sequences
    assert [source.sequences for source in summary.sources] == sequences
    assert calibration.weight_K.tolist() == in_scores
    assert [source.weight for source in summary.sources] == (in_scores or [None, None])


def test_a_source_with_a_number_of_its_own_keeps_its_weight(tmp_path: Path) -> None:
    calibration, _ = calibrated(tmp_path, 3.0, 1.0, own=5)
    assert np.bincount(calibration.source_S).tolist() == [8, 5]
    assert calibration.weight_K.tolist() == [3, 1]


def test_a_weight_that_gives_no_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"\(strings\): its weight 0.001 gives it none of 8"):
        calibrated(tmp_path, 1.0, 0.001)


def test_further_sequences_are_held_out_and_the_set_stays_as_it_is(tmp_path: Path) -> None:
    plain, _ = calibrated(tmp_path / "plain", 3.0, 1.0)
    calibration, summary = calibrated(tmp_path / "held", 3.0, 1.0, held_out=3)
    held_out = HeldOut.load(tmp_path / "held" / "calibrate")
    np.testing.assert_array_equal(calibration.tokens_N, plain.tokens_N)
    assert held_out.source_S.tolist() == [0] * 3 + [1] * 3
    assert held_out.weight_K.tolist() == [3, 1]
    assert (held_out.prompt_S > 0).all()
    assert [source.held_out_sequences for source in summary.sources] == [3, 3]
    used = {sequence.tobytes() for sequence in calibration.sequences()}
    assert used.isdisjoint(sequence.tobytes() for sequence in held_out.sequences())


def test_windows_of_a_text_are_held_out_all_over_it() -> None:
    drawn = [TokenSequence([number, 0], 0) for number in range(8)]
    used, apart = calibrate.divided(drawn, 6, 2, Source(text="a.txt"))
    assert [sequence.tokens[0] for sequence in apart] == [2, 6]
    assert [sequence.tokens[0] for sequence in used] == [0, 1, 3, 4, 5, 7]


@pytest.mark.parametrize(
    ("rows", "used", "apart", "said"),
    [
        (9, 6, 2, "compared on 2 of its sequences, as it has 8 and ranking.held_out is 3; give"),
        (3, 3, 0, "compared on the sequences that they are made from, as it has 3"),
    ],
)
def test_a_small_source_holds_out_a_quarter_or_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rows: int, used: int, apart: int, said: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": f"some words {n}"} for n in range(rows)])
    settings = CalibrateSettings(
        sources=(CalibrateSource(jsonl=str(path)),),
        sequences=min(rows, 8),
        sequence_length=64,
        held_out=3,
    )
    calibrate.run(Job(settings, tiny_checkpoint(tmp_path / "model"), {}, tmp_path))
    assert said in caplog.text
    (source,) = CalibrationSummary.load(tmp_path).sources
    assert (source.sequences, source.held_out_sequences) == (used, apart)
    assert len(HeldOut.load(tmp_path).prompt_S) == (apart or used)
