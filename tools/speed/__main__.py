"""Writes models of a depth: `python -m tools.speed HOME LIBRARIES LAYERS NAME…`."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.speed.variants import prepare

if __name__ == "__main__":
    place, llama_cpp, depth, *names = sys.argv[1:]
    prepare(Path(place) / depth, int(depth), names, Path(llama_cpp))
