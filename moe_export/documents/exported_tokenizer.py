"""Settings of an exported tokenizer that runtimes other than transformers need."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moe_export.checkpoint import write_json
from moe_export.errors import CheckpointError

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

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
    tokenizer = _tokenizer(directory / "tokenizer.json")
    first, last = _around(tokenizer)
    if not path.exists():
        return TextStart(bool(first), None)
    config = _json_object(path)
    stated = {"add_bos_token": bool(first), "add_eos_token": bool(last)}
    for added, key in ((first, "bos_token"), (last, "eos_token")):
        if added and added != [_content(config.get(key))]:
            logger.warning(
                "%s: the tokenizer adds %s, which is not its %s; onnxruntime-genai will encode "
                "texts differently, so give it token ids",
                path,
                " ".join(added),
                key,
            )
    config |= {key: stated[key] for key in stated if config.get(key) is None}
    write_json(path, config)
    bos = _content(config.get("bos_token"))
    is_missing = config["add_bos_token"] is True and not first and isinstance(bos, str)
    return TextStart(
        bool(config["add_bos_token"]), tokenizer.token_to_id(bos) if is_missing else None
    )


def _tokenizer(path: Path) -> Tokenizer:
    """Tokenizer without the truncation and padding that its file may ask for."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _around(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Special tokens that the tokenizer puts before and after a text."""
    encoding = tokenizer.encode("1")
    text = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    if not text:
        return [], []
    return encoding.tokens[: text[0]], encoding.tokens[text[-1] + 1 :]


def _content(token: Any) -> Any:
    """Text of a special token, which is a string or an object with a string."""
    return token.get("content") if isinstance(token, dict) else token


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
