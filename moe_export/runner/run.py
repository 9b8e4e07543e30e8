"""A run directory: finds the stages that are fresh, and carries out the others.

A stage's folder is complete when its mark (`artifacts.stage_mark`) is in it. The mark is written
last and atomically. It holds a key over the stage's version, its settings, the files it reads from
outside, and the keys of the stages it reads. A stage is fresh if its mark has the key that is
wanted now. Nothing else is ever skipped. Before a stage runs, what it reads of others is checked
against the digests in their marks; after it, its files are on the disk before its mark is.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_export import __version__
from moe_export.artifacts.run_info import PartialKey
from moe_export.artifacts.stage_mark import (
    FileFacts,
    MeasuredCost,
    PredictedCost,
    StageIdentity,
    StageMark,
)
from moe_export.recipe import Section
from moe_export.runner.directory import RunRecord, check_directory, locked
from moe_export.runner.elapsed import Elapsed
from moe_export.runner.exhaustion import out_of_memory
from moe_export.runner.inputs import check_inputs
from moe_export.runner.steps import Step, depends_on_threads, is_tuned
from moe_export.stages import STAGES
from moe_export.stages.job import Job
from moe_export.system.digests import Digests
from moe_export.system.disk import disk_error
from moe_export.system.early_digests import early_digests
from moe_export.system.files import entries, sync
from moe_export.system.memory import PeakMemory
from moe_export.system.progress import Progress
from moe_export.system.workers import ALONE, Workers

WRITERS = 4
"""Most files that are waited for at once."""


@dataclass(frozen=True)
class State:
    """The state of a step before it runs.

    Attributes:
        step: the step.
        key: key that its mark must have.
        reason: reason why it must run; empty if it is fresh.
    """

    step: Step
    key: str
    reason: str

    @property
    def fresh(self) -> bool:
        """True if the step need not run."""
        return not self.reason


class Run:
    """A run directory with the steps of a recipe.

    Args:
        directory: folder of the run; it is created when first needed.
        steps: the steps in order.
        model: folder of the source checkpoint.
        outside: fingerprints of what the stages read outside the run, by folder of the step.
        threads: number of torch's threads.
        workers: this process, which is the first, and those that it shares stages with.
        predict: function that returns predictions by folder of the step; called when
            a stage is marked.
    """

    def __init__(
        self,
        directory: Path,
        steps: list[Step],
        model: Path,
        outside: Mapping[str, Mapping[str, str]],
        threads: int = 1,
        workers: Workers = ALONE,
        predict: Callable[[], Mapping[str, PredictedCost]] = dict,
    ) -> None:
        self._predict = predict
        self.directory = directory
        self.steps = steps
        self.model = model
        self._outside = outside
        self._threads = threads
        self._digests = Digests()
        self.workers = workers

    def states(self) -> list[State]:
        """Returns the state of every step, in order.

        Raises:
            ArtifactError: the directory is not a run, or was written by another version.
        """
        check_directory(self.directory)
        keys: dict[str, str] = {}
        states = []
        for step in self.steps:
            identity = self._identity(step, keys)
            key = hashlib.sha256(_canonical(identity.plain())).hexdigest()
            keys[step.folder] = key
            states.append(State(step, key, self._why_stale(step, identity, key)))
        return states

    def execute(
        self,
        recipe: dict[str, Any],
        forced: set[str],
        progress_of: Callable[[Step], Progress],
        on_step: Callable[[State, float | None], None],
    ) -> None:
        """Carries out every step that is not fresh or is forced.

        Args:
            recipe: the recipe with every default, as plain values; it is kept in the run.
            forced: folders of steps that run even if they are fresh.
            progress_of: function that returns the progress display of a step.
            on_step: function that is called before each step with seconds None, and after it with
                its duration. For a fresh step it is called once, with 0 seconds.

        Raises:
            MoeExportError: any error of a stage; finished stages stay finished.
        """
        check_directory(self.directory)
        with locked(self.directory):
            record = RunRecord(self.directory, recipe)
            for position in range(len(self.steps)):
                # A stage that has run changes the state of those after it.
                state = self.states()[position]
                folder = state.step.folder
                if state.fresh and folder not in forced:
                    record.check(folder)
                    on_step(state, 0.0)
                    continue
                on_step(state, None)
                check_inputs(self.directory, state.step, self._digests)
                record.begin(folder)
                seconds = self._execute(state, progress_of(state.step), folder in forced)
                record.finish(folder)
                on_step(state, seconds)
            self.workers.tell(None)

    def _execute(self, state: State, progress: Progress, anew: bool) -> float:
        step = state.step
        out = self.directory / step.folder
        job = Job(
            settings=step.settings,
            model=self.directory / step.reads["tune"] if is_tuned(step) else self.model,
            source=self.model,
            folders={name: self.directory / folder for name, folder in step.reads.items()},
            out=out,
            progress=progress,
            workers=self.workers,
        )
        try:
            _clear(out)
            _prepare(job.partial, state.key, anew)
        except OSError as error:
            raise disk_error(error, out) from error
        elapsed = Elapsed(job.partial)
        job = replace(job, progress=elapsed.noting(progress))
        is_shared = STAGES[step.stage].is_shared
        if is_shared:
            self.workers.tell(_as_message(step, job))
        stage = importlib.import_module(f"moe_export.stages.{step.stage}")
        with PeakMemory() as memory, early_digests(self._digests, out):
            try:
                stage.run(job)
            except OSError as error:
                raise disk_error(error, out) from error
            except (MemoryError, RuntimeError) as error:
                exhausted = out_of_memory(error, step.stage)
                if exhausted is None:
                    raise
                raise exhausted from error
        if is_shared:
            self.workers.meet()  # other workers may still write to the partial folder
        shutil.rmtree(job.partial)
        try:
            self._mark(state, out, elapsed.seconds(), memory.peak_bytes)
        except OSError as error:
            raise disk_error(error, out) from error
        return elapsed.seconds()

    def _mark(self, state: State, out: Path, wall_s: float, peak_bytes: int) -> None:
        mark = StageMark(
            key=state.key,
            identity=self._identity(state.step, self._keys_of(state.step)),
            files=self._written(out),
            predicted=self._predict().get(state.step.folder, PredictedCost()),
            measured=MeasuredCost(wall_s=round(wall_s, 3), peak_resident_bytes=peak_bytes),
            moe_export=__version__,
        )
        mark.save(out)
        sync(out)

    def _written(self, out: Path) -> dict[str, FileFacts]:
        """Waits until the files of a stage are on the disk, and returns their facts by path."""
        present = list(entries(out))
        files = [path for path in present if path.is_file()]
        with ThreadPoolExecutor(WRITERS) as writers:
            # The digests are computed while the disk writes.
            synced = [writers.submit(sync, path) for path in present]
            digests = self._digests.of(files, as_written=True)
            for each in synced:
                each.result()
        sync(out)
        sync(out.parent)
        return {
            path.relative_to(out).as_posix(): FileFacts(bytes=path.stat().st_size, sha256=digest)
            for path, digest in zip(files, digests, strict=True)
        }

    def _keys_of(self, step: Step) -> dict[str, str]:
        return {
            folder: StageMark.load(self.directory / folder).key for folder in step.reads.values()
        }

    def _identity(self, step: Step, keys: Mapping[str, str]) -> StageIdentity:
        """Everything that decides the output of a step."""
        return StageIdentity(
            stage=step.stage,
            version=STAGES[step.stage].version,
            settings=step.settings.model_dump(mode="json", exclude_none=True),
            outside=dict(self._outside.get(step.folder, {})),
            inputs={name: keys[folder] for name, folder in step.reads.items()},
            threads=self._threads if depends_on_threads(step) else None,
        )

    def _why_stale(self, step: Step, identity: StageIdentity, key: str) -> str:
        folder = self.directory / step.folder
        if not (folder / StageMark.FILE).exists():
            return "missing"
        mark = StageMark.load(folder)
        if mark.key == key:
            return ""
        differences = _differences(mark.identity.plain(), identity.plain())
        return next(differences, "its key differs")


def serve(workers: Workers, settings_of: Callable[[str, str], Section]) -> None:
    """Takes part in the shared stages of a run until the first worker ends it.

    Args:
        workers: this process, which is not the first, and the others.
        settings_of: function that returns the settings of a stage, given its name and their JSON.

    Raises:
        MoeExportError: any error of a stage.
    """
    while message := workers.tell(None):
        job = Job(
            settings=settings_of(message["stage"], message["settings"]),
            model=Path(message["model"]),
            source=Path(message["source"]),
            folders={name: Path(folder) for name, folder in message["folders"].items()},
            out=Path(message["out"]),
            workers=workers,
        )
        importlib.import_module(f"moe_export.stages.{message['stage']}").run(job)
        workers.meet()


def _clear(folder: Path) -> None:
    """Empties a folder; its mark goes first, so that it never looks complete."""
    (folder / StageMark.FILE).unlink(missing_ok=True)
    if folder.exists():
        sync(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _prepare(partial: Path, key: str, anew: bool) -> None:
    """Empties a partial folder unless an interrupted execution with the same key left it."""
    wanted = PartialKey(key)
    if anew or PartialKey.load(partial) != wanted:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        wanted.save(partial)


def _as_message(step: Step, job: Job[Section]) -> dict[str, Any]:
    return {
        "stage": step.stage,
        "settings": job.settings.model_dump_json(),
        "model": str(job.model.resolve()),
        "source": str(job.origin.resolve()),
        "folders": {name: str(folder.resolve()) for name, folder in job.folders.items()},
        "out": str(job.out.resolve()),
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _differences(recorded: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Yields one text per difference, like `settings.keep 0.6 → 0.5` or `plan has changed`."""
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        for key in sorted(recorded.keys() | wanted.keys()):
            if recorded.get(key) == wanted.get(key):
                continue
            if path == "inputs." or path == "outside.":
                yield f"{key} has changed"
            else:
                yield from _differences(recorded.get(key), wanted.get(key), f"{path}{key}.")
    else:
        yield f"{path.rstrip('.')} {json.dumps(recorded)} → {json.dumps(wanted)}"
