"""Files that a stage reads from others, checked against the digests in their marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from moe_export.artifacts.stage_mark import StageMark
from moe_export.errors import ArtifactError
from moe_export.recipe import ExportSettings
from moe_export.runner.steps import Step
from moe_export.system.digests import Digests

Marks = Mapping[str, StageMark]
"""Marks of the stages that a step reads, by name."""

EVERYTHING = "**"


def check_inputs(directory: Path, step: Step, digests: Digests) -> None:
    """Checks the files that a step will read from the folders of other stages.

    Args:
        directory: run directory.
        step: the step, whose inputs are all finished.
        digests: digests that this process knows already.

    Raises:
        ArtifactError: a file is missing, unreadable or not the one that its stage wrote.
    """
    marks = {name: StageMark.load(directory / folder) for name, folder in step.reads.items()}
    for name, folder in step.reads.items():
        wanted = {
            directory / folder / file: marks[name].files[file] for file in _read(step, name, marks)
        }
        again = f"run again with --from {Path(folder).name}"
        for path, facts in wanted.items():
            _check_size(path, facts.bytes, again)
        try:
            found = digests.of(wanted)
        except OSError as error:
            raise ArtifactError(f"{error.filename}: cannot be read ({error}); {again}") from error
        for (path, facts), digest in zip(wanted.items(), found, strict=True):
            if digest != facts.sha256:
                raise ArtifactError(
                    f"{path} is not the file that its stage wrote (SHA-256 differs); {again}"
                )


def _check_size(path: Path, expected_bytes: int, again: str) -> None:
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; {again}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {again}") from error
    if size_bytes != expected_bytes:
        raise ArtifactError(
            f"{path} has {size_bytes} bytes, its stage wrote {expected_bytes}; {again}"
        )


def _read(step: Step, name: str, marks: Marks) -> Iterator[str]:
    """Yields the files of a stage that a step reads, by their path in the stage's folder."""
    stage = name.rsplit("/", maxsplit=1)[-1]  # a sweep reads `POINT/export`
    choose = _CHOICES.get((step.stage, stage))
    patterns = (EVERYTHING,) if choose is None else choose(step, marks)
    for file in marks[name].files:
        if any(_matches(file, pattern) for pattern in patterns):
            yield file


def _matches(file: str, pattern: str) -> bool:
    """True if a pattern fits a file in a folder as deep as the pattern's, or is for everything."""
    return pattern == EVERYTHING or (
        file.count("/") == pattern.count("/") and fnmatch(file, pattern)
    )


def _top(_step: Step, _marks: Marks) -> tuple[str, ...]:
    return ("*",)


def _json(_step: Step, _marks: Marks) -> tuple[str, ...]:
    return ("*.json",)


def _json_and_cards(_step: Step, _marks: Marks) -> tuple[str, ...]:
    return ("*.json", "README.md", "*/README.md")


def _if_pruned_is_exported(step: Step, _marks: Marks) -> tuple[str, ...]:
    assert isinstance(step.settings, ExportSettings)
    return ("*",) if step.settings.pruned else ()


def _if_pruned_was_exported(_step: Step, marks: Marks) -> tuple[str, ...]:
    return ("*",) if any(file.startswith("pruned/") for file in marks["export"].files) else ()


_CHOICES: dict[tuple[str, str], Callable[[Step, Marks], tuple[str, ...]]] = {
    ("quantize", "prune"): _top,
    ("export", "prune"): _if_pruned_is_exported,
    ("validate", "prune"): _if_pruned_was_exported,
    ("eval", "prune"): _top,
    ("report", "calibrate"): _json,
    ("report", "prune"): _json_and_cards,
    ("report", "tune"): _json,
    ("report", "quantize"): _json,
    ("report", "export"): _json_and_cards,
    ("sweep", "export"): _json,
}
"""Patterns of the files that a stage reads of another one; all files of pairs not in it."""
