"""`generation_config.json` of a checkpoint: special tokens and how the next token is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe_export.documents.json_files import json_object
from moe_export.errors import CheckpointError
from moe_export.families.schema import require_token_ids, shown
from moe_export.graph.genai_config import SEARCH_KEYS

FILE = "generation_config.json"
LARGEST = 1e9
"""Bound of the numbers, far beyond those in use."""


def generation_settings(directory: Path) -> dict[str, Any]:
    """Content of the file; empty if there is none.

    Raises:
        CheckpointError: It is damaged, or a value that is exported has another type.
    """
    content = json_object(directory / FILE)
    require_token_ids(content, FILE)
    for key in SEARCH_KEYS:
        value = content.get(key)
        if value is not None and not (isinstance(value, int | float) and abs(value) <= LARGEST):
            raise CheckpointError(
                f"{directory / FILE}: {key} is {shown(value)}, expected a number; correct or "
                "remove it"
            )
    return content
