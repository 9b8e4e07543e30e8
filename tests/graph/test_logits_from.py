"""Tests of the input that chooses the positions whose logits are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.variants import LOGITS_FROM, MODEL_FILE
from tests.helpers.decoding import exported

LENGTHS = np.array([9, 4, 7])
RIGHT = (np.arange(9) < LENGTHS[:, None]).astype(np.int64)
"""Mask of rows whose padding is on the right."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logits_from")
    return exported(tiny_checkpoint(folder / "source"), folder / "onnx")


@pytest.fixture(scope="module")
def model(directory: Path) -> OrtModel:
    return OrtModel(directory, threads=1)


def logits(model: OrtModel, mask: NDArray[np.int64], first: int | None) -> NDArray[np.float32]:
    feeds = {"input_ids": ids(), "attention_mask": mask, **model.zeros(len(mask), 0)}
    if first is not None:
        feeds[LOGITS_FROM] = np.array([first])
    result: NDArray[np.float32] = model.session.run(["logits"], feeds)[0]
    return result


def ids() -> NDArray[np.int64]:
    return np.random.default_rng(5).integers(0, 250, RIGHT.shape)


@pytest.mark.parametrize("mask", [RIGHT, RIGHT[:, ::-1]], ids=["right", "left"])
def test_the_last_position_is_that_of_the_last_token_wherever_padding_is(
    model: OrtModel, mask: NDArray[np.int64]
) -> None:
    everywhere = logits(model, mask, None)
    last = [int(np.flatnonzero(row)[-1]) for row in mask]
    assert len(np.unique(everywhere[np.arange(3), last].argmax(-1))) > 1
    chosen = logits(model, mask, -1)
    assert chosen.shape == (3, 1, everywhere.shape[2])
    np.testing.assert_allclose(chosen[:, 0], everywhere[np.arange(3), last], atol=1e-5)
    np.testing.assert_allclose(logits(model, mask, 6), everywhere[:, 6:], atol=1e-5)


def test_runtimes_that_do_not_know_the_input_see_what_they_saw(model: OrtModel) -> None:
    names = [value.name for value in model.session.get_inputs()]
    assert names[:2] == ["input_ids", "attention_mask"]
    assert all(name.startswith("past_key_values.") for name in names[2:])
    assert model.session.get_outputs()[0].shape == ["batch_size", "sequence_length", 264]


def test_a_prompt_computes_logits_of_one_position(
    model: OrtModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    run = OrtModel.run

    def recorded(self: OrtModel, binding: object, graph: int = -1) -> None:
        run(self, binding, graph)
        outputs = binding.get_outputs()  # type: ignore[attr-defined]
        shapes.extend(o.shape() for o in outputs if o.shape()[-1] == 264)

    monkeypatch.setattr(OrtModel, "run", recorded)
    assert len(list(generate(model, [5, 6, 7, 8], 2, []))) == 2
    assert shapes == [[1, 1, 264]] * 2


def test_a_model_without_the_input_gives_the_same_tokens(
    directory: Path, model: OrtModel, tmp_path: Path
) -> None:
    graph = onnx.load(directory / MODEL_FILE)
    assert graph.graph.input[-1].name == LOGITS_FROM
    del graph.graph.input[-1]
    onnx.save_model(graph, tmp_path / MODEL_FILE)
    prompt = [3, 1, 4, 1, 5]
    for cache in ("growing", "static"):
        older = OrtModel(tmp_path, threads=1, cache=cache)
        assert older.session.get_overridable_initializers() == []
        assert list(generate(older, prompt, 8, [])) == list(generate(model, prompt, 8, []))
