"""The pages of docs/results are what their makers write, and the README has their small table."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import pytest

from moe_export.artifacts.bakeoff import Bakeoff
from moe_export.op.triton.build import CUBINS
from tools.pages import cuda_kernels, demo_compare, rankings, sizes
from tools.pages.__main__ import main, pages
from tools.pages.cuda_kernels import blocks_per_multiprocessor
from tools.pages.page import RESULTS, artifact, read_data, rounded, write_page
from tools.pages.readme import filled

ROOT = Path(__file__).parents[2]
WITH_DATA = sorted(path.stem for path in (RESULTS / "data").glob("*.json"))
BAKEOFF = read_data("demo_compare")
BOTH = "<!-- demo_compare --><!-- /demo_compare -->"


def committed(name: str) -> str:
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WITH_DATA)
def test_a_page_follows_from_its_data(name: str) -> None:
    assert import_module(f"tools.pages.{name}").markdown(read_data(name)) == committed(name)


def test_pages_without_data_follow_from_the_package() -> None:
    manifest = json.loads((CUBINS / "manifest.json").read_text())
    assert cuda_kernels.markdown(manifest) == committed("cuda_kernels")
    assert sizes.markdown(sizes.qwen_sizes()) == committed("sizes")


def test_every_page_is_listed_and_has_a_maker(capsys: pytest.CaptureFixture[str]) -> None:
    assert pages().keys() - {"report_picture"} == {path.stem for path in RESULTS.glob("*.md")} - {
        "README"
    }
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(pages())
    assert all(line.endswith(".") for line in lines)


def test_an_unknown_page_is_refused_with_the_names_of_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["none"]) == 2
    assert (
        "no page is called none; there are apps, compensation, cuda_kernels"
        in capsys.readouterr().out
    )


def test_the_module_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.pages", "demo_compare", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: python -m tools.pages demo_compare [-h] [run]" in done.stdout


def test_a_page_and_its_data_are_written_with_rounded_floats(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("tools.pages.page.RESULTS", tmp_path)
    write_page("some", rounded({"kl": [0.12345678, 1], "n": 3}), "# Some\n")
    write_page("other", None, "# Other\n")
    assert read_data("some") == {"kl": [0.123457, 1], "n": 3}
    assert (tmp_path / "some.md").read_text() == "# Some\n"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "other.md",
        "some.json",
        "some.md",
    ]


def test_draws_of_the_real_model_are_averaged_and_their_range_is_shown() -> None:
    data = read_data("real_model")
    row, data["rows"] = data["rows"][0], []
    texts = data["unpruned"].keys() - data["choices"].keys()
    for draw, nats in enumerate((0.5, 0.7)):
        for text in texts:
            row["scores"][text]["kl_nats"] = nats
        data["rows"].append(deepcopy(row) | {"keep": 0.1, "draw": draw})
    page = import_module("tools.pages.real_model").markdown(data)
    assert f"| 10% | {row['way']} | 2 | KL 0.600" in page
    assert "| 0.600 (0.500 to 0.700) |" in page
    assert "real_model --draws 0 1`" in page


def test_draws_of_one_model_are_joined_and_those_of_another_refused() -> None:
    bakeoff = artifact(Bakeoff, BAKEOFF)
    draws = [
        bakeoff.model_copy(update={"results": tuple(r for r in bakeoff.results if r.seed == seed)})
        for seed in (0, 1, 2)
    ]
    by_draw = tuple(sorted(bakeoff.results, key=lambda result: result.seed))
    assert rankings.joined(draws).results == by_draw
    other = bakeoff.model_copy(update={"baseline": {}})
    with pytest.raises(ValueError, match="other documents; give runs of one recipe"):
        rankings.joined([draws[0], other])


def test_the_table_of_the_readme_has_the_five_best_rankings_at_both_shares() -> None:
    table = demo_compare.small_table(artifact(Bakeoff, BAKEOFF))
    assert [row[0] for row in table.rows] == ["50 %"] * 5 + ["25 %"] * 5 + ["100 %"]
    assert {row[1] for row in table.rows} == {
        *("fisher_margin", "fisher_margin_weighted", "router_weighted_activation"),
        *("fisher", "fisher_weighted"),
        "unpruned",
    }
    ours = next(row for row in table.rows if row[:2] == ["25 %", "fisher_margin"])
    assert ours[2:] == ["88.8", "77.3", "3.69", "89.7"]
    # The best of all rankings, also where it is not among the five.
    assert {row for row, column in table.strong if column == 5} == {0, 5}


def test_marks_are_filled_whatever_stood_between_them_and_are_kept() -> None:
    page = "a\n<!--demo_compare-->old\n\nrows<!-- /demo_compare -->\nb"
    text = filled(page, "demo_compare", "| kept |")
    assert text == "a\n<!--demo_compare-->\n| kept |\n<!-- /demo_compare -->\nb"
    assert filled(text, "demo_compare", "| kept |") == text


@pytest.mark.parametrize("marks", ["", "<!-- demo_compare -->", f"{BOTH}{BOTH}"])
def test_a_readme_without_both_marks_once_is_refused(marks: str) -> None:
    with pytest.raises(ValueError, match=r"^README.md: found the marks .* expected them once"):
        filled(marks, "demo_compare", "| kept |")


def test_registers_shared_memory_and_threads_bound_the_blocks() -> None:
    kernel = {"registers": 60, "threads": 128, "shared_bytes": 0}
    # 64 registers, as they are given out by 8, times 128 threads is an eighth of a file.
    assert blocks_per_multiprocessor(80, kernel) == 8
    assert blocks_per_multiprocessor(90, kernel | {"shared_bytes": 37 * 1024}) == 6
    assert blocks_per_multiprocessor(86, kernel | {"registers": 16}) == 12
