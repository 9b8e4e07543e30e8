"""Wheels are the same bytes twice, say what they hold, and carry their platform's tag."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from tools.wheels.archive import read_wheel, tagged, write_wheel

INFO = "thing-1.0.dist-info"
CONTENTS = {
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "thing/__init__.py": b"",
    "thing/libthing.so": b"code",
}


def test_a_wheel_has_the_same_bytes_whatever_the_order_of_its_files(tmp_path: Path) -> None:
    write_wheel(tmp_path / "a.whl", INFO, CONTENTS)
    write_wheel(tmp_path / "b.whl", INFO, dict(reversed(CONTENTS.items())))
    assert (tmp_path / "a.whl").read_bytes() == (tmp_path / "b.whl").read_bytes()


def test_a_record_names_every_file_with_its_digest_and_size(tmp_path: Path) -> None:
    write_wheel(tmp_path / "a.whl", INFO, CONTENTS)
    assert read_wheel(tmp_path / "a.whl") == (INFO, CONTENTS)
    with zipfile.ZipFile(tmp_path / "a.whl") as archive:
        lines = archive.read(f"{INFO}/RECORD").decode().splitlines()
        mode = archive.getinfo("thing/libthing.so").external_attr >> 16
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"code").digest()).decode().rstrip("=")
    assert f"thing/libthing.so,sha256={digest},4" in lines
    assert lines[-1] == f"{INFO}/RECORD,,"
    assert len(lines) == len(CONTENTS) + 1
    assert mode == 0o100755


def test_the_tag_of_a_platform_replaces_that_of_pure_python() -> None:
    text = tagged(CONTENTS[f"{INFO}/WHEEL"], "win_arm64").decode()
    assert text == "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-win_arm64\n"
