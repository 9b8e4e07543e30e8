"""Models run where the calls of Linux are absent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_export.demo import checkpoint_dir
from moe_export.errors import ResourceError
from moe_export.ort.session import OrtModel
from moe_export.serve import limits
from moe_export.stages.export import export_model
from moe_export.system import host
from tests.helpers.bare import bare_environment


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return bare_environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def bare(environment: dict[str, str]) -> Callable[..., str]:
    """The command line without the calls of Linux: returns its output or, if it fails, errors."""

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "moe_export", *words],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("host") / "model"
    export_model(checkpoint_dir(), out, "float32")
    return out


def test_a_model_generates_without_the_calls_of_linux(
    model: Path, bare: Callable[..., str]
) -> None:
    assert bare("generate", str(model), "--prompt", "12+30=").startswith("12+30=42")


def test_models_are_timed_without_the_calls_of_linux(model: Path, bare: Callable[..., str]) -> None:
    sizes = ["--threads", "1", "--batch", "1", "--prompt-tokens", "4", "--new-tokens", "2"]
    last = bare("bench", str(model), *sizes, "--repeats", "1").splitlines()[-1].split()
    # Resident memory, proportional memory and their share of the file are not told.
    assert last[0] == "model"
    assert last[-3:] == ["–"] * 3


def test_doctor_runs_without_the_calls_of_linux(bare: Callable[..., str]) -> None:
    assert "onnxruntime" in bare("doctor")


def test_a_run_says_that_it_needs_linux(tmp_path: Path, bare: Callable[..., str]) -> None:
    message = bare("run", "recipes/demo_50pct.yaml", "--run", str(tmp_path / "run"), code=3)
    assert "run the recipe on Linux and copy the exported folder here" in message


def test_figures_are_absent_where_the_system_has_no_proc(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "PROC", tmp_path)
    assert host.available_bytes() is None
    assert host.process_bytes("VmRSS") is None
    assert host.umask() == 0o077
    loaded = OrtModel(model)
    with pytest.raises(ResourceError, match="give --cache-mib"):
        limits.check_cache(loaded, limits.Limits())


def test_a_locked_file_is_refused_to_others(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = "import sys; from moe_export.system.host import lock; lock(open(sys.argv[1], 'w'))"
    with path.open("w") as file:
        host.lock(file)
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
        assert b"Error" in done.stderr
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
