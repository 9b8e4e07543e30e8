"""Sources of documents: the embedded tasks, local files, Hugging Face data sets.

A source yields token sequences for calibration or for scoring. Embedded tasks have a training part
and a held-out part; for files and data sets the recipe names a source for each use.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
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


@dataclass(frozen=True)
class _Encoded:
    """Tokens of a document.

    Attributes:
        number: Number of the document in its source.
        sequence: Tokens, cut to the sequence length.
        prompt_tokens: Tokens of the prompt before the cut; at least so many.
        is_truncated: True if tokens are cut off.
    """

    number: int
    sequence: TokenSequence
    prompt_tokens: int
    is_truncated: bool


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
    encoded = list(_encoded(_contents(source, count, seed, part), tokenizer, source, model, length))
    if source.demo is None:
        random.Random(seed).shuffle(encoded)
    # A prompt alone may fill the length only where no answer is to follow.
    kept = [e.sequence for e in encoded if e.prompt_tokens < length or not has_prompts(source)]
    if not kept:
        raise CalibrationError(
            f"{source.name}: no prompt of the {count} drawn leaves room for an answer: that of "
            f"document {encoded[0].number} has {encoded[0].prompt_tokens} tokens or more, and "
            f"sequence_length is {length}; raise it, or give shorter prompts"
        )
    dropped = len(encoded) - len(kept)
    drawn = Drawn(kept, sum(e.is_truncated for e in encoded) - dropped, dropped)
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


def _contents(source: Source, count: int, seed: int, part: Part) -> Iterator[_Content]:
    """Yields `count` documents, or conversations that become one, drawn from a source."""
    if source.demo is not None:
        make = training_documents if part == "train" else test_items
        for number, document in enumerate(make(source.demo, count, seed), 1):
            yield _Content(source.demo, number, document)
        return
    read = _reader(source)
    # All rows are looked at, so that a wrong one is refused whether or not it is drawn. Those drawn
    # are read again, one by one, because together they may be large.
    drawn, total = sampled((_checked(row, source) for row in read()), count, seed)
    if total < count:
        raise CalibrationError(
            f"{source.name}: {count} documents are asked for, it holds {total}; ask for "
            "fewer or give a larger source"
        )
    numbers = set(drawn)
    for row in takewhile(lambda row: row.number <= drawn[-1], read()):
        if row.number in numbers:
            yield _Content(row.place, row.number, row_content(row, source))


def _checked(row: Row, source: Source) -> int:
    """Number of a row whose fields are as the source says."""
    row_content(row, source)
    return row.number


def _encoded(
    contents: Iterable[_Content],
    tokenizer: TextTokenizer,
    source: Source,
    model: Path,
    length: int,
) -> Iterator[_Encoded]:
    """Yields the tokens of documents, cut to `length`."""
    with ChatTemplate(model) if _is_rendered(source) else nullcontext() as template:
        encode = partial(
            tokenizer.encode,
            rendered=template is not None,
            limit=length,
            eos=source.eos != "optional",
        )
        for each in contents:
            document = each.content
            if isinstance(document, Conversation):
                assert template is not None
                text = template.render(document, each.place)
                document = document.rendered(text)
            whole = with_alternatives(document, encode)
            if len(whole.tokens) < 2:
                raise CalibrationError(
                    f"{source.name}: document {each.number} has {len(whole.tokens)} tokens, at "
                    "least 2 are needed to predict one; remove empty documents"
                )
            is_truncated = len(whole.tokens) > length
            yield _Encoded(each.number, cut(whole, length), whole.prompt_tokens, is_truncated)


def _is_rendered(source: Source) -> bool:
    return source.chat_template and source.demo is None


def _reader(source: Source) -> Callable[[], Iterator[Row]]:
    """Function that reads the rows of a source from its start."""
    if source.jsonl is not None:
        return partial(file_rows, Path(source.jsonl), fields_of(source))
    assert source.hub is not None
    data, name = _hub_rows(source), source.hub
    return lambda: (Row(name, number, fields) for number, fields in enumerate(data, 1))


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
