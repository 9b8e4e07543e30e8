"""Content of `report.json`, from the folders of a run; docs/reference/report.md lists its keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from moe_export import __version__
from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.artifacts.evaluation import Evaluation
from moe_export.artifacts.export import Export
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.ledger import Ledger
from moe_export.artifacts.measurements import Measurements
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.ranking import Ranking
from moe_export.artifacts.report import Report
from moe_export.artifacts.report_making import StageCost
from moe_export.artifacts.stage_mark import StageMark
from moe_export.artifacts.tuning import Tuning
from moe_export.artifacts.validation import Validation
from moe_export.errors import ArtifactError
from moe_export.recipe import PruneSettings, ReportSettings, Section, ValidateSettings
from moe_export.reporting.build_compensation import compensation_facts
from moe_export.reporting.build_headline import headline
from moe_export.reporting.build_memory import memory_facts
from moe_export.reporting.build_plan import (
    coverage_facts,
    importance_facts,
    model_facts,
    plan_facts,
)
from moe_export.reporting.build_quantization import quantization_facts
from moe_export.reporting.build_validation import (
    accuracy_facts,
    answer_end_facts,
    evaluation_facts,
    execution_facts,
    gate_facts,
    parity_facts,
    warning_facts,
)
from moe_export.reporting.methods import methods_of
from moe_export.reporting.tuning_table import tuning_facts
from moe_export.reporting.units import percent

SettingsT = TypeVar("SettingsT", bound=Section)

_ROOTED = re.compile(r"^(?:[/~\\]|[A-Za-z]:[\\/]|\.\.?[\\/]).*[\\/]")


def build_report(folders: Mapping[str, Path], settings: ReportSettings) -> Report:
    """Gathers what the stages of a run have written.

    Args:
        folders: folder of each stage by its name.
        settings: the recipe's `report` section.

    Returns:
        The report, the same for the same files, with folders of this machine left out.

    Raises:
        ArtifactError: a file is missing, damaged or of another version.
    """
    plan = Plan.load(folders["plan"])
    importance = Importance.load(folders["importance"])
    export = Export.load(folders["export"])
    ledger = Ledger.load(folders["prune"])
    validation = Validation.load(folders["validate"])
    measurements = Measurements.load(folders["validate"])
    marks = {stage: StageMark.load(folder) for stage, folder in folders.items()}
    used = {stage: mark.identity.settings for stage, mark in marks.items()}
    model = model_facts(folders["prune"], plan, importance)
    planned = plan_facts(folders["prune"], plan, importance)
    memory = memory_facts(folders, plan, export, ledger, measurements)
    accuracy = accuracy_facts(validation)
    evaluation = Evaluation.load(folders["eval"]) if "eval" in folders else None
    gates = (*validation.gates, *(evaluation.gates if evaluation else ()))
    return _without_folders_of(
        Report(
            headline=headline(plan.kept, memory, accuracy, measurements.speed, gates),
            title=settings.title or f"{model.family}, {percent(plan.kept)} of expert dimensions",
            moe_export=__version__,
            model=model,
            tuning=tuning_facts(Tuning.load(folders["tune"])) if "tune" in folders else None,
            ranking=Ranking.load(folders["ranking"]) if "ranking" in folders else None,
            plan=planned,
            importance=importance_facts(plan, importance),
            coverage=coverage_facts(importance),
            calibration=CalibrationSummary.load(folders["calibrate"]),
            memory=memory,
            compensation=compensation_facts(ledger, _settings(PruneSettings, folders["prune"])),
            quantization=quantization_facts(folders.get("quantize")),
            accuracy=accuracy,
            answer_ends=answer_end_facts(validation) or None,
            evaluation=evaluation_facts(evaluation),
            parity=parity_facts(validation),
            gates=gate_facts(gates),
            warning=warning_facts(validation, evaluation),
            speed=measurements.speed,
            execution=execution_facts(measurements.speed),
            machine=measurements.machine,
            versions=measurements.versions,
            stages=tuple(_cost(stage, mark) for stage, mark in marks.items()),
            methods=methods_of(validation, _settings(ValidateSettings, folders["validate"]).speed),
            settings=used,
        )
    )


def _settings(kind: type[SettingsT], folder: Path) -> SettingsT:
    """Reads the settings of a finished stage."""
    mark = StageMark.load(folder)
    try:
        return kind.model_validate_json(json.dumps(mark.identity.settings))
    except ValidationError as error:
        raise ArtifactError(
            f"{folder / StageMark.FILE}: the settings are not those of this version of moe-export; "
            "run the stage again"
        ) from error


def _cost(stage: str, mark: StageMark) -> StageCost:
    return StageCost(
        stage=stage,
        wall_s=mark.measured.wall_s,
        peak_resident_bytes=mark.measured.peak_resident_bytes,
        output_bytes=mark.output_bytes,
        predicted=mark.predicted if mark.predicted.plain() else None,
        threads=mark.identity.threads,
    )


def _without_folders_of(report: Report) -> Report:
    return Report.from_plain(without_folders(report.plain()))


def without_folders(value: Any) -> Any:
    """Reduces every file that a JSON value names by path to the file's name.

    A report is handed on, and the folders of the machine that made it are private.

    >>> without_folders({"text": "/home/ann/notes.txt", "hub": "owner/name"})
    {'text': 'notes.txt', 'hub': 'owner/name'}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return _ROOTED.sub("", value) if isinstance(value, str) else value
