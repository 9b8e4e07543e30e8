"""The demo models' tokenizer: byte-level BPE of 1024 tokens, one token per digit and newline."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from moe_export.demo.tasks import training_documents
from tools.train_demo.configs import DEMO
from tools.train_demo.settings import BOS_ID, PAD_ID

BOS = EOS = "<|endoftext|>"
PAD = "<|pad|>"

# Digits stay single so that a sum's columns line up; a word takes its leading space with it.
_PIECES = Regex(r"[0-9]|\n| ?[A-Za-z']+| ?[^\sA-Za-z0-9]+|\s+")
# Share of the documents to learn merges from; letters and digits need no merges.
_SHARES = {"arithmetic": 0.16, "sums": 0.02, "facts": 0.48, "strings": 0.02}


def train_tokenizer(paragraphs: Sequence[str], documents: int) -> Tokenizer:
    """A tokenizer learnt from training documents only; encoding puts BOS in front, once."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=DEMO["vocab_size"],
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(paragraphs, documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    assert tokenizer.token_to_id(BOS) == BOS_ID
    assert tokenizer.token_to_id(PAD) == PAD_ID
    return tokenizer


def _corpus(paragraphs: Sequence[str], documents: int) -> Iterator[str]:
    for kind, share in _SHARES.items():
        for document in training_documents(kind, round(share * documents), seed=5):
            yield document.prompt + document.answer
    text_documents = round((1 - sum(_SHARES.values())) * documents)
    for index in range(text_documents):
        yield paragraphs[index % len(paragraphs)] + "\n"


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write `tokenizer.json` and a `tokenizer_config.json` that transformers 4.57 and 5 read."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": DEMO["max_position_embeddings"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
