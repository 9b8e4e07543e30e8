"""Tests of values in `generation_config.json`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from moe_export.documents.generation_file import FILE, generation_settings
from moe_export.errors import CheckpointError


def test_published_values_are_kept_and_the_file_may_be_absent(tmp_path: Path) -> None:
    assert generation_settings(tmp_path) == {}
    content = {"eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6, "top_k": None}
    (tmp_path / FILE).write_text(json.dumps(content))
    assert generation_settings(tmp_path) == content


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bos_token_id", -math.inf),
        ("temperature", "hot"),
        ("temperature", math.nan),
        ("top_k", 10**400),
        ("do_sample", []),
    ],
)
def test_a_value_of_another_type_is_one_sentence(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / FILE).write_text(json.dumps({key: value}))
    with pytest.raises(CheckpointError, match=rf"{FILE}: {key} is .*expected a "):
        generation_settings(tmp_path)
