"""Errors that users can meet, and the exit code of each.

    MoeExportError            1  any other error raised on purpose
    ├── RecipeError           2  the recipe or the command line: key, file, line
    ├── DependencyError       3  a package, provider, library or data set asked for is absent
    ├── ResourceError         4  disk or memory does not suffice
    ├── GateError             5  a limit of the recipe was not met; the report is still written
    ├── CheckpointError       6  the source model: a file or tensor is missing, damaged or unknown
    ├── CalibrationError      7  the calibration set: empty, too short, unreadable
    ├── PlanError             8  the budget cannot be met
    ├── ArtifactError         9  the run directory: missing, damaged, in use or of another version
    └── ShapeError           10  arrays that do not fit together (a caller's mistake)

A message is one sentence: what was wrong, where, what was expected and found, and what to do.
"""

from __future__ import annotations

INTERRUPTED_EXIT_CODE = 130


class MoeExportError(Exception):
    """Base class of all errors raised on purpose."""

    exit_code = 1


class RecipeError(MoeExportError):
    """Recipe or command line that cannot be carried out as written."""

    exit_code = 2


class DependencyError(MoeExportError):
    """Package, provider, library or data set that was asked for and is absent."""

    exit_code = 3


class ResourceError(MoeExportError):
    """Disk or memory that does not suffice."""

    exit_code = 4


class GateError(MoeExportError):
    """Limit of the recipe that was not met."""

    exit_code = 5


class CheckpointError(MoeExportError):
    """Source model that is incomplete, damaged or of an unknown kind."""

    exit_code = 6


class CalibrationError(MoeExportError):
    """Calibration set that is empty, too short or unreadable."""

    exit_code = 7


class PlanError(MoeExportError):
    """Budget that cannot be met."""

    exit_code = 8


class ArtifactError(MoeExportError):
    """Run directory that is incomplete, damaged, in use or written by another version."""

    exit_code = 9


class ShapeError(MoeExportError):
    """Arrays that do not fit together."""

    exit_code = 10
