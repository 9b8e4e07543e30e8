"""Every way to change a finished run, and what `moe-export verify` says to it.

Only changes of a file, its stage's mark and `run.json` alike may pass; a manifest that is kept
elsewhere (`--against`) must see these too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_export.artifacts.run_info import RunInfo
from moe_export.cli import main
from moe_export.system.digests import file_sha256
from tools.trust.fuzz import load_everything, prepared, quick_folder
from tools.trust.kinds.runs import STAGES, Runs
from tools.trust.sandbox import forked
from tools.trust.verdict import REFUSED, verdict

Change = Callable[[Path], object]
"""A change of a stage's folder, or of the run directory."""

MARK = "stage.json"


class NoSuchFileError(Exception):
    """A stage has no file of the kind that a change is about."""


def flip(path: Path) -> None:
    """Turns a bit of a file."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def edit(path: Path, **fields: object) -> None:
    """Replaces fields of a JSON file, which else stays as it is written."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=2) + "\n")


def link(path: Path) -> None:
    """Moves a file or folder out of the run and leaves a link to it."""
    outside = path.parents[2] / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def bind(path: Path) -> None:
    """Makes a socket."""
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def recorded(stage: Path, *, inner: bool = False) -> list[Path]:
    """Files in the mark of a stage, at the top of its folder or in folders.

    Raises:
        NoSuchFileError: there is none.
    """
    names = json.loads((stage / MARK).read_text())["files"]
    found = [stage / name for name in sorted(names) if ("/" in name) is inner]
    if not found:
        raise NoSuchFileError
    return found


def exchange(stage: Path) -> None:
    """Exchanges two files of a stage."""
    first, *others = recorded(stage)
    if not others:
        raise NoSuchFileError
    first.rename(stage / "x")
    others[0].rename(first)
    (stage / "x").rename(others[0])


def replace_by_other_stage(stage: Path) -> None:
    shutil.rmtree(stage)
    shutil.copytree(stage.with_name("plan" if stage.name != "plan" else "prune"), stage)


def remove_mark_and_flip(stage: Path) -> None:
    path = recorded(stage)[-1]
    (stage / MARK).unlink()
    flip(path)


def change_with_mark(stage: Path) -> None:
    """Changes a file and its entry in the mark."""
    path = recorded(stage)[-1]
    flip(path)
    files = json.loads((stage / MARK).read_text())["files"]
    files[path.name]["sha256"] = file_sha256(path)
    edit(stage / MARK, files=files)


def change_with_all_records(run: Path, stage: str) -> None:
    """Changes a file, its entry in the mark, and the record of the mark in `run.json`."""
    change_with_mark(run / stage)
    info = RunInfo.load(run)
    stages = (info.stages or {}) | {stage: file_sha256(run / stage / MARK)}
    info.model_copy(update={"stages": stages}).sealed().save(run)


STAGE_CHANGES: dict[str, Change] = {
    "a bit of a file": lambda stage: flip(recorded(stage)[-1]),
    "a bit of a file in a folder": lambda stage: flip(recorded(stage, inner=True)[0]),
    "a file cut": lambda stage: os.truncate(recorded(stage)[-1], 3),
    "a file emptied": lambda stage: recorded(stage)[0].write_text(""),
    "a file removed": lambda stage: recorded(stage)[0].unlink(),
    "a file in a folder removed": lambda stage: recorded(stage, inner=True)[0].unlink(),
    "two files exchanged": exchange,
    "a file turned into a link to its copy": lambda stage: link(recorded(stage)[-1]),
    "a file turned into a pipe": lambda stage: replace_by_pipe(recorded(stage)[-1]),
    "a file turned into a folder": lambda stage: replace_by_folder(recorded(stage)[-1]),
    "a strange file": lambda stage: (stage / "more").write_text("x"),
    "a strange hidden file": lambda stage: (stage / ".more").write_text(""),
    "a strange empty folder": lambda stage: (stage / "more").mkdir(),
    "a strange link": lambda stage: (stage / "more").symlink_to(recorded(stage)[-1].name),
    "a strange link to a folder": lambda stage: (stage / "more").symlink_to("."),
    "a strange pipe": lambda stage: os.mkfifo(stage / "more"),
    "a strange socket": lambda stage: bind(stage / "s"),
    "the folder removed": shutil.rmtree,
    "the folder renamed": lambda stage: stage.rename(stage.with_name("other")),
    "the folder copied": lambda stage: shutil.copytree(stage, stage.with_name("other")),
    "the folder turned into a link": link,
    "the folder replaced by that of another stage": replace_by_other_stage,
    "the mark removed": lambda stage: (stage / MARK).unlink(),
    "the mark removed and a file changed": remove_mark_and_flip,
    "the mark without files": lambda stage: edit(stage / MARK, files={}),
    "the mark with files of another type": lambda stage: edit(stage / MARK, files=[1]),
    "the mark without anything": lambda stage: (stage / MARK).write_text('{"schema": 1}'),
    "the mark that is no JSON": lambda stage: (stage / MARK).write_text("[" * 99999),
    "the mark with another time": lambda stage: edit(
        stage / MARK, measured={"wall_s": 1.5, "peak_resident_bytes": 1}
    ),
    "the mark turned into a pipe": lambda stage: replace_by_pipe(stage / MARK),
    "a file and its entry in the mark": change_with_mark,
}
"""Changes of one stage by name, each noticed by `verify`."""


def _strange_library(run: Path) -> None:
    (run / "lib").mkdir()
    (run / "lib" / "op.so").write_text("x")


def _link_recipe(run: Path) -> None:
    (run / "recipe.json").rename(run.parent / "recipe.json")
    (run / "recipe.json").symlink_to(run.parent / "recipe.json")


def _link_lock(run: Path) -> None:
    (run / ".lock").unlink()
    (run / ".lock").symlink_to("/etc/passwd")


def _other_spaces(run: Path) -> None:
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text())))


RUN_CHANGES: dict[str, Change] = {
    "run.json removed": lambda run: (run / "run.json").unlink(),
    "run.json of another version": lambda run: edit(run / "run.json", moe_export="9.9"),
    "run.json without stages": lambda run: edit(run / "run.json", stages={}),
    "run.json with fields only of version 0.1": lambda run: (run / "run.json").write_text(
        '{"schema": 1, "moe_export": "0.1.0"}'
    ),
    "run.json with other spaces": _other_spaces,
    "run.json of another type": lambda run: (run / "run.json").write_text("[]"),
    "run.json turned into a pipe": lambda run: replace_by_pipe(run / "run.json"),
    "recipe.json changed": lambda run: edit(run / "recipe.json", recipe={"title": "another"}),
    "recipe.json emptied": lambda run: (run / "recipe.json").write_text("{}"),
    "recipe.json removed": lambda run: (run / "recipe.json").unlink(),
    "recipe.json turned into a link": _link_recipe,
    "a strange library": _strange_library,
    "a strange file": lambda run: (run / "notes").write_text("x"),
    "a strange empty folder": lambda run: (run / "lib").mkdir(),
    "a strange link": lambda run: (run / "lib").symlink_to("/usr/lib"),
    "content in the lock": lambda run: (run / ".lock").write_text("x"),
    "the lock turned into a link": _link_lock,
    "a stage that is not finished": lambda run: (run / "plan.partial").mkdir(),
}
"""Changes beside the stages by name, each noticed by `verify`."""

ALL_RECORDS = "a file, its entry in the mark, and the mark's in run.json"
"""The one change that only a manifest kept elsewhere sees."""


def add_options(_: argparse.ArgumentParser) -> None:
    """Adds no options: every change is tried."""


def campaign(_: argparse.Namespace) -> dict[str, Any]:
    """Makes every change of every stage of a small run; returns what noticed how many."""
    load_everything()
    with tempfile.TemporaryDirectory(prefix="tampering-", dir=quick_folder()) as folder:
        home = Path(folder)
        prepared([Runs], home)
        good, manifest = home / "base-0" / "run", home / "kept.json"
        written = forked(lambda: main(["verify", str(good), "--write", str(manifest)]))
        if written.code != 0:
            raise RuntimeError(written.err)
        tried = [_tried(good, manifest, home, what, change) for what, change in _changes().items()]
    return _figures([each for each in tried if each])


def _changes() -> dict[str, Change]:
    """All changes of a run by name."""
    changes: dict[str, Change] = dict(RUN_CHANGES)
    for stage in STAGES:
        for what, change in STAGE_CHANGES.items():
            changes[f"{stage}: {what}"] = lambda run, change=change, stage=stage: change(
                run / stage
            )
        changes[f"{stage}: {ALL_RECORDS}"] = lambda run, stage=stage: change_with_all_records(
            run, stage
        )
    return changes


def _tried(
    good: Path, manifest: Path, home: Path, what: str, change: Change
) -> dict[str, str] | None:
    """Verdicts of `verify` and `verify --against`; None if the stage has no such file."""
    place = home / "place"
    shutil.rmtree(place, ignore_errors=True)
    run = Path(shutil.copytree(good, place / "run"))
    try:
        change(run)
    except NoSuchFileError:
        return None
    plain = forked(lambda: main(["verify", str(run)]))
    against = forked(lambda: main(["verify", str(run), "--against", str(manifest)]))
    return {"what": what, "verify": verdict(plain), "against": verdict(against)}


def _figures(tried: list[dict[str, str]]) -> dict[str, Any]:
    expected_to_pass = [each for each in tried if each["what"].endswith(ALL_RECORDS)]
    unnoticed = [each["what"] for each in tried if each["verify"] != REFUSED]
    bad = [
        each["what"]
        for each in tried
        if each["against"] != REFUSED
        or (each["verify"] != REFUSED and each not in expected_to_pass)
    ]
    return {
        "tried": len(tried),
        "kinds": len(STAGE_CHANGES) + len(RUN_CHANGES) + 1,
        "noticed": len(tried) - len(unnoticed),
        "seen_only_by_a_manifest": unnoticed,
        "bad": len(bad),
        "missed": bad,
    }
