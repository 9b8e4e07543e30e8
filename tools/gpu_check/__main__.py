"""Everything that has to be looked at on a machine with an NVIDIA GPU, in one command.

    python tools/gpu_check --out result.json            all parts
    python tools/gpu_check --parts conformance layers   some of them
    python tools/gpu_check --dry-run                    what would run here, and what could not

Parts: `conformance` (every case of the tests by the packaged kernels, through the native library),
`layers` (a layer of the size of Qwen1.5-MoE in every format, against the copy bandwidth and the
matrix rate measured in the same run, and at one width), `model` (24 such layers dense, at 50 %, and
at 50 % in int4), `onnxruntime` (some cases under the CUDA provider, and layers against ONNX
Runtime's own padded MoE) and `demo` (the demo recipe with `providers: [cuda]`, device memory, and
the three kinds of KV cache).

All parts are made to fit into 15 minutes of a device, which is how long one is lent for. How long
each takes is a guess, as none has run on one; a part that would begin too late for its guess is
left out and said so. `--minutes` gives another limit.

Exit codes: 0 all that was asked for ran and held; 1 something did not hold; 3 a part could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
# The kernels are to run on the device.
os.environ.pop("TRITON_INTERPRET", None)

from moe_export.cuda import require_cuda_kernels, require_cuda_libraries
from moe_export.errors import DependencyError
from moe_export.machine import machine, versions
from tools.gpu_check.parts import NEEDS, PARTS, too_late


def obstacle(part: str) -> str | None:
    """Why a part cannot run here; None if it can."""
    for package in NEEDS[PARTS[part][0]]:
        if find_spec(package) is None:
            return f"the package {package} is not installed"
    module = PARTS[part][0]
    if module != "runtime":
        import torch  # noqa: PLC0415 - may be absent

        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
    try:
        if module == "runtime":
            require_cuda_libraries()
        if module != "kernels":
            require_cuda_kernels()
    except DependencyError as error:
        return str(error)
    return None


def print_table(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, help="where the JSON is written")
    parser.add_argument("--minutes", type=float, default=15, help="for all parts (default: 15)")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()

    obstacles = {part: obstacle(part) for part in arguments.parts}
    if arguments.dry_run:
        for part, reason in obstacles.items():
            would = f"would run, about {PARTS[part][2]} min" if reason is None else ""
            print(f"{part:<12} {would or f'cannot run: {reason}'}")
        return 0
    if all(obstacles.values()):
        reasons = "; ".join(dict.fromkeys(str(reason) for reason in obstacles.values()))
        print(f"gpu_check: nothing could be run on this machine: {reasons}")
        return 3
    result: dict[str, Any] = {"machine": machine(), "versions": versions(), "parts": {}}
    held, started = True, time.monotonic()
    for part in arguments.parts:
        print(f"== {part}", flush=True)
        left = arguments.minutes - (time.monotonic() - started) / 60
        obstacles[part] = obstacles[part] or too_late(part, left)
        if obstacles[part] is not None:
            result["parts"][part] = {"not_run": obstacles[part]}
            print(f"not run: {obstacles[part]}")
            continue
        module, function, _ = PARTS[part]
        rows = getattr(import_module(f"tools.gpu_check.{module}"), function)()
        held &= all(row.get("held", True) for row in rows)
        result["parts"][part] = {"rows": rows}
        print_table(rows)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not held:
        return 1
    return 3 if any(obstacles.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
