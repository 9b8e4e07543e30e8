from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from moe_export.errors import ArtifactError
from moe_export.reporting.compare import compare, text_rows, to_html
from tests.helpers.report_keys import documented, paths_of
from tests.helpers.synthetic_runs import write_report


@pytest.fixture(scope="module")
def runs(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    others = tmp_path_factory.mktemp("others")
    write_report(others / "quarter", keep=0.25)
    write_report(others / "alone", baseline=False, gate_passed=False)
    return [run, others / "quarter", others / "alone"]


def test_three_runs_give_a_column_for_each_and_one_for_the_baseline_they_share(
    runs: list[Path],
) -> None:
    columns = [(c.run, c.variant, c.kept) for c in compare(runs).columns]
    assert columns == [
        ("half", "baseline", 1.0),
        ("half", "pruned", 0.5),
        ("quarter", "pruned", 0.25),
        ("alone", "pruned", 0.5),
    ]


def test_the_rows_hold_memory_accuracy_and_speed(runs: list[Path]) -> None:
    head, *rows = text_rows(compare(runs))
    assert head == ["run", "half", "half", "quarter", "alone"]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["weights"] == ["14.7 MiB", "8.67 MiB", "5.67 MiB", "8.67 MiB"]
    assert cells["facts"] == ["97.3 %", "94.8 %", "94.8 %", "94.8 %"]
    assert cells["text, nats"] == ["3.32", "3.37", "3.37", "3.37"]
    assert cells["decode ratio"] == ["1.00×", "1.62×", "1.62×", "–"]
    assert cells["gates"] == ["", "pass", "pass", "FAIL"]


def test_every_key_of_a_comparison_is_documented(runs: list[Path]) -> None:
    assert set(paths_of(json.loads(compare(runs).text()))) == documented("The comparison")


def test_a_comparison_is_plain_json_and_its_page_is_self_contained(runs: list[Path]) -> None:
    found = compare(runs)
    assert json.loads(found.text()) == {"schema": 1} | found.plain()
    page = to_html(found)
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)|<script|https?://", page)
    assert to_html(compare(runs)) == page
    assert ["weights", "14.7 MiB", "8.67 MiB", "5.67 MiB", "8.67 MiB"] in text_rows(found)


def test_other_machines_are_told_of(runs: list[Path], tmp_path: Path) -> None:
    write_report(tmp_path / "far")
    path = tmp_path / "far" / "report" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    report["machine"]["cpu"] = "Another CPU"
    path.write_text(json.dumps(report), encoding="utf-8")
    assert compare(runs).notes == ()
    notes = compare([*runs, tmp_path / "far"]).notes
    assert notes == (
        "The runs were measured on different machines: their speed is not to be compared.",
    )


def test_without_a_setting_in_common_no_speed_is_compared(runs: list[Path], tmp_path: Path) -> None:
    write_report(tmp_path / "other")
    path = tmp_path / "other" / "report" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    for entry in report["speed"]:
        entry["threads"] += 10
    path.write_text(json.dumps(report), encoding="utf-8")
    found = compare([runs[0], tmp_path / "other"])
    assert found.speed_setting is None
    assert {column.decode_tokens_per_s for column in found.columns} == {None}
    assert "Speed is not compared." in to_html(found)


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        write_report(tmp_path / parent / "run")
    names = compare([tmp_path / "a" / "run", tmp_path / "b" / "run"]).runs
    assert names == ("a/run", "b/run")


def test_a_run_given_twice_stands_twice(run: Path) -> None:
    assert compare([run, run]).runs == ("half", "half (2)")


def test_a_run_without_a_report_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no report .*run its recipe"):
        compare([run, tmp_path])
