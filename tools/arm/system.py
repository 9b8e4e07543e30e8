"""`python -m tools.arm.system DIR`: a small system of 64-bit Arm for the emulator, without root.

`DIR/root` gets Debian's Python 3.11 and what it needs, unpacked by apt and dpkg with settings of
their own, so that nothing of this machine changes; `DIR/site` gets ONNX Runtime, its dependencies
and tokenizers from the package index, with `--tests` also what the tests of the native library
need. About 60 MB are downloaded, 90 with the tests. It needs Debian 12.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

PYTHON = "3.11"
DEBIAN = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6")
PACKAGES = ("onnxruntime", "numpy", "flatbuffers", "packaging", "protobuf", "tokenizers")
FOR_TESTS = (
    *("pytest", "pluggy", "iniconfig", "pygments", "hypothesis", "sortedcontainers"),
    *("onnx", "onnx-ir", "ml-dtypes", "safetensors", "sympy", "mpmath", "typing-extensions"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
)
TAGS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")

# ONNX Runtime reads these files on Arm, and crashes on those of an x86 machine. qemu opens a file
# below the root instead of this machine's if there is one.
PROCESSOR = {
    "proc/cpuinfo": (
        "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n"
    ),
    **{
        f"sys/devices/system/cpu/{name}": "0\n"
        for name in (
            "possible",
            "present",
            "cpu0/topology/physical_package_id",
            "cpu0/topology/cluster_cpus_list",
        )
    },
}
"""Files that describe one processor of Arm, by their path below the root."""

_SETTINGS = """
Dir::State "{0}/state";
Dir::State::status "{0}/state/status";
Dir::Cache "{0}/cache";
APT::Architecture "arm64";
APT::Architectures {{"arm64";}};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
"""


def root_of(system: Path) -> Path:
    """Folder of the Debian packages of a system."""
    return system / "root"


def site_of(system: Path) -> Path:
    """Folder of the Python packages of a system."""
    return system / "site"


def unpack_debian(system: Path) -> None:
    """Downloads Debian's packages of arm64 and unpacks them."""
    apt = system / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "state" / "status").touch()
    settings = apt / "apt.conf"
    settings.write_text(_SETTINGS.format(apt.resolve()), encoding="utf-8")
    environment = {**os.environ, "APT_CONFIG": str(settings)}
    _call(["apt-get", "update", "-q"], environment)
    _call(["apt-get", "install", "-y", "-q", "--download-only", *DEBIAN], environment)
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        _call(["dpkg", "-x", str(package), str(root_of(system))])


def describe_processor(root: Path) -> None:
    """Writes the files of a processor of Arm."""
    for name, text in PROCESSOR.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def unpack_packages(system: Path, packages: Sequence[str]) -> None:
    """Downloads wheels for Arm and unpacks them."""
    wheels = system / "wheels"
    platforms = [word for tag in TAGS for word in ("--platform", f"{tag}_aarch64")]
    options = ["--no-deps", "--only-binary", ":all:", "--python-version", PYTHON, *platforms]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "--platform", "any"]
    _call([*command, "-d", str(wheels), *packages])
    for wheel in sorted(wheels.glob("*.whl")):
        zipfile.ZipFile(wheel).extractall(site_of(system))


def main(words: list[str] | None = None) -> int:
    """Makes the system."""
    parser = argparse.ArgumentParser(prog="python -m tools.arm.system", description=__doc__)
    parser.add_argument("system", type=Path, metavar="DIR", help="folder of the system")
    parser.add_argument("--tests", action="store_true", help="add what native tests need")
    arguments = parser.parse_args(words)
    system = arguments.system
    unpack_debian(system)
    describe_processor(root_of(system))
    unpack_packages(system, (*PACKAGES, *FOR_TESTS) if arguments.tests else PACKAGES)
    print(f"{root_of(system)} and {site_of(system)} are complete")
    return 0


def _call(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
