"""Exports of the pruned demo model that the applications are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import moe_export
from moe_export.op.spec import Dtype, Layout
from moe_export.stages import STAGES
from moe_export.stages.export import export_model

RECIPE = "recipes/demo_50pct_int4.yaml"
DONE = "README.md"
"""File that an export writes last."""


@dataclass(frozen=True)
class Kind:
    """A kind of export.

    Attributes:
        name: Name in the table.
        stage: Stage whose checkpoint is exported.
        dtype: Dtype of what is not quantized.
        layout: Layout of the experts.
        library: True if the operator library is beside the model.
    """

    name: str
    stage: str = "prune"
    dtype: Dtype = "float32"
    layout: Layout = "portable"
    library: bool = True

    @property
    def folder(self) -> str:
        """Name of the export's folder."""
        return self.name.replace(" ", "_")


KINDS = (
    Kind("float32"),
    Kind("float16", dtype="float16"),
    Kind("int4", stage="quantize"),
    Kind("packed", stage="quantize", layout="packed"),
    Kind("without library", library=False),
)


def make_exports(cache: Path) -> Iterator[tuple[Kind, Path]]:
    """Exports of every kind, each made once.

    Args:
        cache: Folder of the run and the exports.
    """
    run = cache / "run"
    overrides = ["prune.save_padded=true"]
    source = moe_export.run(RECIPE, run, until="quantize", overrides=overrides).directory
    for kind in KINDS:
        folder = cache / f"exports-{STAGES['export'].version}" / kind.folder
        if not (folder / DONE).exists():
            web = kind.layout == "portable"
            export_model(
                source / kind.stage,
                folder,
                kind.dtype,
                library=kind.library,
                layout=kind.layout,
                web=web,
            )
        yield kind, folder


def padded_twin(cache: Path) -> Path:
    """The pruned checkpoint with all experts padded to one width, which `make_exports` makes."""
    return cache / "run" / "prune" / "padded"
