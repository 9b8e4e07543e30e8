"""An exported model in ONNX Runtime: batches of logits, and generation through the KV cache.

Legend: B batch, S new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.cuda import require_cuda_kernels, require_cuda_libraries
from moe_export.errors import ArtifactError, DependencyError
from moe_export.memory import trim
from moe_export.op.library import library_path, register

MODEL_FILE = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Recipe word of a provider to ONNX Runtime's name."""


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


class OrtModel:
    """A session over an exported directory.

    Args:
        directory: holds `model.onnx`.
        provider: `cpu` or `cuda`; it runs there or not at all.
        threads: threads within an operator; 0 lets ONNX Runtime choose.
        operator: `native` runs the experts in the native library, `portable` as standard operators.

    Raises:
        DependencyError: ONNX Runtime, the provider, or the native library for it is absent.
        ArtifactError: the model is missing or does not load.
    """

    def __init__(
        self,
        directory: Path,
        provider: str = "cpu",
        threads: int = 0,
        operator: str = "native",
    ) -> None:
        require_provider(provider)
        import onnxruntime  # noqa: PLC0415 - an extra

        path = directory / MODEL_FILE
        if not path.exists():
            raise ArtifactError(f"{path} is missing; run the export stage")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if operator == "native":
            require_native(provider)
            register(options)
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=[PROVIDERS[provider]]
            )
        except Exception as error:
            raise ArtifactError(f"{path} does not load in ONNX Runtime: {error}") from error
        if PROVIDERS[provider] not in self.session.get_providers():
            raise DependencyError(
                f"{path}: ONNX Runtime could not start the provider {provider!r}; "
                "run `moe-export doctor` to see why"
            )
        if operator == "portable":
            # Of constants it computes while loading it keeps the results; glibc keeps the rest.
            trim()
        self._provider = provider
        self._outputs = [output.name for output in self.session.get_outputs()]
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
        binding.bind_output(self._outputs[0])
        for name in self._outputs[1:]:
            binding.bind_output(name, self._provider)
        self.session.run_with_iobinding(binding)
        values = binding.get_outputs()
        present = {
            name.replace("present.", "past_key_values."): value
            for name, value in zip(self._outputs[1:], values[1:], strict=True)
        }
        return values[0].numpy().astype(np.float32, copy=False), present

    def empty_cache(self, batch_size: int) -> dict[str, Any]:
        """A KV cache of no tokens."""
        import onnxruntime  # noqa: PLC0415 - an extra

        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        return {
            value.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((batch_size, value.shape[1], 0, value.shape[3]), kinds[value.type])
            )
            for value in self._past
        }

    def generate(self, prompt: list[int], new_tokens: int, eos_ids: list[int]) -> Iterator[int]:
        """Greedy tokens after a prompt, ending early with one of `eos_ids`, which is given too."""
        ids = np.array([prompt], np.int64)
        cache, length = self.empty_cache(1), len(prompt)
        for _ in range(new_tokens):
            logits, cache = self.step(ids, np.ones((1, length), np.int64), cache)
            token = int(logits[0, -1].argmax())
            yield token
            if token in eos_ids:
                return
            ids = np.array([[token]], np.int64)
            length += 1
