"""Sources of documents: the embedded tasks, local files, Hugging Face data sets.

A source yields token sequences for calibration or for scoring. Embedded tasks have a training part
and a held-out part; for files and data sets the recipe names a source for each use.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from moe_export.demo.tasks import Document, test_items, training_documents
from moe_export.documents.chat import ChatTemplate
from moe_export.documents.choices import cut, with_alternatives
from moe_export.documents.fields import Conversation, fields_of, row_content
from moe_export.documents.files import file_sha256
from moe_export.documents.reservoir import sampled
from moe_export.documents.rows import Row, file_rows
from moe_export.documents.tokens import TextTokenizer, TokenSequence
from moe_export.documents.windows import windows
from moe_export.errors import CalibrationError, DependencyError
from moe_export.recipe import Source, Task

Part = Literal["train", "test"]

TEST_SEED = 1234
"""Seed of the draws of scored documents, which are the same in every run, so that runs compare."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """Sequences drawn from a source.

    Attributes:
        sequences: The sequences.
        truncated: Number of them that are cut to the sequence length.
        dropped: Number of drawn documents that are left out, because their prompts fill the
            sequence length and leave no room for an answer.
    """

    sequences: list[TokenSequence]
    truncated: int = 0
    dropped: int = 0

    @property
    def bos(self) -> str:
        """Origins of the BOS tokens, usually one: see `special_tokens.Bos`."""
        return ", ".join(sorted({sequence.bos for sequence in self.sequences}))


@dataclass(frozen=True)
class _Content:
    """Content of a document, and its place in the source for messages."""

    place: str
    number: int
    content: Document | Conversation


def draw(
    source: Source,
    model: Path,
    count: int,
    length: int,
    seed: int,
    part: Part,
) -> Drawn:
    """Draws `count` sequences of at most `length` tokens from a source.

    A text file gives windows of exactly `length` tokens. In all other sources each document is one
    sequence, cut to `length` tokens if it is longer. A document whose prompt alone has as many is
    dropped, so fewer than `count` may be left.

    Args:
        source: Source of a recipe.
        model: Checkpoint directory with the tokenizer and chat template.
        count: Number of sequences, at least 1.
        length: Largest number of tokens in a sequence.
        seed: Seed of the draw; equal seeds draw equal sequences.
        part: Part of an embedded task, `train` or `test`.

    Raises:
        CalibrationError: The source is unreadable, empty, or shorter than needed; or no document
            has room for an answer.
        CheckpointError: The tokenizer is missing or damaged.
        DependencyError: A data set needs a package or a network that is absent.
    """
    tokenizer = TextTokenizer(model)
    if source.text is not None:
        return Drawn(windows(Path(source.text), tokenizer, count, length, seed))
    contents = _contents(source, count, seed, part)
    encoded = list(_encoded(contents, tokenizer, source, model, length))
    # A prompt alone may fill the length only where no answer is to follow.
    answered = [s for s in encoded if s.prompt_tokens < length or not has_prompts(source)]
    if not answered:
        raise CalibrationError(
            f"{source.name}: no prompt of the {count} drawn leaves room for an answer: that of "
            f"document {contents[0].number} has {encoded[0].prompt_tokens} tokens or more, and "
            f"sequence_length is {length}; raise it, or give shorter prompts"
        )
    drawn = Drawn(
        [cut(sequence, length) for sequence in answered],
        truncated=sum(len(s.tokens) > length for s in answered),
        dropped=len(encoded) - len(answered),
    )
    _tell_of_lost(drawn, source, length, part)
    return drawn


def _tell_of_lost(drawn: Drawn, source: Source, length: int, part: Part) -> None:
    """Warns of documents that are dropped, and of answers to be scored that are cut."""
    advice = f"because sequence_length is {length}; raise it, or give shorter documents"
    if drawn.dropped:
        _LOG.warning(
            "%s: %d documents are left out, whose prompts leave no room for an answer, %s",
            source.name,
            drawn.dropped,
            advice,
        )
    if drawn.truncated and part == "test" and has_prompts(source):
        _LOG.warning(
            "%s: %d answers are cut, and scored as far as they go, %s",
            source.name,
            drawn.truncated,
            advice,
        )


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
    return has_prompts(task)


def has_prompts(source: Source) -> bool:
    """True if documents of a source have a prompt and an answer."""
    return source.demo not in (None, "text") or source.prompt_field is not None


def outside_files(sources: Iterable[Source]) -> dict[str, str]:
    """SHA-256 of every local file that the sources read, by path.

    Raises:
        CalibrationError: A file cannot be read.
    """
    paths = [source.text or source.jsonl for source in sources]
    return {path: file_sha256(Path(path)) for path in paths if path is not None}


def _contents(source: Source, count: int, seed: int, part: Part) -> list[_Content]:
    """Draws `count` documents, or conversations that become one."""
    if source.demo is not None:
        make = training_documents if part == "train" else test_items
        documents = make(source.demo, count, seed)
        drawn = [_Content(source.demo, at, each) for at, each in enumerate(documents, 1)]
        total = len(drawn)
    else:
        # All rows are looked at, so that a wrong one is refused whether or not it is drawn.
        contents = (_Content(r.place, r.number, row_content(r, source)) for r in _rows(source))
        drawn, total = sampled(contents, count, seed)
        random.Random(seed).shuffle(drawn)
    if total < count:
        raise CalibrationError(
            f"{source.name}: {count} documents are asked for, it holds {total}; ask for "
            "fewer or give a larger source"
        )
    return drawn


def _encoded(
    drawn: list[_Content], tokenizer: TextTokenizer, source: Source, model: Path, length: int
) -> Iterator[TokenSequence]:
    """Yields the tokens of documents; of a document longer than `length` at least one more."""
    with ChatTemplate(model) if _is_rendered(source) else nullcontext() as template:
        encode = partial(
            tokenizer.encode,
            rendered=template is not None,
            limit=length,
            eos=source.eos != "optional",
        )
        for each in drawn:
            document = each.content
            if isinstance(document, Conversation):
                assert template is not None
                text = template.render(document, each.place)
                document = document.rendered(text)
            sequence = with_alternatives(document, encode)
            if len(sequence.tokens) < 2:
                raise CalibrationError(
                    f"{source.name}: document {each.number} has {len(sequence.tokens)} tokens, at "
                    "least 2 are needed to predict one; remove empty documents"
                )
            yield sequence


def _is_rendered(source: Source) -> bool:
    return source.chat_template and source.demo is None


def _rows(source: Source) -> Iterator[Row]:
    if source.jsonl is not None:
        yield from file_rows(Path(source.jsonl), fields_of(source))
        return
    assert source.hub is not None
    for number, fields in enumerate(_hub_rows(source), 1):
        yield Row(source.hub, number, fields)


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
