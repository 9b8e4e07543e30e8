"""Comparison of run directories."""

from __future__ import annotations

import json
from pathlib import Path

MEASURED = ("measurements.json", "report.json", "report.md", "report.html", "run.json")
"""Files that hold times, memory or versions, and so differ between runs."""

CARDS = "cards"
"""Folder of files that hold times and memory, too."""


def same_files(one: Path, other: Path) -> bool:
    """True if two folders hold the same files with the same bytes."""
    return _contents(one) == _contents(other)


def unequal(one: Path, other: Path) -> list[str]:
    """Names of the files of two runs that ought to be equal and are not.

    Times, memory and versions may differ, and with them the digests of the files that hold them.
    """
    left, right = _artifacts(one), _artifacts(other)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _artifacts(run: Path) -> dict[str, bytes]:
    found = {}
    for name, content in _contents(run).items():
        base = name.rsplit("/", 1)[-1]
        if _is_measured(name) or base == ".lock":
            continue
        found[name] = _without_costs(content) if base == "stage.json" else content
    return found


def _is_measured(name: str) -> bool:
    *folders, base = name.split("/")
    return base in MEASURED or CARDS in folders


def _without_costs(mark: bytes) -> bytes:
    content = json.loads(mark)
    content.pop("measured")
    content["files"] = {n: f for n, f in content["files"].items() if not _is_measured(n)}
    return json.dumps(content).encode()
