"""Importance: a score for every dimension of every routed expert, from the calibration set, and of
the shared expert where the plan prunes it.

The formulas are with the scores, in `moe_export.scores`. With `rounding_margin` among them, what
rounding costs beside dropping is measured too, see `moe_export.artifacts.exchange`.
"""

from __future__ import annotations

import logging

import torch

from moe_export.artifacts.calibration import evenly_chosen, load_calibration
from moe_export.artifacts.exchange import EXCHANGE_TOKENS, save_exchange
from moe_export.artifacts.importance import Importance, save_importance
from moe_export.families.axis import Axis
from moe_export.fitting.measure_exchange import measure_exchange
from moe_export.recipe import DROPPING_SCORE, ROUNDING_SCORE, ImportanceSettings
from moe_export.scores import scores_named
from moe_export.scoring.collect import collect_importance
from moe_export.stages.job import Job
from moe_export.torch_model import StreamedModel

logger = logging.getLogger(__name__)


def run(job: Job[ImportanceSettings]) -> None:
    """Writes `importance.safetensors`, and `exchange.json` where formats are to be chosen; of
    several workers the first does.

    Raises:
        RecipeError: a score is unknown, or a shared expert that the model has not is to be scored.
        CheckpointError: the model cannot be loaded.
        CalibrationError: the calibration set does not suit the model.
        ResourceError: the disk is too small for the states between layers.
    """
    settings = job.settings
    scores = scores_named(settings.scores)
    calibration = load_calibration(job.folders["calibrate"])
    model = StreamedModel(job.model, getattr(torch, settings.dtype))
    importance = collect_importance(
        model,
        Axis(model.spec, settings.shared_expert is True),
        calibration,
        scores,
        settings.batch_tokens,
        job.partial,
        job.progress,
        job.workers,
    )
    if importance is not None:
        _warn_of_unreached(importance)
        save_importance(job.out, importance)
        if {DROPPING_SCORE, ROUNDING_SCORE} <= set(settings.scores):
            exchange = measure_exchange(
                job.model,
                evenly_chosen(calibration.sequences(), EXCHANGE_TOKENS),
                importance.scores[DROPPING_SCORE],
                importance.scores[ROUNDING_SCORE],
                job.partial / "exchange",
                job.progress,
            )
            save_exchange(job.out, exchange)


def _warn_of_unreached(importance: Importance) -> None:
    for layer, tokens_E in enumerate(importance.tokens_per_expert):
        unreached = [expert for expert, tokens in enumerate(tokens_E) if tokens == 0]
        if unreached:
            logger.warning(
                "layer %d: no calibration token reached %d of %d experts (%s); their importance "
                "is unknown",
                layer,
                len(unreached),
                len(tokens_E),
                ", ".join(map(str, unreached)),
            )
