"""Memory of a GPU in report and comparison, where one ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.artifacts.measurements import Measurements
from moe_export.artifacts.report import Report
from moe_export.artifacts.stage_mark import StageMark
from moe_export.artifacts.validation import Validation
from moe_export.recipe import ReportSettings
from moe_export.reporting.compare import compare, text_rows
from moe_export.stages import report
from moe_export.stages.job import Job
from tests.helpers.artifacts import load_json, save_json
from tests.helpers.report_artifacts import RANKING
from tests.helpers.report_keys import documented, of_section, paths_of
from tests.helpers.synthetic_runs import write_run

MIB = 1 << 20


@pytest.fixture(scope="module")
def device_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic run as it would be on a GPU."""
    run = tmp_path_factory.mktemp("device") / "gpu"
    folders = write_run(run)
    validation = load_json(folders["validate"] / Validation.FILE)
    validation["providers"] = {"cuda": validation["providers"]["cpu"]}
    # Fields that are absent from other runs, so that the keys below are all keys.
    rates = {"first_token_match": 0.95, "choice_accuracy": 0.97, "kl_nats": 0.02, "loss_nats": 0.1}
    for name, rate in rates.items():
        scores = validation["providers"]["cuda"]["variants"]["pruned"]["tasks"]["sums"]
        scores |= {name: rate, f"{name}_stderr": 0.01}
    save_json(folders["validate"] / Validation.FILE, validation)
    calibration = load_json(folders["calibrate"] / CalibrationSummary.FILE)
    calibration["sources"][0] |= {"bos": "tokenizer", "held_out_sequences": 4}
    save_json(folders["calibrate"] / CalibrationSummary.FILE, calibration)
    mark = load_json(folders["importance"] / StageMark.FILE)
    mark["identity"]["threads"] = 2
    save_json(folders["importance"] / StageMark.FILE, mark)
    folders["ranking"] = run / "ranking"
    folders["ranking"].mkdir()
    save_json(folders["ranking"] / StageMark.FILE, mark)
    RANKING.save(folders["ranking"])
    measurements = load_json(folders["validate"] / Measurements.FILE)
    for entry in measurements["memory"] + measurements["speed"]:
        entry["provider"] = "cuda"
    for number, entry in enumerate(measurements["memory"], 1):
        entry["device_loaded_bytes"] = number * 16 * MIB
        entry["device_peak_bytes"] = number * 24 * MIB
        entry["device_kv_cache_bytes"] = 3 * MIB
    save_json(folders["validate"] / Measurements.FILE, measurements)
    (run / "report").mkdir()
    report.run(Job(ReportSettings(), run / "model", folders, run / "report"))
    return run


def test_the_report_has_a_table_of_device_memory_where_a_gpu_ran(
    device_run: Path, run: Path
) -> None:
    text = (device_run / "report" / "report.md").read_text()
    assert "| device memory | loaded | peak | KV cache |" in text
    assert "| baseline, cuda | 16.0 MiB | 24.0 MiB | 3.00 MiB |" in text
    assert "driver counts as in use on the device" in text
    assert "device memory" in (device_run / "report" / "report.html").read_text()
    for name in ("report.md", "report.html"):
        assert "device memory" not in (run / "report" / name).read_text()


def test_the_keys_are_those_of_a_report_without_a_gpu(device_run: Path) -> None:
    found = load_json(device_run / "report" / Report.FILE)
    assert set(paths_of(found)) == documented("report.json") - of_section("tuning")


def test_a_comparison_has_rows_of_device_memory_where_any_run_has_a_gpu(
    device_run: Path, run: Path
) -> None:
    rows = {row[0]: row[1:] for row in text_rows(compare([run, device_run]))}
    assert rows["device loaded"] == ["–", "–", "32.0 MiB"]
    assert rows["device peak"] == ["–", "–", "48.0 MiB"]
    assert rows["device KV cache"] == ["–", "–", "3.00 MiB"]
    assert "device peak" not in {row[0] for row in text_rows(compare([run]))}
