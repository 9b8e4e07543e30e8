"""Machine and package versions that a measurement was made with."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moe_export.system.host import PROC, physical_bytes, usable_cores

PACKAGES = (
    "moe-export",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "safetensors",
    "torch",
    "transformers",
)


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory, operating system and GPU (by the NVIDIA driver)."""
    return {
        "cpu": _processor(),
        "cores": len(usable_cores()),
        "memory_bytes": physical_bytes(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
    }


def physical_cores() -> int:
    """Number of cores that this process may use, each counted once whatever its threads."""
    cores = set()
    for number in usable_cores():
        topology = Path(f"/sys/devices/system/cpu/cpu{number}/topology")
        try:
            names = ("physical_package_id", "core_id")
            cores.add(tuple((topology / name).read_text().strip() for name in names))
        except OSError:
            cores.add((str(number),))
    return len(cores)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results; absent packages are left out."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def _processor() -> str:
    try:
        text = (PROC / "cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def _gpu() -> str | None:
    for path in sorted((PROC / "driver" / "nvidia" / "gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[1].strip()
    return None
