"""Checks of finished wheels: auditwheel's verdict, and the kernels of the installed library."""

from __future__ import annotations

import os
import platform as this
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tools.arm.programs import FASTEST as FASTEST_ON_ARM
from tools.wheels import wine
from tools.wheels.platforms import Platform
from tools.wheels.wine import Wine

# Neither project's other packages are installed, so that nothing but the library is needed.
# The current folder, which may be the checkout, is not searched.
_DESCRIBE = """
import ctypes, importlib.util, pathlib, sys
sys.path = [folder for folder in sys.path if folder]
folder = pathlib.Path(importlib.util.find_spec("{package}").origin).parent
(path,) = (path for path in folder.rglob("*moe_export_ops.*") if path.suffix in {suffixes})
library = ctypes.CDLL(str(path))
message = ctypes.create_string_buffer(1024)
assert library.moe_export_describe(message, ctypes.c_size_t(1024)) == 0
print(message.value.decode())
"""

LIBRARY_SUFFIXES = (".so", ".dll", ".dylib")
FASTEST = "the fastest that this processor has"


@dataclass(frozen=True)
class Arm:
    """An emulator with a Python of Arm.

    Attributes:
        emulator: qemu for programs of 64-bit Arm.
        root: Folder of unpacked Debian packages of arm64, with `usr/bin/python3.11`.
    """

    emulator: str
    root: Path


def audited(wheel: Path, platform: Platform) -> str:
    """The oldest tag that auditwheel allows; empty where it knows no policies.

    Raises:
        RuntimeError: If auditwheel does not allow the platform's tag.
    """
    if platform.policy is None:
        return ""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = " ".join(done.stdout.split())
    found = re.search(r'following platform tag: "([^"]+)"', text)
    if found is None or _glibc(found[1]) > _glibc(platform.policy):
        raise RuntimeError(f"auditwheel does not allow {platform.policy}:\n{done.stdout}")
    return found[1]


def _glibc(tag: str) -> tuple[int, int]:
    found = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    return (int(found[1]), int(found[2])) if found else (999, 0)


def expected_here() -> str:
    """The kernel that this x86 processor has to get, by what the system says of it."""
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"} <= flags:
        return "avx512"
    return "avxvnni" if "avx_vnni" in flags else "avx2" if "avx2" in flags else "portable"


def run_here(wheel: Path) -> str:
    """The kernel that the wheel takes in a fresh environment without a compiler on the path.

    Raises:
        RuntimeError: If it cannot be installed, or takes another kernel than it should.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": "/nonexistent", "HOME": folder}
        python = Path(folder) / "venv" / "bin" / "python"
        options = ["-q", "--no-index", "--no-deps"]
        install = [python, "-m", "pip", "install", *options, str(wheel)]
        for command in ([sys.executable, "-m", "venv", str(python.parents[1])], install):
            subprocess.run(command, check=True, env=environment)
        command = [str(python), "-c", _program(wheel)]
        return _kernel(command, environment, expected_here())


def run_emulated(wheel: Path, arm: Arm) -> str:
    """The kernels that the wheel takes on the emulated processors.

    Raises:
        RuntimeError: If it takes another kernel than it should.
    """
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        python = [str(arm.root / "usr" / "bin" / "python3.11"), "-c", _program(wheel)]
        names = []
        for processor, kernel in FASTEST_ON_ARM.items():
            command = [arm.emulator, "-cpu", processor, "-L", str(arm.root), *python]
            names.append(_kernel(command, {**os.environ, "PYTHONPATH": folder}, kernel))
        return ", ".join(names)


def run_in_wine(wheel: Path, platform: Platform, found: Wine) -> str:
    """The kernel that the library for Windows takes in Wine, which has this machine's processor.

    Raises:
        RuntimeError: If it does not load, or takes another kernel than it should.
    """
    # Wine's own processes end a little later than the program.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = wine.describing(found, wheel, platform, Path(folder))
        return _kernel(command, wine.environment(Path(folder) / "prefix"), expected_here())


def _program(wheel: Path) -> str:
    """Code that prints what the library of an installed wheel says of its kernels."""
    return _DESCRIBE.format(package=wheel.name.partition("-")[0], suffixes=LIBRARY_SUFFIXES)


def _kernel(command: list[str], environment: dict[str, str], expected: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    name, _, reason = done.stdout.strip().partition(": ")
    if done.returncode != 0 or (name, reason) != (expected, FASTEST):
        raise RuntimeError(
            f"{' '.join(command[:3])} says {done.stdout + done.stderr!r}, expected {expected}"
        )
    return name


@dataclass(frozen=True)
class Verdict:
    """Findings about the wheels of a platform.

    Attributes:
        state: `run`, `emulated` or `built`, which means built and not run.
        kernels: Names of the kernels that were taken.
        policy: Oldest tag that auditwheel allows.
    """

    state: str
    kernels: str
    policy: str

    @property
    def words(self) -> dict[str, str]:
        """The findings by name, as `tools.wheels.findings` records them."""
        return {"state": self.state, "kernels": self.kernels, "auditwheel": self.policy}


def check(wheel: Path, platform: Platform, arm: Arm | None, found: Wine | None) -> Verdict:
    """Checks a wheel of moe-export-ops as far as this machine can."""
    policy = audited(wheel, platform)
    if platform.target.system == this.system() and platform.target.processor == this.machine():
        return Verdict("run", run_here(wheel), policy)
    is_arm_linux = (platform.target.system, platform.target.processor) == ("Linux", "aarch64")
    if arm is not None and is_arm_linux:
        return Verdict("emulated", run_emulated(wheel, arm), policy)
    is_windows_here = platform.tag == "win_amd64" and this.machine() == "x86_64"
    if found is not None and is_windows_here:
        return Verdict("emulated", run_in_wine(wheel, platform, found), policy)
    return Verdict("built", "", policy)
