"""Files that pytest leaves out if Triton, the server's packages, Optimum or lm-eval are absent.

The extras [test], [optimum] and [eval] bring them.
"""

from __future__ import annotations

from importlib.util import find_spec

_NEEDS_TRITON = (
    *(f"op/triton/{name}.py" for name in ("kernels_1_common", "kernels_2_rows", "kernels_3_tiles")),
    *(f"op/triton/{name}.py" for name in ("driver", "build")),
    *(f"gpu_check/{name}.py" for name in ("fused_moe", "kernels", "random_layers", "shapes")),
    *(f"testing/{name}.py" for name in ("cuda_kinds",)),
)

_SERVER = ("jinja2", "prometheus_client", "starlette", "uvicorn", "httpx", "openai")

collect_ignore = []
if find_spec("triton") is None:
    collect_ignore += [f"moe_export/{name}" for name in _NEEDS_TRITON]
    collect_ignore += ["tests/cuda", "tests/gpu_check"]
if find_spec("optimum") is None:
    collect_ignore += ["moe_export/optimum.py"]
if find_spec("lm_eval") is None:
    collect_ignore += ["moe_export/evaluation/harness/models.py"]
if any(find_spec(name) is None for name in _SERVER):
    collect_ignore += ["moe_export/serve", "tests/serve"]
