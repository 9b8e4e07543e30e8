"""Directory of the checkpoint that a recipe's `model.source` names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

from moe_export.checkpoint import INDEX_FILE, SINGLE_FILE
from moe_export.demo import FOLDERS, checkpoint_dir
from moe_export.documents.generation_file import generation_settings
from moe_export.errors import CheckpointError, DependencyError
from moe_export.families import open_checkpoint
from moe_export.families.base import ModelSpec
from moe_export.families.overrides import OVERRIDES_KEY, with_overrides
from moe_export.recipe import ModelSettings

logger = logging.getLogger(__name__)

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Patterns of the files downloaded from the hub: never a pickle, never code."""


def locate(settings: ModelSettings) -> Path:
    """Finds the directory of the source model; downloads a hub id that is not in the local cache.

    With `model.overrides` it is a view of that directory, see `families.overrides`.

    Raises:
        CheckpointError: the source is neither an embedded model, nor a directory, nor a hub id.
        DependencyError: a hub id is not in the local cache and cannot be downloaded.
        ResourceError: the view cannot be written.
    """
    return with_overrides(_published(settings), settings.overrides.keys)


def _published(settings: ModelSettings) -> Path:
    if settings.source in FOLDERS:
        return checkpoint_dir(settings.source)
    directory = Path(settings.source).expanduser()
    if directory.is_dir():
        return directory.resolve()
    if directory.is_file():
        raise CheckpointError(
            f"model.source {settings.source!r} is a file, expected the directory of a checkpoint; "
            "give the directory that it is in"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", settings.source):
        raise CheckpointError(
            f"model.source {settings.source!r} is no directory here; give 'demo' or 'demo-narrow', "
            "the directory of a checkpoint, or a Hugging Face id such as 'Qwen/Qwen1.5-MoE-A2.7B'"
        )
    return _from_hub(settings)


def inspect(model: Path) -> ModelSpec:
    """Checks config and tensors of the source before any work, and tells what will be dropped.

    Args:
        model: Folder of the checkpoint.

    Returns:
        Sizes of the model.

    Raises:
        CheckpointError: a file or tensor is missing, damaged, unknown or superfluous.
    """
    checkpoint, spec = open_checkpoint(model)
    generation_settings(model)  # transformers would log what is wrong with it, and go on
    for key, published in checkpoint.config.get(OVERRIDES_KEY, {}).items():
        value = checkpoint.config[key]
        logger.warning("%s: %s is %s, published %s", model, key, value, published)
    for reason, count in Counter(checkpoint.dropped.values()).items():
        first = next(name for name, why in checkpoint.dropped.items() if why == reason)
        more = f" (and {count - 1} more)" if count > 1 else ""
        logger.warning("%s: tensor %s%s is left out: %s", model, first, more, reason)
    return spec


def inspect_if_there(model: Path) -> None:
    """Checks a source like `inspect` if its weights are there; a config alone can be planned with.

    Args:
        model: Folder of the checkpoint.

    Raises:
        CheckpointError: a file or tensor is missing, damaged, unknown or superfluous.
    """
    if any((model / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        inspect(model)


def _from_hub(settings: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        folder = snapshot_download(
            settings.source, revision=settings.revision, allow_patterns=list(FILES)
        )
    except (OSError, HfHubHTTPError) as error:
        raise DependencyError(
            f"model.source {settings.source!r} is neither a directory here nor in the local "
            f"Hugging Face cache, and the hub cannot be reached ({type(error).__name__}); download "
            "it where there is a network and run again with --set model.source=DIRECTORY"
        ) from error
    return Path(folder)
