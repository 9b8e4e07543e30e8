"""The table of applications: outcomes, messages, and rows that are known already."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_export.demo import checkpoint_dir
from moe_export.stages.export import export_model
from tools.apps import measure
from tools.apps.applications import APPS, App, AppError
from tools.apps.exports import KINDS
from tools.apps.loaders import LOADERS
from tools.apps.measure import measured, message, outcome
from tools.apps.questions import Questions
from tools.pages.apps import markdown

MEASURED_ON = {
    "machine": {"cpu": "cpu", "cores": 2, "system": "Linux 6 x86_64"},
    "versions": {"python": "3.11"},
}


def app_with(answers: list[str]) -> App:
    return App("app", "1.0", ("app==1.0",), lambda app, cache, questions: answers)


def failing(app: App, cache: Path, questions: Questions) -> list[str]:
    raise AppError(
        "Traceback\n  File /models/x.py\nFail: /models/some/model.onnx failed: no | here\n"
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    folder = tmp_path_factory.mktemp("apps") / "model"
    export_model(checkpoint_dir(), folder, "float32", library=True)
    return Questions(folder, packed=False)


def test_answers_are_counted_against_our_own_decoding(questions: Questions, tmp_path: Path) -> None:
    expected = questions.expected_ids(native=True)
    assert outcome(app_with(expected), tmp_path, questions) == "86 of 86 equal"
    wrong = [*expected[:84], "5 0", "6 0"]
    assert outcome(app_with(wrong), tmp_path, questions) == "84 of 86 equal"
    few = outcome(app_with(expected[:80]), tmp_path, questions)
    assert few == "80 answers to 86 prompts"


def test_an_application_that_only_shows_a_model_opens_it_or_says_why_not(
    questions: Questions, tmp_path: Path
) -> None:
    shown = App("app", "1.0", (), lambda app, cache, questions: ["96"], result="opens")
    assert outcome(shown, tmp_path, questions) == "opens"
    refused = App("app", "1.0", (), failing, result="opens")
    results = ["opens", outcome(refused, tmp_path, questions)]
    rows = [
        {"app": "app", "version": "1.0", "export": kind.name, "result": result}
        for kind, result in zip(KINDS, results, strict=False)
    ]
    page = markdown({"rows": rows} | MEASURED_ON)
    assert "| app | 1.0 | opens | a | not run |" in page
    assert "- a: `Fail: model.onnx failed: no / here`" in page


def test_texts_are_compared_with_texts(questions: Questions) -> None:
    texts = questions.expected_texts()
    assert len(texts) == 86
    assert all(text.startswith('"') for text in texts)
    assert len(set(texts)) > 40


def test_a_failure_is_a_row_with_the_words_of_the_application(
    questions: Questions, tmp_path: Path
) -> None:
    app = App("app", "1.0", ("app==1.0",), failing)
    assert outcome(app, tmp_path, questions) == "Fail: model.onnx failed: no / here"
    assert message("") == "no message"
    assert len(message("error " * 100)) == measure.LONGEST


def test_a_known_row_is_not_made_again_unless_its_export_changed(
    questions: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "export" / "model.onnx"
    model.parent.mkdir()
    model.write_bytes(b"1")
    monkeypatch.setattr(measure, "make_exports", lambda cache: [(KINDS[0], model.parent)])
    monkeypatch.setattr(measure, "APPS", (app_with([]),))
    monkeypatch.setattr(measure, "LOADERS", (App("loader", "2.0", (), failing),))
    monkeypatch.setattr(measure, "outcome", lambda *_: "made")
    shown: list[dict[str, str]] = []
    first = measured(tmp_path, [], shown.append)
    assert measured(tmp_path, [], shown.append) == first == shown
    assert [row["export"] for row in first] == ["float32", "padded twin"]
    model.write_bytes(b"2")
    assert measured(tmp_path, ["another"], shown.append) == first[1:]
    assert measured(tmp_path, ["app"], shown.append) == first
    assert len(shown) == 3
    twin = tmp_path / "run" / "prune" / "padded"
    twin.mkdir(parents=True)
    (twin / "model.safetensors").write_bytes(b"3")
    assert measured(tmp_path, ["another"], shown.append) == first[:1]


def test_environments_are_shared_only_by_applications_with_equal_packages() -> None:
    packages: dict[str, set[tuple[str, ...]]] = {}
    for app in (*APPS, *LOADERS):
        packages.setdefault(app.folder, set()).add(app.packages)
    assert all(len(found) == 1 for found in packages.values())
    assert len({(app.name, app.version) for app in APPS}) == len(APPS)


def test_the_page_gives_each_message_a_letter_once() -> None:
    rows = [
        {"app": "a", "version": "1", "export": "float32", "result": "86 of 86 equal"},
        {"app": "a", "version": "1", "export": "packed", "result": "no such operator"},
        {"app": "a", "version": "2", "export": "packed", "result": "no such operator"},
        {"app": "b", "version": "3", "export": "padded twin", "result": "86 of 86 equal"},
    ]
    page = markdown({"rows": rows} | MEASURED_ON)
    assert "| a | 1 | 86 | not run | not run | a | not run |" in page
    assert "| loader | version | padded twin |" in page
    assert "| b | 3 | 86 |" in page
    assert page.count("`no such operator`") == 1
