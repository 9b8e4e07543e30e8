"""Paths and content of what a run has left in its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_export.artifacts.bakeoff import Bakeoff
from moe_export.artifacts.evaluation import Evaluation
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.report import Report
from moe_export.artifacts.run_info import ResolvedRecipe
from moe_export.artifacts.sweep import Sweep
from moe_export.artifacts.validation import Validation
from moe_export.evaluation.gates import raise_for_gates
from moe_export.variants import exported


@dataclass(frozen=True)
class RunResult:
    """Results in a run directory, as far as its stages have come.

    Attributes:
        directory: the run directory, one folder per stage.
    """

    directory: Path

    @property
    def report(self) -> Path | None:
        """The report's page, `report/report.html`; None before the report stage."""
        return _existing(self.directory / "report" / Report.PAGE)

    @property
    def comparison(self) -> Path | None:
        """Table of a bakeoff (`bakeoff.md`) or a sweep (`sweep.md`); None for other runs."""
        names = {"bakeoff": Bakeoff.TABLE, "sweep": Sweep.TABLE}
        tables = (_existing(self.directory / stage / name) for stage, name in names.items())
        return next(filter(None, tables), None)

    @property
    def exports(self) -> dict[str, Path]:
        """Folders of the exported models by variant; the last one is the product."""
        return exported(self.directory / "export")

    @property
    def plan(self) -> Plan:
        """The plan: a width for every expert, and predicted bytes.

        Raises:
            ArtifactError: the plan stage has not run, or the file is damaged.
        """
        return Plan.load(self.directory / "plan")

    def require_gates(self) -> None:
        """Checks that validation and the tasks of lm-eval met every limit of the recipe.

        Raises:
            GateError: a limit was not met.
            ArtifactError: the validate stage has not run.
        """
        gates = Validation.load(self.directory / "validate").gates
        evaluation = self.evaluation
        raise_for_gates((*gates, *(evaluation.gates if evaluation else ())))

    @property
    def evaluation(self) -> Evaluation | None:
        """Scores of lm-eval's tasks; None if the run's recipe has none, or before they have run.

        Raises:
            ArtifactError: a file is damaged.
        """
        folder = self.directory / "eval"
        if not (folder / Evaluation.FILE).is_file():
            return None
        # The folder may be left from another recipe.
        asked = ResolvedRecipe.load(self.directory).recipe.get("eval")
        return Evaluation.load(folder) if asked else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
