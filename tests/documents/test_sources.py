from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_export.documents.shares import shares
from moe_export.documents.sources import draw, has_answers, outside_files, task_names
from moe_export.documents.tokens import TextTokenizer
from moe_export.errors import CalibrationError, DependencyError
from moe_export.recipe import Source, Task
from moe_export.testing.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer gives one token per byte and no BOS."""
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


def test_a_text_file_is_packed_to_whole_sequences(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 5)
    drawn = draw(Source(text=str(path)), model, count=3, length=16, seed=0, part="train")
    assert [len(s.tokens) for s in drawn.sequences] == [16, 16, 16]
    assert [s.prompt_tokens for s in drawn.sequences] == [0, 0, 0]


def test_text_shorter_than_one_sequence_is_refused_with_its_length(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc")
    with pytest.raises(CalibrationError, match="its 3 tokens make 0"):
        draw(Source(text=str(path)), model, count=1, length=16, seed=0, part="train")


def test_rows_with_prompt_and_answer_end_with_eos_and_know_their_prompt(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"q": f"{n}+1=", "a": f"{n + 1}"}) for n in range(9)))
    source = Source(jsonl=str(path), prompt_field="q", answer_field="a")
    drawn = draw(source, model, count=9, length=64, seed=0, part="train")
    first = next(s for s in drawn.sequences if s.prompt_tokens == 4)
    assert len(first.tokens) == 4 + 1 + 1
    assert first.tokens[-1] == 256
    again = draw(source, model, count=9, length=64, seed=0, part="train")
    assert again == drawn
    assert draw(source, model, count=9, length=64, seed=1, part="train") != drawn


def test_long_documents_are_cut_and_counted(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "x" * 100}) + "\n\n" + json.dumps({"text": "xyz"}))
    drawn = draw(Source(jsonl=str(path)), model, count=2, length=10, seed=0, part="train")
    assert sorted(len(s.tokens) for s in drawn.sequences) == [3, 10]
    assert drawn.truncated == 1


@pytest.mark.parametrize(
    ("content", "source", "sentence"),
    [
        ("", {}, "1 documents are asked for, it holds 0"),
        ('{"body": "a"}', {}, "row 1 has no field 'text'; it has 'body'"),
        ("{", {}, r"rows\.jsonl:1: not a line of JSON"),
        ("[1]", {}, r"rows\.jsonl:1: the row is a number"),
        ('{"text": "a"}', {}, "document 1 has 1 tokens, at least 2"),
    ],
)
def test_unusable_rows_are_one_sentence(
    model: Path, tmp_path: Path, content: str, source: dict[str, str], sentence: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=sentence):
        draw(Source(jsonl=str(path), **source), model, 1, 16, 0, "train")


def test_a_missing_file_is_one_sentence(model: Path) -> None:
    with pytest.raises(CalibrationError, match="no such file"):
        draw(Source(text="absent.txt"), model, 1, 16, 0, "train")


def test_a_data_set_of_the_hub_without_its_package_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DependencyError, match=r"moe-export\[eval\]"):
        draw(Source(hub="owner/name"), model, 1, 16, 0, "train")


def test_calibration_and_scoring_never_share_an_embedded_document(model: Path) -> None:
    source = Source(demo="facts")
    train = draw(source, model, 200, 64, 0, "train").sequences
    test = draw(source, model, 200, 64, 0, "test").sequences
    assert not {tuple(s.tokens) for s in train} & {tuple(s.tokens) for s in test}


def test_a_changed_file_changes_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a")
    before = outside_files([Source(text=str(path)), Source(demo="sums")])
    path.write_text("b")
    assert outside_files([Source(text=str(path))]) != before
    assert list(before) == [str(path)]


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [([1, 1, 1], 10, [4, 3, 3]), ([2, 1], 384, [256, 128]), ([1, 99], 10, [0, 10])],
)
def test_sequences_are_shared_out_by_weight(
    weights: list[float], total: int, expected: list[int]
) -> None:
    assert shares(weights, total) == expected


def test_tasks_of_one_source_get_names_of_their_own() -> None:
    tasks = (Task(demo="sums"), Task(demo="sums"), Task(demo="text"))
    assert list(task_names(tasks)) == ["sums", "sums 2", "text"]
    assert [has_answers(task) for task in tasks] == [True, True, False]


def choice_task(path: Path, **keys: str) -> Task:
    return Task(jsonl=str(path), prompt_field="q", answer_field="a", choices_field="c", **keys)


def test_wrong_choices_are_encoded_like_the_answer_and_cut_like_it(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "1+1=", "a": "2", "c": ["3", "2", "11", "3"]}))
    (sequence,) = draw(choice_task(path), model, 1, 64, 0, "test").sequences
    assert [len(s.tokens) for s in (sequence, *sequence.alternatives)] == [6, 6, 7]
    assert {s.prompt_tokens for s in (sequence, *sequence.alternatives)} == {4}
    assert {s.tokens[-1] for s in (sequence, *sequence.alternatives)} == {256}
    (short,) = draw(choice_task(path), model, 1, 5, 0, "test").sequences
    assert [len(s.tokens) for s in (short, *short.alternatives)] == [5, 5, 5]


def test_answers_end_with_eos_only_if_it_is_required(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "1+1=", "a": "2", "c": ["2", "3"]}))
    ends = {}
    for eos in (None, "required", "optional"):
        keys = {} if eos is None else {"eos": eos}
        (sequence,) = draw(choice_task(path, **keys), model, 1, 64, 0, "test").sequences
        ends[eos] = [s.tokens[4:] for s in (sequence, *sequence.alternatives)]
    two, three = (TextTokenizer(model).encode_text(text) for text in "23")
    assert ends[None] == ends["required"] == [[*two, 256], [*three, 256]]
    assert ends["optional"] == [two, three]


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (["3", "4"], r"row 1: field 'c' lacks the answer '2'"),
        (["2", "2"], r"field 'c' is \['2', '2'\], expected a list of at least two texts"),
        ("23", r"field 'c' is '23', expected a list"),
    ],
)
def test_choices_without_the_answer_are_refused(
    model: Path, tmp_path: Path, choices: object, sentence: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "1+1=", "a": "2", "c": choices}))
    with pytest.raises(CalibrationError, match=sentence):
        draw(choice_task(path), model, 1, 64, 0, "test")


def test_choices_without_a_prompt_are_refused_with_the_recipe() -> None:
    with pytest.raises(ValueError, match="choices_field needs prompt_field and answer_field"):
        Task(jsonl="rows.jsonl", choices_field="c")
