from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_export.artifacts.base import load_json
from moe_export.reporting import figures_bars, figures_widths
from moe_export.reporting.figures import HALF
from moe_export.reporting.palette import variables


@pytest.fixture
def report(run: Path) -> dict[str, Any]:
    return load_json(run / "report" / "report.json")


def words_of(svg: str) -> list[str]:
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    return [element.text or "" for element in root.iter() if element.tag == "text"]


def test_every_expert_has_its_number_in_the_wide_map(report: dict[str, Any]) -> None:
    words = words_of(figures_widths.widths_map(report))
    for layer in report["plan"]["layers"]:
        for width in layer["widths"]:
            assert str(width) in words


def test_every_expert_has_a_cell_or_a_cross(report: dict[str, Any]) -> None:
    report["plan"]["layers"][0]["widths"][3] = 0
    svg = figures_widths.widths_map(report, HALF)
    cells = sum(path.count("M") for path in re.findall(r'd="([^"]+)"[^>]*fill: var\(--level', svg))
    scale = 16
    assert cells == 4 * 16 - 1 + scale


def test_a_shared_expert_that_is_pruned_has_a_cell_of_its_own(report: dict[str, Any]) -> None:
    plain = words_of(figures_widths.widths_map(report))
    assert "shared" not in plain
    report["plan"]["shared_expert"] = "prune"
    for layer, width in zip(report["plan"]["layers"], (901, 902, 0, 903), strict=True):
        layer |= {"shared_width": width, "shared_width_before": 1000}
    words = words_of(figures_widths.widths_map(report))
    assert {"shared", "901", "902", "903", "of 1000"} <= set(words)
    svg = figures_widths.widths_map(report, HALF)
    cells = sum(path.count("M") for path in re.findall(r'd="([^"]+)"[^>]*fill: var\(--level', svg))
    scale = 16
    assert cells == 4 * 16 + 3 + scale


def test_colours_are_variables_of_the_page_and_no_two_are_alike(report: dict[str, Any]) -> None:
    colours = variables()
    assert len({light for light, _ in colours.values()}) == len(colours)
    svg = figures_bars.memory_bars(report) + figures_widths.widths_profile(report)
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
    assert set(re.findall(r"var\(--([\w-]+)\)", svg)) <= set(colours)


def test_a_variant_that_appears_later_is_drawn_like_the_others(report: dict[str, Any]) -> None:
    for entries in (report["accuracy"], report["speed"], report["memory"]["variants"]):
        entries += [
            entry | {"variant": "pruned+quantized"}
            for entry in list(entries)
            if entry["variant"] == "pruned"
        ]
    for svg in (
        figures_bars.memory_bars(report),
        figures_bars.accuracy_bars(report, "cpu"),
        figures_bars.speed_bars(report, "cpu", "decode"),
    ):
        assert svg is not None
        assert "pruned+quantized" in words_of(svg)


def test_the_speed_picture_shows_the_medians(report: dict[str, Any]) -> None:
    svg = figures_bars.speed_bars(report, "cpu", "decode")
    assert svg is not None
    # 410 tokens per second, times 1.62 for the pruned model.
    assert {"410", "664"} <= set(words_of(svg))


def test_nothing_is_drawn_where_nothing_was_measured(report: dict[str, Any]) -> None:
    report["speed"] = []
    assert figures_bars.speed_bars(report, "cpu", "decode") is None
    for entry in report["accuracy"]:
        entry["tasks"] = []
    assert figures_bars.accuracy_bars(report, "cpu") is None
    assert figures_bars.loss_bars(report, "cpu") is None


def test_an_alternative_text_cannot_break_out_of_its_attribute(report: dict[str, Any]) -> None:
    for entry in report["accuracy"]:
        entry["tasks"][0]["task"] = '"><script>$x_1$'
    svg = figures_bars.accuracy_bars(report, "cpu")
    assert svg is not None
    assert "<script" not in svg
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert '"><script>$x_1$: baseline 100 %' in root.attrib["aria-label"]
    assert "viewBox" in root.attrib


def test_texts_of_a_picture_stay_within_its_width(report: dict[str, Any]) -> None:
    report["plan"]["layers"][0]["widths"] = list(np.linspace(0, 128, 16).astype(int))
    for svg in (figures_widths.importance_curve(report), figures_bars.memory_bars(report)):
        places = [float(x) for x in re.findall(r'<text [^>]*?\bx="([-\d.]+)"', svg)]
        assert places
        assert all(-1 <= x <= HALF + 1 for x in places)


def test_compare_can_be_imported_without_matplotlib_or_torch() -> None:
    code = (
        "import sys, moe_export.reporting.compare, moe_export.reporting.bakeoff_table, "
        "moe_export.stages.report; "
        "print([m for m in ('matplotlib', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
