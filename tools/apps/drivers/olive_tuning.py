"""Tunes the session of an export by Olive and prints the settings that it found.

python olive_tuning.py FOLDER

Olive makes up inputs by their names, types and shapes, and registers no operator library. This file
is run by the application's own Python, without moe-export.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from typing import Any

from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.session_params_tuning import OrtSessionParamsTuning

PROMPT = {
    "batch_size": 1,
    "sequence_length": 8,
    "total_sequence_length": 8,
    "past_sequence_length": 0,
}


def made_up_inputs(facts: dict[str, Any]) -> dict[str, Any]:
    """Olive's description of a prompt for a model, without inputs that have a default."""
    keys = ("input_names", "input_shapes", "input_types")
    inputs = [row for row in zip(*(facts[key] for key in keys), strict=True) if row[1] != [1]]
    names, shapes, types = zip(*inputs, strict=True)
    return {
        "type": "dummy_dataset",
        "input_names": list(names),
        "input_shapes": [[PROMPT.get(size, size) for size in shape] for shape in shapes],
        "input_types": list(types),
        "max_samples": 4,
    }


for handler in logging.getLogger("olive").handlers:
    handler.setStream(sys.stderr)
with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as out:
    model = ONNXModelHandler(model_path=sys.argv[1], onnx_file_name="model.onnx")
    dataset = made_up_inputs(model.io_config)
    data = {"name": "prompt", "type": "DummyDataContainer", "load_dataset_config": dataset}
    tuning = create_pass_from_dict(
        OrtSessionParamsTuning, {"data_config": data}, disable_search=True
    )
    settings = tuning.run(model, out).inference_settings
# Olive goes on without settings after an error, which it logs.
if settings is None:
    sys.exit(1)
print(settings["session_options"])
