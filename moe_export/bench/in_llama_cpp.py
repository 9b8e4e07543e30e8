"""A GGUF file in llama.cpp, timed on request beside exported models.

`python -m moe_export.bench.in_llama_cpp FILE LIBRARIES THREADS` answers `requests`. LIBRARIES is a
folder of prebuilt libraries, such as that of the npm package `@node-llama-cpp/linux-x64`; llama.cpp
takes the code for this processor. Its own defaults stand, except the number of threads and the
length of the context.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.bench.requests import Ids, Sizes, answer_requests
from moe_export.errors import ArtifactError, DependencyError, RecipeError
from moe_export.system.processes import end_with_parent

_REST_BYTES = 512
"""Room behind the fields that are read here. Structures of this size travel in memory, so a callee
takes what it knows and leaves the rest."""

_SEQUENCES = 64
"""Largest batch. llama.cpp's defaults hold this many tokens in one step."""


class _ModelSettings(ctypes.Structure):
    """`llama_model_params`, of which nothing is changed."""

    _fields_ = (("rest", ctypes.c_ubyte * _REST_BYTES),)


class _ContextSettings(ctypes.Structure):
    """The first fields of `llama_context_params`, as llama.cpp 0.5.0 has them."""

    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("n_rs_seq", ctypes.c_uint32),
        ("n_outputs_max", ctypes.c_uint32),
        ("n_outputs_max_per_seq", ctypes.c_uint32),
        ("n_threads", ctypes.c_int32),
        ("n_threads_batch", ctypes.c_int32),
        ("rest", ctypes.c_ubyte * _REST_BYTES),
    )


class _Batch(ctypes.Structure):
    """`llama_batch`: tokens, each with its place, sequence and need of logits."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def load_library(folder: Path) -> Any:
    """llama.cpp with the code for this processor.

    Args:
        folder: Folder with `libllama`, `libggml` and variants of `libggml-cpu`.

    Raises:
        DependencyError: The folder has no such libraries, or they have another interface.
    """
    found = {name: sorted(folder.glob(f"lib{name}.*so*")) for name in ("ggml", "llama")}
    if not all(found.values()):
        raise DependencyError(
            f"{folder} has no libllama and libggml; give --llama-cpp the folder of the libraries, "
            "after npm install @node-llama-cpp/linux-x64 "
            "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
        )
    ggml, llama = (ctypes.CDLL(str(found[name][0])) for name in ("ggml", "llama"))
    _declare(llama)
    ggml.ggml_backend_load_all_from_path(os.fsencode(folder))
    settings = llama.llama_context_default_params()
    if (settings.n_ctx, settings.n_batch, settings.n_ubatch) != (512, 2048, 512):
        raise DependencyError(
            f"{found['llama'][0]} has other defaults than version 0.5.0, so its structures may "
            "differ too; install @node-llama-cpp/linux-x64@3.22.1"
        )
    return llama


def _declare(llama: Any) -> None:
    """Sets the types of the functions that are called."""
    for name, result, arguments in (
        ("llama_model_default_params", _ModelSettings, ()),
        ("llama_context_default_params", _ContextSettings, ()),
        ("llama_model_load_from_file", ctypes.c_void_p, (ctypes.c_char_p, _ModelSettings)),
        ("llama_init_from_model", ctypes.c_void_p, (ctypes.c_void_p, _ContextSettings)),
        ("llama_model_get_vocab", ctypes.c_void_p, (ctypes.c_void_p,)),
        ("llama_vocab_n_tokens", ctypes.c_int32, (ctypes.c_void_p,)),
        ("llama_decode", ctypes.c_int32, (ctypes.c_void_p, _Batch)),
        ("llama_get_logits_ith", ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int32)),
        ("llama_free", None, (ctypes.c_void_p,)),
        ("llama_log_set", None, (ctypes.c_void_p, ctypes.c_void_p)),
    ):
        function = getattr(llama, name)
        function.restype, function.argtypes = result, arguments
    llama.llama_log_set(ctypes.cast(_SAY, ctypes.c_void_p), None)


_LOGGER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_ERROR = 4


def _say(level: int, text: bytes, _: None) -> None:
    """Prints errors alone."""
    if level == _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


_SAY = _LOGGER(_say)


class LlamaModel:
    """A GGUF file in llama.cpp.

    Args:
        path: The file.
        libraries: Folder of the libraries.
        threads: Threads of a prompt and of a step.

    Attributes:
        vocabulary: Number of tokens.

    Raises:
        ArtifactError: llama.cpp does not load the file.
        DependencyError: llama.cpp is not in the folder.
    """

    def __init__(self, path: Path, libraries: Path, threads: int) -> None:
        self._llama, self._threads = load_library(libraries), threads
        settings = self._llama.llama_model_default_params()
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), settings)
        if not self._model:
            raise ArtifactError(
                f"{path} does not load in llama.cpp, which says why above; make the file again"
            )
        vocabulary = self._llama.llama_model_get_vocab(self._model)
        self.vocabulary: int = self._llama.llama_vocab_n_tokens(vocabulary)

    def open(self, batch: int, tokens: int) -> LlamaContext:
        """A context for some sequences of at most a number of tokens."""
        if batch > _SEQUENCES:
            raise RecipeError(f"llama.cpp is timed up to a batch of {_SEQUENCES}, not {batch}")
        settings = self._llama.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = batch * tokens, batch
        settings.n_threads = settings.n_threads_batch = self._threads
        return LlamaContext(self._llama, self._llama.llama_init_from_model(self._model, settings))


class LlamaContext:
    """Sequences that grow together.

    Args:
        llama: The library.
        pointer: Address of llama.cpp's context.
    """

    def __init__(self, llama: Any, pointer: int) -> None:
        self._llama, self._pointer = llama, pointer
        self._length = 0

    def append(self, ids_BS: Ids) -> None:
        """Runs tokens int64 [B, S] and waits for the logits of the last ones."""
        batch, tokens = ids_BS.shape
        flat = np.ascontiguousarray(ids_BS.reshape(-1), np.int32)
        places = np.tile(np.arange(self._length, self._length + tokens, dtype=np.int32), batch)
        counts = np.ones(flat.size, np.int32)
        sequences = np.repeat(np.arange(batch, dtype=np.int32), tokens)
        wanted = np.tile(np.arange(tokens) == tokens - 1, batch).astype(np.int8)
        most = 2048
        for first in range(0, flat.size, most):
            part = slice(first, first + most)
            self._decode(flat[part], places[part], counts[part], sequences[part], wanted[part])
        self._llama.llama_get_logits_ith(self._pointer, -1)
        self._length += tokens

    def _decode(self, *arrays: NDArray[Any]) -> None:
        ids, places, counts, sequences, wanted = arrays
        whole = ctypes.POINTER(ctypes.c_int32)
        start = sequences.ctypes.data
        pointers = (whole * ids.size)(
            *(ctypes.cast(start + 4 * place, whole) for place in range(ids.size))
        )
        result = self._llama.llama_decode(
            self._pointer,
            _Batch(
                ids.size,
                ids.ctypes.data_as(whole),
                None,
                places.ctypes.data_as(whole),
                counts.ctypes.data_as(whole),
                pointers,
                wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
            ),
        )
        if result:
            raise RecipeError(f"llama.cpp answers {result} to {ids.size} tokens")

    def logits(self, vocabulary: int) -> NDArray[np.float32]:
        """Logits of the last token, float32 [V]."""
        address = self._llama.llama_get_logits_ith(self._pointer, -1)
        found = np.ctypeslib.as_array((ctypes.c_float * vocabulary).from_address(address))
        return np.array(found)

    def close(self) -> None:
        """Frees the context."""
        self._llama.llama_free(self._pointer)


def timer(path: Path, libraries: Path, threads: int) -> Callable[[Sizes], dict[str, float]]:
    """Loads a file and returns the function that times it."""
    model = LlamaModel(path, libraries, threads)

    def decode(sizes: Sizes) -> dict[str, float]:
        context = model.open(sizes.batch, sizes.prompt_tokens + sizes.new_tokens)
        try:
            return sizes.time(model.vocabulary, context.append, context.append)
        finally:
            context.close()

    return decode


if __name__ == "__main__":
    end_with_parent()
    file, folder, count = sys.argv[1:]
    answer_requests(lambda: timer(Path(file), Path(folder), int(count)))
