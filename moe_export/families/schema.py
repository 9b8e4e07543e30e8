"""Types and ranges of the values in a `config.json`.

A size beyond its range is refused before a list or table of that size is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe_export.errors import CheckpointError


@dataclass(frozen=True)
class Number:
    """Range of a number.

    Attributes:
        least: Smallest value.
        most: Largest value.
        whole: True if the number has no fraction and is stored as an integer.
    """

    least: float
    most: float
    whole: bool = True

    def holds(self, value: Any) -> bool:
        """True if a value has the type and lies in the range; a flag is no number."""
        if type(value) is int or (type(value) is float and not self.whole):
            return self.least <= value <= self.most
        return False

    def __str__(self) -> str:
        if self.whole:
            return f"a number from {self.least:.0f} to {self.most:.0f} without a fraction"
        return f"a number from {self.least:g} to {self.most:g}"


def _real(least: float, most: float) -> Number:
    return Number(least, most, whole=False)


WIDTH = Number(1, 1 << 18)
HEAD_DIM = Number(1, 1 << 12)
POSITIVE = _real(1e-9, 1e9)
POSITIONS = Number(1, 1 << 20)

NUMBERS: dict[str, Number] = {
    "hidden_size": Number(1, 1 << 17),
    "num_layers": Number(1, 1 << 10),
    "num_heads": Number(1, 1 << 12),
    "num_kv_heads": Number(1, 1 << 12),
    "vocab_size": Number(1, 1 << 22),
    "max_positions": POSITIONS,
    "num_experts": Number(1, 1 << 14),
    "top_k": Number(1, 1 << 14),
    "width": WIDTH,
    "dense_width": WIDTH,
    "shared_width": Number(0, WIDTH.most),
    "num_shared_experts": Number(0, 64),
    "first_k": Number(0, 1 << 10),
    "groups": Number(1, 1 << 14),
    "top_groups": Number(1, 1 << 14),
    "q_latent": Number(1, 1 << 17),
    "kv_latent": Number(1, 1 << 17),
    "rope_dim": HEAD_DIM,
    "nope_dim": HEAD_DIM,
    "value_dim": HEAD_DIM,
    "norm_epsilon": _real(0, 1),
    "rope_theta": _real(2, 1e12),
    "routing_scale": _real(0, 1e6),
    "router_jitter": _real(0, 1e3),
    "rotated": _real(1e-3, 1),
    "convolution_taps": Number(2, 64),
    "interval": Number(1, 1 << 10),
    "delta_key_heads": Number(1, 1 << 12),
    "delta_value_heads": Number(1, 1 << 12),
    "delta_key_dim": HEAD_DIM,
    "delta_value_dim": HEAD_DIM,
    "delta_taps": Number(2, 64),
    "clip_qkv": POSITIVE,
}
"""Range of each number by our name of it; several times what published models have."""

MOST_EXPERTS = 1 << 17
"""Most experts of all layers together. The largest published models have about 25 000."""

FLAGS = (
    "attention_bias",
    "lm_head_bias",
    "mlp_bias",
    "norm_topk_prob",
    "qkv_bias",
    "tie_embedding",
    "tie_word_embeddings",
    "use_qk_norm",
    "use_sliding_window",
)
"""Config keys whose values are true or false."""

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Config keys whose values are token ids; -1 stands for no token in some configs."""

_LONGEST = 60


def shown(value: Any) -> str:
    """Returns a value as text of bounded length for an error message.

    >>> shown([1] * 1000)
    '[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,...'
    """
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def require_flags(values: dict[str, Any], model_type: str) -> None:
    """Checks that every flag is true or false.

    Raises:
        CheckpointError: A flag has another value, such as the text "false".
    """
    for key in FLAGS:
        if key in values and not isinstance(values[key], bool):
            raise CheckpointError(
                f"config.json: {key} is {shown(values[key])}, expected true or false for "
                f"{model_type}"
            )


def require_token_ids(content: dict[str, Any], file: str) -> None:
    """Checks the ids of special tokens: a number each, or a list of numbers for the end of text.

    Args:
        content: Content of `config.json` or `generation_config.json`.
        file: Name of the file for the message.

    Raises:
        CheckpointError: An id is no number, or smaller than -1.
    """
    for key in TOKEN_IDS:
        value = content.get(key)
        ids = value if key == "eos_token_id" and isinstance(value, list) else [value]
        if value is not None and not all(type(token) is int and token >= -1 for token in ids):
            raise CheckpointError(
                f"{file}: {key} is {shown(value)}, expected a token id"
                + (" or a list of token ids" if key == "eos_token_id" else "")
            )


def real(content: dict[str, Any], key: str, default: float | None, where: str) -> float:
    """Positive number of a section within a config.

    Args:
        content: Section of the config.
        key: Key of the number.
        default: Number that stands for an absent key; None if it must be there.
        where: Model type and name of the section, for the message.

    Raises:
        CheckpointError: The value is absent, no number, or not positive.
    """
    value: Any = content.get(key, default)
    if not POSITIVE.holds(value):
        raise CheckpointError(
            f"config.json: {key} within {where} is {shown(value)}, expected a number above 0"
        )
    return float(value)
