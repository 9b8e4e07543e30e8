"""The library takes every model that the exporter writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from moe_export.op import spec
from moe_export.op.library import register
from moe_export.op.spec import Dtype
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from tests.helpers.decoding import Decoder, exported

WIDTHS = ((24, 0, 1, 7, 16, 24),) * 3
IDS = np.random.default_rng(7).integers(0, 264, (2, 40))


def logits(directory: Path, library: Path | None) -> NDArray[Any]:
    """Logits of a prompt and of one more token, so that prefill and decoding are run."""
    decoder = Decoder(directory)
    if library is not None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        register(options, library)
        decoder.session = onnxruntime.InferenceSession(
            directory / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
    prompt = decoder.start(IDS[:, :-1])
    last = decoder.go_on(IDS[:, -1:])
    return np.concatenate([prompt, last], axis=1).astype(np.float64)


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_an_exported_model_gives_the_same_logits_with_the_library(
    library: Path, tmp_path: Path, dtype: Dtype
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    pruned = pruned_checkpoint(source, tmp_path / "pruned", WIDTHS)
    exact = logits(exported(pruned, tmp_path / "float32"), None)
    directory = exported(pruned, tmp_path / "onnx", dtype)
    portable, native = logits(directory, None), logits(directory, library)
    assert not np.array_equal(portable, native)
    if dtype == "float32":
        np.testing.assert_allclose(native, portable, rtol=0, atol=1e-4)
    else:
        # The kernels round less often, so they should come at least about as close.
        assert np.abs(native - exact).max() <= 1.5 * np.abs(portable - exact).max()


def test_every_dtype_of_the_exporter_is_a_format_of_the_operator() -> None:
    assert set(get_args(Dtype)) <= set(spec.FORMATS)
