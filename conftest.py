"""What pytest leaves out where Triton is not installed; the extra [test] brings it."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDS_TRITON = ("kernels_1_common", "kernels_2_rows", "kernels_3_tiles", "driver", "build")

if find_spec("triton") is None:
    collect_ignore = [f"moe_export/op/triton/{name}.py" for name in _NEEDS_TRITON]
    collect_ignore.append("tests/cuda")
