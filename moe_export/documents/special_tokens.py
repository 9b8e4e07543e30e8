"""Special tokens around a text, and the one rule that decides who puts BOS in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from moe_export.documents.files import shortened
from moe_export.documents.json_files import json_object
from moe_export.errors import CheckpointError

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

Bos = Literal["template", "text", "tokenizer", "nobody"]
"""Origin of the BOS token of a sequence: the chat template, the text itself, the tokenizer, or
none, because a template does without it or the tokenizer adds none."""


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens that a tokenizer puts around a text.

    Attributes:
        first: Ids before the text, usually BOS or nothing.
        last: Ids after the text, usually nothing.
        bos: Id of BOS, also of one that the tokenizer does not add; None if there is none.
    """

    first: tuple[int, ...]
    last: tuple[int, ...]
    bos: int | None


def who_adds_bos(
    ids: Sequence[int], special: SpecialTokens, rendered: bool
) -> tuple[tuple[int, ...], Bos]:
    """Decides which ids go before those of a text, so that it begins with BOS at most once.

    A rendered chat template holds all special tokens that the model was trained with, so nothing is
    added to it, as in transformers. Any other text begins as the tokenizer says, unless it holds
    BOS already.

    Args:
        ids: Ids of the text, encoded without special tokens.
        special: Tokens that the tokenizer puts around a text.
        rendered: True if the text is a rendered chat template.

    Returns:
        Ids to put in front, and the origin of BOS.

    >>> who_adds_bos([7, 8], SpecialTokens(first=(1,), last=(), bos=1), rendered=False)
    ((1,), 'tokenizer')
    >>> who_adds_bos([1, 7, 8], SpecialTokens(first=(1,), last=(), bos=1), rendered=True)
    ((), 'template')
    """
    begins = special.first and tuple(ids[: len(special.first)]) == special.first
    if begins or (special.bos is not None and list(ids[:1]) == [special.bos]):
        return (), "template" if rendered else "text"
    if rendered or not special.first:
        return (), "nobody"
    return special.first, "tokenizer"


def special_tokens(
    tokenizer: Tokenizer, directory: Path, first: tuple[int, ...], last: tuple[int, ...]
) -> SpecialTokens:
    """Puts together what `tokenizer.json` and `tokenizer_config.json` say of special tokens.

    If the first adds nothing in front, but the second has `add_bos_token: true`, BOS is put in
    front, as the tokenizers of LLaMA do in transformers.

    Args:
        tokenizer: Tokenizer of the model.
        directory: Checkpoint directory.
        first: Ids that the post-processor of `tokenizer.json` adds before a text.
        last: Ids that it adds after a text.

    Raises:
        CheckpointError: `tokenizer_config.json` is damaged.
    """
    config = json_object(directory / TOKENIZER_CONFIG_FILE)
    name = name_of_bos(config)
    bos = tokenizer.token_to_id(name) if name is not None else None
    if not first and config.get("add_bos_token") is True and bos is not None:
        first = (bos,)
    return SpecialTokens(first, last, bos)


def added_around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that a tokenizer adds before and after a text, found by encoding a short text."""
    words = [tokenizer.id_to_token(token) for token in range(min(tokenizer.get_vocab_size(), 300))]
    for probe in ("a", "1", *filter(None, words)):
        encoding = tokenizer.encode(probe)
        inside = [at for at, added in enumerate(encoding.special_tokens_mask) if not added]
        if inside:
            return tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])
    return (), ()


def name_of_bos(config: dict[str, Any]) -> str | None:
    """The BOS token in the content of `tokenizer_config.json`; None if it has none."""
    token = config.get("bos_token")
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def end_ids(directory: Path) -> list[int]:
    """End-of-sequence ids of `generation_config.json`, or else of `config.json`; may be empty.

    Raises:
        CheckpointError: A file is damaged, or an id is not a whole number.
    """
    for name in ("generation_config.json", "config.json"):
        eos = json_object(directory / name).get("eos_token_id")
        if eos is None:
            continue
        ids = eos if isinstance(eos, list) else [eos]
        if not all(type(token) is int and 0 <= token < 1 << 31 for token in ids):
            raise CheckpointError(
                f"{directory / name}: eos_token_id is {shortened(eos)}, expected the id of a token "
                "or a list of ids; correct it"
            )
        return ids
    return []
