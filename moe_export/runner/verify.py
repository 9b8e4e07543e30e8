"""Checking the files of a run against the digests in the marks of its stages."""

from __future__ import annotations

from pathlib import Path

from moe_export.artifacts.run_info import RunInfo
from moe_export.artifacts.stage_mark import FileFacts, StageMark
from moe_export.errors import ArtifactError
from moe_export.runner.run import file_sha256


def verify(directory: Path) -> int:
    """Checks every file of a run against the SHA-256 in the mark of its stage.

    Returns:
        The number of files that were checked.

    Raises:
        ArtifactError: a file is missing, has changed, or is in no mark.
    """
    folders = sorted(path.parent for path in directory.rglob(StageMark.FILE))
    if not (directory / RunInfo.FILE).exists() or not folders:
        raise ArtifactError(f"{directory} holds no finished stage of a run; give a run directory")
    checked = 0
    for folder in folders:
        mark = StageMark.load(folder)
        for name, facts in mark.files.items():
            _check_file(folder / name, facts)
        _check_strangers(folder, mark)
        checked += len(mark.files)
    return checked


def _check_file(path: Path, facts: FileFacts) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; run its stage again")
    if path.stat().st_size != facts.bytes or file_sha256(path) != facts.sha256:
        raise ArtifactError(
            f"{path} is not the file that its stage wrote (SHA-256 differs); run its stage again "
            "with --from"
        )


def _check_strangers(folder: Path, mark: StageMark) -> None:
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    strangers = sorted(present - mark.files.keys() - {StageMark.FILE})
    if strangers:
        raise ArtifactError(f"{folder / strangers[0]} was not written by its stage; remove it")
