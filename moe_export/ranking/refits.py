"""Refitting of candidates, with the tokens and the settings that the plan would be fitted with.

Legend: D hidden, P kept dimensions of an expert.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.calibration import Calibration
from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.fitting.fit_block import FitRule
from moe_export.fitting.fit_layers import fit_layers
from moe_export.fitting.fit_tokens import FitTokens
from moe_export.ranking.candidates import Kept
from moe_export.recipe import PruneSettings, RefitSettings
from moe_export.scoring.source_weights import SourceWeights

Columns = Mapping[str, NDArray[np.float32]]
"""Refitted columns [D, P] of `down` in place of the kept ones, by tensor name."""


def refits(settings: PruneSettings) -> bool:
    """True if `down` of the pruned model will be refitted."""
    return bool(settings.refit)


def with_refit(settings: PruneSettings, on: bool) -> PruneSettings:
    """The settings with refitting on or off."""
    refit = (settings.refit or RefitSettings()) if on else False
    return settings.model_copy(update={"refit": refit})


def refitted_layers(
    directory: Path,
    kept: Kept,
    calibration: Calibration,
    settings: PruneSettings,
    tokens: int,
    folder: Path,
    top_k: int | None = None,
) -> Iterator[Columns]:
    """Yields the refitted columns of each layer, in order.

    Args:
        directory: Unpruned checkpoint.
        kept: Kept dimensions.
        calibration: Sequences that are fitted.
        settings: Settings of the fit.
        tokens: Most tokens of these sequences.
        folder: Folder for the hidden states meanwhile; made if it is absent.
        top_k: Experts per token of the pruned model; None for those of the checkpoint.
    """
    part = calibration.thinned(min(tokens, settings.calibration_tokens))
    weight_K = SourceWeights.of(part).token_weight_K
    refit = settings.refit or RefitSettings()
    # Steps of Adam are left out: they help every candidate, and cost more than the rest.
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as states:
        for layer in fit_layers(
            directory,
            _pruned(directory, kept, top_k),
            kept,
            FitTokens(part.sequences(), weight_K[part.source_S]),
            FitRule(**refit.model_dump()),
            Path(states),
        ):
            yield layer.tensors


def _pruned(directory: Path, kept: Kept, top_k: int | None) -> ModelSpec:
    """Sizes of the model with only the kept dimensions."""
    spec = spec_of(Checkpoint(directory).config)
    axis = Axis(spec, any(expert == spec.num_experts for _, expert in kept))
    widths = [
        [len(kept[layer, expert]) for expert in range(len(table.widths))]
        for layer, table in enumerate(axis.tables)
    ]
    return axis.routed_to(top_k).resized(widths).spec
