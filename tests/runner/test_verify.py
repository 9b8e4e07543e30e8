"""`verify` against every change that can be made to a run directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moe_export.artifacts.manifest import Manifest
from moe_export.cli import main
from moe_export.errors import ArtifactError
from moe_export.runner.verify import compare, manifest_of, verify
from moe_export.stages import MAIN_JOB
from tests.helpers.fake_runs import FILES, execute, fake_stages, run_in
from tools.trust.tampering import RUN_CHANGES, STAGE_CHANGES, change_with_all_records, flip


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
