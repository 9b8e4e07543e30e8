"""Tests of the picture in the README, with a stand-in for the browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_export.errors import ArtifactError, DependencyError
from tools.pages import report_picture

FAKE = """#!/bin/sh
for word; do case $word in --screenshot=*) echo "$*" > "${word#--screenshot=}";; esac; done
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text("<h1>Report</h1>")
    return path


def install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = folder / "bin" / "chromium"
    browser.parent.mkdir()
    browser.write_text(script)
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{browser.parent}:/usr/bin:/bin")


def test_the_browser_is_told_page_size_and_profile(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, FAKE, monkeypatch)
    picture = tmp_path / "report.png"
    picture.write_text("an old one")
    report_picture.take(page, picture, tmp_path / "profile")
    words = picture.read_text().split()
    assert words[-1] == page.as_uri()
    assert "--window-size=1100,1500" in words
    assert f"--user-data-dir={tmp_path / 'profile'}" in words


def test_a_browser_that_fails_leaves_no_old_picture(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "#!/bin/sh\necho no display >&2\n", monkeypatch)
    picture = tmp_path / "report.png"
    picture.write_text("an old one")
    with pytest.raises(DependencyError, match=r"wrote no picture of .*: no display"):
        report_picture.take(page, picture, tmp_path / "profile")
    assert not picture.exists()


def test_a_missing_browser_and_a_missing_report_are_named(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match=r"run the demo recipe up to the report stage"):
        report_picture.take(tmp_path / "none.html", tmp_path / "p.png", tmp_path / "profile")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match=r"none of chromium, .* is installed"):
        report_picture.take(page, tmp_path / "p.png", tmp_path / "profile")
