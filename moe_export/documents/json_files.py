"""JSON files of a checkpoint beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_export.errors import CheckpointError


def json_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty if there is no such file.

    Raises:
        CheckpointError: The file cannot be read, or holds something else than an object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a JSON object ({error}); copy it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} cannot be read as a JSON object; copy it again")
    return content
