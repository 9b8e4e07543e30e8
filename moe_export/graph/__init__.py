"""Building a decoder as an ONNX graph, and writing it.

`weights` are read lazily; `builder` puts them and nodes together; `norm`, `attention` and `moe` are
the blocks; `decoder` is the model; `external_data` writes it and `predict` says how large it will
be; `genai_config` and `layer_outputs` are for running it.
"""

from __future__ import annotations

from moe_export.graph.decoder import build_decoder
from moe_export.graph.external_data import DATA_FILE, MODEL_FILE, save_model
from moe_export.graph.genai_config import CONFIG_FILE, genai_config
from moe_export.graph.layer_outputs import with_layer_outputs
from moe_export.graph.predict import PredictedBytes, predicted_bytes

__all__ = [
    "CONFIG_FILE",
    "DATA_FILE",
    "MODEL_FILE",
    "PredictedBytes",
    "build_decoder",
    "genai_config",
    "predicted_bytes",
    "save_model",
    "with_layer_outputs",
]
