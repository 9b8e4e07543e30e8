"""Licences in the wheels: that of the project, and those of what zig links into the library."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tools.wheels.archive import read_wheel
from tools.wheels.platforms import Platform

FOLDER = "licenses"
"""Folder of a wheel's metadata for licences, as the standard of wheels names it."""

LINKED = "licenses/zig"
"""Folder of a wheel's metadata for the licences of what zig links."""

_EVERYWHERE = (
    "LICENSE",
    "lib/libc/musl/COPYRIGHT",  # of functions in zig's compiler runtime
    "lib/libcxx/LICENSE.TXT",
    "lib/libcxxabi/LICENSE.TXT",
    "lib/libunwind/LICENSE.TXT",
)
_OF_SYSTEM = {"Linux": ("lib/libc/glibc/LICENSES",), "Windows": ("lib/libc/mingw/COPYING",)}


def linked(platform: Platform, info: str, zig: Path | None = None) -> dict[str, bytes]:
    """Licences of the parts of zig that a platform's library contains, by their path in a wheel.

    Args:
        platform: Platform of the library.
        info: Name of the wheel's folder of metadata.
        zig: Folder of zig; None takes that of the package `ziglang`.
    """
    folder = zig or _zig()
    names = (*_EVERYWHERE, *_OF_SYSTEM.get(platform.target.system, ()))
    return {f"{info}/{LINKED}/{name}": (folder / name).read_bytes() for name in names}


def require(wheel: Path, own: bytes) -> None:
    """Requires the project's licence in a wheel.

    Args:
        wheel: File of the wheel.
        own: Text of the licence.

    Raises:
        RuntimeError: It is missing or another text.
    """
    info, files = read_wheel(wheel)
    name = f"{info}/{FOLDER}/LICENSE"
    if files.get(name) != own:
        state = "another text" if name in files else "missing"
        raise RuntimeError(
            f"{wheel.name}: {name} is {state}, expected the LICENSE of this checkout; name the "
            "file in `license-files` of pyproject.toml"
        )


def _zig() -> Path:
    spec = find_spec("ziglang")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
