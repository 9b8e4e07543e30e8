"""Models of the known families in torch, with experts of unequal widths.

They are the reference that exported models are compared with. Attention, norms and embeddings are
classes of transformers; only the MoE blocks are ours.
"""

from __future__ import annotations

from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.layered import LayeredModel, StreamedModel
from moe_export.torch_model.load import load_torch_model
from moe_export.torch_model.recording import Recording, recording

__all__ = [
    "LayeredModel",
    "RaggedMoEBlock",
    "Recording",
    "StreamedModel",
    "load_torch_model",
    "recording",
]
