"""One complete artifact of every class that validation, bakeoff and sweep write."""

from __future__ import annotations

from moe_export.artifacts.bakeoff import Bakeoff, RankingResult
from moe_export.artifacts.documents import Documents, DocumentScores
from moe_export.artifacts.evaluation import EvaluatedModel, Evaluation, HarnessScore
from moe_export.artifacts.measurements import (
    Machine,
    Measurements,
    ProcessMemory,
    Speed,
    SpeedSetting,
    Spread,
)
from moe_export.artifacts.sweep import (
    KlVerdict,
    MatchVerdict,
    Point,
    PointScores,
    Sweep,
    Unpruned,
    Verdict,
)
from moe_export.artifacts.tuning import TunedLayer, TunedRouter, TunedSource, Tuning, VectorMovement
from moe_export.artifacts.validation import (
    AnswerEnds,
    Gate,
    Greedy,
    NotFinite,
    Parity,
    ProviderResults,
    TaskScores,
    Validation,
    VariantScores,
)

SCORES = TaskScores(
    items=10,
    answer_tokens=20,
    exact_match=0.9,
    exact_match_stderr=0.05,
    loss_nats=0.1,
    perplexity=1.1,
    kl_nats=0.02,
    top1_agreement=0.98,
    loss_nats_stderr=0.01,
    kl_nats_stderr=0.002,
    first_token_match=0.95,
    first_token_match_stderr=0.03,
    choice_accuracy=0.97,
    choice_accuracy_stderr=0.02,
)

VALIDATION = Validation(
    providers={
        "cpu": ProviderResults(
            parity={
                "pruned": Parity(
                    max_logit_error=1e-6,
                    tokens=123,
                    kl_nats=1e-12,
                    top1_agreement=0.99,
                    first_bad_layer=2,
                    tied_tokens=4,
                )
            },
            greedy={"pruned": Greedy(prompts=4, new_tokens=8, agreement=0.75)},
            variants={"pruned": VariantScores(tasks={"sums": SCORES}, mean_exact_match=0.9)},
            not_finite={
                "pruned": NotFinite(positions=3, of=9, first_layer=1, first_tensor="layers.1.moe")
            },
            answer_ends={"sums": AnswerEnds(documents=10, foreseen=3, required=False)},
        )
    },
    recovery=0.95,
    gates=(
        Gate(
            name="max_logit_error",
            provider="cpu",
            limit=1e-4,
            value=1e-3,
            passed=False,
            detail="the router has ties",
        ),
    ),
    warning=Gate(
        name="default_max_kl_nats", provider="cpu", limit=0.5, value=0.7, passed=False, detail="…"
    ),
)

DOCUMENTS = Documents(
    providers={
        "cpu": {
            "pruned": {
                "sums": DocumentScores(
                    tokens=(2, 3), matches=(True, False), kl_nats=(0.1, 0.2), choices=(True, True)
                )
            }
        }
    }
)

EVALUATION = Evaluation(
    lm_eval="0.4.13",
    tasks=("gsm8k",),
    limit=100,
    models=(
        EvaluatedModel(
            model="source",
            path="torch, float32",
            scores=(
                HarnessScore(
                    task="gsm8k",
                    metric="exact_match,strict-match",
                    value=0.625,
                    stderr=0.01,
                    higher_is_better=True,
                    items=100,
                    shots=5,
                ),
            ),
        ),
    ),
    gates=(
        Gate(
            name="eval.gsm8k",
            provider="cpu",
            limit=0.1,
            value=None,
            passed=False,
            detail="no pruned model was evaluated",
        ),
    ),
)

SPREAD = Spread(min=90.5, median=100.5, max=110.5)

SPEED = Speed(
    variant="pruned",
    provider="cuda",
    threads=1,
    path="native library (cuda)",
    batch_size=2,
    prompt_tokens=8,
    new_tokens=4,
    prefill_tokens_per_s=SPREAD,
    decode_tokens_per_s=SPREAD,
)

SETTING = SpeedSetting(provider="cuda", batch_size=2, threads=1, prompt_tokens=8, new_tokens=4)

MACHINE = Machine(cpu="A CPU", cores=2, memory_bytes=8 << 30, gpu="A GPU", system="Linux")

MEASUREMENTS = Measurements(
    machine=MACHINE,
    versions={"python": "3.11.9"},
    speed=(SPEED,),
    memory=(
        ProcessMemory(
            variant="pruned",
            provider="cuda",
            load_peak_bytes=13,
            steady_resident_bytes=11,
            file_bytes=10,
            device_loaded_bytes=16,
            device_kv_cache_bytes=3,
            device_peak_bytes=24,
        ),
    ),
)

BAKEOFF = Bakeoff(
    tasks=("sums",),
    baseline={"sums": SCORES},
    results=(
        RankingResult(
            score="auto",
            scope="layer",
            refitted=True,
            choice="fisher, layer",
            unit="expert",
            keep=0.5,
            seed=1,
            kept=0.51,
            tasks={"sums": SCORES},
            mean_exact_match=0.9,
        ),
    ),
)

POINT_SCORES = {"sums": PointScores(exact_match=0.9, loss_nats=0.1)}

SWEEP = Sweep(
    baseline=Unpruned(
        weights_bytes=100,
        active_bytes_per_token=40,
        mean_exact_match=0.99,
        mean_kl_nats=0.01,
        tasks=POINT_SCORES,
        decode_tokens_per_s=50.5,
    ),
    points=(
        Point(
            name="bytes-25-auto",
            experts="auto",
            formats=("int4", "int8"),
            kept=0.8,
            weights_bytes=25,
            active_bytes_per_token=10,
            mean_exact_match=0.9,
            mean_kl_nats=0.1,
            tasks=POINT_SCORES,
            decode_tokens_per_s=60.5,
            decode_ratio=1.2,
            speed_setting=SETTING,
            top_k=1,
        ),
    ),
    verdicts=(
        Verdict(
            share="25",
            own="bytes-25-auto",
            others=3,
            by_kl=KlVerdict(best="keep-50-int4", difference=-0.1, stderr=0.01, verdict="better"),
            by_match=MatchVerdict(
                best="keep-50-int4",
                difference=-0.01,
                stderr=0.01,
                verdict="equal within error",
                only_own=1,
                only_other=2,
                documents=10,
            ),
        ),
    ),
    documents={"sums": 10},
    speed_setting=SETTING,
    machine=MACHINE,
    versions={"python": "3.11.9"},
)

TUNING = Tuning(
    method="esft",
    objective="next_token",
    only="routers",
    top_k=2,
    steps=2,
    epochs=0.5,
    tokens=99,
    padding=0.25,
    losses=(3.5, 3.25),
    sources=(
        TunedSource(
            name="sums",
            documents=8,
            held_out_documents=2,
            dropped_documents=1,
            weight=2.0,
            before=3.5,
            after=3.0,
        ),
    ),
    before=3.5,
    after=3.0,
    active_experts=3,
    experts=((0, 2), ()),
    routers=(
        TunedRouter(
            layer=0,
            load_before=(0.5, 1.0, 0.5),
            load_after=(1.0, 0.75, 0.25),
            largest_bias=0.125,
            condensers=(0,),
            probabilities=(0.0625,),
        ),
    ),
    vectors=VectorMovement(input=0.125, hidden=0.25, up=0.0625),
    layers=(TunedLayer(layer=0, before=0.25, after=0.125),),
    trained_parameters=96,
    changed=("model.layers.0.mlp.experts.0.up_proj.weight",),
    equal=7,
)
