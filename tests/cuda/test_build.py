"""The packaged kernels are those of the sources."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_export.formats import GRIDS
from moe_export.op.triton import build, package
from moe_export.op.triton.census import Census, census, parameter_bytes

MANIFEST = json.loads((build.CUBINS / "manifest.json").read_text())
CENSUS = [field.name for field in dataclasses.fields(Census)]
SAMPLE = ("group_pairs.any", "down_rows.float16.float16", "gate_up_tiles.float16.int4.128")
REGISTER_BYTES = 4
VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2} | dict.fromkeys(GRIDS, 1)


def _kernels(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for found in manifest["architectures"].values():
        yield from found["kernels"].values()


def test_the_manifest_is_that_of_the_sources_and_of_the_packages() -> None:
    # Otherwise: python -m moe_export.op.triton.build
    found = json.loads(json.dumps(build.manifest_of(build.CUBINS)))
    found["triton"] = MANIFEST["triton"]
    listed = copy.deepcopy(MANIFEST)
    for kernel in _kernels(listed):
        for name in CENSUS:
            del kernel[name]
    assert found == listed


def test_there_is_a_package_for_every_architecture_with_every_kernel() -> None:
    assert set(MANIFEST["architectures"]) == {f"sm_{number}" for number in build.ARCHITECTURES}
    for name, found in MANIFEST["architectures"].items():
        assert found["kernels"].keys() == MANIFEST["kernels"].keys()
        limit = build.ARCHITECTURES[int(name.removeprefix("sm_"))] * 1024
        assert max(k["shared_bytes"] for k in found["kernels"].values()) <= limit


def test_all_packages_together_take_little_space() -> None:
    assert sum(found["bytes"] for found in MANIFEST["architectures"].values()) < 3.9e6


def test_next_to_no_registers_are_spilled() -> None:
    found = {
        (architecture, key): kernel["stack_bytes"]
        for architecture, package_ in MANIFEST["architectures"].items()
        for key, kernel in package_["kernels"].items()
    }
    assert max(found.values()) <= 4 * REGISTER_BYTES
    assert sum(stack > 0 for stack in found.values()) < len(found) / 50


@pytest.mark.parametrize("architecture", build.ARCHITECTURES)
def test_weights_are_loaded_16_bytes_at_a_time(architecture: int) -> None:
    for variant in build.variants(architecture):
        # Whole models have x in float16.
        if variant.format_name is None or variant.x_dtype == "float32":
            continue
        kernel = MANIFEST["architectures"][f"sm_{architecture}"]["kernels"][variant.key]
        tile_bytes = variant.shape.rows * variant.shape.columns * VALUE_BYTES[variant.format_name]
        matrices = 2 if "gate_up" in variant.key else 1
        assert kernel["wide_loads"] >= matrices * tile_bytes / kernel["threads"] / 16, variant.key


@pytest.mark.parametrize("architecture", [80, 90, 120])
def test_kernels_take_the_arguments_of_the_manifest_and_two_pointers(architecture: int) -> None:
    packed = package.decode((build.CUBINS / f"sm_{architecture}.bin").read_bytes())
    for kernel in packed[::4]:
        arguments = MANIFEST["kernels"][kernel.key]["arguments"]
        expected = [8 if ": *" in argument else 4 for argument in arguments]
        assert parameter_bytes(kernel.code) == [*expected, 8, 8], kernel.key


def test_the_census_is_that_of_the_packages() -> None:
    listed = MANIFEST["architectures"]["sm_80"]["kernels"]
    packed = package.decode((build.CUBINS / "sm_80.bin").read_bytes())
    sample = [kernel for kernel in packed if kernel.key in SAMPLE]
    assert len(sample) == len(SAMPLE)
    for kernel in sample:
        found = dataclasses.asdict(census(kernel.code))
        assert found == {name: listed[kernel.key][name] for name in CENSUS}


COMPILE_ONE = """
import sys
from moe_export.op.triton import build
(variant,) = (v for v in build.variants(90) if v.key == sys.argv[1])
kernel = build.compile_variant(variant, 90)
sys.stdout.write(f"{kernel.name} {kernel.shared_bytes} {kernel.threads} {kernel.code[:4].hex()}")
"""


@pytest.mark.parametrize("key", ["group_pairs.any", "down_rows.float16.int4"])
def test_a_kernel_compiles_to_what_the_manifest_says(key: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE_ONE, key],
        cwd=Path(__file__).parents[2],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    listed = MANIFEST["architectures"]["sm_90"]["kernels"][key]
    elf = b"\x7fELF".hex()
    expected = f"{listed['name']} {listed['shared_bytes']} {listed['threads']} {elf}"
    assert done.stdout == expected


def test_no_package_holds_a_path_of_the_machine_it_was_built_on() -> None:
    for path in build.CUBINS.glob("*.bin"):
        for kernel in package.decode(path.read_bytes()):
            assert b"kernels_" not in kernel.code
            assert b".py" not in kernel.code
