"""Formats of a model's tensors by class, in the words of the recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from moe_export.errors import CheckpointError, RecipeError
from moe_export.formats import GROUP_SIZES, TABLE, QuantizedMatrix, Use

QUANTIZATION_KEY = "quantization"
"""Config key of a quantized checkpoint."""

FLOAT = "float"
"""Word of a recipe for weights in the dtype of the model, whichever it is."""

FormatWord = str
"""Word of a recipe for a format: `float`, or the name of a format of `moe_export.formats.TABLE`."""

QuantizedFormat = str
"""Name of a quantized format of `moe_export.formats.TABLE`."""

Method = Literal["rtn", "mse", "gptq"]

EXPERT_ROLES = frozenset({"gate", "up", "down", "shared_gate", "shared_up", "shared_down"})
"""Roles of the tensors of experts. Those of the shared expert are in the same node, and so in the
same format."""

DENSE_ROLES = frozenset(
    {"q", "k", "v", "o", "q_latent", "q_expand", "kv_latent", "kv_expand"}
    | {"conv_in", "conv_out", "delta_in", "delta_qkv", "delta_z", "delta_out"}
    | {"dense_gate", "dense_up", "dense_down"}
)
"""Roles of the matrices of mixers, such as attention, and of layers without experts."""


def words_for(use: Use) -> tuple[FormatWord, ...]:
    """Formats that a recipe may give to a class of tensors.

    >>> words_for("dense"), words_for("embedding")
    (('float', 'int8', 'int4', 'uint8', 'uint4'), ('float', 'int8'))
    """
    return (FLOAT, *(name for name, facts in TABLE.items() if use in facts.uses))


def choices_for_experts() -> tuple[FormatWord, ...]:
    """Formats that the plan may choose from: the model's dtype, and the quantized formats."""
    return tuple(word for word in words_for("experts") if word == FLOAT or TABLE[word].is_quantized)


@dataclass(frozen=True)
class Quantization:
    """Formats of a model's tensors. A tensor in none of these classes keeps its dtype.

    Attributes:
        experts: Format of all experts' matrices, the shared expert's too; or one per layer.
        dense: Format of the matrices of attention and of layers without experts.
        embedding: Format of the embedding's table.
        group_size: Values of a column that share a scale.
        lm_head: Format of the lm_head; None if it is that of `dense`.

    Raises:
        RecipeError: a format is unknown.
    """

    experts: FormatWord | tuple[FormatWord, ...] = FLOAT
    dense: FormatWord = FLOAT
    embedding: FormatWord = FLOAT
    group_size: int = 32
    lm_head: FormatWord | None = None

    def __post_init__(self) -> None:
        words = self.formats_of_experts | {self.dense, self.embedding, self.lm_head or FLOAT}
        for word in sorted(words - {FLOAT, *TABLE}):
            raise RecipeError(
                f"format {word!r} is unknown; choose one of {', '.join((FLOAT, *TABLE))}"
            )

    @property
    def is_float(self) -> bool:
        """True if every tensor keeps the dtype of the model."""
        outside = {self.dense, self.embedding, self.lm_head or self.dense}
        return self.formats_of_experts | outside == {FLOAT}

    @property
    def formats_of_experts(self) -> set[FormatWord]:
        """The formats that experts of some layer have."""
        return {self.experts} if isinstance(self.experts, str) else set(self.experts)

    def format_of(self, role: str, layer: int | None = None) -> QuantizedFormat | None:
        """Name of a tensor's quantized format, by its role and layer; None if it has none."""
        word = self._word(role, layer)
        return word if word != FLOAT and TABLE[word].is_quantized else None

    def float_of(self, role: str, layer: int | None = None) -> str | None:
        """Dtype of a tensor stored as floats of another dtype than the model's; else None."""
        word = self._word(role, layer)
        return None if word == FLOAT or TABLE[word].is_quantized else word

    def _word(self, role: str, layer: int | None) -> FormatWord:
        word = FLOAT
        if role in EXPERT_ROLES:
            if isinstance(self.experts, str):
                word = self.experts
            else:
                assert layer is not None
                word = self.experts[layer]
        elif role in DENSE_ROLES:
            word = self.dense
        elif role == "lm_head":
            word = self.lm_head or self.dense
        elif role == "embedding":
            word = self.embedding
        return word

    def as_config(self) -> dict[str, Any]:
        """Entry of a quantized checkpoint's config, without the lm_head if it is not given."""
        return {key: value for key, value in asdict(self).items() if value is not None}


KEYS = frozenset(field.name for field in fields(Quantization))

UNQUANTIZED = Quantization()


@dataclass(frozen=True)
class QuantizeResult:
    """Quantized matrix and the method that it was quantized with.

    Attributes:
        matrix: Codes and scales.
        method: Method that was used.
        tokens: Number of calibration tokens; None for a method that needs none.
        fell_back: True if the method differs from the one that the recipe names.
    """

    matrix: QuantizedMatrix
    method: Method
    tokens: int | None = None
    fell_back: bool = False


def read_quantization(config: dict[str, Any], num_layers: int) -> Quantization:
    """The formats that a config gives, or no quantization without an entry.

    Raises:
        CheckpointError: the entry is not one that this package writes.
    """
    if QUANTIZATION_KEY not in config:
        return UNQUANTIZED
    entry = config[QUANTIZATION_KEY]
    if not _is_valid(entry, num_layers):
        dense, embedding = (", ".join(words_for(use)) for use in ("dense", "embedding"))
        raise CheckpointError(
            f"config.json: {QUANTIZATION_KEY} is {entry!r}, expected experts to be one of "
            f"{', '.join(words_for('experts'))} (or a list of one for each of {num_layers} "
            f"layers), dense and, if it is given, lm_head one of {dense}, embedding one of "
            f"{embedding}, and group_size one of {', '.join(map(str, GROUP_SIZES))}"
        )
    experts = tuple(entry["experts"]) if isinstance(entry["experts"], list) else entry["experts"]
    return Quantization(**(entry | {"experts": experts}))


def _is_valid(entry: Any, num_layers: int) -> bool:
    """True if a config's entry has the keys and the words of `Quantization`."""
    if not isinstance(entry, dict) or set(entry) | {"lm_head"} != KEYS:
        return False
    by_layer = isinstance(entry["experts"], list)
    words = entry["experts"] if by_layer else [entry["experts"]]
    return bool(
        all(word in words_for("experts") for word in words)
        and (not by_layer or len(words) == num_layers)
        and entry["dense"] in words_for("dense")
        and entry.get("lm_head", FLOAT) in words_for("dense")
        and entry["embedding"] in words_for("embedding")
        and entry["group_size"] in GROUP_SIZES
    )
