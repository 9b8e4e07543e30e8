"""Wheels are the same bytes twice, say what they hold, and carry their platform's tag."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tools.wheels import check, findings, licences, pythons, source, twice, wine
from tools.wheels.archive import read_wheel, tagged, write_wheel
from tools.wheels.check import FASTEST, expected_here
from tools.wheels.make import PROJECTS, ROOT
from tools.wheels.platforms import PLATFORMS

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


def test_two_builds_that_differ_are_refused_by_the_names_of_the_files(tmp_path: Path) -> None:
    for folder, contents in (("first", (b"1", b"2")), ("again", (b"1", b"3"))):
        (tmp_path / folder).mkdir()
        for name, data in zip("ab", contents, strict=True):
            (tmp_path / folder / name).write_bytes(data)
    first, again = ({n: tmp_path / f / n for n in "ab"} for f in ("first", "again"))
    twice.compare({"a": first["a"]}, {"a": again["a"]})
    with pytest.raises(RuntimeError, match=r"different bytes: b$"):
        twice.compare(first, again)
    with pytest.raises(RuntimeError, match=r"different bytes: a$"):
        twice.compare({}, {"a": again["a"]})


def test_a_wheel_of_the_source_archive_may_differ_in_tag_and_library_alone(tmp_path: Path) -> None:
    library = "moe_export/op/libmoe_export_ops.so"
    first = {f"{INFO}/WHEEL": b"1", library: b"1", "moe_export/a.py": b"1"}
    write_wheel(tmp_path / "a.whl", INFO, first | {f"{INFO}/licenses/zig/LICENSE": b"1"})
    write_wheel(tmp_path / "b.whl", INFO, first | {f"{INFO}/WHEEL": b"2", library: b"2"})
    write_wheel(tmp_path / "c.whl", INFO, first | {"moe_export/a.py": b"2"})
    source.compare_with(tmp_path / "a.whl", tmp_path / "b.whl")
    with pytest.raises(RuntimeError, match=r"differ in moe_export/a\.py$"):
        source.compare_with(tmp_path / "a.whl", tmp_path / "c.whl")


def test_a_wheel_without_the_licence_of_the_checkout_is_refused(tmp_path: Path) -> None:
    own = b"Apache"
    for name, text in (("a", own), ("b", b"MIT")):
        write_wheel(tmp_path / f"{name}.whl", INFO, {f"{INFO}/licenses/LICENSE": text})
    write_wheel(tmp_path / "c.whl", INFO, CONTENTS)
    licences.require(tmp_path / "a.whl", own)
    for name, state in (("b", "another text"), ("c", "missing")):
        with pytest.raises(RuntimeError, match=rf"^{name}.whl: .*licenses/LICENSE is {state},"):
            licences.require(tmp_path / f"{name}.whl", own)


def test_both_projects_have_the_same_licence_and_pack_it() -> None:
    for project in PROJECTS.values():
        settings = tomllib.loads((project.source / "pyproject.toml").read_text())["project"]
        assert settings["license-files"] == ["LICENSE"]
        assert (project.source / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_a_wheel_has_the_licences_of_what_zig_links_for_its_system(tmp_path: Path) -> None:
    names = ("LICENSE", "lib/libcxx/LICENSE.TXT", "lib/libcxxabi/LICENSE.TXT")
    names += ("lib/libunwind/LICENSE.TXT", "lib/libc/musl/COPYRIGHT")
    system = {"linux": "lib/libc/glibc/LICENSES", "win": "lib/libc/mingw/COPYING"}
    for name in (*names, *system.values()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for platform in PLATFORMS:
        expected = {*names, *(name for word, name in system.items() if word in platform.tag)}
        found = licences.linked(platform, INFO, tmp_path)
        assert found == {f"{INFO}/licenses/zig/{name}": name.encode() for name in expected}


def test_findings_of_several_checks_are_gathered_by_platform(tmp_path: Path) -> None:
    file = tmp_path / "findings.json"
    findings.record(file, "win_amd64", {"state": "built", "twice": "no"})
    findings.record(file, "win_amd64", {"twice": "yes"})
    findings.record(file, "win_arm64", {"state": "built"})
    findings.record(None, "win_arm64", {"state": "run"})
    assert findings.read(file) == {
        "win_amd64": {"state": "built", "twice": "yes"},
        "win_arm64": {"state": "built"},
    }


def test_the_archive_of_the_operator_library_builds_from_sources_of_its_own(tmp_path: Path) -> None:
    origin = PROJECTS["moe-export-ops"].source
    copy = source.with_native(origin, tmp_path / "ops")
    settings = tomllib.loads((copy / "pyproject.toml").read_text())["tool"]["scikit-build"]
    (override,) = settings["overrides"]
    assert override["if"] == {"from-sdist": True}
    own = copy / override["cmake"]["source-dir"]
    outside = (origin / settings["cmake"]["source-dir"]).resolve()
    assert {path.relative_to(own) for path in own.rglob("*")} == {
        path.relative_to(outside) for path in outside.rglob("*")
    }
    assert (own / "CMakeLists.txt").is_file()
    assert (copy / "LICENSE").is_file()
    assert not list((copy / "moe_export_ops").glob("*.so"))


def test_a_checkout_in_the_current_folder_does_not_stand_in_for_the_wheel(tmp_path: Path) -> None:
    package = tmp_path / "moe_export_ops"
    package.mkdir()
    for name in ("__init__.py", "libmoe_export_ops.so"):
        (package / name).touch()
    words = [sys.executable, "-c", check._program(Path("moe_export_ops-1-py3-none-any.whl"))]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "'NoneType' object has no attribute 'origin'" in done.stderr


def test_the_library_for_windows_has_to_take_this_processors_kernel_in_wine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (platform,) = (platform for platform in PLATFORMS if platform.tag == "win_amd64")
    wheel = tmp_path / "a.whl"
    write_wheel(wheel, INFO, {f"moe_export_ops/{platform.library}": b"code"})
    # Stands for Wine: the program to start is not there, as the compiler does nothing here.
    program = tmp_path / "wine64"
    program.write_text('#!/bin/sh\n[ "$(cat "$2")$DISPLAY" = code ] && echo "$SAID: $WINEDEBUG"\n')
    program.chmod(0o755)
    found = wine.Wine(str(program), tmp_path)
    monkeypatch.setattr(wine, "compile_program", lambda *_: None)
    monkeypatch.setattr(check, "FASTEST", "-all")
    monkeypatch.setenv("DISPLAY", "x")
    monkeypatch.setenv("SAID", expected_here())
    assert check.run_in_wine(wheel, platform, found) == expected_here()
    monkeypatch.setenv("SAID", "another")
    with pytest.raises(RuntimeError, match=f"says 'another: .* expected {expected_here()}"):
        check.run_in_wine(wheel, platform, found)


def test_another_python_has_to_take_the_fastest_kernel_and_say_the_same() -> None:
    here = {"kernel": f"{expected_here()}: {FASTEST}", "text": "Oslo", "installed_equal": True}
    pythons.compare(here, here, "Python 3.12")
    for key, value in (("kernel", "portable: no"), ("text", "Rome"), ("installed_equal", None)):
        with pytest.raises(RuntimeError, match=r"^Python 3\.12: .* expected"):
            pythons.compare(here, here | {key: value}, "Python 3.12")
