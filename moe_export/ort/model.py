"""An exported model with its tokenizer: text in, text out.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_export.documents.tokens import TextTokenizer
from moe_export.errors import ArtifactError, RecipeError
from moe_export.ort.decoding import generate
from moe_export.ort.execution import execution_path
from moe_export.ort.session import OrtModel
from moe_export.ort.speculation import Speculation
from moe_export.variants import MODEL_FILE, exported

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CONFIG_FILE = "genai_config.json"
"""File beside an exported model that states its context; `graph` writes it, and loads slowly."""


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
        context: most tokens of a sequence, prompt and new tokens together; None if unknown.
        path: code that runs the experts, in words: the native library or the portable function
            body. Neither stands in for the other.

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
        self.context = _context(directory)
        self._model = OrtModel(directory, provider, threads, operator, cache)
        self.path = execution_path(operator, provider, cache)

    def __repr__(self) -> str:
        return f"<Model {self.directory.name}, {self.path}>"

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

        Raises:
            RecipeError: the sequence is empty or longer than the context.
        """
        self._require_room(len(token_ids), 0)
        (logits_TV,) = self._model.logits([list(token_ids)])
        return logits_TV

    def stream(
        self, prompt: str, new_tokens: int = 64, *, speculate: bool = False
    ) -> Iterator[str]:
        """Yields the greedy continuation of a prompt in pieces of whole characters.

        Args:
            prompt: text to continue; the tokenizer's special tokens are added.
            new_tokens: greatest number of new tokens; an end-of-sequence token ends it earlier.
            speculate: True to take several tokens in a step, drafted from the text so far, while
                that is faster; only on the CPU with the static cache.

        Raises:
            RecipeError: the prompt is no text or has no tokens, the context is too short for it
                and the new tokens, or provider and cache do not allow to speculate.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise RecipeError(
                f"the prompt is not UTF-8 text (at character {error.start + 1}); encode it as UTF-8"
            ) from error
        ids = self.tokenizer.encode_prompt(prompt)
        # The last token is not run, so it needs no place in the context.
        self._require_room(len(ids), new_tokens - 1)
        held = (self._model.provider, self._model.cache)
        if speculate and held != ("cpu", "static"):
            raise RecipeError(
                "speculation needs the provider cpu and the cache static, not "
                f"{' and '.join(held)}; leave it out"
            )
        if speculate and self._model.fixed_states:
            raise RecipeError(
                "speculation has to take back tokens, and this model has layers whose state cannot "
                "go back; leave it out"
            )
        drafts = Speculation(ids) if speculate else None
        tokens = generate(self._model, ids, new_tokens, self.tokenizer.eos_ids, drafts)
        return self.tokenizer.continuation(ids, tokens)

    def generate(self, prompt: str, new_tokens: int = 64, *, speculate: bool = False) -> str:
        """The greedy continuation of a prompt, without the prompt; see `stream`."""
        return "".join(self.stream(prompt, new_tokens, speculate=speculate))

    def _require_room(self, tokens: int, new_tokens: int) -> None:
        """Checks that a sequence has tokens, and the context places for it and for more."""
        if tokens == 0:
            raise RecipeError("there are no tokens to run; give a prompt with text")
        if self.context is None or tokens + new_tokens <= self.context:
            return
        advice = f"ask for at most {self.context - tokens + 1} new tokens"
        if tokens > self.context:
            advice = "shorten it"
        asked = f" and {new_tokens + 1} new ones are asked for" if new_tokens > 0 else ""
        raise RecipeError(
            f"the prompt has {tokens} tokens{asked}, the context of the model is {self.context}; "
            f"{advice}"
        )


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


def _context(directory: Path) -> int | None:
    """Context of an exported model, from its `genai_config.json` if it has one."""
    try:
        content = json.loads((directory / CONFIG_FILE).read_bytes())
        return int(content["model"]["context_length"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(
            f"{directory / CONFIG_FILE} has no model.context_length; run the export stage"
        ) from error
