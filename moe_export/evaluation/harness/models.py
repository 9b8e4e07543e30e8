"""Adapters of lm-eval: a checkpoint in torch, and an exported model in ONNX Runtime.

Legend: B batch, S tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from moe_export.checkpoint import read_config
from moe_export.documents.tokens import TextTokenizer
from moe_export.errors import RecipeError
from moe_export.evaluation.harness.greedy import greedy_rows
from moe_export.families import spec_of
from moe_export.ort.session import OrtModel
from moe_export.torch_model import load_torch_model

Told = Callable[[int], None]
"""Function that is told how many more sequences have run."""


class _Harness(HFLM):  # type: ignore[misc]
    """Base of both adapters: batches and cuts of `HFLM`, greedy answers, progress in our words.

    Args:
        pretrained: Model of transformers, or an object with its `config` and `device`.
        directory: Folder with the tokenizer and the config.
        batch_size: Number of sequences that run together.
        max_length: Most tokens of a sequence; the context of the model if None.
        told: Function that is told how many more sequences have run.
    """

    def __init__(
        self, pretrained: Any, directory: Path, batch_size: int, max_length: int | None, told: Told
    ) -> None:
        context = spec_of(read_config(directory)).max_positions
        super().__init__(
            pretrained,
            backend="causal",
            tokenizer=AutoTokenizer.from_pretrained(directory),
            batch_size=batch_size,
            max_length=min(max_length or context, context),
        )
        self._told = told

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:  # noqa: ARG002
        """Log-likelihoods of continuations, without the progress bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:  # noqa: ARG002
        """Log-likelihoods of whole texts, without the progress bar."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:  # noqa: ARG002
        """Greedy answers, without the progress bar."""
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
        return super()._loglikelihood_tokens(requests, **(options | {"disable_tqdm": True}))

    def _model_call(self, inps: Tensor, *_: Any, **__: Any) -> Tensor:
        logits = self._logits(inps)
        self._told(len(inps))
        return logits

    def _model_generate(self, context: Tensor, **options: Any) -> Tensor:
        _require_greedy(options)
        tokens = self._answers(context, **options)
        self._told(len(context))
        return tokens

    def _logits(self, ids_BS: Tensor) -> Tensor:
        """Logits at every position; rows are padded on the right."""
        raise NotImplementedError

    def _answers(self, context: Tensor, **options: Any) -> Tensor:
        """Prompts padded on the left, with the answers behind them."""
        raise NotImplementedError

    def get_model_info(self) -> dict[str, Any]:
        """Nothing, without a network: the run's own files say which model it is."""
        return {}


class TorchHarness(_Harness):
    """Checkpoint in torch, pruned or not, as lm-eval runs any model of transformers.

    Args:
        directory: Folder of the checkpoint.
        dtype: Dtype of the parameters in memory.
        batch_size: Number of sequences that run together.
        max_length: Most tokens of a sequence; the context of the model if None.
        told: Function that is told how many more sequences have run.
    """

    def __init__(
        self,
        directory: Path,
        dtype: str,
        batch_size: int,
        max_length: int | None,
        told: Told,
    ) -> None:
        model = load_torch_model(directory, getattr(torch, dtype))
        # Penalties and sampling of the source's generation_config.json would change greedy answers.
        model.generation_config = GenerationConfig(eos_token_id=TextTokenizer(directory).eos_ids)
        super().__init__(model, directory, batch_size, max_length, told)

    def _logits(self, ids_BS: Tensor) -> Tensor:
        logits: Tensor = super(_Harness, self)._model_call(ids_BS).float()
        return logits

    def _answers(self, context: Tensor, **options: Any) -> Tensor:
        tokens: Tensor = super(_Harness, self)._model_generate(context, **options)
        return tokens


class OrtHarness(_Harness):
    """Exported model in ONNX Runtime.

    Args:
        directory: Folder of the exported model.
        provider: `cpu` or `cuda`.
        operator: `native` runs the experts in the native library, `portable` as standard operators.
        batch_size: Number of sequences that run together.
        max_length: Most tokens of a sequence; the context of the model if None.
        told: Function that is told how many more sequences have run.
    """

    def __init__(
        self,
        directory: Path,
        provider: str,
        operator: str,
        batch_size: int,
        max_length: int | None,
        told: Told,
    ) -> None:
        config = AutoConfig.from_pretrained(directory)
        stand_in = SimpleNamespace(config=config, device=torch.device("cpu"))
        super().__init__(stand_in, directory, batch_size, max_length, told)
        self._runtime = OrtModel(directory, provider, operator=operator)
        self._ends = TextTokenizer(directory).eos_ids

    def _logits(self, ids_BS: Tensor) -> Tensor:
        rows = self._runtime.logits([row.tolist() for row in ids_BS])
        return torch.from_numpy(np.stack(rows))

    def _answers(self, context: Tensor, **options: Any) -> Tensor:
        real_BS = options["attention_mask"].bool()
        answers = greedy_rows(
            self._runtime,
            [row[real].tolist() for row, real in zip(context, real_BS, strict=True)],
            options["max_length"] - context.shape[1],
            lambda tokens: self._is_over(tokens, options["stop"]),
        )
        longest = max(map(len, answers))
        filled = [row + [self.tokenizer.pad_token_id] * (longest - len(row)) for row in answers]
        return torch.cat([context, torch.tensor(filled, dtype=context.dtype)], 1)

    def _is_over(self, tokens: list[int], stops: list[str]) -> bool:
        """True if an answer has an end token last, or contains one of the texts that end it."""
        if tokens[-1] in self._ends:
            return True
        text = self.tok_decode(tokens)
        return any(stop in text for stop in stops)


def _require_greedy(options: dict[str, Any]) -> None:
    """Stops at a task whose answers are drawn or searched for."""
    drawn = options.get("do_sample") or (options.get("temperature") or 0) > 0
    if drawn or options.get("num_beams", 1) > 1:
        raise RecipeError(
            "eval.tasks: a task asks for answers that are drawn or searched by beams "
            "(generation_kwargs do_sample, temperature, num_beams), and only greedy answers are "
            "supported; leave the task out"
        )
