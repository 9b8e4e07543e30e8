"""The examples in C, C++ and JavaScript answer as our own decoding does."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from moe_export.demo import checkpoint_dir
from moe_export.stages.export import export_model
from tools.apps.answers import END, NEW_TOKENS, as_lines, demo_answers, demo_ids
from tools.cmake import build

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", params=["float32", "float16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("languages") / request.param
    export_model(checkpoint_dir(), folder, request.param, library=request.param == "float32")
    return folder


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    return demo_ids(model)


@pytest.fixture(scope="module")
def answers(model: Path, prompts: list[list[int]]) -> str:
    """Answers of the operator that the examples run: the library's if it is beside the model."""
    native = (model / "libmoe_export_ops.so").exists()
    return as_lines(demo_answers(model, prompts, "native" if native else "portable"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the compiled examples, linked to the library in the wheel of ONNX Runtime."""
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    (library,) = (Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*")
    folder = tmp_path_factory.mktemp("programs")
    defines = {"ONNXRUNTIME_LIBRARY": str(library)}
    return build(EXAMPLES, "all", folder, defines)


def output_of(command: list[str], prompts: list[list[int]]) -> str:
    done = subprocess.run(
        command, input=as_lines(prompts), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["generate_c", "generate_cpp"])
def test_c_and_cpp_give_our_answers_to_all_prompts(
    program: str, programs: Path, model: Path, prompts: list[list[int]], answers: str
) -> None:
    assert len(prompts) == 86
    command = [str(programs / program), str(model), str(NEW_TOKENS), str(END)]
    assert output_of(command, prompts) == answers


@pytest.mark.parametrize("program", ["generate_c", "generate_cpp"])
def test_c_and_cpp_pass_on_the_words_of_onnx_runtime(
    program: str, programs: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff")
    done = subprocess.run(
        [programs / program, tmp_path, "4"],
        input="5\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "model.onnx" in done.stderr


@pytest.mark.skipif(
    not (EXAMPLES / "node" / "node_modules").exists() or shutil.which("node") is None,
    reason="`npm install --ignore-scripts` in examples/node was not run",
)
def test_node_gives_our_answers(model: Path, prompts: list[list[int]]) -> None:
    some = prompts[::4]
    script = str(EXAMPLES / "node" / "generate.mjs")
    portable = as_lines(demo_answers(model, some, "portable"))
    assert output_of(["node", script, str(model)], some) == portable


def test_every_example_in_another_language_is_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text()
    for folder in ("c", "cpp", "node", "web", "csharp"):
        assert f"]({folder})" in index
