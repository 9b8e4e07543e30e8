"""Options of `moe-export check-gpu`, and their help. Imports nothing heavy: `--help` needs it."""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_export.gpu_check.parts import PARTS

DESCRIPTION = """\
Checks the CUDA kernels on a machine with an NVIDIA GPU, and times them.

parts, in the order in which they run:
  conformance  every case of the tests by the packaged kernels, through the native library; those
               with factors per token in float16
  onnxruntime  some cases under ONNX Runtime's CUDA provider, four of them with factors per token
  layers       one layer of the size of Qwen1.5-MoE in every format, against the copy bandwidth and
               the matrix rate of the same run, and beside a fused MoE of one width
  models       whole models of those shapes with random weights in ONNX Runtime: dense, at 50 %, and
               at 50 % in int4; tokens/s and memory
  peers        layers beside ONNX Runtime's own padded MoE and QMoE
  demo         the demo recipe with validate.providers [cuda]: device memory and the three KV caches
  shapes       each kernel alone, in its shape and in neighbouring ones; only if asked for

A table of targets and measured values ends the output. All parts fit into less than 10 minutes. How
long each part takes is estimated: a part that would begin too late is left out and reported, and a
part that is not done in time is ended. Each part has a process of its own, so that a failure does
not stop the others.
"""

EPILOG = """\
exit codes:
  0 every part ran and every check held (a missed target is no failure)
  1 a check did not hold   2 usage   3 a part could not run
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options and the help of the check to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=tuple(PARTS),
        metavar="PART",
        help="parts to run (default: all but shapes)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="time for all parts together (default: 9.5)"
    )
    parser.add_argument(
        "--model-layers",
        type=int,
        nargs=2,
        default=(1, 6),
        metavar="N",
        help="two numbers of layers of the whole models, from which the time of 24 layers is "
        "extrapolated (default: 1 6)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print which parts could run here, and why not"
    )
