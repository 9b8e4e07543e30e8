"""The completion mark of a stage: why its output is as it is, and the digests of its files."""

from __future__ import annotations

from typing import Any

from moe_export.artifacts.base import JsonArtifact, Record


class StageIdentity(Record):
    """Everything that decides the output of a stage.

    Attributes:
        stage: name of the stage.
        version: version of the stage's code.
        settings: the recipe's section, without settings that are None.
        outside: fingerprints of what the stage reads outside the run, by name.
        inputs: keys of the stages that it reads, by name.
        threads: number of torch's threads, if it changes the output; sums are split by it.
    """

    stage: str
    version: int
    settings: dict[str, Any]
    outside: dict[str, str]
    inputs: dict[str, str]
    threads: int | None = None


class FileFacts(Record):
    """One file of a stage.

    Attributes:
        bytes: size.
        sha256: SHA-256 of the content, in hex.
    """

    bytes: int
    sha256: str


class PredictedCost(Record):
    """Predictions for a stage; every field is None if nothing was predicted.

    Attributes:
        wall_s: time in seconds.
        peak_resident_bytes: peak resident memory.
        output_bytes: bytes of all files.
    """

    wall_s: float | None = None
    peak_resident_bytes: int | None = None
    output_bytes: int | None = None


class MeasuredCost(Record):
    """Measurements of a stage.

    Attributes:
        wall_s: time in seconds.
        peak_resident_bytes: peak resident memory.
    """

    wall_s: float
    peak_resident_bytes: int


class StageMark(JsonArtifact):
    """The mark of a finished stage, written last.

    Attributes:
        key: SHA-256 of the identity, in hex.
        identity: everything that decides the output.
        files: size and digest of every file by its path relative to the stage's folder.
        predicted: predictions made before the stage ran.
        measured: time and memory of the stage.
        moe_export: version of moe-export that wrote the files.
    """

    FILE = "stage.json"

    key: str
    identity: StageIdentity
    files: dict[str, FileFacts]
    predicted: PredictedCost
    measured: MeasuredCost
    moe_export: str

    @property
    def output_bytes(self) -> int:
        """Bytes of all files of the stage, the mark excluded."""
        return sum(file.bytes for file in self.files.values())
