"""Settings of an exported tokenizer that runtimes other than transformers need."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moe_export.checkpoint import write_json
from moe_export.documents.special_tokens import TOKENIZER_CONFIG_FILE, added_around, special_tokens
from moe_export.documents.tokens import load_tokenizer
from moe_export.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextStart:
    """Beginning of a text as the model was trained to see it.

    Attributes:
        has_bos: True if it is BOS.
        missing_bos: Id of BOS if `tokenizer_config.json` asks for it and `tokenizer.json` does not
            add it; else None.
    """

    has_bos: bool
    missing_bos: int | None


def state_special_tokens(directory: Path) -> TextStart:
    """Writes into `tokenizer_config.json` if BOS and EOS are put around a text.

    onnxruntime-genai otherwise guesses from the text of `tokenizer.json`, and guesses wrong if BOS
    and EOS are the same token. A value that the file has already stays. Without the file nothing
    is written.

    Args:
        directory: Folder of an exported model with a copy of the tokenizer.

    Returns:
        The beginning of a text.

    Raises:
        CheckpointError: A file of the tokenizer is damaged.
        ResourceError: The file cannot be written.
    """
    path = directory / TOKENIZER_CONFIG_FILE
    tokenizer = load_tokenizer(directory)
    first, last = added_around(tokenizer)
    special = special_tokens(tokenizer, directory, first, last)
    if path.exists():
        config = json.loads(path.read_bytes())
        _warn_of_others(path, config, tokenizer, special.first, "bos_token")
        _warn_of_others(path, config, tokenizer, special.last, "eos_token")
        stated = {"add_bos_token": bool(special.first), "add_eos_token": bool(special.last)}
        missing = {key: value for key, value in stated.items() if config.get(key) is None}
        try:
            write_json(path, config | missing)
        except ValueError as error:
            raise CheckpointError(
                f"{path} holds a number that JSON does not have ({error}); correct it"
            ) from error
    return TextStart(bool(special.first), special.first[0] if special.first != first else None)


def _warn_of_others(
    path: Path, config: dict[str, Any], tokenizer: Tokenizer, ids: tuple[int, ...], key: str
) -> None:
    """Warns if the tokenizer adds other tokens than onnxruntime-genai can add."""
    token = config.get(key)
    name = token.get("content") if isinstance(token, dict) else token
    tokens = [str(tokenizer.id_to_token(number)) for number in ids]
    if tokens and tokens != [name]:
        logger.warning(
            "%s: the tokenizer adds %s, which is not its %s; onnxruntime-genai will encode texts "
            "differently, so give it token ids",
            path,
            " ".join(map(str, tokens)),
            key,
        )
