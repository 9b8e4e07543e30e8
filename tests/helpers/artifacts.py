"""One complete artifact of every class, each field different from its default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import SCHEMA, JsonArtifact
from moe_export.artifacts.calibration import CalibrationSource, CalibrationSummary
from moe_export.artifacts.exchange import Exchange, Measured
from moe_export.artifacts.export import Export, ExportedModel
from moe_export.artifacts.formats import TensorFormats
from moe_export.artifacts.ledger import (
    BlockErrors,
    Distill,
    HeldOutKl,
    Ledger,
    LeftTensor,
    PrunedCounts,
    PrunedTensor,
    Refit,
)
from moe_export.artifacts.manifest import Manifest
from moe_export.artifacts.plan import Plan, PlanLayer, PlannedModels
from moe_export.artifacts.quantization import (
    Fallback,
    KeptTensor,
    QuantizationRecord,
    QuantizedClass,
    QuantizedCounts,
    QuantizedTensor,
)
from moe_export.artifacts.run_info import ResolvedRecipe, RunInfo
from moe_export.artifacts.stage_mark import (
    FileFacts,
    MeasuredCost,
    PredictedCost,
    StageIdentity,
    StageMark,
)
from moe_export.artifacts.weight_bytes import PlannedBytes, WeightBytes
from moe_export.checkpoint import write_json
from moe_export.families.base import ModelSpec
from moe_export.graph import predicted_bytes
from tests.helpers.report_artifacts import COMPARISON, RANKING, REPORT
from tests.helpers.result_artifacts import (
    BAKEOFF,
    DOCUMENTS,
    EVALUATION,
    MEASUREMENTS,
    SWEEP,
    TUNING,
    VALIDATION,
)

FORMATS = TensorFormats(
    experts=("int4", "float"), dense="int8", embedding="int8", group_size=64, lm_head="int4"
)

BYTES = PlannedBytes(
    total_bytes=72,
    by_class={"experts": 64, "padding": 8},
    experts_by_layer=(32, 32),
    active_bytes_per_token=24,
)

PLAN = Plan(
    shared_expert="prune",
    score="fisher_margin",
    scope="model",
    unit="dimension",
    rows_before=20,
    rows_after=9,
    kept=0.45,
    widths_before=((4, 4), (4, 4)),
    layers=(
        PlanLayer(
            layer=0,
            widths=(3, 0),
            rows_before=10,
            rows_after=4,
            importance_kept=0.9,
            unknown_experts=(1,),
            shared_width=1,
            shared_width_before=2,
            expert_bytes={"float32": 12},
        ),
        PlanLayer(
            layer=1,
            widths=(2, 1),
            rows_before=10,
            rows_after=5,
            importance_kept=None,
            unknown_experts=(),
            shared_width=2,
            shared_width_before=2,
            expert_bytes={"float32": 12},
        ),
    ),
    checkpoint_tensor_bytes=4096,
    export_bytes={
        "float32": PlannedModels(before=BYTES, after=BYTES, quantized=BYTES, before_quantized=BYTES)
    },
    predicted_loss=0.25,
    quantization=FORMATS,
)

FEWER_EXPERTS = PLAN.model_copy(update={"top_k": 1, "top_k_before": 2})

LEDGER = Ledger(
    tensor_bytes=4096,
    counts=PrunedCounts(kept=1, sliced=1, dropped=1),
    refit=Refit(
        experts=1,
        tensors=("down",),
        left=(LeftTensor(tensor="other", tokens=3),),
        blocks=(BlockErrors(layer=0, pruned=0.5, refit=0.25, distilled=0.125),),
    ),
    distill=Distill(
        tensors=("router",),
        tokens=90,
        held_out_tokens=10,
        held_out_kl_nats=HeldOutKl(before=0.2, after=0.1),
    ),
    tensors={
        "down": PrunedTensor(action="sliced", shape_before=(8, 4), shape_after=(8, 3), bytes=48)
    },
    dropped={"inv_freq": "rotary frequencies follow from config.json"},
)

QUANTIZATION = QuantizationRecord(
    **vars(FORMATS),
    method="gptq",
    tensor_bytes=512,
    counts=QuantizedCounts(kept=1, quantized=1),
    fallbacks=(Fallback(tensor="down", layer=0, expert=None, method="mse", tokens=7, inputs=64),),
    classes={
        "experts": QuantizedClass(
            tensors=1, elements=128, code_bytes=64, scale_bytes=8, relative_error=0.08
        )
    },
    tensors={
        "norm": KeptTensor(action="kept", bytes=32),
        "down": QuantizedTensor(
            action="quantized",
            format="int4",
            group_size=64,
            method="gptq",
            tokens=None,
            bytes=72,
            relative_error=0.08,
        ),
    },
)

EXPORT = Export(
    dtype="float32",
    variants={
        "quantized": ExportedModel(
            nodes=74,
            quantization=FORMATS,
            weights=WeightBytes(total_bytes=72, by_class={"experts": 72}, experts_by_layer=(72,)),
            data_bytes=72,
            graph_bytes=99,
        )
    },
)

MARK = StageMark(
    key="a" * 64,
    identity=StageIdentity(
        stage="plan",
        version=4,
        settings={"keep": 0.5, "scope": "model"},
        outside={"checkpoint": "b" * 64},
        inputs={"importance": "c" * 64},
        threads=2,
    ),
    files={"plan.json": FileFacts(bytes=12, sha256="d" * 64)},
    predicted=PredictedCost(wall_s=1.5, peak_resident_bytes=1000, output_bytes=12),
    measured=MeasuredCost(wall_s=1.25, peak_resident_bytes=900),
    moe_export="0.1.0",
)

CALIBRATION = CalibrationSummary(
    sequences=3,
    tokens=12,
    seed=0,
    sources=(
        CalibrationSource(
            name="text",
            sequences=3,
            tokens=12,
            truncated_sequences=1,
            dropped_documents=0,
            tokens_sha256="e" * 64,
            weight=None,
            bos="tokenizer",
            held_out_sequences=4,
        ),
    ),
)

EXCHANGE = Exchange(
    rounded=(Measured(predicted=8.0, kl_nats=0.25),),
    all_rounded=Measured(predicted=8.0, kl_nats=0.25),
    dropped=(Measured(predicted=1.0, kl_nats=0.125),),
    tokens=99,
    format="int4",
    group_size=32,
)

EXAMPLES: tuple[JsonArtifact, ...] = (
    *(FEWER_EXPERTS, LEDGER, QUANTIZATION, EXPORT, MARK, CALIBRATION, EXCHANGE, RANKING),
    *(VALIDATION, DOCUMENTS, EVALUATION, MEASUREMENTS, BAKEOFF, SWEEP, REPORT, COMPARISON, TUNING),
    RunInfo(
        moe_export="0.2.0",
        recipe_sha256="a" * 64,
        stages={"calibrate": "b" * 64},
        sha256="c" * 64,
    ),
    Manifest(files={"plan/plan.json": FileFacts(bytes=12, sha256="d" * 64)}),
    ResolvedRecipe(recipe={"model": "demo", "plan": {"keep": 0.5}}),
)


def plan_with(**fields: Any) -> Plan:
    """A plan of which only some fields matter."""
    return PLAN.model_copy(update=fields)


def planned_bytes(spec: ModelSpec, dtype: Any) -> PlannedBytes:
    """The bytes of a model as the plan stage predicts them; those per token are made up."""
    predicted = predicted_bytes(spec, dtype)
    return PlannedBytes(
        total_bytes=predicted.total_bytes,
        by_class=predicted.by_class,
        experts_by_layer=predicted.experts_by_layer,
        active_bytes_per_token=1,
    )


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON artifact of whatever content."""
    write_json(path, {"schema": SCHEMA} | content)


def load_json(path: Path) -> dict[str, Any]:
    """Reads a JSON artifact without checking it."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
