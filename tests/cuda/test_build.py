"""The packaged kernels are those of the sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_export.op.triton import build, package

MANIFEST = json.loads((build.CUBINS / "manifest.json").read_text())


def test_the_manifest_is_that_of_the_sources_and_of_the_packages() -> None:
    # Otherwise: python -m moe_export.op.triton.build
    found = json.loads(json.dumps(build.manifest_of(build.CUBINS)))
    found["triton"] = MANIFEST["triton"]
    assert found == MANIFEST


def test_there_is_a_package_for_every_architecture_with_every_kernel() -> None:
    assert set(MANIFEST["architectures"]) == {f"sm_{number}" for number in build.ARCHITECTURES}
    for name, found in MANIFEST["architectures"].items():
        assert found["kernels"].keys() == MANIFEST["kernels"].keys()
        limit = build.ARCHITECTURES[int(name.removeprefix("sm_"))] * 1024
        assert max(k["shared_bytes"] for k in found["kernels"].values()) <= limit


def test_all_packages_together_take_little_space() -> None:
    assert sum(found["bytes"] for found in MANIFEST["architectures"].values()) < 4.7e6


COMPILE_ONE = """
import sys
from moe_export.op.triton import build
(variant,) = (v for v in build.variants() if v.key == sys.argv[1])
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
