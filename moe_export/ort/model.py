"""An exported model with its tokenizer: text in, text out.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_export.documents.tokens import INCOMPLETE, TextTokenizer
from moe_export.errors import ArtifactError
from moe_export.ort.decoding import generate
from moe_export.ort.session import MODEL_FILE, OrtModel
from moe_export.variants import exported

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class Model:
    """An exported model that runs in ONNX Runtime.

    Args:
        directory: folder of one exported model, with its tokenizer.
        provider: `cpu` or `cuda`.
        operator: `native` runs the experts in the native library, `portable` as standard operators.
        cache: form of the KV cache: `growing`, `static` or `captured`.
        threads: threads within an operator; 0 lets ONNX Runtime choose.

    Attributes:
        directory: folder of the exported model.
        tokenizer: the model's own tokenizer.

    Raises:
        RecipeError: the cache is captured elsewhere than on CUDA with the native operator.
        DependencyError: ONNX Runtime, the provider or the native library is absent.
        ArtifactError: the model is missing or does not load.
        CheckpointError: the tokenizer is missing or damaged.
    """

    def __init__(
        self, directory: Path, provider: str, operator: str, cache: str, threads: int = 0
    ) -> None:
        self.directory = directory
        self.tokenizer = TextTokenizer(directory)
        self._model = OrtModel(directory, provider, threads, operator, cache)

    @property
    def session(self) -> InferenceSession:
        """The ONNX Runtime session."""
        return self._model.session

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after every token of one sequence.

        Args:
            token_ids: tokens of the sequence, at least one.

        Returns:
            float32 [T, V].
        """
        (logits_TV,) = self._model.logits([list(token_ids)])
        return logits_TV

    def stream(self, prompt: str, new_tokens: int = 64) -> Iterator[str]:
        """Yields the greedy continuation of a prompt in pieces of whole characters.

        Args:
            prompt: text to continue; the tokenizer's special tokens are added.
            new_tokens: greatest number of new tokens; an end-of-sequence token ends it earlier.
        """
        ids = self.tokenizer.encode_prompt(prompt)
        tokens = generate(self._model, ids, new_tokens, self.tokenizer.eos_ids)
        return _pieces(self.tokenizer, tokens)

    def generate(self, prompt: str, new_tokens: int = 64) -> str:
        """The greedy continuation of a prompt, without the prompt; see `stream`."""
        return "".join(self.stream(prompt, new_tokens))


def exported_model(folder: Path, variant: str | None = None) -> Path:
    """The folder of one exported model.

    Args:
        folder: a run directory, an export directory, or the folder of one exported model.
        variant: name of the variant; the product (quantized, else pruned) if None.

    Raises:
        ArtifactError: there is no such model.
    """
    if (folder / MODEL_FILE).is_file():
        if variant in (None, folder.name):
            return folder
        raise ArtifactError(
            f"{folder} holds one model, and variant {variant!r} is asked for; give the directory "
            "that holds all variants"
        )
    export = folder / "export" if (folder / "export").is_dir() else folder
    variants = exported(export)
    if not variants:
        raise ArtifactError(f"{folder} holds no exported model; run the export stage")
    name = variant or list(variants)[-1]
    if name not in variants:
        raise ArtifactError(
            f"{export / name} is missing; choose another variant: {', '.join(variants)}"
        )
    return variants[name]


def _pieces(tokenizer: TextTokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Text as it becomes complete, since one character may take several tokens."""
    seen: list[int] = []
    given = ""
    for token in tokens:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith(INCOMPLETE):
            yield text[len(given) :]
            given = text
