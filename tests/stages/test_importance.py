"""Tests of the importance stage on a tiny checkpoint and an invented calibration set."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.exchange import Exchange
from moe_export.artifacts.importance import Importance
from moe_export.errors import ResourceError
from moe_export.experts import ExpertTable, kept_rows
from moe_export.recipe import ImportanceSettings
from moe_export.stages import importance
from moe_export.stages.job import Job
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import StreamedModel


def job_for(
    folder: Path, settings: ImportanceSettings, lengths: tuple[int, ...]
) -> Job[ImportanceSettings]:
    torch.set_num_threads(1)
    for name in ("calibrate", "importance"):
        (folder / name).mkdir(parents=True)
    tokens_N = np.random.default_rng(0).integers(0, 256, sum(lengths)).astype(np.int32)
    zeros_S = np.zeros(len(lengths), np.int32)
    offsets_S1 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    Calibration(tokens_N, offsets_S1, zeros_S, zeros_S).save(folder / "calibrate")
    model = tiny_checkpoint(folder / "model")
    folders = {"calibrate": folder / "calibrate"}
    return Job(settings, model, folders, folder / "importance")


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    settings = ImportanceSettings(
        scores=("fisher_margin", "fisher", "absgrad", "reap", "random"), batch_tokens=64
    )
    written = []
    for name in ("first", "second"):
        job = job_for(tmp_path / name, settings, (20, 30, 7, 9, 40, 2))
        importance.run(job)
        assert [path.name for path in job.out.iterdir()] == ["importance.safetensors"]
        written.append((job.out / "importance.safetensors").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("form", ["", "_weighted"])
def test_where_formats_are_to_be_chosen_what_rounding_costs_is_measured(
    tmp_path: Path, form: str
) -> None:
    scores = (f"fisher_margin{form}", f"rounding_margin{form}")
    settings = ImportanceSettings(scores=scores, batch_tokens=64)
    written = []
    for name in ("first", "second"):
        job = job_for(tmp_path / name, settings, (20, 30, 7, 9, 40, 2))
        importance.run(job)
        written.append((job.out / Exchange.FILE).read_bytes())
    assert written[0] == written[1]
    found = Exchange.load(job.out)
    assert found.tokens == 108 - 6
    assert len(found.rates) == 3
    assert min(found.rates) > 0
    assert json.loads(written[0])["rates"] == found.rates


def test_the_file_holds_every_score_and_the_tokens_of_each_expert(tmp_path: Path) -> None:
    settings = ImportanceSettings(scores=("activation", "fisher_margin"))
    job = job_for(tmp_path, settings, (50, 50))
    importance.run(job)
    found = Importance.load(job.out)
    assert set(found.scores) == {"activation", "fisher_margin"}
    for layers in found.scores.values():
        assert [layer_R.shape for layer_R in layers] == [(6 * 24,)] * 3
        assert all(layer_R.dtype == np.float64 for layer_R in layers)
    assert [tokens_E.sum() for tokens_E in found.tokens_per_expert] == [200] * 3


def test_experts_that_no_token_reached_are_told_of_and_kept_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_for(tmp_path, ImportanceSettings(), (2,))
    with caplog.at_level(logging.WARNING):
        importance.run(job)
    found = Importance.load(job.out)
    unreached = np.flatnonzero(found.tokens_per_expert[0] == 0)
    assert len(unreached) >= 2
    names = ", ".join(map(str, unreached))
    assert f"layer 0: no calibration token reached {len(unreached)} of 6" in caplog.text
    assert f"({names})" in caplog.text
    table = ExpertTable((24,) * 6)
    widths = [24 if expert in unreached else 1 for expert in range(6)]
    kept = kept_rows(found.scores["fisher_margin"][0], table, widths)
    assert [len(rows) for rows in kept] == widths


class StopHereError(Exception):
    pass


@pytest.mark.parametrize(
    ("after", "layers"),
    [
        (1, [0, 1, 2, 2, 1, 0]),
        (4, [2, 2, 1, 0]),
        (6, [2, 1, 0]),
        (7, [2, 1, 0]),
        (9, [2, 1, 0]),
        (10, [1, 0]),
        (13, [0]),
    ],
)
def test_an_interrupted_stage_goes_on_at_the_layer_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, layers: list[int]
) -> None:
    settings = ImportanceSettings(scores=("fisher_margin", "fisher", "reap"), batch_tokens=10)
    whole = job_for(tmp_path / "whole", settings, (10, 5, 5))
    importance.run(whole)
    job = job_for(tmp_path / "halves", settings, (10, 5, 5))

    def interrupt(done: int, _of: int, _what: str) -> None:
        if done == after:
            raise StopHereError

    with pytest.raises(StopHereError):
        importance.run(replace(job, progress=interrupt))
    assert not any(job.out.iterdir())
    loaded = []
    load = StreamedModel.layer

    def remember(self: StreamedModel, number: int) -> Any:
        loaded.append(number)
        return load(self, number)

    monkeypatch.setattr(StreamedModel, "layer", remember)
    importance.run(job)
    assert loaded == layers
    name = "importance.safetensors"
    assert (job.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_states_that_the_disk_has_no_room_for_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 3 batches of 20 positions, 64 wide, in float32; 3 + 1 inputs, and 3 gradients of one loss.
    needed = 60 * 64 * 4 * 7
    job = job_for(tmp_path, ImportanceSettings(batch_tokens=20), (20, 20, 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(
        ResourceError, match=f"needs {needed} bytes, the disk has {needed - 1} free"
    ):
        importance.run(job)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    importance.run(job)


def test_progress_counts_the_batches(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    job = job_for(tmp_path, ImportanceSettings(batch_tokens=10), (10, 5, 5))
    importance.run(
        Job(
            job.settings,
            job.model,
            job.folders,
            job.out,
            lambda done, of, _: told.append((done, of)),
        )
    )
    # Two batches in three layers forward, through the head, and in three layers back.
    assert told == [(done, 14) for done in range(15)]


def test_the_stage_leaves_the_settings_of_torch_as_they_were(tmp_path: Path) -> None:
    job = job_for(tmp_path, ImportanceSettings(), (9,))
    importance.run(job)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
