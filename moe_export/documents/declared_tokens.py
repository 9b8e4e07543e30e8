"""Added tokens that files beside `tokenizer.json` declare, and it lacks.

transformers adds them to the tokenizer, so a text that holds one of them has one token there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from moe_export.documents.json_files import json_object
from moe_export.documents.special_tokens import TOKENIZER_CONFIG_FILE

MAP_FILE, ADDED_FILE = "special_tokens_map.json", "added_tokens.json"

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens")
"""Keys of one special token, and of several."""

FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


def add_declared(tokenizer: Tokenizer, directory: Path) -> None:
    """Adds the declared tokens that a tokenizer lacks, with the next ids, in transformers' order.

    Args:
        tokenizer: Tokenizer, which is changed.
        directory: Checkpoint directory.

    Raises:
        CheckpointError: A file is damaged.
    """
    config = json_object(directory / TOKENIZER_CONFIG_FILE)
    named = config | json_object(directory / MAP_FILE)
    numbered = config.get("added_tokens_decoder")
    found = _in_order(numbered) if isinstance(numbered, dict) else []
    if not found:
        added = json_object(directory / ADDED_FILE)
        found = [_token(name, special=False) for name in sorted(added, key=lambda n: str(added[n]))]
    found += [_token(named.get(key)) for key in NAMED]
    found += [_token(token) for key in MORE for token in _several(named.get(key))]
    tokens = {token.content: token for token in found if token is not None and token.content}
    missing = [token for name, token in tokens.items() if tokenizer.token_to_id(name) is None]
    if missing:
        tokenizer.add_tokens(missing)


def _in_order(numbered: dict[str, Any]) -> list[AddedToken | None]:
    """Tokens of `added_tokens_decoder`, by their ids."""
    keys = sorted((key for key in numbered if key.isdecimal()), key=int)
    return [_token(numbered[key], special=False) for key in keys]


def _several(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _token(value: Any, *, special: bool = True) -> AddedToken | None:
    """A token given by its text or by an object with its text; None for anything else."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    flags = {key: value[key] for key in FLAGS if isinstance(value.get(key), bool)}
    return AddedToken(value["content"], **({"special": special} | flags))
