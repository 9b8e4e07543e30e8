"""The whole recipe. Defaults are written in the sections and nowhere else.

A setting that changes the result is a recipe key. One that changes only where or how fast something
runs (run directory, threads) is a command-line flag, so that it can never change a result's key.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from moe_export.recipe.base import Section
from moe_export.recipe.calibrate import CalibrateSettings, ModelSettings
from moe_export.recipe.checks import CHECKS
from moe_export.recipe.comparisons import BakeoffSettings, SweepSettings
from moe_export.recipe.evaluate import EvalSettings
from moe_export.recipe.export import ExportSettings, ReportSettings
from moe_export.recipe.importance import AUTO, ImportanceSettings
from moe_export.recipe.plan import PlanSettings
from moe_export.recipe.prune import PruneSettings
from moe_export.recipe.quantize import QuantizeSettings
from moe_export.recipe.ranking import RankingSettings
from moe_export.recipe.tune import TuneSettings
from moe_export.recipe.validate import ValidateSettings


class Recipe(Section):
    """A whole recipe: with `plan` a run of the main job, with `bakeoff` a comparison of rankings.

    Attributes:
        tune: Training of the model on documents; without it the source is taken as it is.
        validate: Measurements of the exported models.
        eval: Tasks of lm-eval; without it none is run.
        sweep: Models that the command `sweep` compares; other commands ignore it.
    """

    model: ModelSettings
    tune: TuneSettings | None = None
    calibrate: CalibrateSettings
    importance: ImportanceSettings = ImportanceSettings()
    ranking: RankingSettings = RankingSettings()
    plan: PlanSettings | None = None
    prune: PruneSettings = PruneSettings()
    quantize: QuantizeSettings | None = None
    export: ExportSettings = ExportSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    eval: EvalSettings | None = None
    report: ReportSettings = ReportSettings()
    bakeoff: BakeoffSettings | None = None
    sweep: SweepSettings = SweepSettings()

    @model_validator(mode="before")
    @classmethod
    def _plan_counts_export_dtype(cls, content: Any) -> Any:
        """Gives the plan the export's dtype, since a byte budget means the exported file."""
        if isinstance(content, dict) and isinstance(content.get("plan"), dict):
            export = content.get("export")
            dtype = export.get("dtype") if isinstance(export, dict) else None
            default = ExportSettings.model_fields["dtype"].default
            content = content | {"plan": {"dtype": dtype or default} | content["plan"]}
        return content

    @model_validator(mode="before")
    @classmethod
    def _genai_runs_where_the_model_is_measured(cls, content: Any) -> Any:
        """Gives the export the provider cuda if the recipe measures on it."""
        if not isinstance(content, dict) or not isinstance(content.get("validate"), dict):
            return content
        providers, export = content["validate"].get("providers"), content.get("export") or {}
        if (
            isinstance(providers, (list, tuple))
            and "cuda" in providers
            and isinstance(export, dict)
        ):
            content = content | {"export": {"genai_provider": "cuda"} | export}
        return content

    @model_validator(mode="before")
    @classmethod
    def _ranking_is_measured(cls, content: Any) -> Any:
        """Lets the model decide the ranking, unless the recipe asks for one by another key."""
        if not isinstance(content, dict) or not isinstance(content.get("plan"), dict):
            return content
        plan, quantize = content["plan"], content.get("quantize")
        chooses_formats = isinstance(quantize, dict) and quantize.get("experts") == "auto"
        if chooses_formats or plan.keys() & {"score", "scope", "unit"}:
            return content
        return content | {"plan": plan | {"score": AUTO}}

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        for check in CHECKS:
            check(self)
        return self

    def section(self, stage: str) -> Section | None:
        """The settings of a stage; None if the recipe has no such section."""
        section = getattr(self, "validate_" if stage == "validate" else stage)
        assert section is None or isinstance(section, Section)
        return section

    def plain(self) -> dict[str, Any]:
        """The recipe with every default filled in, as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


SETTINGS: dict[str, type[Section]] = {"importance": ImportanceSettings}
"""Sections of the stages that several workers share."""


def settings_of(stage: str, text: str) -> Section:
    """The settings of a shared stage from their JSON."""
    return SETTINGS[stage].model_validate_json(text)
