"""Which tensors of a model are quantized and to what, in the words of the recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from moe_export.errors import CheckpointError
from moe_export.formats import GROUP_SIZES, QuantizedMatrix

QUANTIZATION_KEY = "quantization"
"""Config key of a quantized checkpoint."""

QuantizedFormat = Literal["int8", "int4"]
Format = Literal["float", "int8", "int4"]
Method = Literal["rtn", "mse", "gptq"]

EXPERT_ROLES = frozenset({"gate", "up", "down", "shared_gate", "shared_up", "shared_down"})
"""The tensors of experts; the shared one's are of the same format, being in the same node."""

EMBEDDING_FORMATS: tuple[Format, ...] = ("float", "int8")

DENSE_ROLES = frozenset({"q", "k", "v", "o", "lm_head"})


@dataclass(frozen=True)
class Quantization:
    """The formats of a model's tensors; what is in neither class stays as it is.

    Attributes:
        experts: of all experts' matrices, the shared one's too; or of those of each layer.
        dense: of attention's matrices and the lm_head.
        embedding: of the table that tokens are looked up in: float or int8.
        group_size: values of a column that share a scale.
    """

    experts: Format | tuple[Format, ...] = "float"
    dense: Format = "float"
    embedding: Format = "float"
    group_size: int = 32

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.formats_of_experts == {self.dense} == {self.embedding} == {"float"}

    @property
    def formats_of_experts(self) -> set[Format]:
        """The formats that experts of some layer have."""
        return {self.experts} if isinstance(self.experts, str) else set(self.experts)

    def format_of(self, role: str, layer: int | None = None) -> QuantizedFormat | None:
        """The format of a tensor by its role and layer; None if it is not quantized."""
        word: Format = "float"
        if role in EXPERT_ROLES:
            if isinstance(self.experts, str):
                word = self.experts
            else:
                assert layer is not None
                word = self.experts[layer]
        elif role in DENSE_ROLES:
            word = self.dense
        elif role == "embedding":
            word = self.embedding
        return None if word == "float" else word

    def as_config(self) -> dict[str, Any]:
        """What a quantized checkpoint's config says of it."""
        return asdict(self)


UNQUANTIZED = Quantization()


@dataclass(frozen=True)
class Made:
    """A quantized matrix and how it came about.

    Attributes:
        matrix: codes and scales.
        method: that was used.
        tokens: that it was calibrated on; None for a method that needs none.
        fell_back: whether the method is not the one that was asked for.
    """

    matrix: QuantizedMatrix
    method: Method
    tokens: int | None = None
    fell_back: bool = False


def read_quantization(config: dict[str, Any], num_layers: int) -> Quantization:
    """What a config says of quantization; nothing is quantized unless it does.

    Raises:
        CheckpointError: it says something that is not ours.
    """
    if QUANTIZATION_KEY not in config:
        return UNQUANTIZED
    found = config[QUANTIZATION_KEY]
    by_layer = isinstance(found, dict) and isinstance(found.get("experts"), list)
    experts = found["experts"] if by_layer else [found.get("experts")] if found else []
    keys = ("experts", "dense", "embedding", "group_size")
    words = get_args(Format)
    if (
        not isinstance(found, dict)
        or set(found) != set(keys)
        or not all(word in words for word in experts)
        or (by_layer and len(experts) != num_layers)
        or found["dense"] not in words
        or found["embedding"] not in EMBEDDING_FORMATS
        or found["group_size"] not in GROUP_SIZES
    ):
        raise CheckpointError(
            f"config.json: {QUANTIZATION_KEY} is {found!r}, expected experts (or a list of one for "
            f"each of {num_layers} layers) and dense to be one of {', '.join(words)}, embedding "
            f"one of {', '.join(EMBEDDING_FORMATS)}, and group_size one of "
            f"{', '.join(map(str, GROUP_SIZES))}"
        )
    return Quantization(
        tuple(experts) if by_layer else experts[0],
        found["dense"],
        found["embedding"],
        found["group_size"],
    )
