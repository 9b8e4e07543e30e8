"""Training batches: whole documents packed into rows, each blind to its neighbours.

Attention is block-diagonal and positions restart with every document, so that a packed document
is computed exactly as it is alone at evaluation.

S rows of a batch, L tokens of a row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from moe_export.demo.tasks import KINDS, Document, training_documents
from tools.train_demo.settings import BOS_ID, EOS_ID, PAD_ID, Settings

# Mean tokens of a document, measured with the tokenizer; turns shares of tokens into shares of
# documents.
_MEAN_TOKENS = {"arithmetic": 54.2, "sums": 10.9, "facts": 18.9, "strings": 17.8, "text": 72.2}
_CHUNK_DOCUMENTS = 1000
_POOL_DOCUMENTS = 400
_SHORTEST_TOKENS = 9  # rows with less room than this are full


@dataclass(frozen=True)
class EncodedDocument:
    """BOS, prompt, answer, EOS; `answer_start` is the index of the answer's first token."""

    token_ids: list[int]
    answer_start: int


@dataclass(frozen=True)
class Batch:
    """One packed batch, every tensor [S, L]; a label is the next token.

    A weight of 0 marks padding, where `document_index` is -1.
    """

    input_ids: Tensor
    label_ids: Tensor
    weights: Tensor
    position_ids: Tensor
    document_index: Tensor

    def attention_mask(self) -> Tensor:
        """Additive float32 mask [S, 1, L, L]: causal and within one document."""
        same_SLL = self.document_index[:, :, None] == self.document_index[:, None, :]
        # A large finite number keeps the softmax of padding rows free of NaN.
        return torch.where(same_SLL.tril(), 0.0, -1e9)[:, None]


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[EncodedDocument]:
    """Encode prompt and answer apart, so that a prompt has the same tokens with and without."""
    prompts = tokenizer.encode_batch([d.prompt for d in documents], add_special_tokens=False)
    answers = tokenizer.encode_batch([d.answer for d in documents], add_special_tokens=False)
    return [
        EncodedDocument([BOS_ID, *prompt.ids, *answer.ids, EOS_ID], 1 + len(prompt.ids))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def batches(tokenizer: Tokenizer, paragraphs: Sequence[str], settings: Settings) -> Iterator[Batch]:
    """Endless batches of the settings' mix of kinds."""
    stream = _documents(tokenizer, paragraphs, settings)
    pool: list[EncodedDocument] = []
    while True:
        pool.extend(next(stream) for _ in range(_POOL_DOCUMENTS - len(pool)))
        batch, pool = _pack(pool, settings)
        yield batch


def _documents(
    tokenizer: Tokenizer, paragraphs: Sequence[str], settings: Settings
) -> Iterator[EncodedDocument]:
    rng = random.Random(f"stream {settings.seed}")
    shares = [settings.mix[kind] / _MEAN_TOKENS[kind] for kind in KINDS]
    while True:
        kinds = rng.choices(KINDS, shares, k=_CHUNK_DOCUMENTS)
        documents = []
        for kind in KINDS:
            count = kinds.count(kind)
            if kind == "text":
                documents += [
                    Document("", text + "\n") for text in rng.choices(paragraphs, k=count)
                ]
            elif count:
                documents += training_documents(kind, count, rng.getrandbits(32))
        rng.shuffle(documents)
        for document in encode(tokenizer, documents):
            if len(document.token_ids) <= settings.row_tokens:
                yield document


def _pack(pool: list[EncodedDocument], settings: Settings) -> tuple[Batch, list[EncodedDocument]]:
    """First fit: each document goes to the first row with room; the rest is returned."""
    shape = (settings.rows, settings.row_tokens)
    batch = Batch(
        input_ids=torch.full(shape, PAD_ID),
        label_ids=torch.full(shape, PAD_ID),
        weights=torch.zeros(shape),
        position_ids=torch.zeros(shape, dtype=torch.long),
        document_index=torch.full(shape, -1),
    )
    used = [0] * settings.rows
    left = []
    for index, document in enumerate(pool):
        length = len(document.token_ids) - 1
        row = next((r for r, u in enumerate(used) if u + length <= settings.row_tokens), None)
        if row is None:
            left.append(document)
            if min(used) > settings.row_tokens - _SHORTEST_TOKENS:
                left.extend(pool[index + 1 :])
                break
            continue
        place = (row, slice(used[row], used[row] + length))
        used[row] += length
        tokens = torch.tensor(document.token_ids)
        batch.input_ids[place] = tokens[:-1]
        batch.label_ids[place] = tokens[1:]
        batch.weights[place] = 1.0
        batch.weights[row, place[1].start : place[1].start + document.answer_start - 1] = (
            settings.prompt_weight
        )
        batch.position_ids[place] = torch.arange(length)
        batch.document_index[place] = index
    return batch, left
