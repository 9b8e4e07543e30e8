"""Tests that a cache of fixed length decodes the same tokens as a growing one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moe_export.demo import checkpoint_dir
from moe_export.errors import DependencyError, RecipeError
from moe_export.op.spec import Dtype, Layout, LinearWord
from moe_export.ort import decoding
from moe_export.ort import session as runtime
from moe_export.ort.decoding import KVCache, StaticCache, generate, open_cache
from moe_export.ort.session import NO_GRAPH, OrtModel
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.decoding import exported

NEW_TOKENS = 20
LENGTHS = np.array([9, 4, 7])


@pytest.fixture(scope="module", params=["tiny", "demo"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoding")
    source = checkpoint_dir() if request.param == "demo" else tiny_checkpoint(folder / "source")
    return exported(source, folder / "onnx")


def opened(directory: Path, cache: str, operator: str = "native") -> OrtModel:
    return OrtModel(directory, threads=1, operator=operator, cache=cache)


def prompts() -> NDArray[np.int64]:
    ids_BS = np.random.default_rng(3).integers(0, 250, (len(LENGTHS), LENGTHS.max()))
    return np.where(np.arange(LENGTHS.max()) < LENGTHS[:, None], ids_BS, 0)


def decoded(cache: KVCache) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Greedy tokens [B, new tokens] after prompts of several lengths, and all logits on the way."""
    last_BV = cache.prompt(prompts(), LENGTHS)
    tokens, logits = [], [last_BV]
    for _ in range(NEW_TOKENS):
        tokens.append(last_BV.argmax(-1))
        last_BV = cache.token(tokens[-1])
        logits.append(last_BV)
    return np.stack(tokens, axis=1), np.stack(logits)


@pytest.mark.parametrize("operator", ["native", "portable"])
def test_a_static_cache_gives_the_tokens_of_a_growing_one(directory: Path, operator: str) -> None:
    growing = opened(directory, "growing", operator)
    static = opened(directory, "static", operator)
    held = open_cache(static, len(LENGTHS), LENGTHS.max() + NEW_TOKENS)
    tokens, logits = decoded(open_cache(growing, len(LENGTHS), 0))
    assert len(np.unique(tokens)) > 3
    static_tokens, static_logits = decoded(held)
    np.testing.assert_array_equal(static_tokens, tokens)
    # Sums in another order differ by 1e-5 in logits of about 10.
    np.testing.assert_allclose(static_logits, logits, rtol=0, atol=1e-4)
    again, _ = decoded(held)  # old entries of the cache are overwritten or masked
    np.testing.assert_array_equal(again, tokens)


def test_a_static_cache_gets_longer_and_keeps_what_it_holds(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing, _ = decoded(open_cache(opened(directory, "growing"), len(LENGTHS), 0))
    monkeypatch.setattr(decoding, "GROWTH_TOKENS", 10)
    held = open_cache(opened(directory, "static"), len(LENGTHS), LENGTHS.max() + NEW_TOKENS)
    assert isinstance(held, StaticCache)
    rooms = []
    token = held.token

    def watched(ids_B: NDArray[np.int64]) -> NDArray[np.float32]:
        logits = token(ids_B)
        rooms.append(held.room)
        return logits

    monkeypatch.setattr(held, "token", watched)
    tokens, _ = decoded(held)
    np.testing.assert_array_equal(tokens, growing)
    assert rooms == [10] + [20] * 10 + [29] * 9  # 9 tokens of the longest prompt, 29 at the end


def test_rows_of_a_batch_are_decoded_as_each_alone(directory: Path) -> None:
    model = opened(directory, "static")
    tokens, _ = decoded(open_cache(model, len(LENGTHS), LENGTHS.max() + NEW_TOKENS))
    for row, length in enumerate(LENGTHS):
        alone = generate(model, prompts()[row, :length].tolist(), NEW_TOKENS, [])
        assert list(alone) == tokens[row].tolist()


def test_a_static_cache_stays_where_it_is_and_as_large(tmp_path: Path) -> None:
    directory = exported(tiny_checkpoint(tmp_path / "source"), tmp_path / "onnx")
    model = opened(directory, "static")
    held = open_cache(model, 2, 30)
    assert isinstance(held, StaticCache)
    held.prompt(np.ones((2, 5), np.int64))
    size = sum(value.tensor_size_in_bytes() for value in held._values.values())
    assert size == 3 * 2 * (2 * 2 * 30 * 16) * 4  # layers, keys and values, float32
    assert model.cache_bytes(2, 30) == size
    places = [value.data_ptr() for value in held._values.values()]
    held.token(np.ones(2, np.int64))
    assert [value.data_ptr() for value in held._values.values()] == places


def test_every_cache_has_a_graph_of_its_own_and_prompts_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = exported(tiny_checkpoint(tmp_path / "source"), tmp_path / "onnx")
    model = opened(directory, "static")
    graphs: list[int] = []
    run = OrtModel.run

    def recorded(self: OrtModel, binding: Any, graph: int = NO_GRAPH) -> None:
        graphs.append(graph)
        run(self, binding, graph)

    monkeypatch.setattr(OrtModel, "run", recorded)
    for _ in range(2):
        assert len(list(generate(model, [1, 2, 3], 3, []))) == 3
    prompt, first, again, *others = graphs
    assert prompt == NO_GRAPH == others[0]
    assert first == again > 0
    assert others[1] == others[2] == first + 1


def test_a_graph_is_asked_for_by_an_option_of_the_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    directory = exported(tiny_checkpoint(tmp_path / "source"), tmp_path / "onnx", "float16")
    asked = []

    def session(path: str, options: Any, providers: list[Any]) -> Any:
        asked.append(providers)
        raise RuntimeError("not partitioned")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(runtime, "require_provider", lambda provider: None)
    monkeypatch.setattr(runtime, "require_native", lambda provider: None)
    with pytest.raises(runtime.ArtifactError, match=r"with a CUDA graph; set validate.cache to st"):
        OrtModel(directory, "cuda", cache="captured")
    with pytest.raises(runtime.ArtifactError, match=r"does not load in ONNX Runtime: not part"):
        OrtModel(directory, "cuda", cache="static")
    assert asked == [
        [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})],
        [("CUDAExecutionProvider", {})],
    ]


def test_a_graph_elsewhere_than_on_cuda_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'captured' needs the provider cuda and the native op"):
        OrtModel(tmp_path, cache="captured")


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_all_positions_that_a_model_has_can_be_used(tmp_path: Path, cache: str) -> None:
    source = tiny_checkpoint(tmp_path / "source", max_position_embeddings=32)
    model = opened(exported(source, tmp_path / "onnx"), cache)
    assert len(list(generate(model, list(range(30)), 3, []))) == 3


@pytest.mark.parametrize(
    ("dtype", "layout", "linear", "sentence"),
    [
        (
            "float32",
            "portable",
            "auto",
            r"CUDA provider has no attention; set export.dtype to float16",
        ),
        ("float16", "packed", "auto", r"in the layout of the CPU's kernels; set export.layout to"),
        ("float16", "packed", "standard", r"in the layout of the CPU's kernels; set export.lay"),
        ("float16", "portable", "panels", r"for the CPU only; set export.linear to standard"),
    ],
)
def test_what_cuda_would_leave_to_the_cpu_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: Dtype,
    layout: Layout,
    linear: LinearWord,
    sentence: str,
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    directory = exported(source, tmp_path / "onnx", dtype, layout, linear)
    monkeypatch.setattr(runtime, "require_provider", lambda provider: None)
    with pytest.raises(DependencyError, match=sentence):
        OrtModel(directory, "cuda")
