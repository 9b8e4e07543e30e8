"""Rounds of measurements, which an interrupted run resumes from.

Legend: S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.base import load_tensors, save_tensors
from moe_export.artifacts.calibration import HeldOut
from moe_export.errors import CheckpointError
from moe_export.ranking.candidates import Planned
from moe_export.ranking.means import Divergence
from moe_export.ranking.passes import HeldOutPasses
from moe_export.ranking.refits import Columns
from moe_export.system.progress import Progress


class Steps:
    """Progress over several models, each of which counts as one step.

    Args:
        progress: Function that receives the progress.
        total: Number of models.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._name = ""

    def begin(self, name: str) -> None:
        """Goes on to the model of a name."""
        self._name, self._done = name, self._done + 1

    def tell(self, layer: str) -> None:
        """Tells of a layer of the present model."""
        self._progress(self._done - 1, self._total, f"{self._name}, {layer}")


class Round:
    """Measurements of several models on the same sequences.

    Args:
        directory: Unpruned checkpoint.
        sequences: Held-out sequences.
        places_S: Numbers of those that are used, int64.
        folder: Folder of finished measurements, which are not made again.
        steps: Progress of all rounds.
        top_k: Experts per token of the candidates; None for those of the checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        sequences: HeldOut,
        places_S: NDArray[np.int64],
        folder: Path,
        steps: Steps,
        top_k: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._steps = folder, steps
        steps.begin("unpruned")
        self._passes = HeldOutPasses(directory, sequences, places_S, steps.tell, top_k)

    def unpruned(self) -> Divergence:
        """Losses of the unpruned model."""
        return self._passes.unpruned()

    def measured(
        self, candidate: Planned, refit: Callable[[Planned], Iterator[Columns]] | None = None
    ) -> Divergence:
        """Divergence of a candidate, masked or refitted."""
        self._steps.begin(candidate.name)
        path = self._folder / f"{candidate.name}.safetensors"
        if not path.exists():
            fits = refit(candidate) if refit is not None else None
            found = self._passes.of_form(candidate.kept, fits)
            if not np.isfinite(found.kl_S).all():
                raise CheckpointError(
                    f"ranking {candidate.name}: the divergence of the masked model is not finite, "
                    "so rankings cannot be compared; give plan.score by name"
                )
            partial = path.with_suffix(".partial")
            save_tensors(partial, vars(found))
            partial.replace(path)
        return Divergence(**load_tensors(path))
