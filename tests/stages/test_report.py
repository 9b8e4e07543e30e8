from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from moe_export.artifacts.ledger import Ledger
from moe_export.artifacts.report import Report
from moe_export.artifacts.validation import Validation
from moe_export.errors import ArtifactError
from moe_export.recipe import ReportSettings
from moe_export.reporting.build import build_report
from moe_export.reporting.sentences import compensation_sentence
from moe_export.reporting.tables import gates_table
from tests.helpers.artifacts import save_json
from tests.helpers.report_keys import documented, of_section, paths_of
from tests.helpers.synthetic_runs import write_report, write_run

FILES = (Report.FILE, Report.TEXT, Report.PAGE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "half"
    write_report(folder, title="Half of it")
    return folder


def read(run: Path, name: str) -> str:
    return (run / "report" / name).read_text(encoding="utf-8")


def absent() -> set[str]:
    """Keys of tuning and of a comparison of rankings, which the synthetic run has none of."""
    of_calibration = "calibration.sources[].held_out_sequences"
    return of_section("ranking") | of_section("tuning") | {of_calibration}


def test_every_key_of_the_report_is_documented_and_every_documented_key_is_there(run: Path) -> None:
    found = set(paths_of(json.loads(read(run, "report.json"))))
    assert found == documented("report.json") - absent()


def test_a_report_without_a_baseline_has_the_same_keys(run: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "alone", baseline=False)
    alone = json.loads(read(tmp_path / "alone", "report.json"))
    # An empty list of what was not loaded: nothing is known of its content.
    not_exported = {"memory.variants[].resident"}
    assert set(paths_of(alone)) - not_exported == documented("report.json") - absent()


def test_the_report_is_the_same_bytes_for_the_same_inputs(run: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "other", title="Half of it")
    for name in FILES:
        assert read(tmp_path / "other", name) == read(run, name), name


def test_the_page_is_self_contained(run: Path) -> None:
    page = read(run, "report.html")
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", page)
    assert not re.search(r"url\((?![\"']?#)|@import|<script|<link|https?://", page)
    assert str(run.parent) not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name in re.findall(r"(?:url\(#|xlink:href=\"#)([^)\"]+)", page):
        assert name in ids


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_the_number_of_threads_is_told_where_bytes_depend_on_it(run: Path, name: str) -> None:
    stages = json.loads(read(run, "report.json"))["stages"]
    told = {stage["stage"]: stage.get("threads") for stage in stages}
    assert (told["calibrate"], told["importance"], told["prune"]) == (None, 2, 2)
    assert "threads its bytes depend on" in read(run, name)


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_the_headline_numbers_stand_in_text_and_page(run: Path, name: str) -> None:
    text = read(run, name).replace("&nbsp;", " ")
    # 4 layers of 16 experts of 128, bytes and rates as the synthetic run has them.
    for words in (
        "Half of it",
        "50 %",
        "of 8,192 expert dimensions",
        "15,380,178",
        "9,088,722",
        "97.7 → 96.7 %",
        "1.62×",
        "portable function body",
        "Imaginary CPU 3000",
        "5.1e-06",
        "at most 0.0001",
        "94.8 ± 1.6 %",
        "434.9 MiB",
        "1 expert is never reached",
        "20,411 tokens",
    ):
        assert words in text, words


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_an_expert_that_too_few_tokens_reached_is_named(run: Path, name: str) -> None:
    sentence = "1 of them were reached by fewer calibration tokens than they have inputs"
    assert sentence in read(run, name)
    assert "layer 0, expert 1, up_proj: 0 tokens" in read(run, name)


def test_recovery_is_the_one_that_validation_found(run: Path) -> None:
    report = json.loads(read(run, "report.json"))
    validation = json.loads((run / "validate" / Validation.FILE).read_text(encoding="utf-8"))
    assert report["headline"]["recovery"] == pytest.approx(validation["recovery"], rel=1e-12)


def test_predicted_bytes_that_are_not_those_on_disk_are_told_of(tmp_path: Path) -> None:
    folders = write_run(tmp_path / "run")
    with (folders["export"] / "pruned" / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    report_again(tmp_path / "run", folders)
    assert "pruned 1000 instead of 9088722" in read(tmp_path / "run", "report.md")


def test_names_from_outside_are_text_and_never_markup(tmp_path: Path) -> None:
    write_report(
        tmp_path / "run", title="<b>bold</b> | *x* [a](b)", source="<script>alert(1)</script>"
    )
    page, text = read(tmp_path / "run", "report.html"), read(tmp_path / "run", "report.md")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<script" not in text
    assert "# &lt;b>bold&lt;/b> \\| \\*x\\* [a]\\(b)" in text


def test_folders_of_this_machine_do_not_leave_it(tmp_path: Path) -> None:
    write_report(tmp_path / "run", source="/home/somebody/notes.txt")
    for name in FILES:
        assert "notes.txt" in read(tmp_path / "run", name)
        assert "somebody" not in read(tmp_path / "run", name)


def test_a_run_without_a_baseline_says_what_is_not_known(tmp_path: Path) -> None:
    write_report(tmp_path / "run", baseline=False)
    report = json.loads(read(tmp_path / "run", "report.json"))
    assert report["headline"]["recovery"] is None
    assert report["headline"]["decode_ratio"] is None
    assert report["memory"]["variants"][0]["disk_weights_bytes"] is None
    text = read(tmp_path / "run", "report.md")
    assert "(before: predicted)" in text
    assert "the unpruned model was not exported" in text


def test_each_source_has_its_shares_of_tokens_and_of_importance(run: Path) -> None:
    text = read(run, "report.md")
    assert "| weight | share of tokens | share of importance |" in text
    assert "| text | 96 | 0 | 4,082 | – | 20 % | 0.5 % |" in text


def test_a_gate_that_cannot_be_computed_is_shown_with_its_reason(tmp_path: Path) -> None:
    folders = write_run(tmp_path / "run", gate_passed=False)
    validation = Validation.load(folders["validate"])
    change = {"value": None, "detail": "no task has prompts"}
    gates = (validation.gates[0], validation.gates[1].model_copy(update=change))
    validation.model_copy(update={"gates": gates}).save(folders["validate"])
    report = build_report(folders, ReportSettings())
    row = gates_table(report).rows[1]
    assert row[-2:] == ["cannot be computed: no task has prompts", "FAIL"]


def test_a_failed_gate_stands_at_the_top(tmp_path: Path) -> None:
    write_report(tmp_path / "run", gate_passed=False)
    report = json.loads(read(tmp_path / "run", "report.json"))
    assert report["headline"]["gates_passed"] is False
    words = "1 of 2 gates failed: greedy agreement with torch."
    assert f'<span class="fail">{words}</span>' in read(tmp_path / "run", "report.html")


def test_what_was_fitted_is_said_and_what_came_of_it(tmp_path: Path) -> None:
    folders = write_report(tmp_path / "run")
    refitted = "refitted in 60 experts and left in 1 that too few tokens reach"
    held_out = "weights of 1 blocks were distilled. On held-out tokens the squared error"
    errors = "fell from 0.625 to 0.312 (means over blocks)"
    for name in ("report.md", "report.html"):
        text = read(tmp_path / "run", name)
        assert refitted in text
        assert held_out in text
        assert errors in text
        assert "4 routers were distilled: on 1,684 calibration tokens" in text
        assert "0.117 nats with the routers as they were and 0.104 nats" in text
    ledger = json.loads((folders["prune"] / Ledger.FILE).read_text())
    ledger["distill"]["tensors"] = []
    save_json(folders["prune"] / Ledger.FILE, ledger)
    found = build_report(folders, ReportSettings())
    assert "Distilled routers were no better and not taken" in compensation_sentence(found)
    assert found.compensation is not None
    assert found.compensation.refit is not None
    none = found.compensation.refit.model_copy(update={"distilled_blocks": 0})
    fitted = found.compensation.model_copy(update={"refit": none})
    words = compensation_sentence(found.model_copy(update={"compensation": fitted}))
    assert ", and no block was better for being distilled. On held-out tokens" in words
    del ledger["distill"]
    save_json(folders["prune"] / Ledger.FILE, ledger)
    assert "routers" not in compensation_sentence(build_report(folders, ReportSettings()))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folders = write_run(tmp_path / "run")
    (folders["validate"] / Validation.FILE).unlink()
    with pytest.raises(ArtifactError, match=r"validation\.json is missing"):
        report_again(tmp_path / "run", folders)


def test_a_model_of_24_layers_and_60_experts_is_drawn(tmp_path: Path) -> None:
    write_report(tmp_path / "run", num_layers=24, num_experts=60, width=64, keep=0.4)
    page = read(tmp_path / "run", "report.html")
    assert "24 layers × 60 experts" in page
    assert len(page.encode()) < 1_000_000


def report_again(run: Path, folders: dict[str, Path]) -> None:
    from moe_export.recipe import ReportSettings
    from moe_export.stages import report
    from moe_export.stages.job import Job

    (run / "report").mkdir()
    report.run(Job(ReportSettings(), run / "model", folders, run / "report"))


def test_an_unguarded_result_and_open_answers_are_told_and_tasks_have_a_table(run: Path) -> None:
    for name in (Report.TEXT, Report.PAGE):
        text = read(run, name)
        assert "Nothing guards what this model can do" in text
        assert "0.0213 nats, more than 0.0100" in text
        assert "facts (3 of 64)" in text
        assert "0.625 ± 0.0100" in text
        assert "at most 100 documents" in text
    assert '<span class="fail">Nothing guards' in read(run, Report.PAGE)
