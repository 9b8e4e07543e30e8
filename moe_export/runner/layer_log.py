"""One line per layer of a finished stage, read from what it has written; `-v` prints them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_export.artifacts.export import Export
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan
from moe_export.families import open_checkpoint
from moe_export.families.stored import part_names
from moe_export.runner.run import State
from moe_export.runner.steps import Step
from moe_export.runner.watcher import Watcher
from moe_export.system.progress import Progress

logger = logging.getLogger(__name__)


class LayerLog(Watcher):
    """Watcher that logs the layers of every stage that has run, and passes all reports on.

    Args:
        watcher: the watcher that reports are passed on to.
        directory: run directory.
    """

    def __init__(self, watcher: Watcher, directory: Path) -> None:
        self._watcher, self._directory = watcher, directory

    def progress_of(self, step: Step) -> Progress:
        """See `Watcher`."""
        return self._watcher.progress_of(step)

    def on_step(self, state: State, seconds: float | None) -> None:
        """See `Watcher`."""
        self._watcher.on_step(state, seconds)
        if seconds and logger.isEnabledFor(logging.INFO):
            for line in layer_lines(state.step.stage, self._directory / state.step.folder):
                logger.info("%s, %s", state.step.folder, line)


def layer_lines(stage: str, folder: Path) -> Iterator[str]:
    """Yields one line per layer and exported model; none for a stage without layers.

    Args:
        stage: name of the stage.
        folder: the stage's folder, complete.

    Raises:
        ArtifactError: a file of the stage is damaged.
    """
    if stage in _LINES:
        yield from _LINES[stage](folder)


def _importance(folder: Path) -> Iterator[str]:
    importance = Importance.load(folder)
    for layer, tokens_E in enumerate(importance.tokens_per_expert):
        rows = {len(layers[layer]) for layers in importance.scores.values()}
        reached = sum(tokens > 0 for tokens in tokens_E)
        yield f"layer {layer}: {max(rows)} rows, {reached} of {len(tokens_E)} experts reached"


def _plan(folder: Path) -> Iterator[str]:
    for layer in Plan.load(folder).layers:
        sizes = ", ".join(f"{size} bytes in {dtype}" for dtype, size in layer.expert_bytes.items())
        yield f"layer {layer.layer}: {layer.rows_after} of {layer.rows_before} rows, {sizes}"


def _checkpoint(folder: Path) -> Iterator[str]:
    checkpoint, spec = open_checkpoint(folder)
    for layer in range(spec.num_layers):
        names = [name for name, tensor in spec.tensors.items() if tensor.layer == layer]
        parts = [part for name in names for part in part_names(spec, name)]
        size = sum(checkpoint.tensors[part].size_bytes for part in parts)
        yield f"layer {layer}: {len(names)} tensors, {size} bytes"


def _export(folder: Path) -> Iterator[str]:
    for variant, model in Export.load(folder).variants.items():
        for layer, size in enumerate(model.weights.experts_by_layer):
            yield f"{variant}, layer {layer}: {size} bytes of experts"


_LINES: dict[str, Callable[[Path], Iterator[str]]] = {
    "importance": _importance,
    "plan": _plan,
    "prune": _checkpoint,
    "tune": _checkpoint,
    "quantize": _checkpoint,
    "export": _export,
}
