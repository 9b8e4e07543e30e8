"""The report stage: the findings of a run as data, as text and as a page with pictures."""

from __future__ import annotations

from moe_export.artifacts.report import Report
from moe_export.recipe import ReportSettings
from moe_export.reporting.build import build_report
from moe_export.reporting.card_results import write_cards
from moe_export.reporting.markdown import report_markdown
from moe_export.reporting.report_page import report_html
from moe_export.stages.job import Job


def run(job: Job[ReportSettings]) -> None:
    """Writes `Report`, the text and the page that are rendered from it, and the models' cards.

    Raises:
        ArtifactError: a file of an earlier stage is missing, damaged or of another version.
    """
    job.progress(0, 3, Report.FILE)
    report = build_report(job.folders, job.settings)
    report.save(job.out)
    job.progress(1, 3, Report.TEXT)
    (job.out / Report.TEXT).write_text(report_markdown(report), encoding="utf-8")
    job.progress(2, 3, Report.PAGE)
    (job.out / Report.PAGE).write_text(report_html(report), encoding="utf-8")
    write_cards(report, job.folders["export"], job.folders["prune"], job.out)
    job.progress(3, 3, "done")
