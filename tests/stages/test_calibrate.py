"""Tests of the calibrate stage: weights of the sources among sequences and in scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_export.artifacts.calibration import Calibration, CalibrationSummary
from moe_export.errors import CalibrationError
from moe_export.recipe import CalibrateSettings, Source
from moe_export.stages import calibrate
from moe_export.stages.job import Job
from moe_export.testing.tiny import tiny_checkpoint


def calibrated(folder: Path, *weights: float | None) -> tuple[Calibration, CalibrationSummary]:
    """Writes 8 sequences of two sources with the given weights."""
    kinds = ("sums", "strings")
    sources = [
        Source(demo=kind, weight=weight) for kind, weight in zip(kinds, weights, strict=True)
    ]
    settings = CalibrateSettings(sources=tuple(sources), sequences=8, sequence_length=64)
    out = folder / "calibrate"
    out.mkdir()
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


def test_a_weight_that_gives_no_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"\(strings\): its weight 0.001 gives it none of 8"):
        calibrated(tmp_path, 1.0, 0.001)
