"""`sweep.json`: a grid of widths and formats, and the plan's own choices held against it."""

from __future__ import annotations

from typing import ClassVar

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.artifacts.measurements import Machine, SpeedSetting


class PointScores(Record):
    """Scores of one model on one task.

    Attributes:
        exact_match: fraction of documents with every answer token right; None for a task without
            answers.
        loss_nats: mean negative log-likelihood per scored token.
    """

    exact_match: float | None
    loss_nats: float


class Unpruned(Record):
    """Figures of the unpruned model.

    Attributes:
        weights_bytes: size of `model.onnx.data`.
        active_bytes_per_token: bytes of weights that a token reads, mean over the calibration.
        mean_exact_match: mean over the tasks with answers, fraction; None if no task has answers.
        mean_kl_nats: divergence from itself, which is not measured.
        tasks: scores by task name.
        decode_tokens_per_s: median speed of decoding at the sweep's setting; None if not measured.
    """

    weights_bytes: int
    active_bytes_per_token: int
    mean_exact_match: float | None
    mean_kl_nats: float | None
    tasks: dict[str, PointScores]
    decode_tokens_per_s: float | None


class Point(Record):
    """Figures of one exported model of the grid.

    Attributes:
        name: name of the point, unique in a sweep: how it was chosen, and the experts' format.
        experts: format of the experts that was asked for; `auto` is the plan's own choice.
        formats: format of the experts, or one per layer.
        kept: fraction of expert dimensions that are kept.
        weights_bytes: size of `model.onnx.data`.
        active_bytes_per_token: bytes of weights that a token reads, mean over the calibration.
        mean_exact_match: mean over the tasks with answers, fraction; None if no task has answers.
        mean_kl_nats: divergence from the unpruned model per token, mean over the tasks; None
            without a baseline.
        tasks: scores by task name.
        decode_tokens_per_s: median speed of decoding at `speed_setting`; None if not measured.
        decode_ratio: ratio of that speed to the unpruned model's, measured in the same run; None if
            either was not measured.
        speed_setting: conditions of the speed; None if not measured.
        top_k: experts per token; None if they are the unpruned model's.
    """

    name: str
    experts: str
    formats: str | tuple[str, ...]
    kept: float
    weights_bytes: int
    active_bytes_per_token: int
    mean_exact_match: float | None
    mean_kl_nats: float | None
    tasks: dict[str, PointScores]
    decode_tokens_per_s: float | None
    decode_ratio: float | None
    speed_setting: SpeedSetting | None
    top_k: int | None = None


class KlVerdict(Record):
    """Comparison of the plan's choice with the uniform point of the least KL.

    Attributes:
        best: name of the other point.
        difference: KL of the plan's choice less that of the other, nats per token.
        stderr: standard error of the difference.
        verdict: `better`, `worse` or `equal within error`.
    """

    best: str
    difference: float
    stderr: float
    verdict: str


class MatchVerdict(Record):
    """Comparison of the plan's choice with the uniform point of the most exact matches.

    Attributes:
        best: name of the other point.
        difference: exact match of the plan's choice less that of the other, fraction.
        stderr: standard error of the difference.
        verdict: `better`, `worse` or `equal within error`.
        only_own: number of documents that only the plan's choice has right.
        only_other: number of documents that only the other has right.
        documents: number of documents with answers.
    """

    best: str
    difference: float
    stderr: float
    verdict: str
    only_own: int
    only_other: int
    documents: int


class Verdict(Record):
    """Comparison of the plan's choice at one budget with the uniform points of no more bytes.

    Attributes:
        share: budget in percent of the unpruned bytes, as point names have it.
        own: name of the plan's choice.
        others: number of uniform points of no more bytes.
        by_kl: comparison by KL; None if not measured or without another point.
        by_match: comparison by exact match; None if not measured or without another point.
    """

    share: str
    own: str
    others: int
    by_kl: KlVerdict | None
    by_match: MatchVerdict | None


class Sweep(JsonArtifact):
    """Figures of all points of a sweep.

    Attributes:
        baseline: figures of the unpruned model.
        points: figures of the exported models, in the order of the sweep.
        verdicts: one comparison per budget.
        documents: number of documents by task name.
        speed_setting: conditions of the speeds; None if no speed was measured.
        machine: machine of the measurements.
        versions: version by package, for those that decide a result.
    """

    FILE: ClassVar[str] = "sweep.json"
    TABLE: ClassVar[str] = "sweep.md"
    PAGE: ClassVar[str] = "sweep.html"

    baseline: Unpruned
    points: tuple[Point, ...]
    verdicts: tuple[Verdict, ...]
    documents: dict[str, int]
    speed_setting: SpeedSetting | None
    machine: Machine
    versions: dict[str, str]

    @property
    def unpruned(self) -> Point:
        """The unpruned model as a point of the grid."""
        return Point(
            name="",
            experts="float",
            formats="unpruned, float",
            kept=1.0,
            weights_bytes=self.baseline.weights_bytes,
            active_bytes_per_token=self.baseline.active_bytes_per_token,
            mean_exact_match=self.baseline.mean_exact_match,
            mean_kl_nats=None,
            tasks=self.baseline.tasks,
            decode_tokens_per_s=self.baseline.decode_tokens_per_s,
            decode_ratio=1.0,
            speed_setting=self.speed_setting,
        )
