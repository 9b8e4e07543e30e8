"""Everything that has to be looked at on a machine with an NVIDIA GPU, in one command.

    python -m moe_export.gpu_check --out result.json            all parts but `shapes`
    python -m moe_export.gpu_check --parts conformance layers   some of them
    python -m moe_export.gpu_check --dry-run                    what would run here, and what could not

Parts, the worthiest first:

* `conformance`: every case of the tests by the packaged kernels, through the native library.
* `onnxruntime`: some cases under ONNX Runtime's CUDA provider.
* `layers`: a layer of the size of Qwen1.5-MoE in every format, against the copy bandwidth and the
  matrix rate measured in the same run, and beside a fused MoE of one width as serving engines have.
* `models`: whole models of those shapes with random weights in ONNX Runtime: dense, at 50 %, and at
  50 % in int4; tokens/s and memory.
* `peers`: layers beside ONNX Runtime's own padded MoE and QMoE.
* `demo`: the demo recipe with `providers: [cuda]`, device memory, and the three kinds of KV cache.
* `shapes`, only if asked for: each kernel alone, in its shape and in neighbouring ones.

Last comes a table of what was aimed at and what was found. All parts are made to fit into less than
10 minutes, the most that a command may take where a device is lent for 15. How long each takes is a
guess, as none has run on one; a part that would begin too late for its guess is left out and said
so, and one that is not done in time is ended. `--minutes` gives another limit. Each part has a
process of its own, so that one that fails does not take the others with it.

Exit codes: 0 all that was asked for ran and held, whether fast enough or not; 1 something did not
hold; 3 a part could not run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

# The kernels are to run on the device.
os.environ.pop("TRITON_INTERPRET", None)

from moe_export.errors import DependencyError
from moe_export.gpu_check.check import Check, print_table
from moe_export.gpu_check.parts import KERNELS, PARTS
from moe_export.ort.cuda import require_cuda_kernels, require_cuda_libraries


def obstacle(part: str) -> str | None:
    """Why a part cannot run here; None if it can."""
    needs = PARTS[part].needs
    for package in needs:
        if package != KERNELS and find_spec(package) is None:
            return f"the package {package} is not installed"
    if "onnxruntime" not in needs:
        import torch  # noqa: PLC0415 - may be absent

        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
    try:
        if "onnxruntime" in needs:
            require_cuda_libraries()
        if KERNELS in needs:
            require_cuda_kernels()
    except DependencyError as error:
        return str(error)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=None)
    parser.add_argument("--out", type=Path, help="where the JSON is written")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts (default: 9.5)")
    parser.add_argument(
        "--model-layers",
        type=int,
        nargs=2,
        default=(1, 6),
        metavar="N",
        help="of the whole models; from the times of both numbers that of all layers follows",
    )
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    few, many = arguments.model_layers
    if not 1 <= few < many <= 24:
        parser.error(f"--model-layers {few} {many}: expected two numbers from 1 to 24, less first")

    parts = arguments.parts or [name for name, part in PARTS.items() if part.by_default]
    obstacles = {part: obstacle(part) for part in parts}
    if arguments.dry_run:
        for part, reason in obstacles.items():
            would = f"would run, about {PARTS[part].minutes:g} min" if reason is None else ""
            print(f"{part:<12} {would or f'cannot run: {reason}'}")
        return 0
    if all(obstacles.values()):
        reasons = "; ".join(dict.fromkeys(str(reason) for reason in obstacles.values()))
        print(f"gpu_check: nothing could be run on this machine: {reasons}")
        return 3
    check = Check(obstacles, arguments.minutes, tuple(arguments.model_layers), arguments.out)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        check.run(folder)
    print("== targets")
    print_table(check.result["targets"])
    if not check.held:
        return 1
    return 3 if any(check.obstacles.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
