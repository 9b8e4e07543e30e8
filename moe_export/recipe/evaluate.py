"""The section that runs tasks of lm-eval, the harness that published scores come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from moe_export.recipe.base import Count, Section
from moe_export.recipe.validate import Operator, Provider

EvalModel = Literal["source", "checkpoint", "baseline", "pruned", "quantized"]
"""Model that is evaluated: the source and the pruned checkpoint in torch, and exported variants."""

TORCH_MODELS = ("source", "checkpoint")
"""Names of the models that run in torch."""


class EvalSettings(Section):
    """Tasks of lm-eval (needs `moe-export[eval]`), run on the checkpoints and the exported models.

    The first of `source` and `baseline` that is evaluated stands for the unpruned model, which the
    gate `validate.gates.eval` compares with. Answers are greedy.

    Attributes:
        tasks: Names of lm-eval's tasks or groups, such as gsm8k, mmlu or arc_challenge; most load a
            data set from the Hugging Face hub.
        include_path: Folder with tasks of your own, as lm-eval's option of that name.
        limit: Most documents of each task; all unless given.
        num_fewshot: Number of examples before each question; as each task says unless given.
        models: Models that are evaluated: `source` and `checkpoint` (the pruned one) in torch,
            `baseline`, `pruned` and `quantized` in ONNX Runtime. Unless given, all that exist.
        operators: Code of the experts in ONNX Runtime; `validate.operator` unless given. With
            both, every exported model is evaluated twice.
        batch_size: Sequences that run together.
        max_length: Most tokens of a sequence; the model's context unless given. Longer ones lose
            their beginning.
        dtype: Dtype of the models in torch.
        provider: Execution provider; the first of `validate.providers`, and not given here.
        max_fall: The gate `validate.gates.eval`, and not given here.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    include_path: str | None = None
    limit: Count | None = None
    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    models: Annotated[tuple[EvalModel, ...], Field(min_length=1)] | None = None
    operators: Annotated[tuple[Operator, ...], Field(min_length=1)] | None = None
    batch_size: Count = 8
    max_length: Count | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    provider: Provider | None = None
    max_fall: Annotated[float, Field(ge=0)] | None = None

    @field_validator("tasks", "models", "operators")
    @classmethod
    def _named_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a name is given twice")
        return names
