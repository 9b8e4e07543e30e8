"""A run directory: which stages are fresh, and carrying out the others.

A stage's folder is complete when `stage.json` is in it, which is written last and atomically. It
holds a key over the stage's version, settings, outside files and the keys of what it read. Fresh
means that the mark is there and the key is the one wanted now; nothing else is ever skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_export import __version__
from moe_export.artifacts.base import load_json, save_json
from moe_export.errors import ArtifactError
from moe_export.recipe import Section
from moe_export.runner.steps import Step
from moe_export.stages import STAGES
from moe_export.stages.job import Job
from moe_export.system.disk import disk_error
from moe_export.system.memory import PeakMemory
from moe_export.system.progress import Progress
from moe_export.system.workers import ALONE, Workers

logger = logging.getLogger(__name__)

STAGE_FILE = "stage.json"
RUN_FILE = "run.json"
RECIPE_FILE = "recipe.json"
KEY_FILE = "key"


@dataclass(frozen=True)
class State:
    """What is known of a step before it runs; `reason` is empty exactly when it is fresh."""

    step: Step
    key: str
    reason: str

    @property
    def fresh(self) -> bool:
        """Whether it need not run."""
        return not self.reason


class Run:
    """A run directory with the steps of a recipe.

    Args:
        directory: created when first needed.
        steps: in order.
        model: the source checkpoint.
        outside: fingerprints of what the stages read outside the run, by step folder.
        workers: this process, which is the first, and those that it shares stages with.
        predict: function that returns predictions by step folder; called when a stage is marked.
    """

    def __init__(
        self,
        directory: Path,
        steps: list[Step],
        model: Path,
        outside: Mapping[str, Mapping[str, str]],
        workers: Workers = ALONE,
        predict: Callable[[], Mapping[str, Mapping[str, float]]] = dict,
    ) -> None:
        self._predict = predict
        self.directory = directory
        self.steps = steps
        self.model = model
        self._outside = outside
        self.workers = workers

    def states(self) -> list[State]:
        """Freshness of every step, in order.

        Raises:
            ArtifactError: the directory is not a run, or was written by another version.
        """
        self._check_directory()
        keys: dict[str, str] = {}
        states = []
        for step in self.steps:
            identity = self._identity(step, keys)
            key = hashlib.sha256(_canonical(identity)).hexdigest()
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
            recipe: the resolved recipe, kept beside the results.
            forced: folders to run anew.
            progress_of: makes what a step reports its progress to.
            on_step: told of each step: before it (seconds None), and after it. A fresh one is told
                of once, with 0 seconds.

        Raises:
            MoeExportError: whatever a stage raises; finished stages stay finished.
        """
        self._check_directory()
        with self._locked():
            save_json(self.directory / RUN_FILE, {"moe_export": __version__})
            save_json(self.directory / RECIPE_FILE, {"recipe": recipe})
            for position in range(len(self.steps)):
                # Asked anew each time, because a stage that has run changes what follows.
                state = self.states()[position]
                if state.fresh and state.step.folder not in forced:
                    on_step(state, 0.0)
                    continue
                on_step(state, None)
                anew = state.step.folder in forced
                on_step(state, self._execute(state, progress_of(state.step), anew))
            self.workers.tell(None)

    def _execute(self, state: State, progress: Progress, anew: bool) -> float:
        step = state.step
        out = self.directory / step.folder
        started = time.monotonic()
        job = Job(
            settings=step.settings,
            model=self.model,
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
        shared = STAGES[step.stage].shared
        if shared:
            self.workers.tell(_as_message(step, job))
        stage = importlib.import_module(f"moe_export.stages.{step.stage}")
        with PeakMemory() as memory:
            try:
                stage.run(job)
            except OSError as error:
                raise disk_error(error, out) from error
        if shared:
            self.workers.meet()  # the others may still write to the partial folder
        shutil.rmtree(job.partial)
        self._mark(state, out, time.monotonic() - started, memory.peak_bytes)
        return time.monotonic() - started

    def _mark(self, state: State, out: Path, wall_s: float, peak_bytes: int) -> None:
        files = {
            path.relative_to(out).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in sorted(out.rglob("*"))
            if path.is_file()
        }
        identity = self._identity(state.step, self._keys_of(state.step))
        measured = {"wall_s": round(wall_s, 3), "peak_resident_bytes": peak_bytes}
        content = {
            "key": state.key,
            "identity": identity,
            "files": files,
            "predicted": dict(self._predict().get(state.step.folder, {})),
            "measured": measured,
            "moe_export": __version__,
        }
        save_json(out / STAGE_FILE, content)

    def _keys_of(self, step: Step) -> dict[str, str]:
        return {
            folder: load_json(self.directory / folder / STAGE_FILE)["key"]
            for folder in step.reads.values()
        }

    def _identity(self, step: Step, keys: Mapping[str, str]) -> dict[str, Any]:
        """Everything that decides what a step's output is."""
        return {
            "stage": step.stage,
            "version": STAGES[step.stage].version,
            "settings": step.settings.model_dump(mode="json", exclude_none=True),
            "outside": dict(self._outside.get(step.folder, {})),
            "inputs": {name: keys[folder] for name, folder in step.reads.items()},
        }

    def _why_stale(self, step: Step, identity: dict[str, Any], key: str) -> str:
        mark = self.directory / step.folder / STAGE_FILE
        if not mark.exists():
            return "missing"
        found = load_json(mark)
        if found.get("key") == key:
            return ""
        return next(_differences(found.get("identity", {}), identity), "its key differs")

    def _check_directory(self) -> None:
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise ArtifactError(f"{self.directory} is a file; give a directory for the run")
        if (self.directory / RUN_FILE).exists():
            load_json(self.directory / RUN_FILE)
        elif any(path.name != ".lock" for path in self.directory.iterdir()):
            raise ArtifactError(
                f"{self.directory} holds files but no {RUN_FILE}, so it is not a run directory; "
                "give another one with --run"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = (self.directory / ".lock").open("w")
        except OSError as error:
            raise disk_error(error, self.directory) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ArtifactError(
                    f"{self.directory} is in use by another moe-export; wait for it to end, or "
                    "give another directory with --run"
                ) from error
            yield


def serve(workers: Workers, settings_of: Callable[[str, str], Section]) -> None:
    """Takes part in the shared stages of a run until the first of the workers has ended it.

    Args:
        workers: this process, which is not the first.
        settings_of: makes the settings of a stage from their JSON.

    Raises:
        MoeExportError: whatever a stage raises.
    """
    while message := workers.tell(None):
        job = Job(
            settings=settings_of(message["stage"], message["settings"]),
            model=Path(message["model"]),
            folders={name: Path(folder) for name, folder in message["folders"].items()},
            out=Path(message["out"]),
            workers=workers,
        )
        importlib.import_module(f"moe_export.stages.{message['stage']}").run(job)
        workers.meet()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(folder: Path) -> None:
    """Empties a folder, its completion mark first."""
    (folder / STAGE_FILE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _prepare(partial: Path, key: str, anew: bool) -> None:
    """Leaves in a stage's partial folder what an execution with the same key left there."""
    mark = partial / KEY_FILE
    if anew or not mark.exists() or mark.read_text(encoding="utf-8") != key:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        mark.write_text(key, encoding="utf-8")


def _as_message(step: Step, job: Job[Section]) -> dict[str, Any]:
    return {
        "stage": step.stage,
        "settings": job.settings.model_dump_json(),
        "model": str(job.model.resolve()),
        "folders": {name: str(folder.resolve()) for name, folder in job.folders.items()},
        "out": str(job.out.resolve()),
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """`settings.keep 0.6 → 0.5` for every leaf that differs; a changed input is named as such."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) == wanted.get(key):
                continue
            if path == "inputs." or path == "outside.":
                yield f"{key} has changed"
            else:
                yield from _differences(found.get(key), wanted.get(key), f"{path}{key}.")
    else:
        yield f"{path.rstrip('.')} {json.dumps(found)} → {json.dumps(wanted)}"
