"""Which tensors of a model are quantized and to what, in the words of the recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from moe_export.errors import CheckpointError
from moe_export.formats import GROUP_SIZES, QuantizedMatrix

QUANTIZATION_KEY = "quantization"
"""Config key of a quantized checkpoint."""

QuantizedFormat = Literal["int8", "int4", "uint8", "uint4", "nf4"]
Format = Literal["float", "int8", "int4", "uint8", "uint4", "nf4"]
ExpertFormat = Literal["float", "bfloat16", "int8", "int4", "uint8", "uint4", "nf4"]
"""Of experts: floats of the model's dtype, floats in two bytes whatever that is, or codes."""

DenseFormat = Literal["float", "int8", "int4", "uint8", "uint4"]
"""Of what is not experts: ONNX Runtime's MatMulNBits, which multiplies it, has no codebook."""

EmbeddingFormat = Literal["float", "int8"]
Method = Literal["rtn", "mse", "gptq"]

EXPERT_ROLES = frozenset({"gate", "up", "down", "shared_gate", "shared_up", "shared_down"})
"""The tensors of experts; the shared one's are of the same format, being in the same node."""

DENSE_ROLES = frozenset(
    {"q", "k", "v", "o", "q_latent", "q_expand", "kv_latent", "kv_expand"}
    | {"dense_gate", "dense_up", "dense_down"}
)


@dataclass(frozen=True)
class Quantization:
    """The formats of a model's tensors; what is in no class stays as it is.

    Attributes:
        experts: of all experts' matrices, the shared one's too; or of those of each layer.
        dense: of the matrices of attention and of layers without experts.
        embedding: of the table that tokens are looked up in.
        group_size: values of a column that share a scale.
        lm_head: of the lm_head; None if as `dense`.
    """

    experts: ExpertFormat | tuple[ExpertFormat, ...] = "float"
    dense: DenseFormat = "float"
    embedding: EmbeddingFormat = "float"
    group_size: int = 32
    lm_head: DenseFormat | None = None

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        outside = {self.dense, self.embedding, self.lm_head or self.dense}
        return self.formats_of_experts | outside == {"float"}

    @property
    def formats_of_experts(self) -> set[ExpertFormat]:
        """The formats that experts of some layer have."""
        return {self.experts} if isinstance(self.experts, str) else set(self.experts)

    def format_of(self, role: str, layer: int | None = None) -> QuantizedFormat | None:
        """The format of a tensor by its role and layer; None if it is not quantized."""
        word = self._word(role, layer)
        return None if word == "float" or word == "bfloat16" else word

    def float_of(self, role: str, layer: int | None = None) -> Literal["bfloat16"] | None:
        """The dtype of a tensor that is stored in one of its own, not in that of the model."""
        word = self._word(role, layer)
        return word if word == "bfloat16" else None

    def _word(self, role: str, layer: int | None) -> ExpertFormat:
        word: ExpertFormat = "float"
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
        """What a quantized checkpoint's config says of it; of the lm_head where it is given."""
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
    """What a config says of quantization; nothing is quantized unless it does. One that says
    nothing of the lm_head means that it is as the dense matrices.

    Raises:
        CheckpointError: it says something that is not ours.
    """
    if QUANTIZATION_KEY not in config:
        return UNQUANTIZED
    found = config[QUANTIZATION_KEY]
    by_layer = isinstance(found, dict) and isinstance(found.get("experts"), list)
    words, dense_words = get_args(ExpertFormat), get_args(DenseFormat)
    if not (
        isinstance(found, dict)
        and set(found) | {"lm_head"} == KEYS
        and all(word in words for word in (found["experts"] if by_layer else [found["experts"]]))
        and (not by_layer or len(found["experts"]) == num_layers)
        and found["dense"] in dense_words
        and found.get("lm_head", "float") in dense_words
        and found["embedding"] in get_args(EmbeddingFormat)
        and found["group_size"] in GROUP_SIZES
    ):
        raise CheckpointError(
            f"config.json: {QUANTIZATION_KEY} is {found!r}, expected experts to be one of "
            f"{', '.join(words)} (or a list of one for each of {num_layers} layers), dense and, if "
            f"it is given, lm_head one of {', '.join(dense_words)}, embedding one of "
            f"{', '.join(get_args(EmbeddingFormat))}, and group_size one of "
            f"{', '.join(map(str, GROUP_SIZES))}"
        )
    experts = tuple(found["experts"]) if by_layer else found["experts"]
    return Quantization(**(found | {"experts": experts}))
