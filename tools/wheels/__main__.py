"""`python -m tools.wheels`: makes the wheels of both projects for every platform and checks them.

It needs the packages ziglang, auditwheel, scikit-build-core and cmake. With `--arm-root`, a folder
of unpacked Debian packages of arm64 with Python 3.11, the wheel for Arm is loaded in qemu; where
Wine is installed, that for Windows on x86-64 is loaded in it. With `--twice` each platform is
compiled a second time from nothing, which takes minutes; with `--sdist` the source archives of both
projects are packed twice and a wheel is built from each by the compiler of this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from tools.arm.programs import find_emulator
from tools.wheels import findings, licences, source, twice, wine
from tools.wheels.check import Arm, Verdict, check, run_here
from tools.wheels.make import PROJECTS, ROOT, make
from tools.wheels.platforms import PLATFORMS, Platform

Wheels = dict[tuple[str, str], Path]


def main(words: list[str] | None = None) -> int:
    """Makes, checks and prints a table."""
    arguments = _parse(words)
    chosen = [platform for platform in PLATFORMS if platform.tag in arguments.platforms]
    build = arguments.build.resolve()
    wheels = make(chosen, arguments.out, build, print)
    for wheel in wheels.values():
        licences.require(wheel, (ROOT / "LICENSE").read_bytes())
    tags = {platform.tag for platform in chosen}
    arm = _arm(arguments.arm_root) if "manylinux_2_28_aarch64" in tags else None
    windows = _wine(build) if "win_amd64" in tags else None
    rows = []
    for platform in chosen:
        small = wheels["moe-export-ops", platform.tag]
        verdict = check(small, platform, arm, windows)
        size = f"{small.stat().st_size / 1e6:.1f} MB"
        findings.record(arguments.findings, platform.tag, verdict.words | {"size": size})
        rows.append(_row(platform, size, verdict))
    print("\n| platform | moe-export-ops | state | kernels | auditwheel |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))
    for path in sorted(wheels.values()):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    if arguments.twice:
        _twice(wheels, chosen, build, arguments.findings)
    if arguments.sdist:
        sentence = _source(wheels, chosen[0].tag, arguments.out, build)
        findings.record(arguments.findings, chosen[0].tag, {"source": sentence})
        print(f"the source archives: {sentence}")
    return 0


def _parse(words: list[str] | None) -> argparse.Namespace:
    tags = [platform.tag for platform in PLATFORMS]
    parser = argparse.ArgumentParser(prog="python -m tools.wheels", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the wheels")
    parser.add_argument("--build", type=Path, default=Path("build/wheels"), help="compiled files")
    parser.add_argument("--platforms", nargs="+", choices=tags, default=tags, metavar="TAG")
    parser.add_argument("--arm-root", type=Path, metavar="DIR", help="a system of arm64")
    parser.add_argument("--twice", action="store_true", help="build twice and compare the bytes")
    parser.add_argument("--sdist", action="store_true", help="pack the sources, build them")
    parser.add_argument(
        "--findings", type=Path, metavar="FILE", help="file that `tools.pages platforms` reads"
    )
    return parser.parse_args(words)


def _twice(wheels: Wheels, chosen: list[Platform], build: Path, record: Path | None) -> None:
    for platform in chosen:
        again = twice.make_again([platform], build, print)
        first = {key: path for key, path in wheels.items() if key[1] == platform.tag}
        twice.compare(_by_name(first), _by_name(again))
        findings.record(record, platform.tag, {"twice": "the same bytes in both wheels"})
        print(f"{platform.tag}: a second build gave the same bytes")


def _by_name(wheels: Wheels) -> dict[str, Path]:
    return {path.name: path for path in wheels.values()}


def _source(wheels: Wheels, tag: str, out: Path, build: Path) -> str:
    """Packs the sources twice and builds wheels from them; returns a sentence about them."""
    kernels = {_from_source(name, wheels[name, tag], out, build) for name in PROJECTS}
    return (
        "the same bytes twice; the wheels that pip builds from them here have the same Python "
        f"files and take `{', '.join(sorted(kernels))}`"
    )


def _from_source(project: str, wheel: Path, out: Path, build: Path) -> str:
    """The kernel that a wheel takes which is built from a project's source archive."""
    archive = source.source_archive(project, out)
    again = source.source_archive(project, build / twice.AGAIN / "source")
    twice.compare({archive.name: archive}, {again.name: again})
    with tempfile.TemporaryDirectory() as folder:
        built = source.wheel_of(archive, Path(folder))
        source.compare_with(built, wheel)
        return run_here(built)


def _arm(root: Path | None) -> Arm | None:
    emulator = find_emulator()
    if root is None or emulator is None:
        print("the wheel for Arm is not run: no --arm-root, or no qemu-aarch64", file=sys.stderr)
        return None
    return Arm(emulator, root)


def _wine(build: Path) -> wine.Wine | None:
    found = wine.find(build / "zig-cache")
    if found is None:
        print(wine.MISSING, file=sys.stderr)
    return found


def _row(platform: Platform, size: str, verdict: Verdict) -> str:
    cells = (platform.tag, size, verdict.state, verdict.kernels or "–", verdict.policy or "–")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
