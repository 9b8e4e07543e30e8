"""View of a checkpoint in which some keys of `config.json` have other values.

A view is a folder with a config of its own and links to the other files, so that everything that
reads a checkpoint, transformers included, sees the same values.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from moe_export.checkpoint import read_config
from moe_export.errors import ResourceError
from moe_export.system.digests import cache_folder

CONFIG_FILE = "config.json"

OVERRIDES_KEY = "moe_export_overrides"
"""Config key of a view and of all that is made from it: published values of the replaced keys."""


def with_overrides(checkpoint: Path, keys: Mapping[str, int]) -> Path:
    """Makes a view of a checkpoint, or finds the one made before.

    Args:
        checkpoint: Folder of the checkpoint.
        keys: New values by config key.

    Returns:
        Folder of the view; the checkpoint itself if there are no keys.

    Raises:
        CheckpointError: The checkpoint has no readable config.
        ResourceError: The view cannot be written.
    """
    if not keys:
        return checkpoint
    published = read_config(checkpoint)
    config = published | dict(keys) | {OVERRIDES_KEY: {key: published.get(key) for key in keys}}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    identity = hashlib.sha256(f"{checkpoint.absolute()}\n{text}".encode()).hexdigest()[:16]
    view = _views() / identity / checkpoint.name
    try:
        view.mkdir(parents=True, exist_ok=True)
        _link_files(checkpoint.absolute(), view)
        if not (view / CONFIG_FILE).is_file():
            _write(view / CONFIG_FILE, text)
    except OSError as error:
        raise ResourceError(
            f"{view}: the view for model.overrides cannot be written ({error}); name another "
            "folder in MOE_EXPORT_CACHE"
        ) from error
    return view


def origin_of(checkpoint: Path) -> Path:
    """Folder of the checkpoint that a view shows; any other folder is returned as it is."""
    if checkpoint.parent.parent != _views():
        return checkpoint  # only views are trusted: a link elsewhere may lead anywhere
    return next(path.readlink().parent for path in checkpoint.iterdir() if path.is_symlink())


def _views() -> Path:
    """Folder of all views of this user."""
    return cache_folder().absolute() / "views"


def _link_files(checkpoint: Path, view: Path) -> None:
    """Links everything but the config; links to files that are gone are removed."""
    wanted = {path.name: path for path in checkpoint.iterdir()}
    for link in view.iterdir():
        if link.is_symlink() and link.name not in wanted:
            link.unlink(missing_ok=True)
    for name, path in wanted.items():
        if name != CONFIG_FILE and not (view / name).is_symlink():
            _link(path, view / name)


def _link(path: Path, link: Path) -> None:
    partial = link.with_name(f"{link.name}.{os.getpid()}")
    partial.symlink_to(path)
    partial.replace(link)


def _write(path: Path, text: str) -> None:
    """Writes a file in one step, since several processes may make the same view."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
