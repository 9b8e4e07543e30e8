"""Digests of all files of a run, for a file that is kept elsewhere."""

from __future__ import annotations

from moe_export.artifacts.base import JsonArtifact
from moe_export.artifacts.stage_mark import FileFacts


class Manifest(JsonArtifact):
    """Digests of all files of a run, written by `moe-export verify --write FILE`.

    Attributes:
        files: size and digest of every file by its path relative to the run directory.
    """

    FILE = "manifest.json"

    files: dict[str, FileFacts]
