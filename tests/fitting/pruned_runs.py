"""Runs of a tiny model up to the prune stage, for the tests of fitting methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.recipe import PlanSettings, PruneSettings
from moe_export.stages import plan, prune
from moe_export.stages.job import Job
from moe_export.testing.tiny import tiny_checkpoint


def planned(root: Path) -> dict[str, Path]:
    """Folders of a run up to a plan that keeps half of a tiny model's dimensions.

    `few` is a calibration set of a single sequence.
    """
    folders = {n: root / n for n in ("model", "calibrate", "few", "importance", "plan")}
    tiny_checkpoint(folders["model"])
    for name in ("calibrate", "few", "importance", "plan"):
        folders[name].mkdir()
    random = np.random.default_rng(3)
    for name, sequences in (("calibrate", 60), ("few", 1)):
        offsets = np.arange(sequences + 1, dtype=np.int64) * 40
        tokens = random.integers(0, 256, sequences * 40).astype(np.int32)
        zeros = np.zeros(sequences, np.int32)
        Calibration(tokens, offsets, zeros, zeros).save(folders[name])
    scores = [random.random(6 * 24) for _ in range(3)]
    scores[0][:24] = 0.0  # an expert that is emptied
    scores[1][24:48] = 9.0  # and one that is kept whole
    tokens = [np.full(6, 100)] * 3
    Importance({"fisher_margin": scores}, tokens).save(folders["importance"])
    settings = PlanSettings(keep=0.5, dtype="float32")
    plan.run(Job(settings, folders["model"], folders, folders["plan"]))
    return folders


def pruned(folders: dict[str, Path], out: Path, calibrate: str, **settings: Any) -> Path:
    """Folder of the prune stage, which fits only what the settings ask for."""
    out.mkdir()
    of = folders | {"calibrate": folders[calibrate]}
    prune.run(
        Job(
            PruneSettings(**{"refit": False, "distill_blocks": False} | settings),
            folders["model"],
            of,
            out,
        )
    )
    return out
