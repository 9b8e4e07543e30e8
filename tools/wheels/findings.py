"""Findings of the checks of platforms, gathered in one file for the page of platforms."""

from __future__ import annotations

import json
from pathlib import Path

Findings = dict[str, dict[str, str]]
"""Words about each check, by platform tag and then by the check's name."""


def read(path: Path) -> Findings:
    """The findings so far; none if there is no file."""
    found: Findings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def record(path: Path | None, platform: str, found: dict[str, str]) -> None:
    """Adds findings about a platform in place of earlier ones of the same checks.

    Args:
        path: File of findings; None leaves them unrecorded.
        platform: Platform tag of the wheel.
        found: Words about each check, by its name.
    """
    if path is None:
        return
    findings = read(path)
    findings[platform] = findings.get(platform, {}) | found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
