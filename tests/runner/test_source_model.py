"""Tests of what is checked in a source before any stage runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from moe_export.documents.generation_file import FILE
from moe_export.errors import CheckpointError
from moe_export.runner.source_model import inspect
from moe_export.testing.tiny import tiny_checkpoint


def test_a_wrong_value_for_generation_is_found_before_any_stage(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    assert inspect(model).num_experts == 6
    (model / FILE).write_text(json.dumps({"pad_token_id": -math.inf}))
    with pytest.raises(CheckpointError, match="pad_token_id is -inf, expected a token id"):
        inspect(model)
