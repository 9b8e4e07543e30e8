"""Parts as `tools/gpu_check` has them, for its tests; light, as every process imports them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def good() -> list[dict[str, Any]]:
    return [{"what": "good", "held": True}]


def bad() -> list[dict[str, Any]]:
    return [{"what": "bad", "held": False}]


def crash() -> None:
    os._exit(3)


def build(folder: str, layers: tuple[int, ...]) -> None:
    (Path(folder) / "built").write_text(str(layers), encoding="utf-8")


def build_slowly(folder: str, layers: tuple[int, ...]) -> None:
    time.sleep(3)
    build(folder, layers)


def built(folder: str, layers: tuple[int, ...]) -> list[dict[str, Any]]:
    text = (Path(folder) / "built").read_text(encoding="utf-8")
    return [{"held": text == str(layers)}]
