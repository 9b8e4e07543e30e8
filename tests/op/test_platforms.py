"""The native library is found by platform: in wheels, and in the package that holds it alone."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from moe_export.errors import DependencyError
from moe_export.op import library
from moe_export.op.platforms import PLATFORMS, library_in_wheels, library_name, named
from tests.helpers.wheels import ops_wheel

TAGS = {
    "linux_x86_64": "manylinux_2_28_x86_64",
    "linux_aarch64": "manylinux_2_28_aarch64",
    "win_amd64": "win_amd64",
    "win_arm64": "win_arm64",
    "macosx_arm64": "macosx_14_0_arm64",
}


def test_each_platform_takes_the_library_of_its_own_wheel(tmp_path: Path) -> None:
    for platform in PLATFORMS:
        content = {f"moe_export_ops/{platform.library}": platform.name.encode()}
        ops_wheel(tmp_path, TAGS[platform.name], content)
    for platform in PLATFORMS:
        assert library_in_wheels(platform, tmp_path) == platform.name.encode()
    assert len({platform.exported for platform in PLATFORMS}) == len(PLATFORMS)


def test_a_missing_wheel_is_one_sentence(tmp_path: Path) -> None:
    ops_wheel(tmp_path, "win_amd64", {})
    arm = named("linux_aarch64")
    with pytest.raises(DependencyError, match=r"linux_aarch64 is missing: .* has no wheel; put"):
        library_in_wheels(arm, tmp_path)
    with pytest.raises(DependencyError, match=r"export\.wheels names no folder"):
        library_in_wheels(arm, None)
    with pytest.raises(DependencyError, match=r"holds no moe_export_ops/moe_export_ops\.dll"):
        library_in_wheels(named("win_amd64"), tmp_path)


def test_names_of_the_library_by_system() -> None:
    names = {system: library_name(system) for system in ("linux", "win32", "darwin")}
    assert names == {
        "linux": "libmoe_export_ops.so",
        "win32": "moe_export_ops.dll",
        "darwin": "libmoe_export_ops.dylib",
    }


def test_without_a_library_of_its_own_the_package_takes_that_of_moe_export_ops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(DependencyError, match="install a wheel of moe-export-ops"):
        library.library_path()
    package = tmp_path / "moe_export_ops"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / library.LIBRARY_NAME).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert library.library_path() == package / library.LIBRARY_NAME
