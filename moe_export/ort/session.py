"""Sessions of exported models in ONNX Runtime, and single runs of them.

Legend: B batch, S new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import ArtifactError, DependencyError, RecipeError
from moe_export.op.library import library_path, register
from moe_export.ort.cuda import require_cuda_kernels, require_cuda_libraries, require_cuda_model
from moe_export.system.memory import trim
from moe_export.variants import LOGITS_FROM, MODEL_FILE, PAST_PREFIX, present_name

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Provider's name in a recipe to its name in ONNX Runtime."""

CAPTURED = "captured"
"""Name of the cache whose steps are captured into CUDA graphs."""

NO_GRAPH = -1
"""Graph number in ONNX Runtime for a run without a CUDA graph."""

PAST_AXIS = "past_sequence_length"
"""Name of the axis of past tokens in the graph's inputs; a state of fixed size has none."""

NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def installed_runtimes() -> dict[str, str]:
    """Versions of the installed ONNX Runtime packages, by name."""
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def require_runtime() -> None:
    """Checks that exactly one ONNX Runtime package is installed.

    Raises:
        DependencyError: None is installed, or both, which overwrite each other's files.
    """
    installed = installed_runtimes()
    if not installed:
        raise DependencyError(
            "ONNX Runtime is not installed; install moe-export[cpu], or moe-export[gpu] where "
            "there is an NVIDIA GPU"
        )
    if len(installed) == 2:
        raise DependencyError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install moe-export[cpu] or moe-export[gpu]"
        )


def require_provider(provider: str) -> None:
    """Checks that a provider can run here.

    Raises:
        DependencyError: ONNX Runtime does not have the provider, or a library it needs is missing.
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
    """Checks that the native library can run its kernels for a provider.

    Raises:
        DependencyError: The kernels cannot run here, or the library is absent.
    """
    library_path()
    if provider == "cuda":
        require_cuda_kernels()


def require_execution(providers: Iterable[str], operator: str) -> None:
    """Checks that exported models can run here.

    Args:
        providers: Providers that models will run on.
        operator: `native` or `portable`, as in the recipe's `validate.operator`.

    Raises:
        DependencyError: A provider is absent, or the native library cannot run on it.
    """
    for provider in providers:
        require_provider(provider)
        if operator == "native":
            require_native(provider)


class OrtModel:
    """Session of an exported model.

    Args:
        directory: Folder of `model.onnx`.
        provider: `cpu` or `cuda`; there is no fallback to the other.
        threads: Number of threads within an operator; 0 lets ONNX Runtime choose.
        operator: `native` runs the experts in the native library, `portable` as standard operators.
        cache: Kind of the KV cache in `decoding`, as in the recipe's `validate.cache`; with
            `captured`, ONNX Runtime captures steps into CUDA graphs.
        profile: Prefix of the file that ONNX Runtime's profiler writes; None for no profile.

    Attributes:
        fixed_states: Names of the inputs whose size does not grow with the tokens.

    Raises:
        RecipeError: The cache is `captured` without CUDA or without the native operator.
        DependencyError: ONNX Runtime, the provider, or the native library for it is absent; or the
            provider cannot run the whole model.
        ArtifactError: The model is missing or does not load.
    """

    def __init__(
        self,
        directory: Path,
        provider: str = "cpu",
        threads: int = 0,
        operator: str = "native",
        cache: str = "static",
        profile: Path | None = None,
    ) -> None:
        if cache == CAPTURED and (provider, operator) != ("cuda", "native"):
            raise RecipeError(
                f"cache {cache!r} needs the provider cuda and the native operator, not {provider} "
                f"and {operator}; choose static"
            )
        require_provider(provider)
        import onnxruntime  # noqa: PLC0415 - an extra

        self._path = path = directory / MODEL_FILE
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run the export stage")
        if provider == "cuda":
            require_cuda_model(path, operator)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised, and need not be logged too
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if operator == "native":
            require_native(provider)
            register(options)
        provider_options = {"enable_cuda_graph": "1"} if cache == CAPTURED else {}
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=[(PROVIDERS[provider], provider_options)]
            )
        except Exception as error:
            graph = " with a CUDA graph; set validate.cache to static" if provider_options else ""
            raise ArtifactError(f"{path} does not load in ONNX Runtime{graph}: {error}") from error
        if PROVIDERS[provider] not in self.session.get_providers():
            raise DependencyError(
                f"{path}: ONNX Runtime could not start the provider {provider!r}; "
                "run `moe-export doctor` to see why"
            )
        if operator == "portable":
            # Loading computes constants; glibc keeps the memory that this has freed.
            trim()
        self.provider, self.cache = provider, cache
        self.outputs = [output.name for output in self.session.get_outputs()]
        optional = self.session.get_overridable_initializers()
        self._has_logits_from = any(value.name == LOGITS_FROM for value in optional)
        self._past = [i for i in self.session.get_inputs() if i.name.startswith(PAST_PREFIX)]
        self.fixed_states = frozenset(i.name for i in self._past if PAST_AXIS not in i.shape)

    def logits(self, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
        """Logits at every position of every sequence; the run pads sequences on the right.

        Returns:
            Logits without padding, float32 [length, V] per sequence.
        """
        lengths = [len(sequence) for sequence in sequences]
        ids = np.zeros((len(sequences), max(lengths)), np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        logits, _ = self.step(ids, mask, self.empty_cache(len(sequences)), shrink=True)
        return [logits[row, :length] for row, length in enumerate(lengths)]

    def step(
        self,
        ids_BS: NDArray[np.int64],
        mask: NDArray[np.int64],
        cache: dict[str, Any],
        *,
        last_only: bool = False,
        shrink: bool = False,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Runs the model once on new tokens.

        Args:
            ids_BS: Ids of the new tokens, int64.
            mask: Attention mask [B, past + S] int64, 1 for real tokens.
            cache: Result of `empty_cache`, or the cache that the previous step returned.
            last_only: True for the logits of each row's last real token alone; see
                `ask_for_last`.
            shrink: True if ONNX Runtime gives memory back afterwards, see `run`.

        Returns:
            Logits, float32 [B, S, V], and the cache with the new tokens.
        """
        import onnxruntime  # noqa: PLC0415 - an extra

        feeds: dict[str, Any] = {
            "input_ids": onnxruntime.OrtValue.ortvalue_from_numpy(ids_BS),
            "attention_mask": onnxruntime.OrtValue.ortvalue_from_numpy(mask),
        }
        # The cache stays on the provider's device; only logits are copied back.
        binding = self.session.io_binding()
        for name, value in (feeds | cache).items():
            binding.bind_ortvalue_input(name, value)
        if last_only:
            self.ask_for_last(binding)
        binding.bind_output(self.outputs[0])
        for name in self.outputs[1:]:
            binding.bind_output(name, self.provider)
        self.run(binding, shrink=shrink)
        values = binding.get_outputs()
        present = dict(zip(self.outputs[1:], values[1:], strict=True))
        past = {value.name: present[present_name(value.name)] for value in self._past}
        return values[0].numpy().astype(np.float32, copy=False), past

    def ask_for_last(self, binding: Any) -> None:
        """Asks for logits of each row's last real token alone, [B, 1, V].

        A graph without the input, of moe-export 0.2 or older, still computes them at all positions.
        """
        import onnxruntime  # noqa: PLC0415 - an extra

        if self._has_logits_from:
            last = onnxruntime.OrtValue.ortvalue_from_numpy(np.array([-1], np.int64))
            binding.bind_ortvalue_input(LOGITS_FROM, last)

    def run(self, binding: Any, graph: int = NO_GRAPH, *, shrink: bool = False) -> None:
        """Runs the model with bound inputs and outputs.

        Args:
            binding: Binding of all inputs and outputs.
            graph: Number of the CUDA graph that captures the run or is replayed; ignored unless the
                model was opened with CUDA graphs.
            shrink: True if ONNX Runtime gives the memory of intermediate values back afterwards. It
                keeps twice the logits otherwise, for every session. On the CPU alone.

        Raises:
            ArtifactError: ONNX Runtime stops with an error.
        """
        import onnxruntime  # noqa: PLC0415 - an extra

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        if shrink and self.provider == "cpu":
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            self.session.run_with_iobinding(binding, options)
        except Exception as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ArtifactError(
                f"{self._path}: ONNX Runtime cannot run the model on these tokens ({reason}); "
                "check that they are fewer than its context and within its vocabulary"
            ) from error

    def empty_cache(self, batch_size: int) -> dict[str, Any]:
        """Cache without tokens, by name of the input."""
        import onnxruntime  # noqa: PLC0415 - an extra

        return {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(zeros)
            for name, zeros in self.zeros(batch_size, 0).items()
        }

    def zeros(self, batch_size: int, tokens: int) -> dict[str, NDArray[Any]]:
        """Cache of zeros for `tokens` tokens of each sequence, by name of the input.

        It holds keys and values, and the states of fixed size in layers without attention.
        """
        return {
            value.name: np.zeros(_shape(value.shape, batch_size, tokens), NUMPY_TYPES[value.type])
            for value in self._past
        }

    def cache_bytes(self, batch_size: int, tokens: int) -> int:
        """Bytes of a cache for `tokens` tokens of each sequence."""
        return sum(
            prod(_shape(value.shape, batch_size, tokens))
            * np.dtype(NUMPY_TYPES[value.type]).itemsize
            for value in self._past
        )


def _shape(axes: Sequence[int | str], batch_size: int, tokens: int) -> tuple[int, ...]:
    """Shape of a state, whose axes are the batch, sizes, and in some the past tokens."""
    sizes = {"batch_size": batch_size, PAST_AXIS: tokens}
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)
