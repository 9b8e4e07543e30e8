"""Converts a checkpoint with llama.cpp's own converter, and checks that no weight is lost.

PYTHONPATH=CONVERTER python to_gguf.py FOLDER OUT

CONVERTER is the folder of convert_hf_to_gguf.py.
"""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import convert_hf_to_gguf  # first: it leads to its own gguf
import gguf
from conversion.base import TextModel
from safetensors import safe_open

folder, out = sys.argv[1:]
# The converter knows a tokenizer by a hash of how it splits a test text, and stops at the demo's.
TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", out, "--outtype", "f32"]
convert_hf_to_gguf.main()

weights = 0
for path in Path(folder).glob("*.safetensors"):
    with safe_open(path, "numpy") as file:
        weights += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
tensors = gguf.GGUFReader(out).tensors
converted = sum(int(tensor.n_elements) for tensor in tensors)
if converted != weights:
    raise SystemExit(f"error: the file has {converted} of {weights} weights")
print(len(tensors))
