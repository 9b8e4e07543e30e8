"""What the CUDA kernels run."""

from __future__ import annotations

from moe_export.op import spec
from tests.op.cases import kinds_of

CUDA_FORMATS: tuple[spec.Format, ...] = ("float32", "float16", "bfloat16", "int8", "int4")

CUDA_KINDS = kinds_of(CUDA_FORMATS)
