"""llama.cpp's own quantization of a GGUF file."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from moe_export.bench.in_llama_cpp import load_library

TYPES = {"Q4_0": 2, "Q8_0": 7}
"""Numbers of `llama_ftype`."""


class _Settings(ctypes.Structure):
    """The first fields of `llama_model_quantize_params`, and room for the rest."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("rest", ctypes.c_ubyte * 512),
    )


def quantize(source: Path, out: Path, kind: str, libraries: Path, threads: int) -> None:
    """Writes a quantized file, as llama-quantize does: lm_head of Q4_0 has Q6_K.

    Args:
        source: File in floats.
        out: Path of the quantized file.
        kind: One of `TYPES`.
        libraries: Folder of llama.cpp's libraries.
        threads: Number of threads.

    Raises:
        OSError: llama.cpp does not quantize it.
    """
    llama = load_library(libraries)
    llama.llama_model_quantize_default_params.restype = _Settings
    settings = llama.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = threads, TYPES[kind]
    paths = (os.fsencode(source), os.fsencode(out))
    result = llama.llama_model_quantize(*paths, ctypes.byref(settings))
    if result:
        raise OSError(f"llama.cpp answers {result} to the quantization of {source}")
