"""Files that pytest leaves out if Triton, which the extra [test] brings, is not installed."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDS_TRITON = (
    *(f"op/triton/{name}.py" for name in ("kernels_1_common", "kernels_2_rows", "kernels_3_tiles")),
    *(f"op/triton/{name}.py" for name in ("driver", "build")),
    *(f"gpu_check/{name}.py" for name in ("fused_moe", "kernels", "random_layers", "shapes")),
    *(f"testing/{name}.py" for name in ("cuda_kinds",)),
)

if find_spec("triton") is None:
    collect_ignore = [f"moe_export/{name}" for name in _NEEDS_TRITON]
    collect_ignore += ["tests/cuda", "tests/gpu_check"]
