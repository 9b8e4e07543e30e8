"""The comparison of two checkouts tells files that must be equal from text that may change."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from tools.same_bytes import compare, digests, must_be_equal


def write(home: Path, files: dict[str, str]) -> dict[str, str]:
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return digests(home)


FILES = {
    "run/export/model.onnx.data": "weights",
    "run/export/config.json": "{}",
    "run/plan/plan.json": "{}",
    "run/report/report.md": "# Report",
}


@pytest.mark.parametrize(
    ("name", "must"),
    [
        ("a/model.onnx.data", True),
        ("a/genai_config.json", True),
        ("a/tokenizer.json", True),
        ("a/plan.json", False),
        ("a/report.html", False),
    ],
)
def test_json_of_the_model_must_be_equal_and_reports_need_not(name: str, must: bool) -> None:
    assert must_be_equal(name) is must


def test_equal_sides_hold_and_changed_text_is_listed(tmp_path: Path) -> None:
    old = write(tmp_path / "old", FILES)
    new = write(tmp_path / "new", FILES | {"run/plan/plan.json": "[]", "run/log.md": "new"})
    compared = compare(old, new)
    assert compared.holds
    assert compared.equal == tuple(sorted(FILES))[:2]
    assert (compared.changed, compared.moved) == (("run/plan/plan.json",), ("run/log.md",))


def test_a_model_file_that_differs_or_is_missing_fails(tmp_path: Path) -> None:
    old = write(tmp_path / "old", FILES | {"run/some.safetensors": "values"})
    new = write(tmp_path / "new", FILES | {"run/export/model.onnx.data": "other"})
    compared = compare(old, new)
    assert compared.wrong == ("run/export/model.onnx.data", "run/some.safetensors")
    assert not compared.holds


def write_graph(home: Path, version: str, name: str) -> dict[str, str]:
    home.mkdir()
    graph = ir.Graph([], [], nodes=[], name=name)
    ir.save(ir.Model(graph, ir_version=10, producer_version=version), home / "model.onnx")
    return digests(home)


def test_graphs_may_differ_in_the_version_of_their_writer_alone(tmp_path: Path) -> None:
    old = write_graph(tmp_path / "old", "0.1.0", "decoder")
    assert compare(old, write_graph(tmp_path / "new", "0.2.0", "decoder")).holds
    assert not compare(old, write_graph(tmp_path / "other", "0.2.0", "another")).holds


def test_two_empty_sides_do_not_hold() -> None:
    assert not compare({}, {}).holds


def test_the_operator_library_is_left_out(tmp_path: Path) -> None:
    assert write(tmp_path, {"run/libmoe_export_ops.so": "code"}) == {}
