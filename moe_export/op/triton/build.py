"""Compiles the kernels for every supported GPU: `python -m moe_export.op.triton.build`.

Needs neither a GPU nor a CUDA toolkit: Triton brings the assembler. Writes one package (see
`package`) per architecture, and `manifest.json`, which lists their kernels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moe_export.formats import TABLE
from moe_export.op.spec import Format
from moe_export.op.triton import kernels_1_common, kernels_2_rows, kernels_3_tiles, package, plan
from moe_export.op.triton.census import census

CUBINS = Path(__file__).parents[1] / "native" / "cuda" / "cubins"

ARCHITECTURES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory of a block in KiB, by compute capability (CUDA C++ Programming Guide, technical
specifications per compute capability). A binary also runs on later minor versions."""

FORMATS_OF: dict[str, tuple[Format, ...]] = {
    x_dtype: tuple(name for name, facts in TABLE.items() if x_dtype in facts.cuda_dtypes)
    for x_dtype in ("float32", "float16")
}
"""Packaged formats of weights on the device, by dtype of x. ONNX Runtime's CUDA provider has no
attention in float32, so the last three formats would serve no whole model there."""

X_TYPES = {"float32": "fp32", "float16": "fp16"}
WEIGHT_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Triton types of the float formats; codes are bytes."""

SCALED_X_DTYPE = "float16"
"""Dtype of x in the packaged kernels for factors per token, that of whole models on CUDA."""

_X = (
    *("x", "hidden", "out", "weights", "shared_weight", "y", "padded"),
    *("scale", "scaled", "input_scale", "hidden_scale", "x_up", "up_input_scale"),
)
_WEIGHTS = ("gate", "up", "down")
_SCALES = ("gate_scale", "up_scale", "down_scale")
_ZEROS = ("gate_zero", "up_zero", "down_zero")
_INT32 = ("table", "pairs", "shifted", "starts", "counts", "unit_map", "columns")
_ALIGNED = (
    *("x", "hidden", "out", *_WEIGHTS, "padded", "scaled"),
    *("input_scale", "x_up", "up_input_scale"),
)
_MULTIPLES_OF_16 = ("x_columns", "depth", "hidden_stride", "out_stride", "padded_columns")


@dataclass(frozen=True)
class Variant:
    """A kernel with its types and constants.

    Attributes:
        kernel: function of Triton.
        x_dtype: dtype of x, or `any`.
        format_name: format of the weights on the device; None if the kernel reads no weights.
        constants: compile-time arguments, by name.
        shape: sizes of the work of one program.
    """

    kernel: Any
    x_dtype: str
    format_name: Format | None
    constants: dict[str, Any]
    shape: plan.Shape

    @property
    def key(self) -> str:
        """Name in the package: kernel, dtype of x, format, pairs of a tile.

        For example `gate_up_tiles.float16.int4.128`; `gate_up_rows.float16.int4.scaled` is the
        variant for factors per token, `gate_up_rows.float16.int4.up_scaled` that in which `up` has
        its own.
        """
        parts = [self.kernel.__name__, self.x_dtype]
        if self.format_name is not None:
            parts.append(self.format_name)
        if self.shape.pairs > 1:
            parts.append(str(self.kind))
        if self.constants.get("UP_SCALED"):
            parts.append("up_scaled")
        elif self.constants.get("SCALED"):
            parts.append("scaled")
        return ".".join(parts)

    @property
    def kind(self) -> int:
        """Kind of tile in `plan`, in pairs; the tile itself may be smaller."""
        small = self.shape.pairs == plan.SMALL_TILE_PAIRS
        return plan.SMALL_TILE_PAIRS if small else plan.LARGE_TILE_PAIRS


def variants(architecture: int) -> Iterator[Variant]:
    """Variants that are compiled for an architecture."""
    group = plan.Shape(1, 1, plan.GROUP_BLOCK, 4, 1)
    copy = plan.Shape(1, 1, plan.COPY_BLOCK, 4, 1)
    yield Variant(kernels_1_common.group_pairs, "any", None, {"BLOCK": plan.GROUP_BLOCK}, group)
    yield Variant(kernels_1_common.shift_pairs, "any", None, {"BLOCK": plan.GROUP_BLOCK}, group)
    for kernel in (kernels_1_common.scale_rows, kernels_1_common.scale_pairs):
        yield Variant(kernel, SCALED_X_DTYPE, None, {"BLOCK": plan.COPY_BLOCK}, copy)
    for x_dtype, formats in FORMATS_OF.items():
        for kernel in (kernels_1_common.pad_rows, kernels_1_common.add_pairs):
            yield Variant(kernel, x_dtype, None, {"BLOCK": plan.COPY_BLOCK}, copy)
        for format_name in formats:
            for kernel in (kernels_2_rows.gate_up_rows, kernels_2_rows.down_rows):
                shape = plan.shape_of(kernel.__name__, format_name, x_dtype, 1, architecture)
                yield _variant(kernel, x_dtype, format_name, shape)
            if x_dtype == SCALED_X_DTYPE:
                yield from _scaled_variants(format_name, architecture)
            for pairs in (plan.SMALL_TILE_PAIRS, plan.LARGE_TILE_PAIRS):
                for kernel in (kernels_3_tiles.gate_up_tiles, kernels_3_tiles.down_tiles):
                    shape = plan.shape_of(
                        kernel.__name__, format_name, x_dtype, pairs, architecture
                    )
                    yield _variant(kernel, x_dtype, format_name, shape)


def _scaled_variants(format_name: Format, architecture: int) -> Iterator[Variant]:
    kinds: tuple[tuple[Any, int, plan.Factors], ...] = (
        (kernels_2_rows.gate_up_rows, 1, "scaled"),
        (kernels_2_rows.gate_up_rows, 1, "up_scaled"),
        (kernels_3_tiles.gate_up_tiles, plan.UP_TILE_PAIRS, "up_scaled"),
    )
    for kernel, pairs, factors in kinds:
        shape = plan.shape_of(kernel.__name__, format_name, SCALED_X_DTYPE, pairs, architecture)
        yield _variant(kernel, SCALED_X_DTYPE, format_name, shape, factors)


def _variant(
    kernel: Any,
    x_dtype: str,
    format_name: Format,
    shape: plan.Shape,
    factors: plan.Factors = "",
) -> Variant:
    constants = plan.constants_of(kernel.__name__, format_name, shape, factors)
    return Variant(kernel, x_dtype, format_name, constants, shape)


def signature(variant: Variant) -> dict[str, str]:
    """Triton types of the arguments, by name, in order."""

    def kind(name: str) -> str:
        if name in variant.constants:
            return "constexpr"
        if name == "indices":
            return "*i64"
        if name in _INT32:
            return "*i32"
        if name in _SCALES:
            return "*fp16"
        if name in _WEIGHTS and variant.format_name is not None:
            return f"*{WEIGHT_TYPES.get(variant.format_name, 'u8')}"
        if name in _ZEROS:
            return "*u8"
        if name == "codebook":
            return "*fp32"
        return f"*{X_TYPES[variant.x_dtype]}" if name in _X else "i32"

    return {name: kind(name) for name in variant.kernel.arg_names}


def compile_variant(variant: Variant, architecture: int) -> package.Kernel:
    """Compiles a variant, with as many pipeline stages as shared memory allows."""
    types = signature(variant)
    hints = {
        (position,): [["tt.divisibility", 16]]
        for position, (name, kind) in enumerate(types.items())
        if name in (*_ALIGNED, *_MULTIPLES_OF_16) and kind != "constexpr"
    }
    constants = {
        (position,): variant.constants[name]
        for position, name in enumerate(types)
        if name in variant.constants
    }
    limit = ARCHITECTURES[architecture] * 1024
    for stages in range(variant.shape.stages, 0, -1):
        compiled = triton.compile(
            ASTSource(variant.kernel, types, constants, hints),
            target=GPUTarget("cuda", architecture, 32),
            options={"num_warps": variant.shape.warps, "num_stages": stages},
        )
        if compiled.metadata.shared <= limit:
            break
    else:
        raise SystemExit(f"{variant.key} needs more shared memory than sm_{architecture} has")
    assert compiled.metadata.global_scratch_size == 0, "the library gives no scratch to kernels"
    return package.Kernel(
        key=variant.key,
        name=compiled.metadata.name,
        shared_bytes=compiled.metadata.shared,
        threads=32 * compiled.metadata.num_warps,
        pairs=variant.shape.pairs,
        rows=variant.shape.rows,
        code=compiled.asm["cubin"],
    )


def sources_sha256() -> str:
    """SHA-256 of the sources that determine the kernels."""
    folder = Path(__file__).parent
    names = ("kernels_1_common", "kernels_2_rows", "kernels_3_tiles", "device_layout", "plan")
    texts = [(folder / f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def build(architectures: list[int], out: Path) -> None:
    """Writes a package per architecture, and the manifest of all packages in the folder."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET is 1, so nothing can be compiled; unset it")
    # Source lines would put paths of this machine into the binaries.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(number, variant.key) for number in architectures for variant in variants(number)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        kernels = list(pool.map(_compile, *zip(*jobs, strict=True), chunksize=4))
    for architecture in architectures:
        mine = [kernel for kernel, job in zip(kernels, jobs, strict=True) if job[0] == architecture]
        (out / f"sm_{architecture}.bin").write_bytes(package.encode(mine))
    manifest = manifest_of(out)
    for name, entry in manifest["architectures"].items():
        packaged = package.decode((out / f"{name}.bin").read_bytes())
        with ThreadPoolExecutor() as threads:
            censuses = list(threads.map(census, (kernel.code for kernel in packaged)))
        for kernel, facts in zip(packaged, censuses, strict=True):
            entry["kernels"][kernel.key] |= asdict(facts)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")


def _compile(architecture: int, key: str) -> package.Kernel:
    (variant,) = (v for v in variants(architecture) if v.key == key)
    return compile_variant(variant, architecture)


def manifest_of(folder: Path) -> dict[str, Any]:
    """Content of the packages in a folder, with the arguments and launch grid of each kernel."""
    kernels = {}
    constants: dict[str, dict[str, Any]] = {}
    for architecture in ARCHITECTURES:
        for variant in variants(architecture):
            types = signature(variant)
            constants.setdefault(f"sm_{architecture}", {})[variant.key] = variant.constants
            kernels[variant.key] = {
                "arguments": [f"{n}: {t}" for n, t in types.items() if t != "constexpr"],
                "grid": LAUNCH_GRIDS[variant.kernel.__name__],
            }
    architectures = {}
    for path in sorted(folder.glob("sm_*.bin")):
        content = path.read_bytes()
        packaged = package.decode(content)
        architectures[path.stem] = {
            "bytes": len(content),
            "unpacked_bytes": sum(len(kernel.code) for kernel in packaged),
            "kernels": {
                kernel.key: {
                    "name": kernel.name,
                    "constants": constants[path.stem][kernel.key],
                    "shared_bytes": kernel.shared_bytes,
                    "threads": kernel.threads,
                }
                for kernel in packaged
            },
        }
    return {
        "sources_sha256": sources_sha256(),
        "triton": triton.__version__,
        "kernels": kernels,
        "architectures": architectures,
    }


LAUNCH_GRIDS = {
    "group_pairs": ["E"],
    "pad_rows": ["T", "ceil(x_columns / BLOCK)"],
    "add_pairs": ["T", "ceil(D / BLOCK)"],
    "scale_rows": ["T, or 2 * T with a shared expert", "ceil(x_columns / BLOCK)"],
    "shift_pairs": ["ceil(T * S / BLOCK)"],
    "scale_pairs": ["T * S", "ceil(hidden_stride / BLOCK)"],
    "gate_up_rows": ["max(ceil(hidden_stride / ROWS), 1)", "T"],
    "down_rows": ["ceil(D / ROWS)", "T"],
    "gate_up_tiles": ["ceil(hidden_stride / ROWS)", "min(T * S, E + T * S / PAIRS)"],
    "down_tiles": ["ceil(D / ROWS)", "min(T * S, E + T * S / PAIRS)"],
}
"""Programs along each axis; T tokens, S slots, E experts with the shared one, D hidden size."""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=CUBINS)
    parser.add_argument("--arch", type=int, action="append", choices=tuple(ARCHITECTURES))
    arguments = parser.parse_args()
    build(arguments.arch or list(ARCHITECTURES), arguments.out)
    for name, entry in manifest_of(arguments.out)["architectures"].items():
        sys.stdout.write(f"{name}: {entry['bytes']} bytes, {entry['unpacked_bytes']} unpacked\n")


if __name__ == "__main__":
    main()
