"""Training with one layer in memory at a time, for `tune.only`."""

from __future__ import annotations

import torch

from moe_export.passes.layers import Passes
from moe_export.passes.states import States
from moe_export.torch_model.layered import StreamedModel
from moe_export.tuning.extension import config_keys
from moe_export.tuning.layer_divergence import divergences
from moe_export.tuning.layer_documents import layer_documents
from moe_export.tuning.layerwise import TUNED, UNTUNED, LayerTuning
from moe_export.tuning.methods import Trained
from moe_export.tuning.needs import state_bytes
from moe_export.tuning.outcome import Outcome
from moe_export.tuning.task import TuningTask


def tuned_by_layer(task: TuningTask) -> Outcome:
    """Trains vectors, routers or both towards the source.

    Raises:
        ResourceError: The disk is too small for the hidden states.
        CheckpointError: Activations are not finite, or weights become too large.
    """
    spec, settings = task.spec, task.settings
    documents = layer_documents(task.sets, settings)
    states = States(task.partial)
    positions = sum(batch.tokens_BL.numel() for batch in documents.batches.values())
    states.check_space(state_bytes(spec, positions))
    total = spec.num_layers * documents.steps + 1

    def tell(layer: int, step: int) -> None:
        task.progress(layer * documents.steps + step, total, f"layer {layer}, step {step}")

    tuning = LayerTuning(
        Passes(StreamedModel(task.source, torch.float32), documents.batches, states),
        StreamedModel(task.before.directory, torch.float32, settings.top_k, config_keys(spec)),
        documents,
        Trained(settings.method, only=settings.only),
        settings,
        task.partial,
        tell,
    )
    values, layers = tuning.run()
    task.progress(total - 1, total, "divergence")
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
