"""`python -m tools.arm.native_tests SYSTEM WHEEL`: tests of the native library in emulation.

The package and its tests are copied without this machine's library, so that the tests take that of
the wheel of moe-export-ops. Each file of tests runs in a process of its own. All files together
take an hour of one core.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.arm import programs
from tools.arm.folder import Emulated, emulated
from tools.wheels import findings

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "tests" / "native"
NEEDS_MORE = ("test_arm.py", "test_fuzz.py", "test_exported_models.py")
"""Files that need an emulator, a compiler or torch."""

FILES = tuple(sorted({path.name for path in NATIVE.glob("test_*.py")} - set(NEEDS_MORE)))
CHECK = "tests/native/"
"""Beginning of the names of these checks in the findings."""


def copy_of_checkout(copy: Path) -> Path:
    """Copies what the tests need; libraries of this machine are left out."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "native", "cubins", "*.safetensors")
    shutil.copytree(ROOT / "moe_export", copy / "moe_export", ignore=unwanted)
    for folder in ("tests/helpers", "tests/native", "tools"):
        plain = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=plain)
    for name in ("conftest.py", "tests/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def name_emulated_python(machine: Emulated, processor: str, folder: Path) -> None:
    """Lets `sys.executable` name a program that this machine can start, as some tests do.

    Args:
        machine: Emulated machine.
        processor: Processor of the new processes.
        folder: Folder on the path of modules, which gets a script and a module that names it.
    """
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(machine.command(processor))} "$@"\n')
    script.chmod(0o755)
    (folder / "sitecustomize.py").write_text(f"import sys\n\nsys.executable = {str(script)!r}\n")


def command(machine: Emulated, processor: str, file: str, words: list[str]) -> list[str]:
    """Words that run a file of tests."""
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return [*machine.command(processor), *options, f"tests/native/{file}"]


def passed(output: str, file: str) -> str:
    """The number of tests that passed, with those that were skipped, as pytest's last line says.

    Raises:
        RuntimeError: A test failed or none passed.
    """
    last = output.strip().rpartition("\n")[2]
    found = re.match(
        r"(\d+ passed(?:, \d+ skipped)?)(?:, \d+ deselected)?(?:, \d+ warnings?)? in ", last
    )
    if found is None:
        raise RuntimeError(f"{file}:\n{output[-6000:]}")
    return found[1]


def run(
    machine: Emulated, library: Path, copy: Path, processor: str, file: str, words: list[str]
) -> str:
    """Runs a file of tests; returns the number that passed.

    Raises:
        RuntimeError: A test failed or none passed.
    """
    environment = machine.environment | {
        "MOE_EXPORT_TEST_LIBRARY": str(library),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        command(machine, processor, file, words),
        capture_output=True,
        text=True,
        cwd=copy,
        env=environment,
        check=False,
    )
    return passed(done.stdout, file)


def main(words: list[str] | None = None) -> int:
    """Prints a line for each file of tests."""
    arguments, others = _parse(words)
    with tempfile.TemporaryDirectory() as folder:
        ops = Path(folder) / "ops"
        machine = emulated(arguments.system, arguments.wheel, ops)
        if isinstance(machine, str):
            print(machine, file=sys.stderr)
            return 1
        name_emulated_python(machine, arguments.processor, ops)
        copy = copy_of_checkout(Path(folder) / "checkout")
        library = ops / "moe_export_ops" / "libmoe_export_ops.so"
        for file in arguments.files:
            words_found = run(machine, library, copy, arguments.processor, file, others)
            part = shlex.join([file, *others])
            print(f"{part} on {arguments.processor}: {words_found}", flush=True)
            found = {f"{CHECK}{part}": f"{words_found} on {arguments.processor}"}
            findings.record(arguments.findings, "manylinux_2_28_aarch64", found)
    return 0


def _parse(words: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tools.arm.native_tests",
        description=__doc__,
        epilog="Other words go to pytest.",
    )
    parser.add_argument("system", type=Path, help="folder of tools.arm.system, made with --tests")
    parser.add_argument("wheel", type=Path, help="moe-export-ops for aarch64")
    parser.add_argument("--processor", default="max", choices=programs.PROCESSORS)
    parser.add_argument("--files", nargs="+", choices=FILES, default=FILES, metavar="FILE")
    parser.add_argument(
        "--findings", type=Path, metavar="FILE", help="file that `tools.pages platforms` reads"
    )
    return parser.parse_known_args(words)


if __name__ == "__main__":
    sys.exit(main())
