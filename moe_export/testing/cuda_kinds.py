"""Kinds of inputs that the CUDA kernels run, and those of the packaged kernels."""

from __future__ import annotations

from moe_export.formats import known_to
from moe_export.op.triton.build import FORMATS_OF
from moe_export.op.triton.device_layout import device_format
from moe_export.testing.cases import KINDS, kinds_of

CUDA_FORMATS = known_to("cuda")

CUDA_KINDS = kinds_of(CUDA_FORMATS)

PACKAGED_KINDS = tuple(
    kind for kind in KINDS if device_format(kind[1], kind[0]) in FORMATS_OF[kind[0]]
)
