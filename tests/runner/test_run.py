from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_export.artifacts.run_info import RunInfo
from moe_export.artifacts.stage_mark import StageMark
from moe_export.errors import ArtifactError
from moe_export.recipe import CalibrateSettings, CalibrateSource, PlanSettings, Section
from moe_export.runner import elapsed
from moe_export.runner.run import Run, State
from moe_export.runner.steps import Step, between
from moe_export.runner.verify import verify
from moe_export.stages.job import Job
from moe_export.system.progress import silent

CALIBRATE = CalibrateSettings(sources=(CalibrateSource(demo="sums"),))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages replaced by ones that write their settings; the list tells which have run."""
    order: list[str] = []

    def fake(name: str) -> Any:
        def run(job: Job[Any]) -> None:
            order.append(name)
            (job.out / "out.json").write_text(job.settings.model_dump_json())
            if name == "plan" and job.settings.min_width == 99:
                raise KeyboardInterrupt

        return SimpleNamespace(run=run)

    for name in ("calibrate", "importance", "plan"):
        monkeypatch.setitem(sys.modules, f"moe_export.stages.{name}", fake(name))
    return order


def steps(plan: PlanSettings) -> list[Step]:
    def step(stage: str, settings: Section, *reads: str) -> Step:
        return Step(stage, stage, settings, {name: name for name in reads})

    return [
        step("calibrate", CALIBRATE),
        step("importance", Section(), "calibrate"),
        step("plan", plan, "importance"),
    ]


def run_of(directory: Path, keep: float = 0.6, outside: str = "x", **plan: Any) -> Run:
    made = steps(PlanSettings(keep=keep, **plan))
    prints = {step.folder: {"checkpoint": outside} for step in made}
    return Run(directory, made, Path("model"), prints)


def execute(run: Run, forced: set[str] | None = None) -> list[State]:
    told: list[State] = []
    run.execute({}, forced or set(), lambda step: silent, lambda state, seconds: told.append(state))
    return told


def test_a_fresh_run_is_not_carried_out_again(tmp_path: Path, ran: list[str]) -> None:
    execute(run_of(tmp_path))
    assert ran == ["calibrate", "importance", "plan"]
    execute(run_of(tmp_path))
    assert ran == ["calibrate", "importance", "plan"]


@pytest.mark.parametrize(
    ("keep", "forced", "found"), [(0.6, False, True), (0.5, False, False), (0.6, True, False)]
)
def test_only_what_the_same_stage_left_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: float, forced: bool, found: bool
) -> None:
    seen: list[bool] = []

    def run(job: Job[Any]) -> None:
        seen.append((job.partial / "half").exists())
        (job.partial / "half").touch()
        if len(seen) == 1:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "moe_export.stages.plan", SimpleNamespace(run=run))
    plan = [Step("plan", "plan", PlanSettings(keep=0.6), {})]
    with pytest.raises(KeyboardInterrupt):
        execute(Run(tmp_path, plan, Path("model"), {}))
    assert (tmp_path / "plan.partial" / "half").exists()
    plan = [Step("plan", "plan", PlanSettings(keep=keep), {})]
    execute(Run(tmp_path, plan, Path("model"), {}), {"plan"} if forced else None)
    assert seen == [False, found]
    assert not (tmp_path / "plan.partial").exists()


def test_the_time_of_a_resumed_stage_begins_before_its_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(elapsed.time, "monotonic", lambda: float(next(clock)))
    runs: list[int] = []

    def run(job: Job[Any]) -> None:
        runs.append(1)
        job.progress(1, 2, "half")
        if len(runs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "moe_export.stages.plan", SimpleNamespace(run=run))
    plan = [Step("plan", "plan", PlanSettings(keep=0.6), {})]
    with pytest.raises(KeyboardInterrupt):
        execute(Run(tmp_path, plan, Path("model"), {}))
    noted = float((tmp_path / "plan.partial" / elapsed.FILE).read_text())
    assert noted == 80.0  # two looks at the clock after the first
    execute(Run(tmp_path, plan, Path("model"), {}))
    alone = Run(tmp_path / "again", plan, Path("model"), {})
    execute(alone)
    resumed, whole = (
        StageMark.load(folder / "plan").measured.wall_s for folder in (tmp_path, tmp_path / "again")
    )
    assert resumed == whole + noted


def test_a_changed_setting_runs_its_stage_and_says_why(tmp_path: Path, ran: list[str]) -> None:
    execute(run_of(tmp_path))
    assert [s.reason for s in run_of(tmp_path, 0.5).states()] == ["", "", "settings.keep 0.6 → 0.5"]
    execute(run_of(tmp_path, 0.5))
    assert ran[3:] == ["plan"]


def test_another_checkpoint_makes_everything_stale(tmp_path: Path, ran: list[str]) -> None:
    execute(run_of(tmp_path))
    reasons = [state.reason for state in run_of(tmp_path, outside="y").states()]
    assert reasons[0] == "checkpoint has changed"
    assert all(reasons)


def test_a_stage_that_is_run_again_makes_the_later_ones_stale(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_export import stages

    execute(run_of(tmp_path))
    version = stages.STAGES["calibrate"].version
    monkeypatch.setitem(stages.STAGES, "calibrate", stages.StageFacts(version + 1, ()))
    assert [state.reason for state in run_of(tmp_path).states()] == [
        f"version {version} → {version + 1}",
        "calibrate has changed",
        "importance has changed",
    ]


def test_from_runs_a_stage_anew_although_it_is_fresh(tmp_path: Path, ran: list[str]) -> None:
    execute(run_of(tmp_path))
    execute(run_of(tmp_path), {"plan"})
    assert ran[3:] == ["plan"]


def test_a_stage_killed_half_way_is_not_finished_and_is_run_again(
    tmp_path: Path, ran: list[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(run_of(tmp_path, min_width=99))
    assert (tmp_path / "plan" / "out.json").exists()
    assert [state.reason for state in run_of(tmp_path).states()] == ["", "", "missing"]
    execute(run_of(tmp_path))
    assert ran == ["calibrate", "importance", "plan", "plan"]


def test_leftovers_of_a_killed_stage_are_gone_when_it_runs_again(
    tmp_path: Path, ran: list[str]
) -> None:
    RunInfo(moe_export="0.1.0").save(tmp_path)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "half-written").write_text("")
    execute(run_of(tmp_path))
    assert not (tmp_path / "plan" / "half-written").exists()


def test_a_directory_that_is_not_a_run_is_left_alone(tmp_path: Path, ran: list[str]) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="not a run directory"):
        execute(run_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_of_another_version_is_refused(tmp_path: Path, ran: list[str]) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 7}))
    with pytest.raises(ArtifactError, match="has schema 7, this version of moe-export reads 1"):
        execute(run_of(tmp_path))
    assert ran == []


def test_two_runs_cannot_share_a_directory(tmp_path: Path, ran: list[str]) -> None:
    def second(state: State, seconds: float | None) -> None:
        with pytest.raises(ArtifactError, match="in use by another moe-export"):
            execute(run_of(tmp_path))

    run_of(tmp_path).execute({}, set(), lambda step: silent, second)


def test_verify_counts_files_and_finds_a_changed_a_missing_and_a_strange_one(
    tmp_path: Path, ran: list[str]
) -> None:
    execute(run_of(tmp_path))
    assert verify(tmp_path) == 3
    out = tmp_path / "plan" / "out.json"
    text = out.read_text()
    out.write_text(text.replace("0.6", "0.7"))
    with pytest.raises(ArtifactError, match=r"plan/out\.json is not the file"):
        verify(tmp_path)
    out.unlink()
    with pytest.raises(ArtifactError, match=r"plan/out\.json is missing"):
        verify(tmp_path)
    out.write_text(text)
    (tmp_path / "plan" / "more").write_text("")
    with pytest.raises(ArtifactError, match="plan/more was not written by its stage"):
        verify(tmp_path)


def test_until_and_from_choose_stages_and_refuse_others() -> None:
    made = steps(PlanSettings(keep=0.5))
    kept, forced = between(made, "importance", "importance")
    assert [step.stage for step in kept] == ["calibrate", "importance"]
    assert forced == {"importance"}
    with pytest.raises(Exception, match="'prune' is not a stage of this recipe; it has calibrate"):
        between(made, None, "prune")
