"""Where documents come from: the embedded tasks, local files, Hugging Face data sets.

A source gives token sequences, either for calibration (its training part) or for scoring (its
held-out part, which only the embedded tasks have; of files and data sets the recipe says which).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_export.demo.tasks import Document, test_items, training_documents
from moe_export.documents.tokens import Sequence, TextTokenizer
from moe_export.errors import CalibrationError, DependencyError
from moe_export.recipe import Source, Task

Part = Literal["train", "test"]

TEST_SEED = 1234
"""Seed of the draws of scored documents, which are the same in every run, so that runs compare."""


@dataclass(frozen=True)
class Drawn:
    """Sequences of a source, and how many had to be cut to the sequence length."""

    sequences: list[Sequence]
    truncated: int


def draw(
    source: Source,
    model: Path,
    count: int,
    length: int,
    seed: int,
    part: Part,
) -> Drawn:
    """Draws `count` sequences of at most `length` tokens from a source.

    A text file is packed: its tokens, end to end, are cut into whole sequences of `length`.
    Everything else keeps one document a sequence and is cut where it is longer.

    Args:
        source: a source of a recipe.
        model: the checkpoint directory, for its tokenizer and chat template.
        count: sequences, at least 1.
        length: tokens of the longest sequence.
        seed: draws the same sequences again.
        part: which part of an embedded task.

    Raises:
        CalibrationError: the source is unreadable, empty, or too short for what is asked.
        DependencyError: a data set needs a package or a network that is absent.
    """
    tokenizer = TextTokenizer(model)
    if source.text is not None:
        return Drawn(_pack(source.text, tokenizer, count, length, seed), 0)
    documents = list(_documents(source, model, count, seed, part))
    if len(documents) < count:
        raise CalibrationError(
            f"{source.name}: {count} documents are asked for, it holds {len(documents)}; ask for "
            "fewer or give a larger source"
        )
    if not source.demo:
        documents = random.Random(seed).sample(documents, count)
    whole = [tokenizer.encode(document) for document in documents]
    cut = [Sequence(s.tokens[:length], min(s.prompt_tokens, length)) for s in whole]
    for number, sequence in enumerate(cut):
        if len(sequence.tokens) < 2:
            raise CalibrationError(
                f"{source.name}: document {number + 1} has {len(sequence.tokens)} tokens, at "
                "least 2 are needed to predict one; remove empty documents"
            )
    return Drawn(cut, sum(len(s.tokens) > length for s in whole))


def task_names(tasks: tuple[Task, ...]) -> dict[str, Task]:
    """Tasks by a name of their own: that of the source, numbered where it stands twice."""
    named: dict[str, Task] = {}
    for task in tasks:
        name, number = task.name, 2
        while name in named:
            name, number = f"{task.name} {number}", number + 1
        named[name] = task
    return named


def has_answers(task: Task) -> bool:
    """Whether documents of a task have a prompt, so that an exact match means something."""
    return task.demo not in (None, "text") or task.prompt_field is not None


def outside_files(sources: Iterable[Source]) -> dict[str, str]:
    """SHA-256 of every local file that sources read, by path.

    Raises:
        CalibrationError: a file cannot be read.
    """
    prints = {}
    for source in sources:
        path = source.text or source.jsonl
        if path is not None:
            prints[path] = hashlib.sha256(_read(Path(path)).encode()).hexdigest()
    return prints


def _documents(
    source: Source, model: Path, count: int, seed: int, part: Part
) -> Iterable[Document]:
    if source.demo is not None:
        make = training_documents if part == "train" else test_items
        return make(source.demo, count, seed)
    if source.jsonl is not None:
        return _of_rows(_json_rows(Path(source.jsonl)), source, source.jsonl, model)
    assert source.hub is not None
    return _of_rows(_hub_rows(source), source, source.hub, model)


def _of_rows(
    rows: Iterable[dict[str, Any]], source: Source, name: str, model: Path
) -> list[Document]:
    """Documents of rows, by the fields that the source names."""
    documents = []
    template = _ChatTemplate(model) if source.chat_template else None
    for number, row in enumerate(rows):
        try:
            documents.append(_of_row(row, source, template))
        except KeyError as error:
            raise CalibrationError(
                f"{name}: row {number + 1} has no field {error.args[0]!r}; it has "
                f"{', '.join(map(repr, row))}: name the right one in text_field, or in "
                "prompt_field and answer_field"
            ) from error
    return documents


def _of_row(row: dict[str, Any], source: Source, template: _ChatTemplate | None) -> Document:
    if source.prompt_field is not None and source.answer_field is not None:
        prompt, answer = str(row[source.prompt_field]), str(row[source.answer_field])
        if template is None:
            return Document(prompt, answer)
        return Document(template.render([{"role": "user", "content": prompt}], True), answer)
    if template is not None:
        return Document("", template.render(row["messages"], False))
    return Document("", str(row[source.text_field]))


class _ChatTemplate:
    """The model's own chat template, rendered by transformers."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, and seldom needed

        self._tokenizer = AutoTokenizer.from_pretrained(model)
        if self._tokenizer.chat_template is None:
            raise CalibrationError(
                f"{model}: the tokenizer has no chat template; set chat_template: false"
            )

    def render(self, messages: list[dict[str, str]], ask: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask
        )
        return str(text)


def _pack(
    name: str, tokenizer: TextTokenizer, count: int, length: int, seed: int
) -> list[Sequence]:
    tokens = tokenizer.encode_text(_read(Path(name)))
    windows = len(tokens) // length
    if windows < count:
        raise CalibrationError(
            f"{name}: {count} sequences of {length} tokens are asked for, its {len(tokens)} tokens "
            f"make {windows}; give more text, or lower sequence_length or sequences"
        )
    chosen = sorted(random.Random(seed).sample(range(windows), count))
    return [Sequence(tokens[at * length : (at + 1) * length], 0) for at in chosen]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CalibrationError(f"{path}: no such file; give the path of a text file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} cannot be read as UTF-8 text ({error})") from error


def _json_rows(path: Path) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(_read(path).splitlines()):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CalibrationError(f"{path}:{number + 1}: not a line of JSON ({error})") from error
        if not isinstance(row, dict):
            raise CalibrationError(f"{path}:{number + 1}: expected a JSON object")
        yield row


def _hub_rows(source: Source) -> Iterable[dict[str, Any]]:
    try:
        import datasets  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise DependencyError(
            f"{source.hub}: reading a data set of the hub needs the package 'datasets'; install "
            "moe-export[eval], or give a local file with text: or jsonl:"
        ) from error
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(
            source.hub, source.config, split=source.split, revision=source.revision
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DependencyError(
            f"{source.hub}: the data set can neither be found locally nor fetched "
            f"({type(error).__name__}); give a local file with text: or jsonl:"
        ) from error
    return rows
