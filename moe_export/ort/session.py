"""An exported model in ONNX Runtime: a session, and single runs of it.

Legend: B batch, S new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import ArtifactError, DependencyError, RecipeError
from moe_export.op.library import library_path, register
from moe_export.ort.cuda import require_cuda_kernels, require_cuda_libraries, require_cuda_model
from moe_export.system.memory import trim

MODEL_FILE = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Recipe word of a provider to ONNX Runtime's name."""

CAPTURED = "captured"
"""The cache whose steps are captured into CUDA graphs."""

NO_GRAPH = -1
"""ONNX Runtime's number for a run that is neither captured nor repeated."""

NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def installed_runtimes() -> dict[str, str]:
    """The ONNX Runtime packages that are installed, with their versions."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def require_runtime() -> None:
    """Makes sure that exactly one ONNX Runtime package is installed.

    Raises:
        DependencyError: none is, or both are, which breaks each other's files.
    """
    found = installed_runtimes()
    if not found:
        raise DependencyError(
            "ONNX Runtime is not installed; install moe-export[cpu], or moe-export[gpu] where "
            "there is an NVIDIA GPU"
        )
    if len(found) == 2:
        raise DependencyError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install moe-export[cpu] or moe-export[gpu]"
        )


def require_provider(provider: str) -> None:
    """Makes sure that a provider can run here.

    Raises:
        DependencyError: this ONNX Runtime does not have it, or a library that it needs is missing.
    """
    require_runtime()
    import onnxruntime  # noqa: PLC0415 - an extra

    available = onnxruntime.get_available_providers()
    if PROVIDERS[provider] not in available:
        names = [word for word, name in PROVIDERS.items() if name in available]
        raise DependencyError(
            f"provider {provider!r} is asked for, this ONNX Runtime {onnxruntime.__version__} has "
            f"{', '.join(names)}; install moe-export[gpu] on a machine with an NVIDIA GPU, or "
            "change validate.providers"
        )
    if provider == "cuda":
        require_cuda_libraries()


def require_native(provider: str) -> None:
    """Makes sure that the native library has kernels for a provider.

    Raises:
        DependencyError: it cannot run them here, or the library is absent.
    """
    library_path()
    if provider == "cuda":
        require_cuda_kernels()


def require_execution(providers: Iterable[str], operator: str) -> None:
    """Makes sure that exported models can run here.

    Args:
        providers: on which they are to run.
        operator: `native` or `portable`, as of the recipe's `validate.operator`.

    Raises:
        DependencyError: a provider is absent, or the native library cannot run there.
    """
    for provider in providers:
        require_provider(provider)
        if operator == "native":
            require_native(provider)


class OrtModel:
    """A session over an exported directory.

    Args:
        directory: holds `model.onnx`.
        provider: `cpu` or `cuda`; it runs there or not at all.
        threads: threads within an operator; 0 lets ONNX Runtime choose.
        operator: `native` runs the experts in the native library, `portable` as standard operators.
        cache: how `decoding` holds the KV cache, a word of the recipe's `validate.cache`;
            `captured` has ONNX Runtime capture steps into CUDA graphs.

    Raises:
        RecipeError: the cache is captured elsewhere than on CUDA with the native operator.
        DependencyError: ONNX Runtime, the provider, or the native library for it is absent; or the
            provider cannot run the whole model.
        ArtifactError: the model is missing or does not load.
    """

    def __init__(
        self,
        directory: Path,
        provider: str = "cpu",
        threads: int = 0,
        operator: str = "native",
        cache: str = "growing",
    ) -> None:
        if cache == CAPTURED and (provider, operator) != ("cuda", "native"):
            raise RecipeError(
                f"cache {cache!r} needs the provider cuda and the native operator, not {provider} "
                f"and {operator}; choose static"
            )
        require_provider(provider)
        import onnxruntime  # noqa: PLC0415 - an extra

        path = directory / MODEL_FILE
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run the export stage")
        if provider == "cuda":
            require_cuda_model(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if operator == "native":
            require_native(provider)
            register(options)
        of_provider = {"enable_cuda_graph": "1"} if cache == CAPTURED else {}
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=[(PROVIDERS[provider], of_provider)]
            )
        except Exception as error:
            graph = " with a CUDA graph; set validate.cache to static" if of_provider else ""
            raise ArtifactError(f"{path} does not load in ONNX Runtime{graph}: {error}") from error
        if PROVIDERS[provider] not in self.session.get_providers():
            raise DependencyError(
                f"{path}: ONNX Runtime could not start the provider {provider!r}; "
                "run `moe-export doctor` to see why"
            )
        if operator == "portable":
            # Of constants it computes while loading it keeps the results; glibc keeps the rest.
            trim()
        self.provider, self.cache = provider, cache
        self.outputs = [output.name for output in self.session.get_outputs()]
        self._past = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]

    def logits(self, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
        """Logits of every position of every sequence, padded on the right for the run.

        Returns:
            Per sequence, float32 [its length, V].
        """
        lengths = [len(sequence) for sequence in sequences]
        ids = np.zeros((len(sequences), max(lengths)), np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        logits, _ = self.step(ids, mask, self.empty_cache(len(sequences)))
        return [logits[row, :length] for row, length in enumerate(lengths)]

    def step(
        self, ids_BS: NDArray[np.int64], mask: NDArray[np.int64], cache: dict[str, Any]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """One run of the model.

        Args:
            ids_BS: new tokens.
            mask: int64 [B, past + S], 1 for tokens that count.
            cache: `empty_cache`, or what the step before gave back.

        Returns:
            Logits, float32 [B, S, V], and the cache with the new tokens in it.
        """
        import onnxruntime  # noqa: PLC0415 - an extra

        feeds: dict[str, Any] = {
            "input_ids": onnxruntime.OrtValue.ortvalue_from_numpy(ids_BS),
            "attention_mask": onnxruntime.OrtValue.ortvalue_from_numpy(mask),
        }
        # The cache stays where the model runs; only logits come back.
        binding = self.session.io_binding()
        for name, value in (feeds | cache).items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(self.outputs[0])
        for name in self.outputs[1:]:
            binding.bind_output(name, self.provider)
        self.run(binding)
        values = binding.get_outputs()
        present = {
            name.replace("present.", "past_key_values."): value
            for name, value in zip(self.outputs[1:], values[1:], strict=True)
        }
        return values[0].numpy().astype(np.float32, copy=False), present

    def run(self, binding: Any, graph: int = NO_GRAPH) -> None:
        """Runs what is bound.

        Args:
            binding: of inputs and outputs.
            graph: number of the CUDA graph that the run is captured into, or repeated from; the
                provider heeds it where the model was opened for graphs.
        """
        import onnxruntime  # noqa: PLC0415 - an extra

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        self.session.run_with_iobinding(binding, options)

    def empty_cache(self, batch_size: int) -> dict[str, Any]:
        """A KV cache of no tokens."""
        import onnxruntime  # noqa: PLC0415 - an extra

        return {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(zeros)
            for name, zeros in self.zeros(batch_size, 0).items()
        }

    def zeros(self, batch_size: int, tokens: int) -> dict[str, NDArray[Any]]:
        """Keys and values of so many tokens of each sequence, all zero, by name of the input."""
        return {
            value.name: np.zeros(
                (batch_size, value.shape[1], tokens, value.shape[3]), NUMPY_TYPES[value.type]
            )
            for value in self._past
        }

    def cache_bytes(self, batch_size: int, tokens: int) -> int:
        """Of the keys and values of so many tokens of each sequence."""
        return sum(
            batch_size
            * value.shape[1]
            * tokens
            * value.shape[3]
            * np.dtype(NUMPY_TYPES[value.type]).itemsize
            for value in self._past
        )
