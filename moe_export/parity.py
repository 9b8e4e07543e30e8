"""An exported model against torch on the same checkpoint, one layer of it in memory at a time.

Legend: T tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.evaluation import log_softmax
from moe_export.runtime import OrtModel


def compare_with_torch(
    directory: Path,
    ort_model: OrtModel,
    checkpoint: Path,
    sequences: Sequence[list[int]],
    prompts: Sequence[list[int]],
    new_tokens: int,
    limit: float | None = None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Logits of sequences, and greedy tokens after prompts.

    Torch sees every token that is compared in one pass: what the exported model generated is given
    to it, and it would have generated the same up to the first token that is not its most likely
    one. The exported model generates through its KV cache, and on to `new_tokens` through any
    end-of-sequence token, so that the cache is tested at length.

    Args:
        directory: of the exported model, opened again to find the layer at fault.
        ort_model: the same model.
        checkpoint: that it was made from; weights are taken in float32.
        sequences: token ids, at least one sequence.
        prompts: token ids.
        new_tokens: to generate after each prompt.
        limit: an error above it is traced to the first layer whose output differs by more; None
            where a difference is no fault.

    Returns:
        `max_logit_error` (at any position), `tokens`, `kl_nats` (mean divergence of the exported
        model from torch), `top1_agreement`, and `first_bad_layer` (None within the limit or without
        one; the number of layers if all layers agree and the head is at fault). Then `prompts`,
        `new_tokens` and `agreement`: the share of greedy tokens that are the same, up to the first
        difference of each prompt; None without prompts.
    """
    import torch  # noqa: PLC0415 - heavy

    from moe_export.torch_model import StreamedModel  # noqa: PLC0415 - imports torch

    generated = [list(ort_model.generate(prompt, new_tokens, eos_ids=[])) for prompt in prompts]
    whole = [[*prompt, *tokens] for prompt, tokens in zip(prompts, generated, strict=True)]
    model = StreamedModel(checkpoint, torch.float32)
    traced: list[NDArray[np.float32]] = []
    states = []
    for states in model.states([torch.tensor([tokens]) for tokens in [*sequences, *whole]]):
        if limit is not None:
            traced.append(states[0][0].numpy())
    worst, kl_nats, agreements, same = 0.0, 0.0, 0, 0
    with model.head() as (norm, head), torch.no_grad():
        for sequence, state in zip(sequences, states, strict=False):
            expected_TV = head(norm(state[0])).numpy()
            found_TV = ort_model.logits([sequence])[0]
            # Not by max(), which drops a NaN that comes second.
            worst = float(np.maximum(worst, np.abs(found_TV - expected_TV).max()))
            log_q, log_p = log_softmax(expected_TV), log_softmax(found_TV)
            kl_nats += float((np.exp(log_q) * (log_q - log_p)).sum())
            agreements += int((expected_TV.argmax(-1) == found_TV.argmax(-1)).sum())
        for prompt, tokens, state in zip(prompts, generated, states[len(sequences) :], strict=True):
            likeliest = head(norm(state[0, len(prompt) - 1 : -1])).argmax(-1).tolist()
            differs = [a != b for a, b in zip(tokens, likeliest, strict=True)]
            same += differs.index(True) if any(differs) else new_tokens
    bad = None
    if limit is not None and not worst <= limit:
        bad = first_bad_layer(directory, sequences[0], traced[1:], limit)
    count = sum(len(sequence) for sequence in sequences)
    parity = {
        "max_logit_error": worst,
        "tokens": count,
        "kl_nats": kl_nats / count,
        "top1_agreement": agreements / count,
        "first_bad_layer": bad,
    }
    if not prompts:
        return parity, None
    agreement = same / (len(prompts) * new_tokens)
    return parity, {"prompts": len(prompts), "new_tokens": new_tokens, "agreement": agreement}


def first_bad_layer(
    directory: Path, sequence: list[int], outputs: Sequence[NDArray[np.float32]], limit: float
) -> int:
    """The first layer whose output differs by more than `limit`, relative to its largest value.

    The exported graph is opened with the residual stream after every layer as further outputs.

    Args:
        directory: of the exported model.
        sequence: token ids.
        outputs: of every layer in torch, [T, D].
        limit: of the difference.
    """
    from moe_export.graph import with_layer_outputs  # noqa: PLC0415 - only for a failure

    ours = with_layer_outputs(directory, sequence)
    for layer, (found, expected) in enumerate(zip(ours, outputs, strict=True)):
        if not np.abs(found - expected).max() <= limit * max(1.0, np.abs(expected).max()):
            return layer
    return len(outputs)
