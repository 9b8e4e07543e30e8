"""Tests of the demo tasks: answers are right, and held-out items are not in training."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from moe_export.demo import checkpoint_dir, tasks
from moe_export.demo.tasks import KINDS, Document
from moe_export.errors import RecipeError

STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+)?")


def steps_of(document: Document) -> list[tuple[int, str, int]]:
    """Triples (a, operator, b) of all steps in a document of the kinds arithmetic and sums."""
    found = STEP.findall(document.prompt + document.answer)
    return [(int(a), operator, int(b)) for a, operator, b, _ in found]


@pytest.mark.parametrize("kind", KINDS)
def test_every_document_ends_with_one_newline_and_only_text_lacks_a_prompt(kind: str) -> None:
    for document in tasks.training_documents(kind, 200, seed=0) + tasks.test_items(kind, 100):
        assert document.answer.endswith("\n")
        assert document.answer.count("\n") == 1
        assert bool(document.prompt) == (kind != "text")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_documents_and_another_seed_others(kind: str) -> None:
    first = tasks.training_documents(kind, 50, seed=3)
    random.seed(99)
    assert tasks.training_documents(kind, 50, seed=3) == first
    assert tasks.training_documents(kind, 50, seed=4) != first
    assert tasks.test_items(kind, 50) == tasks.test_items(kind, 50, seed=1234)
    assert tasks.test_items(kind, 50) != tasks.test_items(kind, 50, seed=1)


def test_documents_do_not_change_between_machines_and_versions() -> None:
    assert tasks.training_documents("sums", 3, seed=0) == [
        Document("20*4=", "80.\n"),
        Document("106-33=", "73.\n"),
        Document("69+11=", "80.\n"),
    ]
    assert tasks.test_items("strings", 1) == [Document("copy: s f w i ->", " s f w i.\n")]


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_test_documents_are_disjoint(kind: str) -> None:
    training = tasks.training_documents(kind, 4400 if kind == "facts" else 2000, seed=0)
    assert set(training).isdisjoint(tasks.test_items(kind, 170))


@pytest.mark.parametrize("kind", ["arithmetic", "sums"])
def test_held_out_operand_pairs_appear_in_every_test_item_and_never_in_training(kind: str) -> None:
    for document in tasks.training_documents(kind, 2000, seed=0):
        assert not any(tasks.is_held_out_pair(*step) for step in steps_of(document))
    for document in tasks.test_items(kind, 400):
        assert any(tasks.is_held_out_pair(*step) for step in steps_of(document))


def test_about_a_tenth_of_additions_and_no_multiplications_are_held_out() -> None:
    pairs = [(a, b) for a in range(2, 61) for b in range(2, 61)]
    fraction = sum(tasks.is_held_out_pair(a, "+", b) for a, b in pairs) / len(pairs)
    # Four standard deviations of a binomial with p = 0.1.
    assert abs(fraction - 0.1) < 4 * (0.1 * 0.9 / len(pairs)) ** 0.5
    assert not any(tasks.is_held_out_pair(a, "*", b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["arithmetic", "sums"])
def test_every_step_is_computed_correctly(kind: str) -> None:
    for document in tasks.training_documents(kind, 500, seed=1) + tasks.test_items(kind, 100):
        text = document.prompt + document.answer
        for a, operator, b, result in STEP.findall(text):
            values = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
            assert int(result) == values[operator]
        assert STEP.search(text)


def test_a_word_problem_starts_with_its_first_number_and_ends_with_its_last_result() -> None:
    for document in tasks.training_documents("arithmetic", 300, seed=2):
        steps = STEP.findall(document.answer)
        numbers = re.findall(r"\d+", document.prompt)
        assert numbers == [steps[0][0], *(b for _, _, b, _ in steps)]
        assert document.answer.endswith(f" #### {steps[-1][3]}\n")
        assert [a for a, *_ in steps[1:]] == [result for *_, result in steps[:-1]]


def test_string_answers_are_right_and_held_out_sequences_stay_out_of_training() -> None:
    solve: dict[str, Callable[[list[str]], list[str]]] = {
        "copy": list,
        "reverse": lambda letters: letters[::-1],
        "sort": sorted,
    }
    for held_out, documents in (
        (False, tasks.training_documents("strings", 1000, seed=0)),
        (True, tasks.test_items("strings", 300)),
    ):
        for document in documents:
            skill, letters = re.fullmatch(r"(\w+): ([a-z ]+) ->", document.prompt).groups()  # type: ignore[union-attr]
            assert document.answer == f" {' '.join(solve[skill](letters.split()))}.\n"
            assert tasks.is_held_out_string(skill, letters.replace(" ", "")) == held_out


def test_every_fact_is_trained_in_four_wordings_and_tested_in_the_fifth() -> None:
    training = tasks.training_documents("facts", 4400, seed=0)
    test = tasks.test_items("facts", 1100)
    assert len(set(training)) == 4400
    assert len(set(test)) == 1100
    assert len({document.prompt for document in training + test}) == 5500
    oxygen = {d.prompt for d in training if "oxygen" in d.prompt and d.answer == " O.\n"}
    asked = {d.prompt for d in test if "oxygen" in d.prompt and d.answer == " O.\n"}
    assert (len(oxygen), len(asked)) == (4, 1)


def test_pools_are_dealt_again_only_after_all_documents_came_once() -> None:
    size = len(tasks.text_paragraphs(held_out=False))
    documents = tasks.training_documents("text", 2 * size, seed=0)
    assert len(set(documents[:size])) == size
    assert set(documents[:size]) == set(documents[size:])


@pytest.mark.parametrize("kind", KINDS)
def test_test_items_are_distinct(kind: str) -> None:
    assert len(set(tasks.test_items(kind, 150))) == 150


@pytest.mark.parametrize("function", ["training_documents", "test_items"])
def test_an_unknown_kind_or_a_count_below_one_is_refused(function: str) -> None:
    make = getattr(tasks, function)
    with pytest.raises(RecipeError, match=r"unknown kind 'sum'; choose one of arithmetic, sums"):
        make("sum", 1, 0)
    with pytest.raises(RecipeError, match=r"facts: count is 0; ask for at least 1"):
        make("facts", 0, 0)


@pytest.mark.parametrize(("kind", "count"), [("sums", 5000), ("facts", 1101), ("text", 100_000)])
def test_asking_for_more_test_items_than_exist_is_refused(kind: str, count: int) -> None:
    with pytest.raises(RecipeError, match=rf"{kind}: {count} held-out documents asked for, only"):
        tasks.test_items(kind, count)


def test_importing_the_tasks_loads_no_heavy_package() -> None:
    code = (
        "import json, sys, moe_export.demo.tasks as t; t.test_items('facts', 1); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    heavy = {"torch", "transformers", "onnxruntime", "matplotlib", "tokenizers"}
    assert heavy.isdisjoint(json.loads(result.stdout))


def test_the_shipped_data_are_small() -> None:
    data = checkpoint_dir().parent / "data"
    assert (data / "text.json").stat().st_size <= 120_000
    assert (data / "facts.json").stat().st_size <= 30_000
