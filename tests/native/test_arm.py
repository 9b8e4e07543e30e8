"""Arm kernels equal the portable ones in few instructions, and exports run, in emulation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moe_export.demo import checkpoint_dir
from moe_export.op.spec import Layout
from moe_export.recipe import QuantizeSettings
from moe_export.stages import quantize
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.testing.tiny import pruned_checkpoint
from tests.helpers.wheels import ops_wheel
from tools.arm import count, programs
from tools.arm.folder import Emulated, difference, emulated, run_card

WIDTHS = ((128, 64, 96, 32) * 4,) * 4
FORMATS, DEPTHS, MOST_ROWS = 8, 7, 12


@pytest.fixture(scope="module")
def found() -> programs.Found:
    tools = programs.find()
    if isinstance(tools, str):
        pytest.skip(tools)
    return tools


@pytest.fixture(scope="module")
def built(found: programs.Found, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm") / "programs"
    # Where zig stands in, its library is for another C library than that of the emulated system.
    targets = ["compare", "count"] + ([] if found.compiler is None else ["moe_export_ops"])
    programs.build(found, folder, targets)
    return folder


@pytest.mark.parametrize("processor", programs.PROCESSORS)
def test_arm_kernels_equal_the_portable_ones_on_an_emulated_processor(
    found: programs.Found, built: Path, processor: str
) -> None:
    takes, *compared = programs.run(found, processor, built / "compare").splitlines()
    fastest = programs.FASTEST[processor]
    assert takes == f"takes {fastest}"
    expected = programs.KERNELS[: programs.KERNELS.index(fastest) + 1]
    assert compared == [f"{name}: compared {FORMATS * DEPTHS * MOST_ROWS}" for name in expected]


@pytest.mark.parametrize(("kernel", "format_name", "rows"), count.MOST)
def test_products_take_few_instructions_per_byte_of_weights(
    found: programs.Found, built: Path, kernel: str, format_name: str, rows: int
) -> None:
    if found.compiler is None:
        pytest.skip("the limits are those of code compiled by aarch64-linux-gnu-g++")
    taken = count.per_byte(found, built / "count", kernel, format_name, rows)
    # A count far below would mean that some of the product is not counted.
    most = count.MOST[kernel, format_name, rows]
    assert 0.7 * most < taken <= most


@pytest.fixture(scope="module")
def wheel(found: programs.Found, built: Path) -> Path:
    if found.compiler is None:
        pytest.skip("the library for an exported folder is compiled by aarch64-linux-gnu-g++")
    package = Path(__file__).parents[2] / "ops" / "moe_export_ops" / "__init__.py"
    files = {
        "moe_export_ops/__init__.py": package.read_bytes(),
        "moe_export_ops/libmoe_export_ops.so": (built / "libmoe_export_ops.so").read_bytes(),
    }
    return ops_wheel(built, "manylinux_2_28_aarch64", files)


@pytest.fixture(scope="module")
def machine(wheel: Path, built: Path) -> Emulated:
    system = os.environ.get("MOE_EXPORT_ARM_SYSTEM")
    if system is None:
        pytest.skip("MOE_EXPORT_ARM_SYSTEM names no folder of `python -m tools.arm.system`")
    found = emulated(Path(system), wheel, built / "site")
    assert isinstance(found, Emulated), found
    return found


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    pruned = pruned_checkpoint(checkpoint_dir(), folder / "pruned", WIDTHS)
    (folder / "quantized").mkdir()
    settings = QuantizeSettings(experts="int4")
    quantize.run(Job(settings, checkpoint_dir(), {"prune": pruned}, folder / "quantized"))
    return folder / "quantized"


@pytest.mark.parametrize(
    ("layout", "processors"), [("portable", ["cortex-a76"]), ("packed", ["cortex-a72", "max"])]
)
def test_an_exported_folder_answers_on_an_emulated_processor_as_it_does_here(
    machine: Emulated,
    wheel: Path,
    quantized: Path,
    layout: Layout,
    processors: list[str],
    tmp_path: Path,
) -> None:
    export_model(
        quantized,
        tmp_path / "model",
        "float32",
        library=True,
        platforms=("linux_x86_64", "linux_aarch64"),
        wheels=wheel.parent,
        layout=layout,
    )
    here = run_card(tmp_path / "model", [sys.executable], dict(os.environ))
    assert here["text"].strip()
    for processor in processors:
        there = run_card(tmp_path / "model", machine.command(processor), machine.environment)
        difference(here, there, processor)
