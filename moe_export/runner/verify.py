"""Checking a run directory against its own record, or against a manifest kept elsewhere.

`run.json` holds the digests of the recipe and of every stage's mark, and the marks hold those of
all other files. So nothing can be changed, added or removed unless a record is changed as well.
Someone who changes all records too is found out only by a manifest that lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from moe_export.artifacts.manifest import Manifest
from moe_export.artifacts.run_info import ResolvedRecipe, RunInfo
from moe_export.artifacts.stage_mark import FileFacts, StageMark
from moe_export.errors import ArtifactError
from moe_export.runner.directory import LOCK, PARTIAL
from moe_export.system.digests import Digests
from moe_export.system.files import entries, kind


def verify(directory: Path) -> int:
    """Checks that a run directory holds exactly the files that the run wrote.

    Returns:
        The number of files of stages that were checked.

    Raises:
        ArtifactError: a file or a stage is missing, has changed, is in no record, or is a link, a
            pipe or a device; or a stage is not finished.
    """
    present = _entries(directory)
    if directory / RunInfo.FILE not in present:
        raise ArtifactError(f"{directory} holds no finished stage of a run; give a run directory")
    info = _run_info(directory)
    top = {directory / RunInfo.FILE, directory / ResolvedRecipe.FILE}
    marks = {directory / folder / StageMark.FILE: digest for folder, digest in _stages(info)}
    _check_unfinished(directory, present, marks)
    _check({directory / ResolvedRecipe.FILE: info.recipe_sha256 or ""}, "run the recipe again")
    for mark, digest in marks.items():
        _check({mark: digest}, f"remove {mark.parent} and run the recipe again")
    facts = {mark.parent: _facts(mark.parent) for mark in marks}
    for folder, files in facts.items():
        _check_sizes(files, _again(folder))
    for folder, files in facts.items():
        _check({path: each.sha256 for path, each in files.items()}, _again(folder))
    written = {path for files in facts.values() for path in files}
    _check_strangers(directory, present, top | marks.keys() | written)
    return len(written)


def manifest_of(directory: Path) -> Manifest:
    """Returns the digests of all files of a run, the lock excluded.

    Raises:
        ArtifactError: something in it is a link, a pipe or a device, or cannot be read.
    """
    paths = [path for path in _entries(directory) if path.is_file() and path != directory / LOCK]
    return Manifest(
        files={
            path.relative_to(directory).as_posix(): FileFacts(
                bytes=path.stat().st_size, sha256=digest
            )
            for path, digest in zip(paths, _digests(paths), strict=True)
        }
    )


def compare(directory: Path, manifest: Manifest) -> int:
    """Checks that a run directory holds exactly the files of a manifest.

    Returns:
        The number of files that were checked.

    Raises:
        ArtifactError: a file is missing, has changed, is not in the manifest, or is a link, a pipe
            or a device.
    """
    here = manifest_of(directory).files
    for name in sorted(here.keys() | manifest.files.keys()):
        path = directory / name
        if name not in here:
            raise ArtifactError(f"{path} is missing, the manifest has it; get another copy")
        if name not in manifest.files:
            raise ArtifactError(f"{path} is not in the manifest; remove it")
        if here[name] != manifest.files[name]:
            raise ArtifactError(
                f"{path} is not the file of the manifest (SHA-256 differs); get another copy"
            )
    return len(here)


def _entries(directory: Path) -> list[Path]:
    """Everything below a run directory, if it is nothing but files and folders."""
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory; give a run directory")
    try:
        present = list(entries(directory))
        kinds = {path: kind(path) for path in present}
    except OSError as error:
        raise ArtifactError(
            f"{error.filename}: cannot be read ({error.strerror}); change its rights"
        ) from error
    for path, word in kinds.items():
        if word not in ("file", "folder"):
            raise ArtifactError(f"{path} is a {word}, a run writes only files; remove it")
    return present


def _run_info(directory: Path) -> RunInfo:
    info = RunInfo.load(directory)
    if info.sha256 is None:
        raise ArtifactError(
            f"{directory / RunInfo.FILE} records no stages, as in runs of version 0.1; run the "
            "recipe again, which makes anew what is not valid and records the rest"
        )
    text = (directory / RunInfo.FILE).read_bytes()
    if not info.is_sealed or text != info.text().encode():
        raise ArtifactError(
            f"{directory / RunInfo.FILE} is not the file that the run wrote; its record of the "
            "stages cannot be trusted, compare the run with another copy"
        )
    return info


def _stages(info: RunInfo) -> Collection[tuple[str, str]]:
    return (info.stages or {}).items()


def _check_unfinished(directory: Path, present: list[Path], marks: Collection[Path]) -> None:
    """Stops at a stage whose folder is there without an entry in the record."""
    finished = {mark.parent for mark in marks}
    for path in present:
        is_stage = path.name == StageMark.FILE and path.parent not in finished
        if path.parent == directory and path.name.endswith(PARTIAL):
            is_stage = True
        if is_stage:
            raise ArtifactError(
                f"{path} belongs to a stage that is not in the record of the run; run the same "
                "command again to finish it, or remove it"
            )


def _facts(folder: Path) -> dict[Path, FileFacts]:
    return {folder / name: facts for name, facts in StageMark.load(folder).files.items()}


def _again(folder: Path) -> str:
    return f"run again with --from {folder.name}"


def _check(expected: Mapping[Path, str], again: str) -> None:
    """Stops at the first file that is missing or has another digest."""
    for path in expected:
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; {again}")
    for (path, wanted), digest in zip(expected.items(), _digests(list(expected)), strict=True):
        if digest != wanted:
            raise ArtifactError(
                f"{path} is not the file that its stage wrote (SHA-256 differs); {again}"
            )


def _check_sizes(facts: Mapping[Path, FileFacts], again: str) -> None:
    """Stops at a file of another size, before the digests of all files are computed."""
    for path, each in facts.items():
        if path.is_file() and path.stat().st_size != each.bytes:
            raise ArtifactError(
                f"{path} is not the file that its stage wrote ({path.stat().st_size} bytes, "
                f"expected {each.bytes}); {again}"
            )


def _check_strangers(directory: Path, present: list[Path], known: Collection[Path]) -> None:
    """Stops at a file that is in no record, or a folder that holds no file of a record."""
    expected = {*known, *(folder for path in known for folder in path.parents)}
    for path in present:
        is_lock = path == directory / LOCK and path.is_file() and not path.stat().st_size
        if path not in expected and not is_lock:
            raise ArtifactError(f"{path} was not written by its stage; remove it")


def _digests(paths: list[Path]) -> list[str]:
    try:
        return Digests().of(paths)
    except OSError as error:
        raise ArtifactError(
            f"{error.filename}: cannot be read ({error.strerror}); change its rights"
        ) from error
