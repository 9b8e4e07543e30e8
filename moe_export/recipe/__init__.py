"""Recipes: one strict section per stage, with types and defaults, and their files."""

from __future__ import annotations

from moe_export.op.spec import Dtype, Layout
from moe_export.recipe.base import Section, parse_bytes
from moe_export.recipe.calibrate import (
    CalibrateSettings,
    CalibrateSource,
    ModelOverrides,
    ModelSettings,
    Source,
    Task,
)
from moe_export.recipe.comparisons import BakeoffSettings, SweepSettings
from moe_export.recipe.evaluate import EvalSettings
from moe_export.recipe.export import ExportSettings, ReportSettings
from moe_export.recipe.importance import (
    AUTO,
    DROPPING_SCORE,
    ROUNDING_OF,
    ROUNDING_SCORE,
    ImportanceSettings,
    Score,
    rounding_pair,
)
from moe_export.recipe.plan import PlanSettings
from moe_export.recipe.prune import (
    BlockSettings,
    DistillSettings,
    PruneSettings,
    RefitSettings,
)
from moe_export.recipe.quantize import Formats, QuantizeSettings
from moe_export.recipe.ranking import RankingSettings
from moe_export.recipe.recipe import Recipe, settings_of
from moe_export.recipe.tune import (
    CompressedSettings,
    CondenserSettings,
    EsftSettings,
    TuneSettings,
)
from moe_export.recipe.validate import (
    GateSettings,
    SpeedSettings,
    ValidateSettings,
    default_cache,
)

__all__ = [
    "AUTO",
    "DROPPING_SCORE",
    "ROUNDING_OF",
    "ROUNDING_SCORE",
    "BakeoffSettings",
    "BlockSettings",
    "CalibrateSettings",
    "CalibrateSource",
    "CompressedSettings",
    "CondenserSettings",
    "DistillSettings",
    "Dtype",
    "EsftSettings",
    "EvalSettings",
    "ExportSettings",
    "Formats",
    "GateSettings",
    "ImportanceSettings",
    "Layout",
    "ModelOverrides",
    "ModelSettings",
    "PlanSettings",
    "PruneSettings",
    "QuantizeSettings",
    "RankingSettings",
    "Recipe",
    "RefitSettings",
    "ReportSettings",
    "Score",
    "Section",
    "Source",
    "SpeedSettings",
    "SweepSettings",
    "Task",
    "TuneSettings",
    "ValidateSettings",
    "default_cache",
    "parse_bytes",
    "rounding_pair",
    "settings_of",
]
