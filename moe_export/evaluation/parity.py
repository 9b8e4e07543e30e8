"""An exported model against torch on the same checkpoint.

One of them is in memory at a time, and of torch one layer: the exported model generates and goes,
torch leaves its logits in a file, and the exported model comes again to be held against them.

Legend: T tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moe_export.evaluation.tally import divergence_nats, log_softmax, row_chunks
from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel
from moe_export.system.memory import release


@dataclass(frozen=True)
class Compared:
    """What is compared.

    Attributes:
        sequences: token ids, at least one sequence.
        prompts: token ids.
        new_tokens: to generate after each prompt.
    """

    sequences: Sequence[list[int]]
    prompts: Sequence[list[int]]
    new_tokens: int


def compare_with_torch(
    open_model: Callable[[], OrtModel],
    directory: Path,
    checkpoint: Path,
    compared: Compared,
    scratch: Path,
    limit: float | None = None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Logits of sequences, and greedy tokens after prompts.

    Torch sees every token that is compared in one pass: what the exported model generated is given
    to it, and it would have generated the same up to the first token that is not its most likely
    one. The exported model generates through its KV cache, and on to `new_tokens` through any
    end-of-sequence token, so that the cache is tested at length.

    Args:
        open_model: opens the exported model, for as long as it is needed.
        directory: of the exported model.
        checkpoint: that it was made from; weights are taken in float32.
        compared: the tokens.
        scratch: a file to be written, of 4 * V bytes for each token of the sequences; it is gone
            afterwards.
        limit: an error above it is traced to the first layer whose output differs by more; None
            where a difference is no fault.

    Returns:
        `max_logit_error` (at any position), `tokens`, `kl_nats` (mean divergence of the exported
        model from torch), `top1_agreement`, and `first_bad_layer` (None within the limit or without
        one; the number of layers if all layers agree and the head is at fault). Then `prompts`,
        `new_tokens` and `agreement`: the share of greedy tokens that are the same, up to the first
        difference of each prompt; None without prompts.
    """
    from moe_export.evaluation.expected import write_logits  # noqa: PLC0415 - imports torch

    generated = _generated(open_model, compared)
    release()
    try:
        with scratch.open("wb") as file:
            same, traced = write_logits(
                checkpoint,
                compared.sequences,
                list(zip(compared.prompts, generated, strict=True)),
                file,
                trace=limit is not None,
            )
        release()
        with scratch.open("rb") as file:
            parity = _differences(open_model, compared.sequences, file)
        release()
    finally:
        scratch.unlink(missing_ok=True)
    parity["first_bad_layer"] = None
    if limit is not None and not parity["max_logit_error"] <= limit:
        first = compared.sequences[0]
        parity["first_bad_layer"] = first_bad_layer(directory, first, traced, limit)
    if not compared.prompts:
        return parity, None
    prompts, new_tokens = len(compared.prompts), compared.new_tokens
    agreement = same / (prompts * new_tokens)
    return parity, {"prompts": prompts, "new_tokens": new_tokens, "agreement": agreement}


def _generated(open_model: Callable[[], OrtModel], compared: Compared) -> list[list[int]]:
    """What the exported model says after each prompt."""
    if not compared.prompts:
        return []
    model = open_model()
    return [
        list(generate(model, prompt, compared.new_tokens, eos_ids=[]))
        for prompt in compared.prompts
    ]


def _differences(
    open_model: Callable[[], OrtModel], sequences: Sequence[list[int]], expected: IO[bytes]
) -> dict[str, Any]:
    """The figures of `parity`, from torch's logits as `write_logits` leaves them."""
    model = open_model()
    worst, kl_nats, agreements = 0.0, 0.0, 0
    for sequence in sequences:
        found_TV = model.logits([sequence])[0]
        vocabulary = found_TV.shape[1]
        for rows in row_chunks(len(sequence), vocabulary):
            count = (rows.stop - rows.start) * vocabulary
            expected_TV = np.fromfile(expected, np.float32, count).reshape(-1, vocabulary)
            # Not by max(), which drops a NaN that comes second.
            worst = float(np.maximum(worst, np.abs(found_TV[rows] - expected_TV).max()))
            log_q, log_p = log_softmax(expected_TV), log_softmax(found_TV[rows])
            kl_nats += divergence_nats(log_q, log_p)
            agreements += int((expected_TV.argmax(-1) == found_TV[rows].argmax(-1)).sum())
    tokens = sum(len(sequence) for sequence in sequences)
    return {
        "max_logit_error": worst,
        "tokens": tokens,
        "kl_nats": kl_nats / tokens,
        "top1_agreement": agreements / tokens,
    }


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
