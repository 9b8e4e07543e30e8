"""`python -m tools.arm`: compares and counts the Arm kernels on emulated processors."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tools.arm import count, programs


def main(words: list[str] | None = None) -> int:
    """Prints the comparison on each processor, then the table of instructions."""
    parser = argparse.ArgumentParser(prog="python -m tools.arm", description=__doc__)
    parser.add_argument("--build", type=Path, metavar="DIR", help="folder for compiled files")
    parser.add_argument("--formats", nargs="*", default=count.FORMATS, help="formats to count")
    arguments = parser.parse_args(words)
    found = programs.find()
    if isinstance(found, str):
        print(found, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.build or Path(temporary)) / "arm"
        programs.build(found, folder)
        for processor in programs.PROCESSORS:
            print(f"## {processor}\n{programs.run(found, processor, folder / 'compare')}")
        if arguments.formats:
            print("Instructions per byte of weights and row:\n")
            print(count.table(found, folder / "count", tuple(arguments.formats)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
