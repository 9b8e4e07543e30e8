"""Copies of the files beside the weights that a tokenizer and `generate` need.

They are copied, not written by transformers, because another version of it might not read them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from moe_export.errors import CheckpointError
from moe_export.families.overrides import origin_of
from moe_export.system.digests import open_regular
from moe_export.system.disk import disk_error

TEMPLATE_FILE = "chat_template.jinja"

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    TEMPLATE_FILE,
    "chat_template.json",
    "generation_config.json",
)

TEMPLATES_FOLDER = "additional_chat_templates"
"""Folder of further chat templates by name, such as `tool_use.jinja`."""


def tokenizer_files(directory: Path) -> list[Path]:
    """The files in `NAMES` and the further chat templates that a checkpoint has.

    Each is readable and part of the checkpoint.

    Raises:
        CheckpointError: A file is a link that leads out of the checkpoint, cannot be read, or is no
            regular file.
    """
    files = [directory / name for name in NAMES if _is_there(directory / name)]
    files += sorted((directory / TEMPLATES_FOLDER).glob("*.jinja"))
    for path in files:
        _check_place(path, directory)
        try:
            open_regular(path).close()
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}); give a readable copy of the file"
            ) from error
    return files


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copies the files of `tokenizer_files` from the source directory to the target directory.

    Raises:
        CheckpointError: A file is a link that leads out of the source, or cannot be read.
        ResourceError: The disk is full.
    """
    for path in tokenizer_files(source):
        copied = target / path.relative_to(source)
        try:
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copied)
        except OSError as error:
            raise disk_error(error, copied) from error


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _check_place(path: Path, directory: Path) -> None:
    """Stops at a link out of the checkpoint, whose target would be published with the model."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is a link to nothing; copy the file itself") from error
    home = origin_of(directory).resolve()
    if not any(target.is_relative_to(root) for root in _roots(home)):
        raise CheckpointError(
            f"{path} is a link to {target}, outside the checkpoint, and would be copied into the "
            "exported model; put the file itself there, or remove the link"
        )


def _roots(home: Path) -> list[Path]:
    """Folders that belong to a checkpoint: its own and, in the cache of the hub, that of blobs."""
    if home.parent.name == "snapshots":
        return [home, (home.parent.parent / "blobs").resolve()]
    return [home]
