"""`python -m tools.arm.folder MODEL…`: runs exported folders here and on emulated processors.

Each folder was exported with `export.platforms: [linux_x86_64, linux_aarch64]`. The code of its
card runs as it stands, on this machine and in the emulator, where only ONNX Runtime, tokenizers and
the given wheel of moe-export-ops are installed. Text must be equal and logits close.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.arm import programs, system
from tools.wheels import findings

PROGRAM = Path(__file__).with_name("card.py")

TOLERANCE = 1e-4
"""Largest difference of logits in float32 that is taken for equal: sums in another order.

Kernels of codes round activations to 8 bits. One that lies between two codes may be rounded the
other way, and then logits differ by more; the more matrices are quantized, the likelier.
"""


@dataclass(frozen=True)
class Emulated:
    """An emulated machine with a Python and its packages.

    Attributes:
        emulator: qemu for programs of 64-bit Arm.
        system: Folder of `tools.arm.system`.
        ops: Folder of the unpacked wheel of moe-export-ops.
    """

    emulator: str
    system: Path
    ops: Path

    def command(self, processor: str) -> list[str]:
        """Words that start Python on a processor."""
        root = system.root_of(self.system).resolve()
        python = root / "usr" / "bin" / f"python{system.PYTHON}"
        return [self.emulator, "-cpu", processor, "-L", str(root), str(python)]

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which Python finds its packages, and none of this machine's."""
        folders = (system.site_of(self.system).resolve(), self.ops)
        return {"PATH": "/nonexistent", "PYTHONPATH": os.pathsep.join(map(str, folders))}


def run_card(folder: Path, python: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Runs the code of a folder's card in it; returns what `card.py` prints."""
    command = [*python, str(PROGRAM)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed in {folder}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def difference(
    here: dict[str, Any], there: dict[str, Any], processor: str, tolerance: float = TOLERANCE
) -> float:
    """Largest difference of the logits of two runs.

    Raises:
        RuntimeError: Texts differ, logits are not close, another kernel ran than the processor has,
            or the installed moe-export-ops computes other logits than the folder's library.
    """
    largest = float(np.abs(np.array(here["logits"]) - np.array(there["logits"])).max())
    kernel = there["kernel"].partition(":")[0]
    for what, found, expected in (
        ("library", there["library"], "libmoe_export_ops-linux_aarch64.so"),
        ("kernel", kernel, programs.FASTEST[processor]),
        ("text", there["text"], here["text"]),
        ("installed library's equality", there["installed_equal"], True),
        ("closeness of logits", largest <= tolerance, True),
    ):
        if found != expected:
            raise RuntimeError(
                f"{processor}: {what} is {found!r}, expected {expected!r} (logits differ by "
                f"{largest:.2g})"
            )
    return largest


def emulated(system_folder: Path, wheel: Path, ops: Path) -> Emulated | str:
    """The emulated machine, or one sentence about what is missing.

    Args:
        system_folder: Folder of `tools.arm.system`.
        wheel: Wheel of moe-export-ops for Arm.
        ops: Folder that the wheel is unpacked into.
    """
    found = programs.find_emulator()
    if found is None:
        return programs.NO_EMULATOR
    if not system.root_of(system_folder).is_dir() or not system.site_of(system_folder).is_dir():
        return f"{system_folder} holds no system: make one with `python -m tools.arm.system`"
    zipfile.ZipFile(wheel).extractall(ops)
    return Emulated(found, system_folder, ops)


def main(words: list[str] | None = None) -> int:
    """Prints a line for each folder and processor."""
    parser = argparse.ArgumentParser(prog="python -m tools.arm.folder", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="exported folder")
    parser.add_argument("--system", type=Path, required=True, help="folder of tools.arm.system")
    parser.add_argument("--wheel", type=Path, required=True, help="moe-export-ops for aarch64")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="largest difference of logits"
    )
    parser.add_argument(
        "--findings", type=Path, metavar="FILE", help="file that `tools.pages platforms` reads"
    )
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as ops:
        machine = emulated(arguments.system, arguments.wheel, Path(ops))
        if isinstance(machine, str):
            print(machine, file=sys.stderr)
            return 1
        largest = max(
            _compare(model.resolve(), machine, arguments.tolerance) for model in arguments.models
        )
    words_found = (
        f"{len(arguments.models)} folders on {', '.join(programs.PROCESSORS)}: text equal to that "
        f"of x86-64, logits within {largest:.1e}"
    )
    findings.record(arguments.findings, "manylinux_2_28_aarch64", {"folder": words_found})
    return 0


def _compare(model: Path, machine: Emulated, tolerance: float) -> float:
    here = run_card(model, [sys.executable], dict(os.environ))
    largest = 0.0
    for processor in programs.PROCESSORS:
        there = run_card(model, machine.command(processor), machine.environment)
        one = difference(here, there, processor, tolerance)
        largest = max(largest, one)
        kernel = programs.FASTEST[processor]
        print(
            f"{model.name} on {processor} ({kernel}): {there['text'].strip()!r}, as here; "
            f"logits differ by {one:.1e} at most",
            flush=True,
        )
    return largest


if __name__ == "__main__":
    sys.exit(main())
