"""The device check as a command: which parts can run here, and what becomes of them."""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.util import find_spec

from moe_export.errors import DependencyError, MoeExportError, RecipeError
from moe_export.gpu_check.check import Check, print_table
from moe_export.gpu_check.parts import CHECKOUT, DEMO_RECIPE, KERNELS, PARTS
from moe_export.ort.cuda import require_cuda_kernels, require_cuda_libraries

ALL_LAYERS = 24
"""Layers of Qwen1.5-MoE-A2.7B, whose shapes the whole models have."""


def check_gpu(arguments: argparse.Namespace) -> None:
    """Runs the parts that are asked for and prints their tables.

    Args:
        arguments: Parsed options, see `options.add_options`.

    Raises:
        RecipeError: The numbers of layers are not usable.
        DependencyError: No part can run here, or one of them cannot.
        MoeExportError: A check did not hold.
    """
    _require_layers(*arguments.model_layers)
    parts = arguments.parts or [name for name, part in PARTS.items() if part.by_default]
    obstacles = {part: obstacle(part) for part in parts}
    if arguments.dry_run:
        _print_obstacles(obstacles)
        return
    if all(obstacles.values()):
        reasons = "; ".join(dict.fromkeys(str(reason) for reason in obstacles.values()))
        raise DependencyError(f"no part of the check can run on this machine: {reasons}")
    # The processes of the parts inherit it, and are to run the kernels on the device.
    os.environ.pop("TRITON_INTERPRET", None)
    check = Check(obstacles, arguments.minutes, tuple(arguments.model_layers), arguments.out)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        check.run(folder)
    print("== targets")
    print_table(check.result["targets"])
    _raise_for(check)


def obstacle(part: str) -> str | None:
    """Reason why a part cannot run on this machine; None if it can."""
    needs = PARTS[part].needs
    for package in needs:
        if package not in (KERNELS, CHECKOUT) and find_spec(package) is None:
            return f"the package {package} is not installed"
    if CHECKOUT in needs and not DEMO_RECIPE.is_file():
        return f"{DEMO_RECIPE} is missing; run tools/gpu_check in a checkout of moe-export"
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


def _require_layers(few: int, many: int) -> None:
    if not 1 <= few < many <= ALL_LAYERS:
        raise RecipeError(
            f"--model-layers {few} {many}: expected two different numbers from 1 to {ALL_LAYERS}, "
            "the smaller first"
        )


def _print_obstacles(obstacles: dict[str, str | None]) -> None:
    for part, reason in obstacles.items():
        would = f"would run, about {PARTS[part].minutes:g} min"
        print(f"{part:<12} {would if reason is None else f'cannot run: {reason}'}")


def _raise_for(check: Check) -> None:
    if not check.held:
        raise MoeExportError("a check on the GPU did not hold; the rows above with held False say")
    left_out = {part: reason for part, reason in check.obstacles.items() if reason}
    if left_out:
        words = "; ".join(f"{part}: {reason}" for part, reason in left_out.items())
        raise DependencyError(f"not every part of the check could run: {words}")
