"""The files of a run against what its stages wrote down of them."""

from __future__ import annotations

from pathlib import Path

from moe_export.artifacts.base import load_json
from moe_export.errors import ArtifactError
from moe_export.runner.run import RUN_FILE, STAGE_FILE, file_sha256


def verify(directory: Path) -> int:
    """Holds every file of a run against the SHA-256 that its stage wrote down.

    Returns:
        The number of files that were checked.

    Raises:
        ArtifactError: a file is missing, changed, or was never written down.
    """
    marks = sorted(directory.rglob(STAGE_FILE))
    if not (directory / RUN_FILE).exists() or not marks:
        raise ArtifactError(f"{directory} holds no finished stage of a run; give a run directory")
    checked = 0
    for mark in marks:
        expected = load_json(mark)["files"]
        for name, facts in expected.items():
            path = mark.parent / name
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; run its stage again")
            if path.stat().st_size != facts["bytes"] or file_sha256(path) != facts["sha256"]:
                raise ArtifactError(
                    f"{path} is not the file that its stage wrote (SHA-256 differs); run its "
                    "stage again with --from"
                )
            checked += 1
        present = {
            path.relative_to(mark.parent).as_posix()
            for path in mark.parent.rglob("*")
            if path.is_file()
        }
        strangers = sorted(present - expected.keys() - {STAGE_FILE})
        if strangers:
            raise ArtifactError(
                f"{mark.parent / strangers[0]} was not written by its stage; remove it"
            )
    return checked
