"""`verify` against every change that can be made to a run directory."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_export.artifacts.manifest import Manifest
from moe_export.artifacts.run_info import RunInfo
from moe_export.cli import main
from moe_export.errors import ArtifactError
from moe_export.runner.verify import compare, manifest_of, verify
from moe_export.stages import MAIN_JOB
from moe_export.system.digests import file_sha256
from tests.helpers.fake_runs import FILES, execute, fake_stages, run_in

Change = Callable[[Path], object]
"""A change of a stage's folder, or of the run directory."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_stages(monkeypatch)
        execute(run_in(directory))
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=2) + "\n")


def link(path: Path) -> None:
    """Moves a file or folder out of the run and leaves a link to it."""
    outside = path.parents[2] / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # the name of a socket is short
        server.bind(path.name)


def change_with_mark(stage: Path) -> None:
    flip(stage / FILES[1])
    mark = json.loads((stage / "stage.json").read_text())
    mark["files"][FILES[1]]["sha256"] = file_sha256(stage / FILES[1])
    edit(stage / "stage.json", files=mark["files"])


STAGE_CHANGES: dict[str, Change] = {
    "a bit of a file": lambda stage: flip(stage / FILES[1]),
    "a bit of a file in a folder": lambda stage: flip(stage / FILES[2]),
    "a file cut": lambda stage: os.truncate(stage / FILES[1], 3),
    "a file emptied": lambda stage: (stage / FILES[0]).write_text(""),
    "a file removed": lambda stage: (stage / FILES[2]).unlink(),
    "two files exchanged": lambda stage: [
        (stage / FILES[0]).rename(stage / "x"),
        (stage / FILES[1]).rename(stage / FILES[0]),
        (stage / "x").rename(stage / FILES[1]),
    ],
    "a file turned into a link to its copy": lambda stage: link(stage / FILES[1]),
    "a file turned into a pipe": lambda stage: replace_by_pipe(stage / FILES[1]),
    "a file turned into a folder": lambda stage: [
        (stage / FILES[1]).unlink(),
        (stage / FILES[1]).mkdir(),
    ],
    "a strange file": lambda stage: (stage / "more").write_text("x"),
    "a strange hidden file": lambda stage: (stage / ".more").write_text(""),
    "a strange empty folder": lambda stage: (stage / "more").mkdir(),
    "a strange link": lambda stage: (stage / "more").symlink_to(FILES[1]),
    "a strange link to a folder": lambda stage: (stage / "more").symlink_to("inner"),
    "a strange pipe": lambda stage: os.mkfifo(stage / "more"),
    "a strange socket": lambda stage: bind(stage / "s"),
    "the folder removed": shutil.rmtree,
    "the folder renamed": lambda stage: stage.rename(stage.with_name("other")),
    "the folder copied": lambda stage: shutil.copytree(stage, stage.with_name("other")),
    "the folder turned into a link": link,
    "the folder replaced by that of another stage": lambda stage: [
        shutil.rmtree(stage),
        shutil.copytree(stage.with_name("plan" if stage.name != "plan" else "prune"), stage),
    ],
    "the mark removed": lambda stage: (stage / "stage.json").unlink(),
    "the mark removed and a file changed": lambda stage: [
        (stage / "stage.json").unlink(),
        flip(stage / FILES[1]),
    ],
    "the mark without files": lambda stage: edit(stage / "stage.json", files={}),
    "the mark with files of another type": lambda stage: edit(stage / "stage.json", files=[1]),
    "the mark without anything": lambda stage: (stage / "stage.json").write_text('{"schema": 1}'),
    "the mark that is no JSON": lambda stage: (stage / "stage.json").write_text("[" * 99999),
    "the mark with another time": lambda stage: edit(
        stage / "stage.json", measured={"wall_s": 1.5, "peak_resident_bytes": 1}
    ),
    "the mark turned into a pipe": lambda stage: replace_by_pipe(stage / "stage.json"),
    "a file and its entry in the mark": change_with_mark,
}

RUN_CHANGES: dict[str, Change] = {
    "run.json removed": lambda run: (run / "run.json").unlink(),
    "run.json of another version": lambda run: edit(run / "run.json", moe_export="9.9"),
    "run.json without stages": lambda run: edit(run / "run.json", stages={}),
    "run.json with fields only of version 0.1": lambda run: (run / "run.json").write_text(
        '{"schema": 1, "moe_export": "0.1.0"}'
    ),
    "run.json with other spaces": lambda run: (run / "run.json").write_text(
        json.dumps(json.loads((run / "run.json").read_text()))
    ),
    "run.json of another type": lambda run: (run / "run.json").write_text("[]"),
    "run.json turned into a pipe": lambda run: replace_by_pipe(run / "run.json"),
    "recipe.json changed": lambda run: edit(run / "recipe.json", recipe={"title": "another"}),
    "recipe.json emptied": lambda run: (run / "recipe.json").write_text("{}"),
    "recipe.json removed": lambda run: (run / "recipe.json").unlink(),
    "recipe.json turned into a link": lambda run: [
        (run / "recipe.json").rename(run.parent / "recipe.json"),
        (run / "recipe.json").symlink_to(run.parent / "recipe.json"),
    ],
    "a strange library": lambda run: [(run / "lib").mkdir(), (run / "lib/op.so").write_text("x")],
    "a strange file": lambda run: (run / "notes").write_text("x"),
    "a strange empty folder": lambda run: (run / "lib").mkdir(),
    "a strange link": lambda run: (run / "lib").symlink_to("/usr/lib"),
    "content in the lock": lambda run: (run / ".lock").write_text("x"),
    "the lock turned into a link": lambda run: [
        (run / ".lock").unlink(),
        (run / ".lock").symlink_to("/etc/passwd"),
    ],
    "a stage that is not finished": lambda run: (run / "plan.partial").mkdir(),
}


def change_with_all_records(run: Path, stage: str) -> None:
    change_with_mark(run / stage)
    info = RunInfo.load(run)
    stages = (info.stages or {}) | {stage: file_sha256(run / stage / "stage.json")}
    info.model_copy(update={"stages": stages}).sealed().save(run)


def test_an_unchanged_run_passes_with_the_number_of_its_files(run: Path) -> None:
    assert verify(run) == len(MAIN_JOB) * len(FILES)
    assert verify(run / ".." / run.name) == len(MAIN_JOB) * len(FILES)


@pytest.mark.parametrize("stage", MAIN_JOB)
@pytest.mark.parametrize("change", STAGE_CHANGES)
def test_every_change_of_a_stage_is_noticed(
    run: Path, change: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    STAGE_CHANGES[change](run / stage)
    with pytest.raises(ArtifactError) as caught:
        verify(run)
    assert str(run) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("change", RUN_CHANGES)
def test_every_change_beside_the_stages_is_noticed(run: Path, change: str) -> None:
    RUN_CHANGES[change](run)
    with pytest.raises(ArtifactError) as caught:
        verify(run)
    assert str(run) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("stage", MAIN_JOB)
def test_only_a_manifest_kept_elsewhere_sees_a_change_of_all_records(run: Path, stage: str) -> None:
    manifest = manifest_of(run)
    assert compare(run, manifest) == len(MAIN_JOB) * (len(FILES) + 1) + 2
    change_with_all_records(run, stage)
    assert verify(run) == len(MAIN_JOB) * len(FILES)
    with pytest.raises(ArtifactError, match="is not the file of the manifest"):
        compare(run, manifest)


def test_a_manifest_sees_files_that_are_missing_and_files_that_are_new(run: Path) -> None:
    manifest = manifest_of(run)
    (run / "lib.so").write_text("x")
    with pytest.raises(ArtifactError, match=r"lib\.so is not in the manifest"):
        compare(run, manifest)
    (run / "lib.so").unlink()
    (run / "recipe.json").unlink()
    with pytest.raises(ArtifactError, match=r"recipe\.json is missing"):
        compare(run, manifest)


def test_the_command_writes_a_manifest_and_compares_with_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    assert main(["verify", str(run), "--write", str(kept)]) == 0
    assert Manifest.load_file(kept) == manifest_of(run)
    assert main(["verify", str(run), "--against", str(kept)]) == 0
    assert "26 files are those of the manifest" not in capsys.readouterr().err
    change_with_all_records(run, "export")
    assert main(["verify", str(run)]) == 0
    assert main(["verify", str(run), "--against", str(kept)]) == 9
    assert main(["verify", str(run), "--against", str(tmp_path / "absent")]) == 9
    assert main(["verify", str(run), "--write", str(run / "kept.json")]) == 2
    assert "keep it elsewhere" in capsys.readouterr().err


def test_a_run_of_version_0_1_is_recorded_by_running_it_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "run.json").write_text('{"schema": 1, "moe_export": "0.1.0"}')
    with pytest.raises(ArtifactError, match=r"as in runs of version 0\.1; run the recipe again"):
        verify(run)
    fake_stages(monkeypatch)
    assert execute(run_in(run)) == []
    assert verify(run) == len(MAIN_JOB) * len(FILES)


def test_what_the_sentence_advises_mends_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_stages(monkeypatch)
    flip(run / "plan" / FILES[1])
    with pytest.raises(ArtifactError, match="run again with --from plan"):
        verify(run)
    execute(run_in(run), "plan")
    shutil.rmtree(run / "prune")
    with pytest.raises(ArtifactError, match=r"remove .*prune and run the recipe again"):
        verify(run)
    assert execute(run_in(run)) == ["prune"]
    assert verify(run) == len(MAIN_JOB) * len(FILES)
