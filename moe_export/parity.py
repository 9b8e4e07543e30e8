"""An exported model against the torch model of the same checkpoint.

Legend: T tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe_export.evaluation import log_softmax
from moe_export.runtime import OrtModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compare_logits(
    directory: Path,
    ort_model: OrtModel,
    torch_model: PreTrainedModel,
    sequences: list[list[int]],
    limit: float | None = None,
) -> dict[str, Any]:
    """The largest difference of any logit at any position, and what it does to the distributions.

    Args:
        directory: of the exported model, opened again to find the layer at fault.
        ort_model: the same model.
        torch_model: the oracle.
        sequences: token ids.
        limit: an error above it is traced to the first layer whose output differs by more; None
            where a difference is no fault.

    Returns:
        `max_logit_error`, `tokens`, `kl_nats` (mean divergence of the exported model from torch),
        `top1_agreement`, and `first_bad_layer` (None within the limit or without one; the number of
        layers if all layers agree and the head is at fault).
    """
    worst, kl_nats, agreements = 0.0, 0.0, 0
    for sequence in sequences:
        expected_TV = torch_logits(torch_model, sequence)
        found_TV = ort_model.logits([sequence])[0]
        # Not by max(), which drops a NaN that comes second.
        worst = float(np.maximum(worst, np.abs(found_TV - expected_TV).max()))
        log_q, log_p = log_softmax(expected_TV), log_softmax(found_TV)
        kl_nats += float((np.exp(log_q) * (log_q - log_p)).sum())
        agreements += int((expected_TV.argmax(-1) == found_TV.argmax(-1)).sum())
    bad = None
    if limit is not None and not worst <= limit:
        bad = first_bad_layer(directory, torch_model, sequences[0], limit)
    tokens = sum(len(sequence) for sequence in sequences)
    return {
        "max_logit_error": worst,
        "tokens": tokens,
        "kl_nats": kl_nats / tokens,
        "top1_agreement": agreements / tokens,
        "first_bad_layer": bad,
    }


def compare_greedy(
    ort_model: OrtModel, torch_model: PreTrainedModel, prompts: list[list[int]], new_tokens: int
) -> dict[str, Any] | None:
    """How many of the greedy tokens after each prompt are the same, up to the first difference.

    Generation goes on to `new_tokens` through any end-of-sequence token, so that the KV cache is
    tested at length. None without prompts.
    """
    if not prompts:
        return None
    same = 0
    for prompt in prompts:
        ours = list(ort_model.generate(prompt, new_tokens, eos_ids=[]))
        theirs = torch_greedy(torch_model, prompt, new_tokens)
        differs = [a != b for a, b in zip(ours, theirs, strict=True)]
        same += differs.index(True) if any(differs) else new_tokens
    total = len(prompts) * new_tokens
    return {"prompts": len(prompts), "new_tokens": new_tokens, "agreement": same / total}


def torch_logits(model: PreTrainedModel, sequence: list[int]) -> NDArray[np.float32]:
    """Logits of every position, float32 [T, V]."""
    import torch  # noqa: PLC0415 - heavy

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0]
    array: NDArray[np.float32] = logits.float().numpy()
    return array


def torch_greedy(model: PreTrainedModel, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy tokens through torch's own KV cache."""
    import torch  # noqa: PLC0415 - heavy

    ids, cache, tokens = torch.tensor([prompt]), None, []
    with torch.no_grad():
        for _ in range(new_tokens):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            tokens.append(int(output.logits[0, -1].argmax()))
            ids = torch.tensor([[tokens[-1]]])
    return tokens


def first_bad_layer(
    directory: Path, model: PreTrainedModel, sequence: list[int], limit: float
) -> int:
    """The first layer whose output differs by more than `limit`, relative to its largest value.

    The exported graph is opened with the residual stream after every layer as further outputs.
    """
    import torch  # noqa: PLC0415 - heavy

    from moe_export.graph import with_layer_outputs  # noqa: PLC0415 - only for a failure

    with torch.no_grad():
        states = model(
            input_ids=torch.tensor([sequence]), use_cache=False, output_hidden_states=True
        ).hidden_states
    ours = with_layer_outputs(directory, sequence)
    # hidden_states holds the embeddings first, and ends with the final norm's output.
    for layer, expected in enumerate(state[0].float().numpy() for state in states[1:-1]):
        found = ours[layer]
        if not np.abs(found - expected).max() <= limit * max(1.0, np.abs(expected).max()):
            return layer
    return len(states) - 1
