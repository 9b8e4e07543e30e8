"""Campaigns of tools.trust, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def campaign(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Runs a campaign that must end well; returns what it found.

    Args:
        folder: Folder for the file of what it found.
        name: Name of the campaign.
        options: Its options.
    """
    out = folder / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.trust", name, *options, "--out", str(out)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_text())[name]
    return found
