"""Disks that are too small, that another program fills, and limits on the size of files.

A run that meets its limit must end with exit code 4 and a sentence. With room again, the same
command must give the bytes of a run that nobody disturbed. Small disks are mounted in memory, for
which the tool must be root.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from moe_export.cli import main
from tools.trust.fuzz import load_everything, prepared, quick_folder
from tools.trust.kinds.base import run_words
from tools.trust.kinds.runs import Runs
from tools.trust.run_files import unequal
from tools.trust.sandbox import Outcome, forked
from tools.trust.verdict import REFUSED, verdict

FULL = 4
"""Exit code of a disk that does not suffice."""

SENTENCES = ("no space left on the disk; free some", "bytes, the disk has", "File too large")
"""Reasons in the sentence of a disk that does not suffice."""

ROOM_BYTES = 256 << 20
PATIENCE_S = 120

Limited = Callable[[Path, int, Callable[[], int]], Outcome]
"""Function that runs a call in a folder under a limit of so many bytes."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the campaign."""
    parser.add_argument("--sizes", type=int, default=20, help="sizes of each kind (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sizes (default: 0)")


def campaign(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tries limits drawn between nothing and the size of the run; returns what came of them."""
    load_everything()
    random = Random(arguments.seed)
    kinds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="disks-", dir=quick_folder()) as folder:
        home = Path(folder)
        prepared([Runs], home)
        good = home / "base-0"
        for name, limited in LIMITS.items():
            largest = _largest(good / "run", name)
            sizes = [int(largest * random.random()) for _ in range(arguments.sizes)]
            kinds[name] = _figures([_tried(good, home / "place", size, limited) for size in sizes])
    return {"kinds": kinds, "bad": sum(kind["bad"] for kind in kinds.values())}


def _largest(run: Path, name: str) -> int:
    sizes = [path.stat().st_size for path in run.rglob("*") if path.is_file()]
    return max(sizes) if name == SIZE_OF_FILES else sum(sizes)


def _tried(good: Path, place: Path, size: int, limited: Limited) -> dict[str, Any]:
    """Runs under a limit, then without it."""
    with _disk(place):
        for name in ("model", "recipe.yaml", "rows.jsonl"):
            (place / name).symlink_to(good / name)

        def run() -> int:
            os.chdir(place)
            return main(run_words())

        first = limited(place, size, run)
        second = forked(run, PATIENCE_S)
        differing = unequal(good / "run", place / "run") if second.code == 0 else []
        is_bad = first.code not in (0, FULL) or verdict(second) != "done" or bool(differing)
        if first.code == FULL:
            is_bad |= verdict(first) != REFUSED or not any(word in first.err for word in SENTENCES)
        if is_bad:
            print(size, first, second, differing, flush=True)
        return {"size": size, "stopped": first.code == FULL, "bad": is_bad}


def _figures(tried: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "tried": len(tried),
        "stopped": sum(each["stopped"] for each in tried),
        "bad": sum(each["bad"] for each in tried),
    }


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """Mounts an empty disk in memory."""
    place.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs"]
    subprocess.run(["mount", *options, str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _remount(place: Path, size: int) -> None:
    size = max(size, 4096)  # 0 stands for no limit
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def small(place: Path, size: int, call: Callable[[], int]) -> Outcome:
    """Runs a call on a disk of so many bytes."""
    _remount(place, size + (16 << 10))
    outcome = forked(call, PATIENCE_S)
    _remount(place, ROOM_BYTES)
    return outcome


def filled(place: Path, size: int, call: Callable[[], int]) -> Outcome:
    """Runs a call on a disk that another process fills once so many bytes are in use."""
    filler = os.fork()
    if filler == 0:
        _fill(place, shutil.disk_usage(place).used + size)
    outcome = forked(call, PATIENCE_S)
    os.kill(filler, signal.SIGKILL)
    os.waitpid(filler, 0)
    (place / "other").unlink(missing_ok=True)
    return outcome


def _fill(place: Path, used: int) -> None:
    """Waits until so many bytes are in use, and takes the rest; ends only by a signal."""
    while shutil.disk_usage(place).used < used:
        time.sleep(0.001)
    with (place / "other").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(1 << 20))
            except OSError:
                time.sleep(0.001)


def of_files(_: Path, size: int, call: Callable[[], int]) -> Outcome:
    """Runs a call that may write no file longer than so many bytes."""

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return call()

    return forked(limited, PATIENCE_S)


SIZE_OF_FILES = "limit on the size of files"
LIMITS: dict[str, Limited] = {
    "small disk": small,
    "disk that another program fills": filled,
    SIZE_OF_FILES: of_files,
}
