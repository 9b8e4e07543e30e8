"""`python -m tools.wheels`: makes the wheels of both projects for every platform and checks them.

It needs the packages ziglang, auditwheel, scikit-build-core and cmake. With `--arm-root`, a folder
of unpacked Debian packages of arm64 with Python 3.11, the wheel for Arm is loaded in qemu.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

from tools.wheels.check import Arm, Verdict, check
from tools.wheels.make import make
from tools.wheels.platforms import PLATFORMS, Platform


def main(words: list[str] | None = None) -> int:
    """Makes, checks and prints a table."""
    tags = [platform.tag for platform in PLATFORMS]
    parser = argparse.ArgumentParser(prog="python -m tools.wheels", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the wheels")
    parser.add_argument("--build", type=Path, default=Path("build/wheels"), help="compiled files")
    parser.add_argument("--platforms", nargs="+", choices=tags, default=tags, metavar="TAG")
    parser.add_argument("--arm-root", type=Path, metavar="DIR", help="a system of arm64")
    arguments = parser.parse_args(words)
    chosen = [platform for platform in PLATFORMS if platform.tag in arguments.platforms]
    wheels = make(chosen, arguments.out, arguments.build.resolve(), print)
    arm = _arm(arguments.arm_root)
    rows = []
    for platform in chosen:
        small = wheels["moe-export-ops", platform.tag]
        rows.append(_row(platform, small, check(small, platform, arm)))
    print("\n| platform | moe-export-ops | state | kernels | auditwheel |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))
    for path in sorted(wheels.values()):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    return 0


def _arm(root: Path | None) -> Arm | None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if root is None or emulator is None:
        print("the wheel for Arm is not run: no --arm-root, or no qemu-aarch64", file=sys.stderr)
        return None
    return Arm(emulator, root)


def _row(platform: Platform, wheel: Path, verdict: Verdict) -> str:
    size = f"{wheel.stat().st_size / 1e6:.1f} MB"
    cells = (platform.tag, size, verdict.state, verdict.kernels or "–", verdict.policy or "–")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
