"""The page on tuning: skills apart from their tests, recipes that load, sentences that follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_export.runner.steps import steps_of
from tools.pages.tuning_arms import ARMS, BY_NAME, FULL, HALF, HALF_TUNED, OLD, TOWARDS, recipe_of
from tools.pages.tuning_large import LARGE, WAYS, large_lines
from tools.pages.tuning_skills import SKILLS, documents_of, write_skills
from tools.pages.tuning_words import Lead, lead, markdown

TIED = "compressed, tied"


def row(arm: str, seed: int | None, share: float, keep: float = 1.0) -> dict[str, Any]:
    names = (*SKILLS, "arithmetic", "sums", "facts", "strings")
    tasks: dict[str, Any] = {name: {"exact_match": share} for name in names}
    tasks["text"] = {"loss_nats": 3.5}
    training = {} if seed is None else {"tokens": 1000, "cpu_s_per_step": 0.2}
    about = {"arm": arm, "seed": seed, "keep": keep, "active_bytes": 10**6}
    return about | training | {"tasks": tasks}


def page(*rows: dict[str, Any], **more: Any) -> str:
    settings = {"steps": 150, "rate": 1e-3}
    about = {"machine": "a CPU", "versions": {"torch": "2"}, "settings": settings}
    return markdown(about | {"rows": list(rows), "speed": None} | more)


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_is_tested_on_documents_that_are_not_trained_on(skill: str) -> None:
    training = documents_of(skill, 1000, held_out=False)
    test = documents_of(skill, 150, held_out=True)
    assert (len(training), len(set(test))) == (1000, 150)
    assert {each.prompt for each in training}.isdisjoint(each.prompt for each in test)


def test_answers_of_new_skills_are_right() -> None:
    for each in documents_of("shift", 50, held_out=False):
        letters = each.prompt.removeprefix("shift: ").removesuffix(" ->").split()
        shifted = each.answer.strip().removesuffix(".").split()
        assert [(ord(a) + 1 - ord("a")) % 26 for a in letters] == [
            ord(b) - ord("a") for b in shifted
        ]
    oslo = [each for each in documents_of("inverse", 177, held_out=True) if "Oslo" in each.prompt]
    assert [each.answer for each in oslo] == [" Norway.\n"]


def test_files_of_skills_are_the_same_twice(tmp_path: Path) -> None:
    write_skills(tmp_path / "a")
    write_skills(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    first = json.loads((tmp_path / "a" / "shift_test.jsonl").read_text().splitlines()[0])
    assert set(first) == {"prompt", "answer"}


def test_recipes_differ_in_the_way_alone() -> None:
    skills = Path("skills")
    of = {arm.name: recipe_of(arm, skills, seed=1, steps=9, rate=1e-3) for arm in ARMS}
    assert next(step.stage for step in steps_of(of["source"])) == "calibrate"
    for name, recipe in of.items():
        if BY_NAME[name].tunes:
            assert recipe.tune is not None
            same = {"method": "full", "esft": None, "compressed": None, "condenser": None}
            assert recipe.tune.model_copy(update=same) == of[FULL].tune
    assert of[HALF_TUNED].plan is not None
    assert of[HALF_TUNED].plan.top_k == HALF


def test_a_lead_is_over_the_seeds_that_both_have() -> None:
    rows = [row(FULL, 0, 0.5), row(FULL, 1, 0.6), row("dense_mixer", 1, 0.7)]
    rows.append(row("dense_mixer", 2, 0.1))
    assert lead(rows, "dense_mixer", FULL) == Lead(pytest.approx(0.1), None)
    assert lead(rows, TIED, FULL) is None
    rows.append(row("dense_mixer", 0, 0.5))
    assert lead(rows, "dense_mixer", FULL) == Lead(pytest.approx(0.05), pytest.approx(0.05))


def test_the_first_line_says_if_compressed_experts_do_what_is_claimed() -> None:
    def first(*shares: float) -> str:
        rows = [row(FULL, seed, 0.8) for seed in range(len(shares))]
        rows += [row(HALF_TUNED, seed, 0.7) for seed in range(len(shares))]
        rows += [row(TIED, seed, share) for seed, share in enumerate(shares)]
        return page(*rows).splitlines()[2]

    assert page(row(FULL, 0, 0.8)).splitlines()[2] == (
        "Compressed experts have not been measured on this page yet."
    )
    good = first(0.752, 0.756)
    assert "reach 90% of the fully tuned score (94.2%: 75.4% of 80.0%)" in good
    assert "and beat tuning half of the experts without them (70.0%; lead +5.4 ± 0.2" in good
    assert "do not reach 90%" in first(0.69, 0.71)
    assert "do not beat tuning half" in first(0.69, 0.71)
    assert "cannot be told, from one seed, to beat tuning half" in first(0.75)


def test_ways_no_better_than_their_controls_are_named() -> None:
    text = page(
        *(row(FULL, seed, 0.8 + seed / 100) for seed in range(3)),
        *(row("dense_mixer", seed, 0.8 + (2 - seed) / 100) for seed in range(3)),
        *(row("frozen_router", seed, 0.9 + seed / 100) for seed in range(3)),
    )
    assert "Better than their controls: frozen_router (+10.0 ± 0.0 on full)." in text
    assert "No better than their controls: dense_mixer (+0.0 ± 1.2 on full)." in text


def test_what_stopped_and_what_is_missing_is_said() -> None:
    stopped = {"arm": "esft, gate", "seed": 0, "keep": 1.0, "stopped": "tune: no gain"}
    text = page(row(FULL, 0, 0.8), row(FULL, 0, 0.7, keep=0.5), stopped)
    assert "esft, gate, seed 0, stopped: tune: no gain" in text
    assert "| full | 70.0 | 70.0 | 1.00 |" in text
    assert text.rstrip().endswith("condenser, (K - r) + r; full, K + r experts.")
    assert "esft, gate;" not in text.splitlines()[-2]


def test_ways_towards_the_source_learn_from_skills_that_it_has() -> None:
    for arm in TOWARDS:
        recipe = recipe_of(arm, Path("skills"), seed=1, steps=9, rate=1e-3)
        assert recipe.tune is not None
        assert recipe.tune.objective == "distill"
        assert [source.demo for source in recipe.tune.sources] == list(OLD)
    found = [
        row(TOWARDS[0].name, seed, 0.9) | {"held_out_nats": [0.02, after], "trained_parameters": 7}
        for seed, after in enumerate((0.01, 0.015))
    ]
    text = page(row("source", None, 0.95), row("source", None, 0.5, keep=0.5), towards=found)
    old = "90.0 | 90.0 | 90.0 | 90.0 | 90.0 [90, 90] | 3.50 | 7 | 0.20 | 2 |"
    assert f"| routers, by layer | 20.0 → 12.5 [10.0, 15.0] | {old}" in text
    assert "| source |  | 95.0 | 95.0 | 95.0 | 95.0 | 95.0 | 3.50 |  |  |  |" in text


def test_times_at_large_shapes_are_by_a_line_through_two_depths() -> None:
    times = {"2 layers": ([4.0, 4.4], [3.0, 3.3]), "4 layers": ([6.0, 6.6], [4.0, 4.4])}
    seconds = {
        f"{way}, {depth}": half if way.startswith("K/2") else full
        for depth, (full, half) in times.items()
        for way in WAYS
    }
    about = {
        "layers": 16,
        "kernel": "avx2",
        "onnxruntime": "1",
        "prompt_tokens": 8,
        "new_tokens": 9,
        "load": 1.0,
    }
    names = {"name": "olmoe-int4", "title": "OLMoE"}
    sizes = {way: 60 if way.startswith("K/2") else 100 for way in WAYS}
    text = "\n".join(large_lines([about | names | {"seconds": seconds, "active_bytes": sizes}]))
    # 4.2 + 14.7 = 18.9 s at 16 layers with all experts, and 3.15 + 7.35 with half of them.
    assert "| OLMoE (16 layers) | K/2 | 0.60 | 0.75 [0.75, 0.75] | 0.67 [0.67, 0.67] | 0.56" in text
    assert "OLMoE: compressed experts at K/2 take 44% less time per decoded token" in text


def test_bytes_at_large_shapes_are_those_of_fewer_experts() -> None:
    olmoe, _, qwen = LARGE
    of = {large.name: [large.active_bytes(way) for way in WAYS] for large in (olmoe, qwen)}
    for full, half, vectors, more in of.values():
        assert half < vectors < 1.01 * half
        assert half < full < more
    assert 1 - of["olmoe-int4"][1] / of["olmoe-int4"][0] == pytest.approx(0.34, abs=0.02)
    assert 1 - of["qwen1.5-int4"][1] / of["qwen1.5-int4"][0] == pytest.approx(0.175, abs=0.02)
