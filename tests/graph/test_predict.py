"""Tests of predicted bytes against the graph of the whole model, in which layers repeat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moe_export.families import spec_of
from moe_export.families.alike import first_alike, with_layers
from moe_export.families.base import ModelSpec
from moe_export.graph import build_decoder, predict, predicted_bytes
from moe_export.graph.external_data import layout as placements
from moe_export.op.spec import Layout
from moe_export.quantization import Quantization
from moe_export.testing.families import ROWS, FamilyRow

ORDER = (0, 1, 2, 1, 0, 2, 2)
"""Layers of a model of three that the tested model has, in this order."""

MIXED = Quantization(experts=("int4", "float", "int8", "float", "int4", "int4", "bfloat16"))


def assert_as_in_the_graph(spec: ModelSpec, layout: Layout) -> None:
    predicted = predicted_bytes(spec, "float16", layout)
    last = placements(build_decoder(spec, "float16", None, layout))[-1]
    assert predicted.total_bytes == last.offset + last.size_bytes
    assert len(predicted.experts_by_layer) == len(ORDER)
    assert [n > 0 for n in predicted.experts_by_layer] == [bool(w) for w in spec.widths]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type)
def test_layers_that_repeat_count_as_often_as_they_are_there(row: FamilyRow) -> None:
    spec = with_layers(spec_of(row.config), ORDER)
    assert len(set(first_alike(spec))) < len(ORDER)
    for layout in ("portable", "packed"):
        assert_as_in_the_graph(spec, layout)


@pytest.mark.parametrize(
    "added",
    [
        {"router_bias": True, "condenser_experts": [[1, 4], [0, 2], [3, 5]]},
        {"compressed_experts": 1, "compressed_form": "tied"},
    ],
    ids=["condensers", "compressed"],
)
def test_tuned_models_of_unequal_widths_and_formats(added: dict[str, Any]) -> None:
    row = next(row for row in ROWS if row.model_type == "qwen3_moe")
    whole = spec_of(row.config | {"model_type": "moe_export_qwen3_moe"} | added)
    narrow = (3, 24, 0, 0, 11, 1)
    widths = (whole.widths[0], narrow, whole.widths[2])
    spec = with_layers(replace(whole, widths=widths), ORDER)
    assert first_alike(spec) == (0, 1, 0, 1, 0, 0, 0)
    for quantization in (Quantization(), MIXED):
        assert_as_in_the_graph(replace(spec, quantization=quantization), "portable")


def test_one_layer_of_each_kind_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in ROWS if row.model_type == "qwen3_moe")
    built: list[int] = []

    def noted(spec: ModelSpec, *others: Any) -> Any:
        built.append(spec.num_layers)
        return build_decoder(spec, *others)

    monkeypatch.setattr(predict, "build_decoder", noted)
    spec = spec_of(row.config | {"num_hidden_layers": 258})
    assert len(predict.predicted_bytes(spec, "float16").experts_by_layer) == 258
    assert built == [1]
