"""Losses and their gradients with respect to the last hidden states, without autograd.

Legend: T target positions, D hidden, V vocab.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

Loss = Literal["cross_entropy", "margin", "sampled"]
"""Losses of a token, in nats, with logits z and the next token `gold`:

cross_entropy: logsumexp over all v of z[v], less z[gold].
margin:        logsumexp over v != gold of z[v], less z[gold]: the lead of the best other tokens
               over gold. Its gradient is that of the cross-entropy divided by (1 - p[gold]), so
               that it does not vanish on tokens that the model predicts well.
sampled:       the cross-entropy with a token drawn from the model's own distribution as gold.
The loss of a sequence is the mean over its tokens after the first, prompt and answer alike.
"""

CHUNK_BYTES = 1 << 27
"""Bytes of the float32 logits that are computed at a time: 220 target positions at a vocabulary of
152 k. Memory holds about four copies of them."""


def loss_gradients(
    hidden_TD: Tensor,
    head: nn.Linear,
    gold_T: Tensor,
    weight_T: Tensor,
    losses: Collection[Loss],
    draw_T: Tensor | None = None,
) -> dict[Loss, Tensor]:
    """Gradient of sum over t of weight[t] * loss[t], for each loss; see `Loss`.

    With p the softmax of the logits over the tokens that the loss counts (all, or all but gold),
    the gradient of a token's loss with respect to its logits is p less 1 at gold. Computed this
    way, all losses share the logits, of which at most `CHUNK_BYTES` are in memory at once.

    Args:
        hidden_TD: Last hidden states, after the final norm.
        head: Linear map from hidden states to logits.
        gold_T: Token that follows each position, int64.
        weight_T: 1 / (number of targets of the sequence), float32.
        losses: Names of the losses.
        draw_T: Uniform numbers on [0, 1) that tokens are drawn by, float64; for `sampled` only.

    Returns:
        Gradient [T, D] in the dtype of `hidden_TD`, for each loss.
    """
    gradients: dict[Loss, list[Tensor]] = {loss: [] for loss in losses}
    with torch.no_grad():
        for part in _chunks(len(gold_T), head, CHUNK_BYTES):
            gold = gold_T[part, None]
            logits_TV = _logits(head, hidden_TD[part])
            for loss, chunks in gradients.items():
                counted = logits_TV
                if loss == "margin":
                    counted = logits_TV.scatter(1, gold, -torch.inf)
                slope_TV = torch.softmax(counted, dim=-1)
                label = gold
                if loss == "sampled":
                    assert draw_T is not None
                    label = _drawn(slope_TV, draw_T[part])
                slope_TV.scatter_add_(1, label, slope_TV.new_full(label.shape, -1))
                slope_TV *= weight_T[part, None]
                chunks.append(slope_TV.to(hidden_TD.dtype) @ head.weight)
    return {loss: torch.cat(chunks) for loss, chunks in gradients.items()}


def _drawn(p_TV: Tensor, draw_T: Tensor) -> Tensor:
    """Tokens [T, 1] at which the cumulative probability exceeds uniform numbers."""
    cumulative_TV = p_TV.double().cumsum(-1)
    cumulative_TV /= cumulative_TV[:, -1:].clone()
    return torch.searchsorted(cumulative_TV, draw_T[:, None], right=True)


def divergence_nats(
    hidden_TD: Tensor, teacher_TD: Tensor, head: nn.Linear, temperature: float
) -> tuple[float, Tensor]:
    """Divergence of a model's distributions from a teacher's, and its gradient.

    With logits z' of the teacher, z of the model and the temperature tau, the divergence is

        tau ** 2 * sum over t of KL(softmax(z'[t] / tau), softmax(z[t] / tau))

    as in arXiv:2603.02217, where it is divided by the number of tokens. Its gradient with respect
    to z[t] is tau * (softmax(z[t] / tau) - softmax(z'[t] / tau)).

    Args:
        hidden_TD: Last hidden states of the model, after the final norm.
        teacher_TD: Last hidden states of the teacher, after the final norm.
        head: Linear map from either to logits, of which at most `CHUNK_BYTES` are in memory.
        temperature: Divisor tau of the logits.

    Returns:
        Divergence in nats, and its gradient [T, D] at `hidden_TD`, in the dtype of `hidden_TD`.
    """
    total_nats = 0.0
    slopes = [torch.zeros_like(hidden_TD[:0])]
    with torch.no_grad():
        for part in _chunks(len(hidden_TD), head, CHUNK_BYTES // 2):
            q_TV = torch.log_softmax(_logits(head, teacher_TD[part]) / temperature, dim=-1)
            p_TV = torch.log_softmax(_logits(head, hidden_TD[part]) / temperature, dim=-1)
            kl_TV = torch.nn.functional.kl_div(p_TV, q_TV, reduction="none", log_target=True)
            total_nats += temperature**2 * float(kl_TV.sum(dtype=torch.float64))
            slope_TV = p_TV.exp_().sub_(q_TV.exp_()).mul_(temperature)
            slopes.append(slope_TV.to(hidden_TD.dtype) @ head.weight)
    return total_nats, torch.cat(slopes)


def token_divergences(
    hidden_TD: Tensor, teacher_TD: Tensor, gold_T: Tensor, head: nn.Linear
) -> tuple[Tensor, Tensor]:
    """Divergence of a model from a teacher, and the model's loss, at each token.

    Args:
        hidden_TD: Last hidden states of the model, after the final norm.
        teacher_TD: Last hidden states of the teacher, after the final norm.
        gold_T: Token that follows each position, int64.
        head: Linear map from either to logits, of which at most `CHUNK_BYTES` are in memory.

    Returns:
        KL(teacher, model) and negative log-likelihood of `gold`, both float64 [T], nats.
    """
    empty = hidden_TD.new_zeros(0, dtype=torch.float64)
    divergences, losses = [empty], [empty]
    with torch.no_grad():
        for part in _chunks(len(hidden_TD), head, CHUNK_BYTES // 2):
            q_TV = torch.log_softmax(_logits(head, teacher_TD[part]), dim=-1)
            p_TV = torch.log_softmax(_logits(head, hidden_TD[part]), dim=-1)
            kl_TV = torch.nn.functional.kl_div(p_TV, q_TV, reduction="none", log_target=True)
            divergences.append(kl_TV.sum(-1, dtype=torch.float64))
            losses.append(-p_TV.gather(1, gold_T[part, None])[:, 0].double())
    return torch.cat(divergences), torch.cat(losses)


def _chunks(rows: int, head: nn.Linear, chunk_bytes: int) -> Iterator[slice]:
    """Slices of the positions whose float32 logits take at most `chunk_bytes` each."""
    chunk = max(1, chunk_bytes // (4 * head.weight.shape[0]))
    for start in range(0, rows, chunk):
        yield slice(start, start + chunk)


def _logits(head: nn.Linear, hidden_TD: Tensor) -> Tensor:
    """Logits [T, V] in at least float32."""
    logits_TV = head(hidden_TD)
    return logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
