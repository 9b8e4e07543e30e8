"""Exported models after tools of onnx and ONNX Runtime have written them anew."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.utils
import onnx.version_converter
import onnxruntime
import pytest
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.tools.convert_onnx_models_to_ort import (
    OptimizationStyle,
    convert_onnx_models_to_ort,
)
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed, update_onnx_opset
from onnxruntime.transformers.float16 import convert_float_to_float16

from moe_export.op.library import library_path, register
from moe_export.op.spec import Layout
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from tests.helpers.decoding import Decoder, exported

WIDTHS = ((24, 0, 1, 7, 16, 24),) * 3
PROMPT = np.arange(3, 9, dtype=np.int64)[None]
STEPS = 8

Tool = Callable[[Path, Path], None]
"""Function that reads a model and writes `model.onnx` of a folder."""


def inline(model: Path, out: Path) -> None:
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(model)), out / "model.onnx")


def fix_the_batch(model: Path, out: Path) -> None:
    content = onnx.load(model)
    make_dim_param_fixed(content.graph, "batch_size", 1)
    onnx.save(content, out / "model.onnx")


def extract(model: Path, out: Path) -> None:
    extractor = onnx.utils.Extractor(onnx.load(model))
    graph = extractor.model.graph
    inputs = [value.name for value in graph.input if value.name != "logits_from"]
    part = extractor.extract_model(inputs, [value.name for value in graph.output])
    onnx.save(part, out / "model.onnx")


def convert_the_version(model: Path, out: Path) -> None:
    onnx.save(onnx.version_converter.convert_version(onnx.load(model), 22), out / "model.onnx")


def update_the_opset(model: Path, out: Path) -> None:
    update_onnx_opset(model, 22, out / "model.onnx")


KEEP_THE_BODY = (inline, fix_the_batch, extract)
DROP_THE_BODY = (convert_the_version, update_the_opset)


@pytest.fixture(scope="module", params=["portable", "packed"])
def layout(request: pytest.FixtureRequest) -> Layout:
    layout: Layout = request.param
    return layout


@pytest.fixture(scope="module")
def folder(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tools")
    source = tiny_checkpoint(directory / "source")
    pruned = pruned_checkpoint(source, directory / "pruned", WIDTHS)
    return exported(pruned, directory / layout, layout=layout)


@pytest.fixture(scope="module")
def tokens(folder: Path) -> list[int]:
    return Decoder(folder, native=True).greedy(PROMPT, STEPS)


def paths(layout: Layout) -> list[bool]:
    """Truth of `native` for the code that can run a layout."""
    return [True] if layout == "packed" else [False, True]


@pytest.mark.parametrize("tool", [*KEEP_THE_BODY, *DROP_THE_BODY])
def test_the_tokens_are_those_of_the_export(
    tool: Tool, layout: Layout, folder: Path, tokens: list[int], tmp_path: Path
) -> None:
    tool(folder / "model.onnx", tmp_path)
    runnable = paths(layout) if tool in KEEP_THE_BODY else [True]
    for native in runnable:
        assert Decoder(tmp_path, native=native).greedy(PROMPT, STEPS) == tokens
    if False not in runnable:
        with pytest.raises(Exception, match=r"moe_export:\w+\(-1\) is not a registered function"):
            Decoder(tmp_path)


def test_a_saved_optimized_model_has_the_tokens_of_the_export(
    layout: Layout, folder: Path, tokens: list[int], tmp_path: Path
) -> None:
    for native in paths(layout):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "model.onnx")
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if native:
            register(options)
        onnxruntime.InferenceSession(folder / "model.onnx", options)
        assert Decoder(tmp_path, native=native).greedy(PROMPT, STEPS) == tokens


# The tool leaves the file that it wrote open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_format_of_small_devices_has_the_tokens_of_the_export(
    layout: Layout, folder: Path, tokens: list[int], tmp_path: Path
) -> None:
    for native in paths(layout):
        convert_onnx_models_to_ort(
            folder / "model.onnx",
            tmp_path,
            [OptimizationStyle.Fixed],
            library_path() if native else None,
        )
        made = Decoder(tmp_path, native=native, file="model.ort")
        assert made.greedy(PROMPT, STEPS) == tokens


def test_matrices_quantized_by_onnx_runtime_run(
    layout: Layout, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    monkeypatch.setattr(logger, "disabled", True)
    quantizer = MatMulNBitsQuantizer(onnx.load(folder / "model.onnx"), block_size=32)
    quantizer.process()
    onnx.save(quantizer.model.model, tmp_path / "model.onnx")
    for native in paths(layout):
        made, before = (Decoder(each, native=native).start(PROMPT) for each in (tmp_path, folder))
        assert 0 < np.abs(made - before).max() < np.abs(before).max()


def test_a_model_cast_to_float16_runs_without_the_library_which_refuses_it_by_name(
    layout: Layout, folder: Path, tmp_path: Path
) -> None:
    onnx.save(convert_float_to_float16(onnx.load(folder / "model.onnx")), tmp_path / "model.onnx")
    with pytest.raises(Exception, match="x is float16, which does not go with the format float32"):
        Decoder(tmp_path, native=True)
    if layout == "portable":
        made, before = (Decoder(each).start(PROMPT) for each in (tmp_path, folder))
        np.testing.assert_allclose(made, before, rtol=0, atol=0.02 * np.abs(before).max())
