"""Tests of fitting the blocks of every family, and of resuming a fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from moe_export.checkpoint import Checkpoint
from moe_export.families import spec_of
from moe_export.fitting.block_steps import StepRule
from moe_export.fitting.fit_block import FitRule
from moe_export.fitting.fit_layers import fit_layers
from moe_export.fitting.fit_tokens import FitTokens
from moe_export.fitting.fitted_layer import FittedLayer
from moe_export.testing.tiny import tiny_checkpoint
from tests.family.conftest import Subject

RULE = FitRule(ridge=0.01, mix=0.5, steps=StepRule(20, 0.01, 200))


def fits(subject: Subject, source: Path, folder: Path) -> Iterator[FittedLayer]:
    """Fit of the first dimensions of every expert, 0 to all of them."""
    shared = subject.shared_widths
    kept = {
        (layer, expert): np.arange(width)
        for layer, widths in enumerate(subject.widths)
        for expert, width in enumerate(widths)
    }
    for layer, width in enumerate(shared or ()):
        if width is not None:
            kept[layer, len(subject.widths[layer])] = np.arange(width)
    random = np.random.default_rng(0)
    # Held-out sequences repeat others; on unseen ones of random weights no fit is better.
    sequences = [random.integers(0, 256, 30).astype(np.int32) for _ in range(5)] * 5
    pruned = spec_of(Checkpoint(subject.pruned).config)
    tokens = FitTokens(sequences, np.ones(25))
    return fit_layers(source, pruned, kept, tokens, RULE, folder)


def test_an_interrupted_fit_of_a_family_resumes_to_the_same_weights(
    subject: Subject, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "half", base=subject.row.config, dtype="bfloat16")
    whole = list(fits(subject, source, tmp_path / "whole"))
    interrupted = fits(subject, source, tmp_path / "again")
    next(interrupted)
    # What was begun of the second layer is there, but not finished.
    for name in ("input-2", "pruned-2"):
        (tmp_path / "again" / name).mkdir(exist_ok=True)
    resumed = list(fits(subject, source, tmp_path / "again"))
    stored = Checkpoint(subject.pruned).tensors
    for first, second in zip(whole, resumed, strict=True):
        assert first.errors == second.errors
        assert first.tensors.keys() == second.tensors.keys()
        for name, values in first.tensors.items():
            assert values.shape == stored[name].shape
            np.testing.assert_array_equal(values, second.tensors[name])
            rounded = torch.from_numpy(values).bfloat16().float().numpy()
            np.testing.assert_array_equal(values, rounded)
    for layer, fit in enumerate(whole):
        if layer in subject.row.dense_layers:
            assert fit == FittedLayer()
            continue
        assert fit.errors is not None
        assert fit.errors.distilled is not None
        assert fit.errors.distilled < fit.errors.refit < fit.errors.pruned
        spec = spec_of(Checkpoint(source).config)
        is_trained = spec.family.routing.score != "sparsemixer"
        assert (spec.name("router", layer) in fit.tensors) == is_trained
        assert len(fit.tensors) >= 3
