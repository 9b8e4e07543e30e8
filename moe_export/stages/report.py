"""What a run has found, as data, as text and as a page with pictures."""

from __future__ import annotations

from moe_export.artifacts.base import load_json, save_json
from moe_export.recipe import ReportSettings
from moe_export.reporting.build import build_report
from moe_export.reporting.markdown import report_markdown
from moe_export.reporting.report_page import report_html
from moe_export.stages.job import Job

REPORT_FILE = "report.json"
TEXT_FILE = "report.md"
PAGE_FILE = "report.html"


def run(job: Job[ReportSettings]) -> None:
    """Writes `report.json`, and `report.md` and `report.html`, which show nothing else.

    Raises:
        ArtifactError: a file of an earlier stage is missing, damaged or of another version.
    """
    job.progress(0, 3, REPORT_FILE)
    save_json(job.out / REPORT_FILE, build_report(job.folders, job.settings))
    report = load_json(job.out / REPORT_FILE)
    job.progress(1, 3, TEXT_FILE)
    (job.out / TEXT_FILE).write_text(report_markdown(report), encoding="utf-8")
    job.progress(2, 3, PAGE_FILE)
    (job.out / PAGE_FILE).write_text(report_html(report), encoding="utf-8")
    job.progress(3, 3, "done")
