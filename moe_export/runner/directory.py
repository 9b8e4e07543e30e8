"""The top of a run directory: its lock, and its record of the recipe and of finished stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_export import __version__
from moe_export.artifacts.run_info import ResolvedRecipe, RunInfo
from moe_export.artifacts.stage_mark import StageMark
from moe_export.errors import ArtifactError
from moe_export.system.digests import file_sha256
from moe_export.system.disk import disk_error
from moe_export.system.files import sync
from moe_export.system.host import lock

LOCK = ".lock"
PARTIAL = ".partial"
"""Ending of files and folders that are not finished."""

BEGINNING = {LOCK, RunInfo.FILE + PARTIAL, ResolvedRecipe.FILE + PARTIAL}
"""Names in a directory in which the very first write did not finish."""


def check_directory(directory: Path) -> None:
    """Stops if a directory is neither new nor a run directory of this version.

    Raises:
        ArtifactError: it is a file, holds other files, or was written by another version.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is a file; give a directory for the run")
    try:
        names = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise ArtifactError(f"{directory} cannot be read ({error})") from error
    # Another process may have begun a run since the names were read.
    if (directory / RunInfo.FILE).exists():
        RunInfo.load(directory)
    elif names - BEGINNING:
        raise ArtifactError(
            f"{directory} holds files but no {RunInfo.FILE}, so it is not a run directory; give "
            "another one with --run"
        )


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Creates a run directory if it is absent, and keeps other processes out of it meanwhile.

    Raises:
        ArtifactError: another process is in it.
        ResourceError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("w")
    except OSError as error:
        raise disk_error(error, directory) from error
    with file:
        try:
            lock(file)
        except OSError as error:
            raise ArtifactError(
                f"{directory} is in use by another moe-export; wait for it to end, or "
                "give another directory with --run"
            ) from error
        yield


class RunRecord:
    """The record of a run in `run.json`, renewed before and after every stage.

    Args:
        directory: run directory that this process has locked.
        recipe: the recipe with every default, as plain values.

    Raises:
        ResourceError: the directory cannot be written.
    """

    def __init__(self, directory: Path, recipe: dict[str, Any]) -> None:
        self._directory = directory
        self._stages: dict[str, str] = {}
        if (directory / RunInfo.FILE).exists():
            self._stages = RunInfo.load(directory).stages or {}
        self._recipe_sha256: str | None = None
        self._save()  # makes the directory a run directory before anything else is in it
        ResolvedRecipe(recipe=recipe).save(directory)
        self._recipe_sha256 = file_sha256(directory / ResolvedRecipe.FILE)
        self._save()

    def begin(self, folder: str) -> None:
        """Takes a stage out of the record before it runs again."""
        if self._stages.pop(folder, None) is not None:
            self._save()

    def finish(self, folder: str) -> None:
        """Enters the mark of a stage that has just been written."""
        self._stages[folder] = self._mark(folder)
        self._save()

    def check(self, folder: str) -> None:
        """Checks that the mark of a finished stage is the one in the record, or enters it.

        A stage that is not in the record was interrupted between its mark and the record.

        Raises:
            ArtifactError: the mark has changed.
        """
        if folder not in self._stages:
            self.finish(folder)
        elif self._stages[folder] != self._mark(folder):
            raise ArtifactError(
                f"{self._directory / folder / StageMark.FILE} is not the file that the run wrote "
                f"(SHA-256 differs); run again with --from {Path(folder).name}"
            )

    def _mark(self, folder: str) -> str:
        path = self._directory / folder / StageMark.FILE
        try:
            return file_sha256(path)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error})") from error

    def _save(self) -> None:
        info = RunInfo(
            moe_export=__version__,
            recipe_sha256=self._recipe_sha256,
            stages=dict(sorted(self._stages.items())),
        )
        info.sealed().save(self._directory)
        try:
            sync(self._directory)
        except OSError as error:
            raise disk_error(error, self._directory) from error
