"""Builds a decoder as an ONNX graph and writes it to files.

`weights`, `quantized` and `packed` read weights lazily, and `builder` adds them and nodes to a
graph. `norm`, `attention`, `latent_attention`, `rotary`, `padding`, `router`, `compressed`, `moe`
and `mlp` are the blocks, and `decoder` is the model. `external_data` writes the files, and
`predict` computes their sizes beforehand. `genai_config` and `layer_outputs` serve those who run
the model.
"""

from __future__ import annotations

from moe_export.graph.decoder import build_decoder
from moe_export.graph.external_data import save_model
from moe_export.graph.genai_config import CONFIG_FILE, genai_config
from moe_export.graph.layer_outputs import first_overflow, with_layer_outputs
from moe_export.graph.predict import PredictedBytes, predicted_bytes

__all__ = [
    "CONFIG_FILE",
    "PredictedBytes",
    "build_decoder",
    "first_overflow",
    "genai_config",
    "predicted_bytes",
    "save_model",
    "with_layer_outputs",
]
