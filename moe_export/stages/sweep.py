"""The sweep stage: bytes, accuracy and speed of a grid of widths and formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_export.artifacts.documents import Documents, DocumentScores
from moe_export.artifacts.export import Export
from moe_export.artifacts.measurements import Measurements, headline_setting
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.sweep import Point, PointScores, Sweep, Unpruned
from moe_export.artifacts.validation import Validation
from moe_export.errors import ArtifactError
from moe_export.recipe import SweepSettings
from moe_export.reporting.sweep_table import sweep_html, sweep_markdown
from moe_export.reporting.sweep_verdicts import verdicts
from moe_export.stages.job import Job
from moe_export.variants import BASELINE, ordered


@dataclass(frozen=True)
class _Results:
    """Artifacts of one point.

    Attributes:
        name: name of the point.
        plan: plan of the point.
        export: exported models.
        validation: results of validation.
        measurements: memory and speed.
        documents: document scores.
    """

    name: str
    plan: Plan
    export: Export
    validation: Validation
    measurements: Measurements
    documents: Documents

    @property
    def product(self) -> str:
        """Name of the last variant."""
        return ordered(self.validation.first_provider.variants)[-1]

    @property
    def product_documents(self) -> dict[str, DocumentScores]:
        """Document scores of the product on the first provider, by task."""
        return next(iter(self.documents.providers.values()))[self.product]


def run(job: Job[SweepSettings]) -> None:
    """Writes `Sweep`, and the table and the page that are rendered from it.

    Raises:
        ArtifactError: a file of a point is missing, damaged or of another version.
    """
    results = [_load(name, folders) for name, folders in _folders_by_point(job.folders).items()]
    sweep = _sweep(results)
    sweep.save(job.out)
    (job.out / Sweep.TABLE).write_text(sweep_markdown(sweep), encoding="utf-8")
    (job.out / Sweep.PAGE).write_text(sweep_html(sweep), encoding="utf-8")


def _folders_by_point(folders: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Groups folders by point; their names are `point/stage`."""
    by_point: dict[str, dict[str, Path]] = {}
    for name, folder in folders.items():
        point, _, stage = name.rpartition("/")
        by_point.setdefault(point, {})[stage] = folder
    return by_point


def _load(name: str, folders: Mapping[str, Path]) -> _Results:
    return _Results(
        name,
        Plan.load(folders["plan"]),
        Export.load(folders["export"]),
        Validation.load(folders["validate"]),
        Measurements.load(folders["validate"]),
        Documents.load(folders["validate"]),
    )


def _sweep(results: list[_Results]) -> Sweep:
    baseline = next((unpruned for each in results if (unpruned := _unpruned(each))), None)
    if baseline is None:
        raise ArtifactError(
            f"{Validation.FILE}: no point of the sweep has the unpruned model; run the sweep from "
            "the export stage"
        )
    points = tuple(_point(each) for each in results)
    documents = {each.name: each.product_documents for each in results}
    first = results[0]
    return Sweep(
        baseline=baseline,
        points=points,
        verdicts=verdicts(points, baseline.weights_bytes, documents),
        documents={task: len(scores.tokens) for task, scores in documents[first.name].items()},
        speed_setting=next(
            (point.speed_setting for point in points if point.speed_setting is not None), None
        ),
        machine=first.measurements.machine,
        versions=first.measurements.versions,
    )


def _unpruned(results: _Results) -> Unpruned | None:
    """Returns the figures of the unpruned model; None if the point did not export it."""
    variants = results.validation.first_provider.variants
    return _figures(results, BASELINE) if BASELINE in variants else None


def _point(results: _Results) -> Point:
    figures = _figures(results, results.product)
    unpruned = _unpruned(results)
    rate = figures.decode_tokens_per_s
    # Both were measured one after the other, so that other work on the machine slows both.
    reference = unpruned.decode_tokens_per_s if unpruned else None
    formats = results.plan.quantization
    *_, experts = results.name.split("-")
    return Point(
        name=results.name,
        experts=experts,
        formats=formats.experts if formats else "float",
        kept=results.plan.kept,
        weights_bytes=figures.weights_bytes,
        active_bytes_per_token=figures.active_bytes_per_token,
        mean_exact_match=figures.mean_exact_match,
        mean_kl_nats=figures.mean_kl_nats,
        tasks=figures.tasks,
        decode_tokens_per_s=rate,
        decode_ratio=rate / reference if rate and reference else None,
        speed_setting=headline_setting(results.measurements.speed),
        top_k=results.plan.top_k,
    )


def _figures(results: _Results, variant: str) -> Unpruned:
    """Gathers the figures that the unpruned model and a point share."""
    planned = results.plan.export_bytes[results.export.dtype].of(variant)
    if planned is None:
        raise ArtifactError(
            f"{Plan.FILE} of point {results.name}: bytes of variant {variant} are missing; run the "
            "sweep from the plan stage"
        )
    scores = results.validation.first_provider.variants[variant]
    kl = [task.kl_nats for task in scores.tasks.values() if task.kl_nats is not None]
    return Unpruned(
        weights_bytes=results.export.variants[variant].data_bytes,
        active_bytes_per_token=planned.active_bytes_per_token,
        mean_exact_match=scores.mean_exact_match,
        mean_kl_nats=sum(kl) / len(kl) if kl else None,
        tasks={
            name: PointScores(exact_match=task.exact_match, loss_nats=task.loss_nats)
            for name, task in scores.tasks.items()
        },
        decode_tokens_per_s=_decode_rate(results.measurements, variant),
    )


def _decode_rate(measurements: Measurements, variant: str) -> float | None:
    """Returns the median speed of decoding at the headline's setting; None if not measured."""
    setting = headline_setting(measurements.speed)
    rates = (
        entry.decode_tokens_per_s.median
        for entry in measurements.speed
        if entry.variant == variant and entry.setting == setting
    )
    return next(rates, None)
