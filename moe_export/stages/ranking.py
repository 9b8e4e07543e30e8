"""The ranking stage: rankings compared on held-out sequences, for `plan.score: auto`."""

from __future__ import annotations

from moe_export.artifacts.importance import Importance
from moe_export.families import open_checkpoint
from moe_export.families.axis import Axis
from moe_export.ranking.choose import chosen_ranking
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
    _, spec = open_checkpoint(job.model)
    axis = Axis(spec, settings.plan.prunes_shared_of(spec.has_shared_expert))
    chosen_ranking(
        job.model,
        axis.routed_to(settings.plan.top_k),
        Importance.load(job.folders["importance"]),
        job.folders["calibrate"],
        settings,
        job.partial,
        job.progress,
    ).save(job.out)
