"""Result of fitting one layer, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from moe_export.system.disk import disk_error


@dataclass(frozen=True)
class BlockErrors:
    """Squared errors of a block on held-out tokens, over the mean square of its wanted outputs.

    Attributes:
        pruned: Error without the removed dimensions, before fitting.
        refit: Error with `down` refitted.
        distilled: Error after block-wise distillation as well; None if not asked for.
    """

    pruned: float
    refit: float
    distilled: float | None = None


@dataclass(frozen=True)
class FittedLayer:
    """Result of fitting one layer.

    Attributes:
        tensors: Weights that the fit changed, with the shapes of the pruned checkpoint, float32
            with values of the stored dtype, by name in the checkpoint.
        tokens: Number of tokens of every expert, the shared one last if it is pruned.
        errors: Errors on held-out tokens; None if nothing was fitted.
    """

    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    errors: BlockErrors | None = None

    def save(self, folder: Path, layer: int) -> None:
        """Writes the result into a folder.

        Raises:
            ResourceError: The disk is full.
        """
        path = folder / _file(layer)
        facts = {"tokens": self.tokens, "errors": self.errors and asdict(self.errors)}
        try:
            save_file(self.tensors, path, {"facts": json.dumps(facts)})
        except OSError as error:
            raise disk_error(error, path) from error

    @classmethod
    def load(cls, folder: Path, layer: int) -> Self:
        """Reads the result from a folder."""
        with safe_open(folder / _file(layer), "numpy") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        errors = facts["errors"] and BlockErrors(**facts["errors"])
        return cls(tensors, facts["tokens"], errors)


def _file(layer: int) -> str:
    return f"layer-{layer}.safetensors"
