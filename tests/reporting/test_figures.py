from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_export.artifacts.report import Report
from moe_export.reporting import figures_bars, figures_widths
from moe_export.reporting.figures import HALF
from moe_export.reporting.palette import variables


@pytest.fixture
def report(run: Path) -> Report:
    return Report.load(run / "report")


def edited(report: Report, edit: Callable[[dict[str, Any]], None]) -> Report:
    """Returns a report whose JSON was edited."""
    content = report.plain()
    edit(content)
    return Report.from_plain(content)


def words_of(svg: str) -> list[str]:
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    return [element.text or "" for element in root.iter() if element.tag == "text"]


def test_every_expert_has_its_number_in_the_wide_map(report: Report) -> None:
    words = words_of(figures_widths.widths_map(report))
    for layer in report.plan.layers:
        for width in layer.widths:
            assert str(width) in words


def test_every_expert_has_a_cell_or_a_cross(report: Report) -> None:
    def empty(content: dict[str, Any]) -> None:
        content["plan"]["layers"][0]["widths"][3] = 0

    svg = figures_widths.widths_map(edited(report, empty), HALF)
    cells = sum(path.count("M") for path in re.findall(r'd="([^"]+)"[^>]*fill: var\(--level', svg))
    scale = 16
    assert cells == 4 * 16 - 1 + scale


def test_a_shared_expert_that_is_pruned_has_a_cell_of_its_own(report: Report) -> None:
    plain = words_of(figures_widths.widths_map(report))
    assert "shared" not in plain

    def prune(content: dict[str, Any]) -> None:
        content["plan"]["shared_expert"] = "prune"
        for layer, width in zip(content["plan"]["layers"], (901, 902, 0, 903), strict=True):
            layer |= {"shared_width": width, "shared_width_before": 1000}

    pruned = edited(report, prune)
    words = words_of(figures_widths.widths_map(pruned))
    assert {"shared", "901", "902", "903", "of 1000"} <= set(words)
    svg = figures_widths.widths_map(pruned, HALF)
    cells = sum(path.count("M") for path in re.findall(r'd="([^"]+)"[^>]*fill: var\(--level', svg))
    scale = 16
    assert cells == 4 * 16 + 3 + scale


def test_colours_are_variables_of_the_page_and_no_two_are_alike(report: Report) -> None:
    colours = variables()
    assert len({light for light, _ in colours.values()}) == len(colours)
    svg = figures_bars.memory_bars(report) + figures_widths.widths_profile(report)
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
    assert set(re.findall(r"var\(--([\w-]+)\)", svg)) <= set(colours)


def test_a_variant_that_appears_later_is_drawn_like_the_others(report: Report) -> None:
    def add(content: dict[str, Any]) -> None:
        for entries in (content["accuracy"], content["speed"], content["memory"]["variants"]):
            entries += [
                entry | {"variant": "rotated"}
                for entry in list(entries)
                if entry["variant"] == "pruned"
            ]

    later = edited(report, add)
    for svg in (
        figures_bars.memory_bars(later),
        figures_bars.accuracy_bars(later, "cpu"),
        figures_bars.speed_bars(later, "cpu", "decode"),
    ):
        assert svg is not None
        assert "rotated" in words_of(svg)


def test_the_speed_picture_shows_the_medians(report: Report) -> None:
    svg = figures_bars.speed_bars(report, "cpu", "decode")
    assert svg is not None
    # 410 tokens per second, times 1.62 for the pruned model.
    assert {"410", "664"} <= set(words_of(svg))


def test_nothing_is_drawn_where_nothing_was_measured(report: Report) -> None:
    def remove(content: dict[str, Any]) -> None:
        content["speed"] = []
        for entry in content["accuracy"]:
            entry["tasks"] = []

    nothing = edited(report, remove)
    assert figures_bars.speed_bars(nothing, "cpu", "decode") is None
    assert figures_bars.accuracy_bars(nothing, "cpu") is None
    assert figures_bars.loss_bars(nothing, "cpu") is None


def test_an_alternative_text_cannot_break_out_of_its_attribute(report: Report) -> None:
    def rename(content: dict[str, Any]) -> None:
        for entry in content["accuracy"]:
            entry["tasks"][0]["task"] = '"><script>$x_1$'

    svg = figures_bars.accuracy_bars(edited(report, rename), "cpu")
    assert svg is not None
    assert "<script" not in svg
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert '"><script>$x_1$: baseline 100 %' in root.attrib["aria-label"]
    assert "viewBox" in root.attrib


def test_texts_of_a_picture_stay_within_its_width(report: Report) -> None:
    def widen(content: dict[str, Any]) -> None:
        content["plan"]["layers"][0]["widths"] = np.linspace(0, 128, 16).astype(int).tolist()

    wide = edited(report, widen)
    for svg in (figures_widths.importance_curve(wide), figures_bars.memory_bars(wide)):
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
