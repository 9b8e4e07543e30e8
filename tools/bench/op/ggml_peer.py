"""Layers of the benchmark in llama.cpp's ggml, compiled from given sources."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.testing import layer_sizes as sizes

SOURCE = Path(__file__).with_name("ggml")
BUILD_FOLDER = "build-bench-op"


def built(directory: Path) -> Path:
    """Compiles the peer in a folder within `directory`, which is kept; returns the library.

    Args:
        directory: Sources of ggml, of llama.cpp, or of llama-cpp-python, unpacked.
    """
    candidates = (".", "ggml", "vendor/llama.cpp/ggml")
    sources = [directory / c for c in candidates if (directory / c / "include/ggml.h").exists()]
    if not sources:
        raise SystemExit(f"{directory} holds no ggml; expected include/ggml.h in it")
    folder = directory.resolve() / BUILD_FOLDER
    definition = f"-DGGML_DIR={sources[0].resolve()}"
    for command in (
        ["cmake", definition, "-S", SOURCE, "-B", folder],
        ["cmake", "--build", folder, "--target", "bench_ggml", "--parallel"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "libbench_ggml.so"


class GgmlLayers:
    """Layers in Q4_0 with experts of one width.

    Args:
        library: Library that `built` compiled.
        layers: Number of layers.
        width: Width of every expert.
        shared_width: Width of the shared expert; 0 for none.
        threads: Threads of ggml.
        random: Generator of the codes.
    """

    def __init__(
        self,
        library: Path,
        layers: int,
        width: int,
        shared_width: int,
        threads: int,
        random: np.random.Generator,
    ) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.bench_ggml_create.restype = ctypes.c_void_p
        self._count = layers
        codes = random.integers(0, 256, 1 << 20).astype(np.uint8)
        self._layers = ctypes.c_void_p(
            self._library.bench_ggml_create(
                layers,
                *map(ctypes.c_int64, (sizes.HIDDEN, sizes.EXPERTS, sizes.TOP_K)),
                ctypes.c_int64(width),
                ctypes.c_int64(shared_width),
                threads,
                codes.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_size_t(codes.size),
            )
        )
        if not self._layers:
            raise SystemExit("ggml has no repacked buffers on this processor")

    def run(self, fed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Runs all layers; returns y [layers, T, D]."""
        tokens = len(fed["x"])
        ids = fed["expert_indices"].astype(np.int32)
        shared = fed.get("shared_weight", np.zeros((tokens, 1), np.float32))
        y = np.empty((self._count, tokens, sizes.HIDDEN), np.float32)
        arrays = (fed["x"], ids, fed["routing_weights"], shared, y)
        if self._library.bench_ggml_run(
            self._layers,
            ctypes.c_int64(tokens),
            *(array.ctypes.data_as(ctypes.c_void_p) for array in arrays),
        ):
            raise SystemExit("ggml failed")
        return y
