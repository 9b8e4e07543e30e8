"""The documents of tasks that parity and greedy decoding are measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moe_export.documents.tokens import TokenSequence


def interleaved(tasks: Iterable[Sequence[TokenSequence]]) -> Iterator[TokenSequence]:
    """Yields the first document of every task, then the second, to the end of the shortest task."""
    for documents in zip(*tasks, strict=False):
        yield from documents


def greedy_prompts(
    tasks: Iterable[Sequence[TokenSequence]], count: int, longest: int
) -> list[list[int]]:
    """Prompts that are continued greedily.

    Args:
        tasks: Documents of every task.
        count: Largest number of prompts.
        longest: Most tokens of a prompt that leave room for the new ones in the context.

    Returns:
        Token ids of each prompt; no prompts if no document has one of this length.
    """
    prompts = [
        sequence.tokens[: sequence.prompt_tokens]
        for sequence in interleaved(tasks)
        if 0 < sequence.prompt_tokens <= longest
    ]
    return prompts[:count]
