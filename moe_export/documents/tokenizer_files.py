"""Copies of the files beside the weights that a tokenizer and `generate` need.

They are copied, not written by transformers, because another version of it might not read them.
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
    "chat_template.json",
    "generation_config.json",
)


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copies the files in `NAMES` that the source directory has to the target directory.

    Raises:
        ResourceError: The disk is full.
    """
    for name in NAMES:
        if (source / name).exists():
            try:
                shutil.copyfile(source / name, target / name)
            except OSError as error:
                raise disk_error(error, target / name) from error
