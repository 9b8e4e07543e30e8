"""The calibration set and the scores: written, read again, and refused where they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.run_info import PartialKey
from moe_export.errors import ArtifactError

CALIBRATION = Calibration(
    tokens_N=np.arange(5, dtype=np.int32),
    offsets_S1=np.array([0, 2, 5]),
    prompt_S=np.array([1, 0], np.int32),
    source_S=np.array([0, 1], np.int32),
    weight_K=np.array([2.0, 1.0]),
)
IMPORTANCE = Importance(
    scores={"fisher": [np.ones(4), np.zeros(0)], "absgrad": [np.full(4, np.inf), np.zeros(0)]},
    tokens_per_expert=[np.array([3, 0]), np.zeros(0, np.int64)],
    source_shares={"fisher": np.array([0.25, 0.75])},
)
BOTH = pytest.mark.parametrize("artifact", [CALIBRATION, IMPORTANCE], ids=["tokens", "scores"])


@BOTH
def test_what_is_read_is_what_was_written_to_the_byte(
    artifact: Calibration | Importance, tmp_path: Path
) -> None:
    artifact.save(tmp_path)
    written = (tmp_path / artifact.FILE).read_bytes()
    type(artifact).load(tmp_path).save(tmp_path)
    assert (tmp_path / artifact.FILE).read_bytes() == written


@BOTH
def test_each_tensor_that_is_missing_or_of_another_dtype_is_named(
    artifact: Calibration | Importance, tmp_path: Path
) -> None:
    artifact.save(tmp_path)
    path = tmp_path / artifact.FILE
    tensors = load_file(path)
    for name, tensor in tensors.items():
        save_file(tensors | {name: tensor.astype(np.float16)}, path)
        with pytest.raises(ArtifactError, match=f"'{name}' is of dtype float16, expected"):
            type(artifact).load(tmp_path)


def test_each_tensor_of_the_calibration_set_must_be_there(tmp_path: Path) -> None:
    CALIBRATION.save(tmp_path)
    path = tmp_path / Calibration.FILE
    tensors = load_file(path)
    for name in tensors:
        save_file({other: value for other, value in tensors.items() if other != name}, path)
        with pytest.raises(ArtifactError, match=f"tensor '{name}' is missing"):
            Calibration.load(tmp_path)


def test_a_layer_without_a_score_of_the_others_is_named(tmp_path: Path) -> None:
    IMPORTANCE.save(tmp_path)
    path = tmp_path / Importance.FILE
    tensors = load_file(path)
    for name in ("layers.1.fisher", "layers.0.tokens_per_expert"):
        save_file({other: value for other, value in tensors.items() if other != name}, path)
        with pytest.raises(ArtifactError, match=r"tensor 'layers\..*' is missing"):
            Importance.load(tmp_path)
    save_file({k: v for k, v in tensors.items() if k != "layers.0.fisher"}, path)
    with pytest.raises(ArtifactError, match=r"tensor 'layers\.1\.fisher' is unknown"):
        Importance.load(tmp_path)


@BOTH
def test_an_unknown_tensor_and_a_truncated_file_are_refused(
    artifact: Calibration | Importance, tmp_path: Path
) -> None:
    artifact.save(tmp_path)
    path = tmp_path / artifact.FILE
    written = path.read_bytes()
    save_file(load_file(path) | {"surprise": np.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="tensor 'surprise' is unknown"):
        type(artifact).load(tmp_path)
    path.write_bytes(written[:-3])
    with pytest.raises(ArtifactError, match="is damaged"):
        type(artifact).load(tmp_path)


def test_a_partial_folder_has_the_key_of_its_stage_or_none(tmp_path: Path) -> None:
    assert PartialKey.load(tmp_path) is None
    PartialKey("abc").save(tmp_path)
    assert PartialKey.load(tmp_path) == PartialKey("abc")
