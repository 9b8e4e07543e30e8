"""Speeds and sizes that estimates are made from: two idle cores of a server."""

from __future__ import annotations

FLOPS_PER_S = {"float32": 60e9, "bfloat16": 120e9}
"""Arithmetic that torch sustains on the matrices of experts with two cores, by dtype."""

COPIED_PER_S = 400e6
"""Bytes of weights read or written."""

EXPORTED_PER_S = 200e6
"""Bytes of weights converted, transposed and written."""

LIBRARY_BYTES = 6 << 20
"""Size of the operator library, which is copied beside every exported model."""

PYTHON_BYTES = 110 << 20
"""Memory of an interpreter with numpy, onnx_ir and safetensors loaded."""

PLANNED_ROW_BYTES = 40
"""Memory of planning for each row: scores, their ranks and sorted copies, of eight bytes each."""

TOKENIZER_FACTOR = 35
"""Memory of a loaded tokenizer over the size of its `tokenizer.json`."""

TOKEN_BYTES = 48
"""Memory of a token id of a drawn sequence, as a number of Python and in an array."""

ENCODING_FACTOR = 260
"""Memory of encoding a text over its size."""

ACTIVATIONS = 8
"""Activations of an expert that a backward pass and the scores need, each of the expert's width."""

SCORING_COPIES = 4
"""Arrays of the size of `evaluation.tally.CHUNK_BYTES` while a model's answers are scored."""

PRIMITIVES, PRIMITIVE_BYTES, KERNEL_BYTES = 1024, 800 << 10, 180 << 10
"""Code that oneDNN makes for every shape of a product in bfloat16: the number of shapes whose code
it keeps, the bytes of each, and the bytes that every shape ever seen leaves behind. These are bytes
of AMX; other processors need fewer. In float32, torch multiplies without oneDNN.
"""

QUANTIZED_PER_S = {"rtn": 200e6, "mse": 100e6, "gptq": 2e6}
"""Parameters quantized in a second, by method."""

TORCH_BYTES = 450 << 20
"""Memory of an interpreter with torch and transformers loaded."""

STORED_BYTES = 2
"""Bytes of a parameter in a source checkpoint: float16 or bfloat16, as nearly all are."""

LM_EVAL_BYTES = 160 << 20
"""Memory of lm-eval and the packages for data sets once they are loaded."""

EVAL_DOCUMENTS, EVAL_TOKENS = 2000, 600
"""Documents of a task of lm-eval without a limit, and the tokens of one with examples and choices:
a guess, since tasks differ by a factor of a hundred."""

EVAL_MODELS = ("source", "checkpoint", "baseline", "pruned")
"""Models that are evaluated unless the recipe names some."""
