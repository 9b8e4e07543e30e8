"""Runs Olive's peephole optimizer over an export.

python olive_pass.py FOLDER OUT

OUT gets the new model, and the tokenizer, settings and library of FOLDER. This file is run by the
application's own Python, without moe-export.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.peephole_optimizer import OnnxPeepholeOptimizer

folder, out = map(Path, sys.argv[1:])
with contextlib.redirect_stdout(sys.stderr):
    model = ONNXModelHandler(model_path=str(folder), onnx_file_name="model.onnx")
    settings = {"save_as_external_data": True}
    optimizer = create_pass_from_dict(OnnxPeepholeOptimizer, settings, disable_search=True)
    optimizer.run(model, str(out))
for path in folder.iterdir():
    if path.is_file() and not path.name.startswith("model.onnx"):
        shutil.copyfile(path, out / path.name)
