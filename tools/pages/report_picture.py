"""Picture in the README: the top of the demo recipe's report, docs/images/report.png.

It is that of a new run of recipes/demo_50pct.yaml, or with `--run RUN` that of a finished one.
A Chromium browser must be installed (Debian and Ubuntu: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from moe_export.artifacts.report import Report
from moe_export.errors import ArtifactError, DependencyError

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "report.png"
RECIPE = ROOT / "recipes" / "demo_50pct.yaml"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH_PIXELS, HEIGHT_PIXELS = 1100, 1500
"""Window of the browser: title, headline, widths and memory of the report."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the picture."""
    parser.add_argument("--run", type=Path, help="a finished run of the demo recipe")


def make(arguments: argparse.Namespace) -> None:
    """Makes the picture, of a run in a temporary folder unless one is given."""
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder) / "demo_50pct"
        if arguments.run is None:
            command = [sys.executable, "-m", "moe_export", "run", str(RECIPE), "--run", str(run)]
            subprocess.run(command, check=True, cwd=ROOT)
        take(run / "report" / Report.PAGE, PICTURE, Path(folder) / "profile")


def take(page: Path, picture: Path, profile: Path) -> None:
    """Takes a picture of the top of a page.

    Args:
        page: HTML file.
        picture: PNG file to be written.
        profile: empty folder for the browser's settings.

    Raises:
        ArtifactError: the page is missing.
        DependencyError: no browser is installed, or it wrote no picture.
    """
    if not page.exists():
        raise ArtifactError(f"{page} is missing; run the demo recipe up to the report stage")
    picture.unlink(missing_ok=True)
    ran = subprocess.run(
        [browser(), *options(picture, profile), page.resolve().as_uri()],
        check=False,
        capture_output=True,
        text=True,
    )
    if not picture.exists():
        raise DependencyError(f"the browser wrote no picture of {page}: {ran.stderr.strip()}")


def browser() -> str:
    """Path of the first browser of `BROWSERS` that is installed.

    Raises:
        DependencyError: none is installed.
    """
    paths = [path for name in BROWSERS if (path := shutil.which(name))]
    if not paths:
        raise DependencyError(f"none of {', '.join(BROWSERS)} is installed; install chromium")
    return paths[0]


def options(picture: Path, profile: Path) -> list[str]:
    """Options of Chromium for one picture, without network and without a window."""
    return [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--hide-scrollbars", f"--user-data-dir={profile}"),
        *(f"--window-size={WIDTH_PIXELS},{HEIGHT_PIXELS}", f"--screenshot={picture}"),
    ]
