"""Arm kernels give what the portable ones give, on emulated processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.arm import programs

FASTEST = dict(zip(programs.PROCESSORS, ("neon", "dotprod", "i8mm"), strict=True))
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
    programs.build(found, folder)
    return folder


@pytest.mark.parametrize("processor", programs.PROCESSORS)
def test_arm_kernels_equal_the_portable_ones_on_an_emulated_processor(
    found: programs.Found, built: Path, processor: str
) -> None:
    takes, *compared = programs.run(found, processor, built / "compare").splitlines()
    assert takes == f"takes {FASTEST[processor]}"
    kernels = list(FASTEST.values())
    expected = kernels[: kernels.index(FASTEST[processor]) + 1]
    assert compared == [f"{name}: compared {FORMATS * DEPTHS * MOST_ROWS}" for name in expected]
