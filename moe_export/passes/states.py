"""Store of hidden states and gradients between layers, in files.

Files that fit stay in the page cache of the operating system; the others take disk instead of
memory. An interrupted run resumes from the files that it finished.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_export.system.disk import disk_error, require_space

_DONE = "done"


class States:
    """Store of tensors by kind (`input`, or the loss of a gradient), layer and batch.

    Args:
        folder: Folder of the files; created if absent. Files of a former run are used again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def check_space(self, needed_bytes: int) -> None:
        """Checks that the disk has room for `needed_bytes`.

        Raises:
            ResourceError: The disk has less.
        """
        require_space(self._folder, needed_bytes, "what is kept between layers")

    def put(self, kind: str, layer: int, batch: int, value: Tensor) -> None:
        """Writes one tensor.

        Raises:
            ResourceError: The disk is full.
        """
        path = self._path(kind, layer) / str(batch)
        try:
            path.parent.mkdir(exist_ok=True)
            save_file({"value": value.detach().cpu().contiguous()}, path)
        except OSError as error:
            raise disk_error(error, path) from error

    def get(self, kind: str, layer: int, batch: int, device: torch.device) -> Tensor:
        """Reads one tensor."""
        return load_file(self._path(kind, layer) / str(batch))["value"].to(device)

    def finish(self, kind: str, layer: int) -> None:
        """Marks that all batches of a layer are stored."""
        self._path(kind, layer).mkdir(exist_ok=True)
        (self._path(kind, layer) / _DONE).touch()

    def finished(self, kind: str, layer: int) -> bool:
        """True if all batches of a layer are stored."""
        return (self._path(kind, layer) / _DONE).exists()

    def drop(self, kind: str, layer: int) -> None:
        """Removes all batches of a layer, if there are any."""
        (self._path(kind, layer) / _DONE).unlink(missing_ok=True)
        shutil.rmtree(self._path(kind, layer), ignore_errors=True)

    def _path(self, kind: str, layer: int) -> Path:
        return self._folder / f"{kind}-{layer}"
