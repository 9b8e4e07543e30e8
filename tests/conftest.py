from __future__ import annotations

import gc
import os
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import hypothesis
import pytest

# As the command line does; it is read when torch is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The CUDA kernels are run by Triton's interpreter; it is read when they are first loaded.
os.environ.setdefault("TRITON_INTERPRET", "1")

from moe_export.op.library import LIBRARY_NAME
from tests.helpers.shared import made_once
from tools.cmake import LIBRARY, build

# A busy machine is no fault of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, with the reason, families that the installed transformers does not know."""
    for item in items:
        case = getattr(item, "callspec", None)
        for row in case.params.values() if case is not None else ():
            # Processors in emulation have no transformers, and none of these rows.
            oldest = getattr(row, "oldest_transformers", 0)
            installed = metadata.version("transformers") if oldest else ""
            if oldest and int(installed.partition(".")[0]) < oldest:
                reason = f"transformers {installed} does not know {row.model_type}"
                item.add_marker(pytest.mark.skip(reason=reason))


_MANY_MODULES = 200
_looked_at = 0


@pytest.fixture(autouse=True)
def quick_collections() -> None:
    """Takes imported modules out of garbage collection: each stage collects, at 0.3 s for torch."""
    global _looked_at  # noqa: PLW0603 - one number for the process
    if len(sys.modules) > _looked_at + _MANY_MODULES:
        gc.collect()
        gc.freeze()
        _looked_at = len(sys.modules)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native library, compiled from the sources of this tree.

    MOE_EXPORT_TEST_LIBRARY names one that was compiled elsewhere, for processors in emulation.
    """
    given = os.environ.get("MOE_EXPORT_TEST_LIBRARY")
    if given is not None:
        return Path(given)
    compile_it = partial(build, LIBRARY, "moe_export_ops")
    return made_once(tmp_path_factory, "native", compile_it) / LIBRARY_NAME
