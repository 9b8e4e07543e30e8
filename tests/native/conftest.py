"""The native library, compiled from the sources of this tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_export.op.library import LIBRARY_NAME
from tests.native.build import LIBRARY, build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file."""
    return build(LIBRARY, "moe_export_ops", tmp_path_factory.mktemp("native")) / LIBRARY_NAME
