"""The files beside the weights that a tokenizer and `generate` need, copied verbatim.

They are never written anew: a loader of another version might not read what this one writes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from moe_export.system.disk import disk_error

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copies those of `NAMES` that the source has.

    Raises:
        ResourceError: the disk is full.
    """
    for name in NAMES:
        if (source / name).exists():
            try:
                shutil.copyfile(source / name, target / name)
            except OSError as error:
                raise disk_error(error, target / name) from error
