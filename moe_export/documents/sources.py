"""Sources of documents: the embedded tasks, local files, Hugging Face data sets.

A source yields token sequences for calibration or for scoring. Embedded tasks have a training part
and a held-out part; for files and data sets the recipe names a source for each use.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from moe_export.demo.tasks import Document, test_items, training_documents
from moe_export.documents.choices import cut, with_alternatives, wrong_choices
from moe_export.documents.tokens import TextTokenizer, TokenSequence
from moe_export.errors import CalibrationError, DependencyError
from moe_export.recipe import Source, Task

Part = Literal["train", "test"]

TEST_SEED = 1234
"""Seed of the draws of scored documents, which are the same in every run, so that runs compare."""


@dataclass(frozen=True)
class Drawn:
    """Sequences drawn from a source, and the number of them cut to the sequence length."""

    sequences: list[TokenSequence]
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

    The tokens of a text file are divided into windows of exactly `length` tokens. In all other
    sources each document is one sequence, cut to `length` tokens if it is longer.

    Args:
        source: Source of a recipe.
        model: Checkpoint directory with the tokenizer and chat template.
        count: Number of sequences, at least 1.
        length: Largest number of tokens in a sequence.
        seed: Seed of the draw; equal seeds draw equal sequences.
        part: Part of an embedded task, `train` or `test`.

    Raises:
        CalibrationError: The source is unreadable, empty, or shorter than needed.
        DependencyError: A data set needs a package or a network that is absent.
    """
    tokenizer = TextTokenizer(model)
    if source.text is not None:
        return Drawn(_windows(source.text, tokenizer, count, length, seed), 0)
    documents = list(_documents(source, model, count, seed, part))
    if len(documents) < count:
        raise CalibrationError(
            f"{source.name}: {count} documents are asked for, it holds {len(documents)}; ask for "
            "fewer or give a larger source"
        )
    if not source.demo:
        documents = random.Random(seed).sample(documents, count)
    encode = partial(tokenizer.encode, eos=source.eos != "optional")
    whole = [with_alternatives(document, encode) for document in documents]
    sequences = [cut(sequence, length) for sequence in whole]
    for number, sequence in enumerate(sequences):
        if len(sequence.tokens) < 2:
            raise CalibrationError(
                f"{source.name}: document {number + 1} has {len(sequence.tokens)} tokens, at "
                "least 2 are needed to predict one; remove empty documents"
            )
    return Drawn(sequences, sum(len(s.tokens) > length for s in whole))


def task_names(tasks: tuple[Task, ...]) -> dict[str, Task]:
    """Tasks by unique name: the name of the source, with a number if it is used again."""
    named: dict[str, Task] = {}
    for task in tasks:
        name, number = task.name, 2
        while name in named:
            name, number = f"{task.name} {number}", number + 1
        named[name] = task
    return named


def has_answers(task: Task) -> bool:
    """True if documents of a task have a prompt and an answer that can match exactly."""
    return task.demo not in (None, "text") or task.prompt_field is not None


def outside_files(sources: Iterable[Source]) -> dict[str, str]:
    """SHA-256 of every local file that the sources read, by path.

    Raises:
        CalibrationError: A file cannot be read.
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
        return _row_documents(_json_rows(Path(source.jsonl)), source, source.jsonl, model)
    assert source.hub is not None
    return _row_documents(_hub_rows(source), source, source.hub, model)


def _row_documents(
    rows: Iterable[dict[str, Any]], source: Source, name: str, model: Path
) -> list[Document]:
    """Documents made from the fields of each row that the source names."""
    documents = []
    template = _ChatTemplate(model) if source.chat_template else None
    for number, row in enumerate(rows):
        try:
            document = _row_document(row, source, template)
            documents.append(_with_choices(document, row, source, f"{name}: row {number + 1}"))
        except KeyError as error:
            raise CalibrationError(
                f"{name}: row {number + 1} has no field {error.args[0]!r}; it has "
                f"{', '.join(map(repr, row))}: name the right one in text_field, or in "
                "prompt_field and answer_field"
            ) from error
    return documents


def _row_document(row: dict[str, Any], source: Source, template: _ChatTemplate | None) -> Document:
    if source.prompt_field is not None and source.answer_field is not None:
        prompt, answer = str(row[source.prompt_field]), str(row[source.answer_field])
        if template is None:
            return Document(prompt, answer)
        return Document(template.render([{"role": "user", "content": prompt}], True), answer)
    if template is not None:
        return Document("", template.render(row["messages"], False))
    return Document("", str(row[source.text_field]))


def _with_choices(document: Document, row: dict[str, Any], source: Source, place: str) -> Document:
    """The document with the wrong choices of its row, if the source names their field."""
    if source.choices_field is None:
        return document
    choices, field = row[source.choices_field], f"{place}: field {source.choices_field!r}"
    return replace(document, wrong_choices=wrong_choices(choices, document.answer, field))


class _ChatTemplate:
    """Chat template of the model, rendered by transformers."""

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


def _windows(
    name: str, tokenizer: TextTokenizer, count: int, length: int, seed: int
) -> list[TokenSequence]:
    """Random windows of a text file's tokens, without overlap, in the order of the text."""
    tokens = tokenizer.encode_text(_read(Path(name)))
    available = len(tokens) // length
    if available < count:
        raise CalibrationError(
            f"{name}: {count} sequences of {length} tokens are asked for, its {len(tokens)} tokens "
            f"make {available}; give more text, or lower sequence_length or sequences"
        )
    chosen = sorted(random.Random(seed).sample(range(available), count))
    return [TokenSequence(tokens[at * length : (at + 1) * length], 0) for at in chosen]


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
