"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2MoeForCausalLM

from moe_export.errors import MoeExportError
from tools.train_demo.model import balance_loss
from tools.train_demo.optim import Optimizer
from tools.train_demo.packing import Batch, batches
from tools.train_demo.settings import Settings

logger = logging.getLogger(__name__)

_LOG_STEPS = 50


def train(
    model: Qwen2MoeForCausalLM,
    tokenizer: Tokenizer,
    paragraphs: Sequence[str],
    settings: Settings,
) -> int:
    """Train in place and return the number of tokens trained on.

    Raises:
        MoeExportError: if the loss of the last steps is not below that of the first.
    """
    model.train()
    optimizer = Optimizer(model, settings)
    losses = []
    tokens = 0
    started_s = time.monotonic()
    stream = batches(tokenizer, paragraphs, settings)
    for step in range(settings.steps):
        batch = next(stream)
        loss = _answer_loss(model, batch, settings.label_smoothing_at(step))
        (loss + settings.balance_loss_weight * balance_loss(model)).backward()  # type: ignore[no-untyped-call]
        optimizer.step(settings.learning_rate_factor(step))
        losses.append(loss.item())
        tokens += int(torch.count_nonzero(batch.weights))
        if (step + 1) % _LOG_STEPS == 0:
            logger.info(
                "step %d loss %.4f tokens %d wall_s %.0f",
                step + 1,
                sum(losses[-_LOG_STEPS:]) / _LOG_STEPS,
                tokens,
                time.monotonic() - started_s,
            )
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    if not last < first:
        raise MoeExportError(
            f"demo training: the loss went from {first:.3f} to {last:.3f} nats; check the learning "
            "rates in tools/train_demo/settings.py"
        )
    return tokens


def _answer_loss(model: Qwen2MoeForCausalLM, batch: Batch, label_smoothing: float) -> Tensor:
    """Weighted mean cross-entropy in nats over the batch's real tokens."""
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask(),
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits
    real = batch.weights > 0
    weights = batch.weights[real]
    losses = functional.cross_entropy(
        logits[real], batch.label_ids[real], reduction="none", label_smoothing=label_smoothing
    )
    return (losses * weights).sum() / weights.sum()
