"""`report.json`: everything a run found; `report.md` and `report.html` show nothing else."""

from __future__ import annotations

from typing import Any, ClassVar

from moe_export.artifacts.base import JsonArtifact
from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.artifacts.measurements import Machine, Speed
from moe_export.artifacts.ranking import Ranking
from moe_export.artifacts.report_making import (
    CompensationFacts,
    Method,
    QuantizationFacts,
    StageCost,
)
from moe_export.artifacts.report_memory import MemoryFacts
from moe_export.artifacts.report_plan import (
    CoverageFacts,
    ImportanceFacts,
    ModelFacts,
    PlanFacts,
)
from moe_export.artifacts.report_results import (
    AccuracyFacts,
    AnswerEndFacts,
    EvaluationFacts,
    ExecutionFacts,
    GateFacts,
    Headline,
    ParityFacts,
)
from moe_export.artifacts.report_tuning import TuningFacts


class Report(JsonArtifact):
    """Report of a run, made by the report stage; docs/reference/report.md lists its keys.

    Attributes:
        headline: figures at the top.
        title: title from the recipe, or made from the model.
        moe_export: version that wrote the report.
        model: sizes of the model.
        tuning: training of the model; absent without a `tune` section.
        ranking: comparison of rankings; absent unless `plan.score` is `auto`.
        plan: plan of the model.
        importance: concentration of importance.
        coverage: reach of the calibration.
        calibration: counts of the calibration set.
        memory: bytes predicted, on disk and held by a process.
        compensation: weights fitted after pruning; None without any.
        quantization: losses of quantization; None if nothing is quantized.
        accuracy: scores by provider and variant.
        answer_ends: ends of the answers of tasks that leave them to the unpruned model; absent
            without such a task.
        evaluation: scores of lm-eval's tasks; absent if none was run.
        parity: distance from torch by provider and variant.
        gates: limits of the recipe and their outcome.
        warning: default limit of KL where no limit of the recipe guards the result, and its
            outcome, which stops nothing; absent where one does.
        speed: throughput at every setting.
        execution: implementation of the experts by variant and provider.
        machine: machine of the measurements.
        versions: version by package, for those that decide a result (keys vary).
        stages: cost of every stage before the report.
        methods: method of measurement of each quantity.
        settings: settings by stage, as in the recipe (keys vary).
    """

    FILE: ClassVar[str] = "report.json"
    TEXT: ClassVar[str] = "report.md"
    PAGE: ClassVar[str] = "report.html"

    headline: Headline
    title: str
    moe_export: str
    model: ModelFacts
    tuning: TuningFacts | None = None
    ranking: Ranking | None = None
    plan: PlanFacts
    importance: ImportanceFacts
    coverage: CoverageFacts
    calibration: CalibrationSummary
    memory: MemoryFacts
    compensation: CompensationFacts | None
    quantization: QuantizationFacts | None
    accuracy: tuple[AccuracyFacts, ...]
    answer_ends: tuple[AnswerEndFacts, ...] | None = None
    evaluation: EvaluationFacts | None = None
    parity: tuple[ParityFacts, ...]
    gates: tuple[GateFacts, ...]
    warning: GateFacts | None = None
    speed: tuple[Speed, ...]
    execution: tuple[ExecutionFacts, ...]
    machine: Machine
    versions: dict[str, str]
    stages: tuple[StageCost, ...]
    methods: tuple[Method, ...]
    settings: dict[str, dict[str, Any]]

    @property
    def providers(self) -> list[str]:
        """Execution providers of the scores, each once, in the recipe's order."""
        return list(dict.fromkeys(entry.provider for entry in self.accuracy))
