"""Guarantees of a run for its files, whatever happens to them or to the process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_export.artifacts.base import save_tensors
from moe_export.artifacts.run_info import RunInfo
from moe_export.errors import ArtifactError, ResourceError
from moe_export.recipe import (
    CalibrateSettings,
    CalibrateSource,
    DistillSettings,
    ExportSettings,
    ImportanceSettings,
    PlanSettings,
    PruneSettings,
    QuantizeSettings,
    Section,
)
from moe_export.runner import run as runner
from moe_export.runner.run import Run
from moe_export.runner.steps import Step, depends_on_threads
from moe_export.runner.verify import verify
from moe_export.stages import MAIN_JOB
from moe_export.stages.job import Job
from moe_export.system import digests
from tests.helpers.fake_runs import FILES, execute, fake_stages, run_in, write_files


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_stages(monkeypatch)
    execute(run_in(tmp_path / "run"))
    return tmp_path / "run"


def flip(path: Path) -> None:
    facts = path.stat()
    content = bytearray(path.read_bytes())
    content[0] ^= 0x40
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize(
    "left", [(), (".lock",), (".lock", "run.json.partial"), ("recipe.json.partial", ".lock")]
)
def test_a_directory_whose_first_write_did_not_finish_is_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: tuple[str, ...]
) -> None:
    for name in left:
        (tmp_path / name).write_text("{")
    fake_stages(monkeypatch)
    assert execute(run_in(tmp_path)) == list(MAIN_JOB)
    assert verify(tmp_path) == len(MAIN_JOB) * len(FILES)


@pytest.mark.parametrize("name", ["thesis.txt", "plan", "run.json.partial.bak", ".lock2"])
def test_any_other_file_makes_it_a_directory_of_someone_else(tmp_path: Path, name: str) -> None:
    for each in (".lock", "run.json.partial", name):
        (tmp_path / each).write_text("")
    with pytest.raises(ArtifactError, match="so it is not a run directory"):
        execute(run_in(tmp_path))
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip, "is not the file that its stage wrote"),
        (lambda path: path.write_text(""), "has 0 bytes, its stage wrote"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: [path.unlink(), path.mkdir()], "bytes, its stage wrote|cannot be read"),
    ],
)
@pytest.mark.parametrize("stage", MAIN_JOB[:-1])
def test_a_stage_does_not_run_on_files_that_have_changed(
    run: Path, spoil: Callable[[Path], object], words: str, stage: str
) -> None:
    spoil(run / stage / FILES[0])
    readers = [step.stage for step in run_in(run).steps if stage in step.reads]
    before = (run / readers[0] / "stage.json").read_bytes()
    with pytest.raises(ArtifactError, match=words) as caught:
        execute(run_in(run), readers[0])
    assert str(run / stage / FILES[0]) in str(caught.value)
    assert f"run again with --from {stage}" in str(caught.value)
    assert (run / readers[0] / "stage.json").read_bytes() == before, "it was not begun"
    execute(run_in(run), stage, *readers)
    assert verify(run) == len(MAIN_JOB) * len(FILES)


def test_files_that_a_stage_does_not_read_may_be_gone(run: Path) -> None:
    for stage in ("prune", "quantize", "export"):
        (run / stage / "second.bin").unlink()
    assert execute(run_in(run), "report") == ["report"]
    shutil.rmtree(run / "prune" / "inner")
    with pytest.raises(ArtifactError, match=r"prune/second\.bin is missing"):
        execute(run_in(run), "quantize")


def test_a_mark_that_has_changed_is_not_believed(run: Path) -> None:
    mark = run / "prune" / "stage.json"
    mark.write_text(mark.read_text().replace('"wall_s"', ' "wall_s"'))
    with pytest.raises(
        ArtifactError, match=r"prune/stage\.json is not the file that the run wrote"
    ):
        execute(run_in(run), "export")


def test_a_file_is_hashed_once_in_a_run_and_again_in_the_next(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RESOLUTION_NS", 0)
    hashed: list[str] = []
    real = digests.file_sha256

    def counting(path: Path) -> str:
        hashed.append(path.relative_to(run).as_posix())
        return real(path)

    monkeypatch.setattr(digests, "file_sha256", counting)
    execute(run_in(run), *MAIN_JOB)
    assert sorted(hashed) == sorted(f"{stage}/{name}" for stage in MAIN_JOB for name in FILES)
    hashed.clear()
    execute(run_in(run), "plan")
    assert "importance/first.json" in hashed


def test_files_and_folders_are_on_the_disk_before_the_mark_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    mark = tmp_path / "plan" / "stage.json"

    def noting(path: Path) -> None:
        synced.append((path.relative_to(tmp_path).as_posix(), mark.exists()))

    monkeypatch.setattr(runner, "sync", noting)
    fake_stages(monkeypatch)
    execute(run_in(tmp_path))
    for name in (*FILES, "inner"):
        assert (f"plan/{name}", False) in synced
    assert synced.index(("plan", False)) < synced.index(("plan", True))


def test_a_kill_between_mark_and_record_is_made_good(run: Path) -> None:
    info = RunInfo.load(run)
    stages = dict(info.stages or {})
    del stages["report"]
    info.model_copy(update={"stages": stages}).sealed().save(run)
    with pytest.raises(ArtifactError, match="not in the record of the run; run the same command"):
        verify(run)
    assert execute(run_in(run)) == []
    assert verify(run) == len(MAIN_JOB) * len(FILES)


def test_a_kill_within_a_stage_is_told_by_verify_and_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(job: Job[Any]) -> None:
        write_files(job)
        raise KeyboardInterrupt

    fake_stages(monkeypatch, prune=killed)
    with pytest.raises(KeyboardInterrupt):
        execute(run_in(tmp_path))
    with pytest.raises(ArtifactError, match=r"prune\.partial belongs to a stage that is not"):
        verify(tmp_path)
    fake_stages(monkeypatch)
    assert execute(run_in(tmp_path))[0] == "prune"
    assert verify(tmp_path) == len(MAIN_JOB) * len(FILES)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("std::bad_alloc"),
    ],
)
@pytest.mark.parametrize(
    ("stage", "advice"),
    [
        ("calibrate", "lower calibrate.sequences"),
        ("importance", "lower importance.batch_tokens"),
        ("plan", "use a machine with more"),
        ("validate", "lower validate.sequence_length"),
    ],
)
def test_memory_that_runs_out_names_the_stage_and_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, stage: str, advice: str
) -> None:
    def exhausted(job: Job[Any]) -> None:
        raise error

    fake_stages(monkeypatch, **{stage: exhausted})
    with pytest.raises(ResourceError, match=f"memory ran out in stage {stage}; .*{advice}"):
        execute(run_in(tmp_path))


def test_other_errors_of_a_stage_are_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(job: Job[Any]) -> None:
        raise RuntimeError("shapes do not fit")

    fake_stages(monkeypatch, plan=wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        execute(run_in(tmp_path))


def test_the_number_of_threads_is_part_of_the_key_where_it_changes_bytes(run: Path) -> None:
    def reasons(threads: int) -> dict[str, str]:
        steps = run_in(run).steps
        states = Run(run, steps, Path("model"), {}, threads).states()
        return {state.step.stage: state.reason for state in states}

    assert not any(reasons(1).values())
    found = reasons(2)
    assert found["importance"] == "threads 1 → 2"
    assert found["calibrate"] == ""
    assert found["plan"] == "importance has changed"


@pytest.mark.parametrize(
    ("settings", "depends"),
    [
        (CalibrateSettings(sources=(CalibrateSource(demo="sums"),)), False),
        (ImportanceSettings(), True),
        (PlanSettings(keep=0.5), False),
        (PruneSettings(), True),
        (PruneSettings(refit=False), False),
        (PruneSettings(refit=False, distill_router=DistillSettings()), True),
        (QuantizeSettings(), False),
        (QuantizeSettings(method="gptq"), True),
        (ExportSettings(), False),
    ],
)
def test_torch_is_what_makes_bytes_depend_on_threads(settings: Section, depends: bool) -> None:
    assert depends_on_threads(Step("x", "x", settings, {})) is depends


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_files_of_tensors_have_the_rights_of_the_umask(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "x.safetensors", {"x": np.zeros(3)})
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"x.safetensors": mode, "plain": mode}
