"""The examples in C, C++ and JavaScript answer as our own decoding does."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from moe_export.demo import checkpoint_dir
from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel
from moe_export.stages.export import export_model
from moe_export.testing.families import LFM2_MOE, QWEN3_5_MOE_TEXT, FamilyRow
from moe_export.testing.tiny import tiny_checkpoint
from tools.apps.answers import END, NEW_TOKENS, as_lines, demo_answers, demo_ids
from tools.cmake import build

EXAMPLES = Path(__file__).parents[2] / "examples"
HAS_NODE = (EXAMPLES / "node" / "node_modules").exists() and shutil.which("node") is not None


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


@pytest.fixture(scope="module", params=[LFM2_MOE, QWEN3_5_MOE_TEXT], ids=lambda r: r.model_type)
def model_with_states(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    row: FamilyRow = request.param
    folder: Path = tmp_path_factory.mktemp("states")
    source = tiny_checkpoint(folder / "source", base=row.config)
    # One of the two in float16, in which a state is float32 all the same.
    export_model(source, folder / "out", "float16" if row is QWEN3_5_MOE_TEXT else "float32")
    return folder / "out"


def test_states_of_fixed_size_begin_as_zeros_in_every_language(
    model_with_states: Path, programs: Path
) -> None:
    prompts, own = [[5, 12, 7, 99, 31], [8], [41, 3]], OrtModel(model_with_states)
    expected = [list(generate(own, ids, NEW_TOKENS, [])) for ids in prompts]
    python = runpy.run_path(str(EXAMPLES / "load_in_onnxruntime.py"))
    session = python["open_session"](model_with_states)
    assert [python["generate"](session, ids, NEW_TOKENS, []) for ids in prompts] == expected
    for program in ("generate_c", "generate_cpp"):
        command = [str(programs / program), str(model_with_states), str(NEW_TOKENS)]
        assert output_of(command, prompts) == as_lines(expected)
    has_delta_nets = any(name.endswith("recurrent_state") for name in own.fixed_states)
    if HAS_NODE and not has_delta_nets:  # ONNX Runtime has them from 1.32 on, Node has 1.30
        script = str(EXAMPLES / "node" / "generate.mjs")
        ended = [list(generate(own, ids, NEW_TOKENS, [256])) for ids in prompts]
        assert output_of(["node", script, str(model_with_states)], prompts) == as_lines(ended)


@pytest.mark.skipif(
    not HAS_NODE,
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
