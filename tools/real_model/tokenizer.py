"""The tokenizer of a GGUF file as `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from moe_export.checkpoint import write_json
from moe_export.errors import CheckpointError
from tools.real_model.gguf_file import GgufFile

CONTROL = 3
"""Type of a token that text never contains."""

SPLITS = ("smollm", "smollm2")
"""Known ways of dividing text before the merges: single digits, then GPT-2's pattern."""


def write_tokenizer(file: GgufFile, out: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        CheckpointError: The file divides text in a way that is not known here.
    """
    facts = file.facts
    if facts.get("tokenizer.ggml.pre") not in SPLITS:
        raise CheckpointError(
            f"{file.path} divides text like {facts.get('tokenizer.ggml.pre')!r}; known: {SPLITS}"
        )
    tokens = facts["tokenizer.ggml.tokens"]
    bpe_tokenizer(tokens, facts["tokenizer.ggml.merges"], special_tokens(file)).save(
        str(out / "tokenizer.json")
    )
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    if "tokenizer.chat_template" in facts:
        content["chat_template"] = facts["tokenizer.chat_template"]
    write_json(out / "tokenizer_config.json", content)


def special_tokens(file: GgufFile) -> list[str]:
    """Lists the tokens that text never contains."""
    tokens, types = file.facts["tokenizer.ggml.tokens"], file.facts["tokenizer.ggml.token_type"]
    return [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]


def bpe_tokenizer(tokens: list[str], merges: list[str], special: list[str]) -> Tokenizer:
    """Makes a byte-level BPE that takes digits one by one."""
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer
