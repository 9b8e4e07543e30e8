"""The ranking stage: rankings compared on held-out sequences, for `plan.score: auto`."""

from __future__ import annotations

from moe_export.artifacts.calibration import Calibration, CalibrationSummary, HeldOut
from moe_export.artifacts.importance import Importance
from moe_export.families import open_checkpoint
from moe_export.families.axis import Axis
from moe_export.ranking.candidates import candidates_of
from moe_export.ranking.choose import choose_ranking
from moe_export.ranking.held_out import HeldOutSet
from moe_export.recipe import RankingSettings
from moe_export.stages.job import Job


def run(job: Job[RankingSettings]) -> None:
    """Writes the comparison and the choice.

    Raises:
        PlanError: the budget cannot be met.
        RecipeError: the shared expert is to be pruned and the model has none.
    """
    settings = job.settings
    assert settings.plan is not None
    checkpoint, spec = open_checkpoint(job.model)
    axis = Axis(spec, settings.plan.prunes_shared)
    importance = Importance.load(job.folders["importance"])
    calibrated = job.folders["calibrate"]
    names = [source.name for source in CalibrationSummary.load(calibrated).sources]
    choose_ranking(
        job.model,
        list(candidates_of(checkpoint, axis, importance, settings)),
        Calibration.load(calibrated),
        HeldOutSet(HeldOut.load(calibrated), tuple(names)),
        settings,
        job.partial,
        job.progress,
    ).save(job.out)
