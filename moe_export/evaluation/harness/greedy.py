"""Greedy decoding of several prompts at once, each up to its own end.

Legend: B prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moe_export.ort.decoding import open_cache
from moe_export.ort.session import OrtModel


def greedy_rows(
    model: OrtModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    is_over: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Greedy answers to prompts, without the prompts.

    Args:
        model: Session that runs the steps.
        prompts: Token ids of each prompt, at least one.
        new_tokens: Most tokens of an answer, at least one.
        is_over: Function that tells if an answer is at its end; its last token is the newest.
    """
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int64)
    ids = np.zeros((len(prompts), int(lengths_B.max())), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    # The last token is not run, so it needs no room in the cache.
    cache = open_cache(model, len(prompts), ids.shape[1] + new_tokens - 1)
    last_BV = cache.prompt(ids, lengths_B)
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for number in range(1, new_tokens + 1):
        tokens_B = last_BV.argmax(-1)
        for row in sorted(running):
            answers[row].append(int(tokens_B[row]))
            if is_over(answers[row]):
                running.discard(row)
        if not running or number == new_tokens:
            break
        # Rows at their end run on, unread, so that the batch keeps its shape.
        last_BV = cache.token(tokens_B)
    return answers
