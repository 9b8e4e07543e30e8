"""The importance stage: a score for every expert dimension, from the calibration set.

The shared expert is scored too if the plan prunes it. The formulas are in `moe_export.scores`. If
formats are to be chosen, the exchange rate between rounding and dropping is measured as well; see
`moe_export.artifacts.exchange`.
"""

from __future__ import annotations

import logging

import torch

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.exchange import EXCHANGE_TOKENS
from moe_export.artifacts.importance import Importance
from moe_export.families.axis import Axis
from moe_export.fitting.measure_exchange import measure_exchange
from moe_export.recipe import ImportanceSettings, rounding_pair
from moe_export.scores import scores_named
from moe_export.scoring.collect import collect_importance
from moe_export.stages.job import Job
from moe_export.torch_model import StreamedModel

logger = logging.getLogger(__name__)


def run(job: Job[ImportanceSettings]) -> None:
    """Writes the scores, and the exchange rate if formats are to be chosen.

    Of several workers the first writes the files.

    Raises:
        RecipeError: a score is unknown.
        CheckpointError: the model cannot be loaded.
        CalibrationError: the calibration set does not fit the model.
        ResourceError: the disk is too small for the states between layers.
    """
    settings = job.settings
    scores = scores_named(settings.scores)
    calibration = Calibration.load(job.folders["calibrate"])
    if settings.calibration_tokens is not None:
        calibration = calibration.thinned(settings.calibration_tokens)
    model = StreamedModel(job.model, getattr(torch, settings.dtype), settings.top_k)
    importance = collect_importance(
        model,
        Axis(model.spec, settings.shared_expert is True and model.spec.has_shared_expert),
        calibration,
        scores,
        settings.batch_tokens,
        job.partial,
        job.progress,
        job.workers,
    )
    if importance is not None:
        _warn_of_unreached(importance)
        importance.save(job.out)
        if pair := rounding_pair(settings.scores):
            dropping, rounding = pair
            exchange = measure_exchange(
                job.model,
                calibration.sample(EXCHANGE_TOKENS),
                importance.scores[dropping],
                importance.scores[rounding],
                job.partial / "exchange",
                job.progress,
                settings.top_k,
            )
            exchange.save(job.out)


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
