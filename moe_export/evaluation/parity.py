"""Parity of an exported model with torch on the same checkpoint.

One of the two models is in memory at a time, torch one layer at a time. The exported model
generates and is closed; torch writes its logits to a file; the exported model is opened again and
compared.

Legend: T tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.validation import Greedy, Parity
from moe_export.evaluation.finite import FiniteCheck
from moe_export.evaluation.tally import divergence_nats, log_softmax, row_chunks
from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel
from moe_export.system.memory import release


@dataclass(frozen=True)
class Compared:
    """Tokens of a comparison.

    Attributes:
        sequences: token ids, at least one sequence.
        prompts: token ids of the prompts for greedy decoding.
        new_tokens: number of tokens to generate after each prompt.
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
    check: FiniteCheck | None = None,
) -> tuple[Parity, Greedy | None]:
    """Compares logits of sequences, and greedy tokens after prompts.

    Torch sees all compared tokens in one pass, those that the exported model generated included: it
    would have generated the same ones up to the first token that is not its most likely one. The
    exported model generates through its KV cache, beyond any end-of-sequence token, so that the
    cache is tested at length.

    Args:
        open_model: function that opens the exported model.
        directory: folder of the exported model.
        checkpoint: checkpoint that the model was exported from; weights are taken in float32.
        compared: tokens to compare.
        scratch: path of a temporary file of 4 * V bytes per token of the sequences.
        limit: largest error that is not traced to the first layer whose output differs by more;
            None for no tracing.
        check: count of the positions without finite logits; None to count none.

    Returns:
        The parity; and the greedy agreement, None without prompts.
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
            parity = _parity(open_model, compared.sequences, file, check or FiniteCheck())
        release()
    finally:
        scratch.unlink(missing_ok=True)
    if limit is not None and not parity.max_logit_error <= limit:
        layer = first_bad_layer(directory, compared.sequences[0], traced.outputs, limit)
        tied = traced.tied_tokens.get(layer) or None
        parity = parity.model_copy(update={"first_bad_layer": layer, "tied_tokens": tied})
    return parity, _greedy(compared, same)


def _greedy(compared: Compared, same: int) -> Greedy | None:
    """Returns the greedy agreement, given the number of tokens before the first differences."""
    if not compared.prompts:
        return None
    prompts, new_tokens = len(compared.prompts), compared.new_tokens
    return Greedy(prompts=prompts, new_tokens=new_tokens, agreement=same / (prompts * new_tokens))


def _generated(open_model: Callable[[], OrtModel], compared: Compared) -> list[list[int]]:
    """Generates with the exported model after each prompt."""
    if not compared.prompts:
        return []
    model = open_model()
    return [
        list(generate(model, prompt, compared.new_tokens, eos_ids=[]))
        for prompt in compared.prompts
    ]


def _parity(
    open_model: Callable[[], OrtModel],
    sequences: Sequence[list[int]],
    expected: IO[bytes],
    check: FiniteCheck,
) -> Parity:
    """Compares the exported model with the logits that `write_logits` wrote."""
    model = open_model()
    worst, kl_nats, agreements = 0.0, 0.0, 0
    for sequence in sequences:
        actual_TV = check.checked(sequence, model.logits([sequence])[0])
        vocabulary = actual_TV.shape[1]
        for rows in row_chunks(len(sequence), vocabulary):
            count = (rows.stop - rows.start) * vocabulary
            expected_TV = np.fromfile(expected, np.float32, count).reshape(-1, vocabulary)
            # Not max(), which drops a NaN in second place.
            worst = float(np.maximum(worst, np.abs(actual_TV[rows] - expected_TV).max()))
            log_q, log_p = log_softmax(expected_TV), log_softmax(actual_TV[rows])
            kl_nats += divergence_nats(log_q, log_p)
            agreements += int((expected_TV.argmax(-1) == actual_TV[rows].argmax(-1)).sum())
    tokens = sum(len(sequence) for sequence in sequences)
    return Parity(
        max_logit_error=worst,
        tokens=tokens,
        kl_nats=kl_nats / tokens,
        top1_agreement=agreements / tokens,
        first_bad_layer=None,
    )


def first_bad_layer(
    directory: Path, sequence: list[int], outputs: Sequence[NDArray[np.float32]], limit: float
) -> int:
    """Finds the first layer whose output differs by more than `limit` of its largest value.

    The exported graph is opened with the residual stream after every layer as further outputs.

    Args:
        directory: folder of the exported model.
        sequence: token ids.
        outputs: output of every layer in torch, float32 [T, D].
        limit: largest relative difference.
    """
    from moe_export.graph import with_layer_outputs  # noqa: PLC0415 - only for a failure

    ours = with_layer_outputs(directory, sequence)
    for layer, (actual, expected) in enumerate(zip(ours, outputs, strict=True)):
        with np.errstate(invalid="ignore"):
            difference = np.abs(actual - expected).max()
        if not difference <= limit * max(1.0, np.abs(expected).max()):
            return layer
    return len(outputs)
