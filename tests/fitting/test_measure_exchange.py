"""Tests of the measured costs of rounding and dropping, against whole models changed one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from moe_export.artifacts.exchange import Exchange, Measured
from moe_export.families import open_checkpoint
from moe_export.fitting.measure_exchange import SHARES, measure_exchange
from moe_export.formats import FORMATS
from moe_export.planning.allocation import format_errors
from moe_export.testing.families import QWEN2_MOE
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import LayeredModel, RaggedMoEBlock, load_torch_model
from tests.helpers.torch_models import some_tokens

TOKENS = some_tokens(3, 20)
ROWS = 6 * 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("exchange"), base=QWEN2_MOE.config)


@pytest.fixture(scope="module")
def scores() -> dict[str, list[Any]]:
    """Random scores of the layers 0 and 2; layer 1 has no experts."""
    random = np.random.default_rng(4)
    layers = [random.lognormal(0, 1, n) for n in (ROWS, 0, ROWS)]
    layers[0][:24] = np.inf
    return {"importance": layers, "rounding": [50 * layer_R for layer_R in layers]}


@pytest.fixture(scope="module")
def exchange(directory: Path, scores: dict[str, Any], tmp_path_factory: Any) -> Exchange:
    sequences = list(TOKENS.numpy().astype(np.int32))
    return measure_exchange(
        directory,
        sequences,
        scores["importance"],
        scores["rounding"],
        tmp_path_factory.mktemp("states"),
    )


def kl_nats(directory: Path, change: Callable[[RaggedMoEBlock], None]) -> float:
    """KL of the model with changed blocks from the unchanged model, mean over tokens."""
    whole, changed = (load_torch_model(directory, torch.float32) for _ in range(2))
    for layer in (0, 2):
        block = LayeredModel(changed).block(layer)
        assert block is not None
        change(block)
    with torch.no_grad():
        q, p = (F.log_softmax(m(TOKENS).logits[:, :-1].double(), -1) for m in (whole, changed))
    return float((q.exp() * (q - p)).sum(-1).mean())


def rounding(*layers: int) -> Callable[[RaggedMoEBlock], None]:
    def change(block: RaggedMoEBlock) -> None:
        names = [n for n, _ in block.named_parameters() if "expert" in n and "_gate." not in n]
        for name in [n for n, _ in block.named_parameters() if n in names or "proj" in n]:
            matrix = block.get_parameter(name)
            values_KN = np.ascontiguousarray(matrix.numpy().T)
            if block.layer in layers:
                made = FORMATS["int4"](values_KN, 32, "float16").dequantized()
                matrix.copy_(torch.from_numpy(made.T))

    return change


def test_every_layer_rounded_alone_and_all_of_them(
    directory: Path, exchange: Exchange, scores: dict[str, Any]
) -> None:
    assert exchange.tokens == 3 * 19
    # Logits in float32 and float64 differ by about 1e-6, and the KL is at least 1e-2.
    for layer in (0, 2):
        expected = kl_nats(directory, rounding(layer))
        assert expected > 1e-3
        assert exchange.rounded[layer].kl_nats == pytest.approx(expected, rel=1e-3)
    assert exchange.rounded[1] == Measured(predicted=0.0, kl_nats=0.0)
    assert exchange.all_rounded.kl_nats == pytest.approx(
        kl_nats(directory, rounding(0, 2)), rel=1e-3
    )
    checkpoint, spec = open_checkpoint(directory)
    error = format_errors(checkpoint, spec, 0, ("int4",), 32)["int4"]
    known = scores["rounding"][0][24:].sum()
    assert exchange.rounded[0].predicted == pytest.approx(error * known)
    assert exchange.rates[1] == 1.0


def test_what_is_dropped_is_the_least_important_of_all_layers(
    directory: Path, exchange: Exchange, scores: dict[str, Any]
) -> None:
    ordered = np.sort(np.concatenate(scores["importance"]))
    for share, level in zip(SHARES, exchange.dropped, strict=True):
        limit = share * exchange.all_rounded.predicted
        number = int((np.cumsum(ordered) <= limit).sum())
        assert number > 0
        assert level.predicted == pytest.approx(ordered[:number].sum())
        threshold = ordered[number]

        def change(block: RaggedMoEBlock, below: float = threshold) -> None:
            for expert, swiglu in enumerate(block.routed):
                part = scores["importance"][block.layer][24 * expert : 24 * expert + 24]
                swiglu.down.weight[:, torch.from_numpy(part < below)] = 0

        assert level.kl_nats == pytest.approx(kl_nats(directory, change), rel=1e-3)


def test_rows_of_the_shared_expert_are_dropped_where_they_are_ranked_too(
    directory: Path, scores: dict[str, Any], tmp_path: Path
) -> None:
    _, spec = open_checkpoint(directory)
    rows = spec.shared_widths[0]
    assert rows is not None
    # Only rows of the shared expert are below the limits.
    importance = [np.full(ROWS, np.inf), np.zeros(0), np.full(ROWS, np.inf)]
    importance = [
        np.append(layer_R, np.full(rows if len(layer_R) else 0, 1e-9)) for layer_R in importance
    ]
    rounding_R = [np.append(r, np.zeros(rows if len(r) else 0)) for r in scores["rounding"]]
    exchange = measure_exchange(
        directory, list(TOKENS.numpy().astype(np.int32)), importance, rounding_R, tmp_path
    )

    def change(block: RaggedMoEBlock) -> None:
        block.all_experts[-1].down.weight.zero_()

    expected = kl_nats(directory, change)
    assert expected > 1e-4
    assert exchange.dropped[-1].kl_nats == pytest.approx(expected, rel=1e-3)
