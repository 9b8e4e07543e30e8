"""Training with one layer in memory at a time, for `tune.only`."""

from __future__ import annotations

from pathlib import Path

import torch

from moe_export.checkpoint import Checkpoint
from moe_export.families.base import ModelSpec
from moe_export.passes.layers import Passes
from moe_export.passes.states import States
from moe_export.recipe import TuneSettings
from moe_export.system.progress import Progress
from moe_export.torch_model.layered import StreamedModel
from moe_export.tuning.draw import TuningSet
from moe_export.tuning.extension import config_keys
from moe_export.tuning.layer_divergence import divergences
from moe_export.tuning.layer_documents import layer_documents
from moe_export.tuning.layerwise import TUNED, UNTUNED, LayerTuning
from moe_export.tuning.methods import Trained
from moe_export.tuning.needs import state_bytes
from moe_export.tuning.outcome import Outcome


def tuned_by_layer(
    source: Path,
    before: Checkpoint,
    spec: ModelSpec,
    sets: list[TuningSet],
    settings: TuneSettings,
    partial: Path,
    progress: Progress,
) -> Outcome:
    """Trains vectors, routers or both towards the source.

    Args:
        source: Directory of the source checkpoint.
        before: Checkpoint that is tuned.
        spec: Sizes of the tuned model.
        sets: Documents of each source of documents.
        settings: Settings of the section.
        partial: Folder of the files that an interrupted training resumes from.
        progress: Function that reports every step.

    Raises:
        ResourceError: The disk is too small for the hidden states.
        CheckpointError: Activations are not finite, or weights become too large.
    """
    documents = layer_documents(sets, settings)
    states = States(partial)
    positions = sum(batch.tokens_BL.numel() for batch in documents.batches.values())
    states.check_space(state_bytes(spec, positions))
    total = spec.num_layers * documents.steps + 1

    def tell(layer: int, step: int) -> None:
        progress(layer * documents.steps + step, total, f"layer {layer}, step {step}")

    tuning = LayerTuning(
        Passes(StreamedModel(source, torch.float32), documents.batches, states),
        StreamedModel(before.directory, torch.float32, settings.top_k, config_keys(spec)),
        documents,
        Trained(settings.method, only=settings.only),
        settings,
        partial,
        tell,
    )
    values, layers = tuning.run()
    progress(total - 1, total, "divergence")
    return Outcome(
        spec=spec,
        values=values,
        before=divergences(tuning, UNTUNED),
        after=divergences(tuning, TUNED),
        steps=documents.steps,
        losses=[],
        tokens=documents.tokens(),
        positions=documents.positions(),
        documents=documents.documents,
        layers=layers,
    )
