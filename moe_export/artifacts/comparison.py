"""JSON of `moe-export compare`: several runs side by side."""

from __future__ import annotations

from typing import ClassVar

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.artifacts.measurements import SpeedSetting


class ComparedTask(Record):
    """Scores of one column on one task.

    Attributes:
        task: name of the task.
        exact_match: fraction of documents with every answer token right; None without answers.
        loss_nats: mean negative log-likelihood per scored token.
    """

    task: str
    exact_match: float | None
    loss_nats: float


class Column(Record):
    """One exported variant of one run; figures are those of its report.

    Attributes:
        run: name of the run.
        variant: name of the variant; a baseline that several runs share is listed once.
        title: title of the run's report.
        score: name of the ranking's score; None for a baseline.
        kept: fraction of rows that are kept.
        shared_expert_kept: fraction of the shared expert's rows that are kept; None without one.
        format: formats of the weights, in words.
        weights_bytes: size of `model.onnx.data`.
        active_bytes_per_token: bytes of weights that a token reads; None if not predicted.
        load_peak_bytes: peak resident memory on the first provider; None if not measured.
        steady_resident_bytes: resident memory on the first provider; None if not measured.
        device_loaded_bytes: memory in use on the GPU after loading; None without a GPU.
        device_peak_bytes: most memory in use on the GPU; None without a GPU.
        device_kv_cache_bytes: keys and values of the largest batch on the GPU; None without a GPU.
        mean_exact_match: mean over the tasks with answers, fraction; None if not measured.
        recovery: mean exact match over the baseline's, by task; None without a baseline.
        tasks: scores of each task.
        prefill_tokens_per_s: median at the comparison's setting; None if not measured.
        decode_tokens_per_s: median at the comparison's setting; None if not measured.
        decode_ratio: ratio to the median of the run's own baseline; None if not measured.
        gates_passed: True if the run met every gate; None for a baseline.
    """

    run: str
    variant: str
    title: str
    score: str | None
    kept: float
    shared_expert_kept: float | None
    format: str
    weights_bytes: int
    active_bytes_per_token: int | None
    load_peak_bytes: int | None
    steady_resident_bytes: int | None
    device_loaded_bytes: int | None
    device_peak_bytes: int | None
    device_kv_cache_bytes: int | None
    mean_exact_match: float | None
    recovery: float | None
    tasks: tuple[ComparedTask, ...]
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    decode_ratio: float | None
    gates_passed: bool | None

    def task(self, name: str) -> ComparedTask | None:
        """Returns the scores on a task; None if the run did not score it."""
        return next((task for task in self.tasks if task.task == name), None)

    def is_same_model(self, other: Column) -> bool:
        """Returns True if both are the same model with the same scores, at any speed."""
        mine = (self.variant, self.format, self.weights_bytes, self.tasks)
        return mine == (other.variant, other.format, other.weights_bytes, other.tasks)


class Comparison(JsonArtifact):
    """Comparison of runs, the JSON of `moe-export compare --json`.

    Attributes:
        runs: names of the runs: their folders, with parents if these are alike.
        tasks: names of all tasks.
        speed_setting: conditions of all speeds, measured in every run and chosen like those of the
            headline; None if there are no such conditions.
        notes: warnings for the reader, such as different machines.
        columns: one column per exported variant and run.
    """

    FILE: ClassVar[str] = "comparison.json"

    runs: tuple[str, ...]
    tasks: tuple[str, ...]
    speed_setting: SpeedSetting | None
    notes: tuple[str, ...]
    columns: tuple[Column, ...]
