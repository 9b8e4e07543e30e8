"""Settings of an exported tokenizer that runtimes other than transformers need."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moe_export.checkpoint import write_json
from moe_export.errors import CheckpointError

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

logger = logging.getLogger(__name__)


def state_special_tokens(directory: Path) -> None:
    """Writes into `tokenizer_config.json` if BOS and EOS are put around a text.

    onnxruntime-genai otherwise guesses from the text of `tokenizer.json`, and guesses wrong if BOS
    and EOS are the same token. A value that the file has already stays. Nothing happens without
    the file.

    Args:
        directory: Folder of an exported model with a copy of the tokenizer.

    Raises:
        CheckpointError: A file of the tokenizer is damaged.
        ResourceError: The file cannot be written.
    """
    path = directory / TOKENIZER_CONFIG_FILE
    if not path.exists():
        return
    config = _json_object(path)
    first, last = _around(directory / "tokenizer.json")
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
    write_json(path, config | {key: stated[key] for key in stated if config.get(key) is None})


def _around(path: Path) -> tuple[list[str], list[str]]:
    """Special tokens that the tokenizer puts before and after a text."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
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
