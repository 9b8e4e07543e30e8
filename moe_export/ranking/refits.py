"""Refitting of candidates, with the tokens and the settings that the plan would be fitted with.

Legend: D hidden, P kept dimensions of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.calibration import Calibration
from moe_export.fitting.refit import refit_by_layer
from moe_export.ranking.candidates import Kept
from moe_export.recipe import PruneSettings

Columns = Mapping[str, NDArray[np.float32]]
"""Refitted columns [D, P] of `down` in place of the kept ones, by tensor name."""


def refits(settings: PruneSettings) -> bool:
    """True if `down` of the pruned model will be refitted."""
    return settings.refit_down


def with_refit(settings: PruneSettings, on: bool) -> PruneSettings:
    """The settings with refitting on or off."""
    return settings.model_copy(update={"refit_down": on})


def refitted_layers(
    directory: Path, kept: Kept, calibration: Calibration, settings: PruneSettings, tokens: int
) -> Iterator[Columns]:
    """Yields the refitted columns of each layer, in order.

    Args:
        directory: Unpruned checkpoint.
        kept: Kept dimensions.
        calibration: Sequences that are fitted.
        settings: Settings of the fit.
        tokens: Most tokens of these sequences.
    """
    sequences = calibration.sample(min(tokens, settings.calibration_tokens))
    for layer in refit_by_layer(directory, kept, sequences, settings.ridge):
        yield layer.down
