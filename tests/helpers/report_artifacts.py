"""One complete report and one complete comparison."""

from __future__ import annotations

from moe_export.artifacts.calibration import CalibrationSource, CalibrationSummary
from moe_export.artifacts.comparison import Column, ComparedTask, Comparison
from moe_export.artifacts.ledger import HeldOutKl
from moe_export.artifacts.quantization import Fallback
from moe_export.artifacts.ranking import Candidate, MeasuredSource, Ranking
from moe_export.artifacts.report import Report
from moe_export.artifacts.report_making import (
    ClassError,
    CompensationFacts,
    DistillFacts,
    Method,
    QuantizationFacts,
    RefitFacts,
    StageCost,
)
from moe_export.artifacts.report_memory import (
    CacheAtLength,
    CheckpointFacts,
    ClassBytes,
    KvCacheFacts,
    MemoryFacts,
    ResidentMemory,
    UnprunedQuantized,
    VariantMemory,
)
from moe_export.artifacts.report_plan import (
    ActiveParameters,
    CoverageFacts,
    CurvePoint,
    ImportanceFacts,
    LayerWidths,
    ModelFacts,
    Parameters,
    PlanFacts,
)
from moe_export.artifacts.report_results import (
    AccuracyFacts,
    ExecutionFacts,
    Headline,
    ParityFacts,
    TaskFacts,
)
from moe_export.artifacts.stage_mark import PredictedCost
from moe_export.reporting.build_validation import (
    answer_end_facts,
    evaluation_facts,
    gate_facts,
    warning_facts,
)
from moe_export.reporting.tuning_table import tuning_facts
from tests.helpers.result_artifacts import (
    EVALUATION,
    MACHINE,
    SETTING,
    SPEED,
    TUNING,
    VALIDATION,
)

CLASSES = (ClassBytes(name="experts", weights_bytes=64),)

PLAN_FACTS = PlanFacts(
    score="fisher",
    scope="model",
    unit="dimension",
    shared_expert="prune",
    kept=0.5,
    rows_before=20,
    rows_after=10,
    width_min=2,
    width_median=3.5,
    width_max=5,
    empty_experts=1,
    whole_experts=2,
    layers=(
        LayerWidths(
            layer=0,
            rows_before=20,
            rows_after=10,
            importance_kept=0.8,
            width_min=2,
            width_median=3.5,
            width_max=5,
            widths=(2, 5),
            widths_before=(8, 8),
            shared_width=3,
            shared_width_before=4,
            tokens_per_expert=(9, 0),
            unknown_experts=(1,),
        ),
    ),
)

MEMORY = MemoryFacts(
    dtype="float16",
    variants=(
        VariantMemory(
            variant="pruned",
            format="experts int4, else float16",
            weights_bytes=72,
            predicted_weights_bytes=72,
            disk_weights_bytes=72,
            active_bytes_per_token=24,
            graph_bytes=9,
            nodes=7,
            classes=CLASSES,
            predicted_resident_bytes=99,
            resident=(
                ResidentMemory(
                    provider="cuda",
                    load_peak_bytes=13,
                    steady_resident_bytes=11,
                    device_loaded_bytes=16,
                    device_peak_bytes=24,
                    device_kv_cache_bytes=3,
                ),
            ),
        ),
    ),
    unpruned_quantized=UnprunedQuantized(
        weights_bytes=50, active_bytes_per_token=20, classes=CLASSES
    ),
    kv_cache=KvCacheFacts(
        context_tokens=512,
        cache_bytes=1032,
        bytes_per_token=2,
        fixed_bytes=8,
        lengths=(CacheAtLength(tokens=512, cache_bytes=1032, every_head_bytes=9216),),
    ),
    checkpoint=CheckpointFacts(
        predicted_tensor_bytes=70,
        tensor_bytes=70,
        tensors_kept=5,
        tensors_sliced=6,
        tensors_dropped=0,
    ),
)

QUANTIZATION_FACTS = QuantizationFacts(
    method="gptq",
    matrices=12,
    classes=(ClassError(name="experts", relative_error=0.09),),
    fallbacks=(Fallback(tensor="down", layer=0, expert=1, method="mse", tokens=3, inputs=128),),
)


def finalist(score: str, kl_nats: float, excess_nats: float) -> Candidate:
    """A candidate that was in both rounds."""
    return Candidate(
        score=score,
        scope="model",
        kept=0.5,
        first_kl_nats=0.1,
        kl_nats=kl_nats,
        kl_nats_stderr=0.02,
        excess_nats=excess_nats,
        excess_nats_stderr=0.01,
        answer_loss_nats=1.5,
        sources=(
            MeasuredSource(source="sums", kl_nats=0.3, kl_nats_stderr=0.05, loss_nats=1.5),
            MeasuredSource(source="text", kl_nats=0.4, kl_nats_stderr=0.1, loss_nats=2.5),
        ),
    )


RANKING = Ranking(
    choice=finalist("fisher", 0.35, 0.0),
    candidates=(finalist("fisher_margin", 0.5, 0.15), finalist("fisher", 0.35, 0.0)),
    refitted=True,
    weights=(0.75, 0.25),
    answered=(True, False),
    first_sequences=8,
    sequences=32,
    scored_tokens=99,
    unpruned_answer_loss_nats=1.25,
)

REPORT = Report(
    headline=Headline(
        product="pruned",
        kept=0.5,
        baseline_weights_bytes=100,
        product_weights_bytes=72,
        baseline_exact_match=0.99,
        product_exact_match=0.9,
        recovery=0.91,
        speed_setting=SETTING,
        gates_passed=True,
        product_prefill_tokens_per_s=100.5,
        prefill_ratio=1.5,
        product_decode_tokens_per_s=100.5,
        decode_ratio=1.6,
    ),
    title="A report",
    moe_export="0.1.0",
    model=ModelFacts(
        family="qwen2_moe",
        layers=1,
        experts_per_layer=2,
        experts_per_token=1,
        experts_per_token_before=2,
        hidden_size=8,
        vocabulary_tokens=64,
        parameters=Parameters(before=1000, after=600),
        active_parameters_per_token=ActiveParameters(before=500.5, after=300.5),
    ),
    plan=PLAN_FACTS,
    importance=ImportanceFacts(
        known_rows=20,
        rows_kept=0.5,
        importance_kept=0.8,
        curve=(CurvePoint(rows=0.5, importance=0.8),),
        source_shares=(1.0,),
    ),
    tuning=tuning_facts(TUNING),
    ranking=RANKING,
    coverage=CoverageFacts(
        experts=2,
        unknown_experts=1,
        tokens_per_expert_min=0,
        tokens_per_expert_median=4.5,
        tokens_per_expert_max=9,
    ),
    calibration=CalibrationSummary(
        sequences=2,
        tokens=9,
        seed=3,
        sources=(
            CalibrationSource(
                name="sums",
                sequences=2,
                tokens=9,
                truncated_sequences=1,
                dropped_documents=0,
                tokens_sha256="a" * 64,
                weight=2.0,
                bos="tokenizer",
                held_out_sequences=4,
            ),
        ),
    ),
    memory=MEMORY,
    compensation=CompensationFacts(
        refit=RefitFacts(
            experts=3, left=1, distilled_blocks=2, error_pruned=0.5, error_fitted=0.25
        ),
        distill=DistillFacts(
            tokens=90,
            held_out_tokens=10,
            held_out_kl_nats=HeldOutKl(before=0.2, after=0.1),
            routers=1,
        ),
    ),
    quantization=QUANTIZATION_FACTS,
    accuracy=(
        AccuracyFacts(
            provider="cuda",
            variant="pruned",
            mean_exact_match=0.9,
            recovery=0.91,
            tasks=(
                TaskFacts(
                    task="sums",
                    kl_nats=0.02,
                    top1_agreement=0.98,
                    items=10,
                    answer_tokens=20,
                    exact_match=0.9,
                    exact_match_stderr=0.05,
                    loss_nats=0.1,
                    perplexity=1.1,
                    loss_nats_stderr=0.01,
                    kl_nats_stderr=0.002,
                    first_token_match=0.95,
                    first_token_match_stderr=0.03,
                    choice_accuracy=0.97,
                    choice_accuracy_stderr=0.02,
                ),
            ),
        ),
    ),
    answer_ends=answer_end_facts(VALIDATION),
    evaluation=evaluation_facts(EVALUATION),
    parity=(
        ParityFacts(
            provider="cuda",
            variant="pruned",
            max_logit_error=1e-6,
            kl_nats=1e-12,
            top1_agreement=0.99,
            compared_tokens=123,
            first_bad_layer=1,
            greedy_prompts=4,
            greedy_new_tokens=8,
            greedy_agreement=0.75,
        ),
    ),
    gates=gate_facts(VALIDATION.gates),
    warning=warning_facts(VALIDATION, None),
    speed=(SPEED,),
    execution=(ExecutionFacts(variant="pruned", provider="cuda", path=SPEED.path),),
    machine=MACHINE,
    versions={"python": "3.11.9"},
    stages=(
        StageCost(
            stage="plan",
            wall_s=1.5,
            peak_resident_bytes=40,
            output_bytes=12,
            predicted=PredictedCost(wall_s=2.5, peak_resident_bytes=50, output_bytes=13),
            threads=2,
        ),
    ),
    methods=(Method(quantity="kept", method="counted"),),
    settings={"plan": {"keep": 0.5}},
)

COMPARISON = Comparison(
    runs=("half",),
    tasks=("sums",),
    speed_setting=SETTING,
    notes=("A note.",),
    columns=(
        Column(
            run="half",
            variant="pruned",
            title="A report",
            score="fisher",
            kept=0.5,
            shared_expert_kept=0.75,
            format="float16",
            weights_bytes=72,
            active_bytes_per_token=24,
            load_peak_bytes=13,
            steady_resident_bytes=11,
            device_loaded_bytes=16,
            device_peak_bytes=24,
            device_kv_cache_bytes=3,
            mean_exact_match=0.9,
            recovery=0.91,
            tasks=(ComparedTask(task="sums", exact_match=0.9, loss_nats=0.1),),
            prefill_tokens_per_s=100.5,
            decode_tokens_per_s=100.5,
            decode_ratio=1.6,
            gates_passed=True,
        ),
    ),
)
