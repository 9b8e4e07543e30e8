"""The section that measures the exported models, and its limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moe_export.recipe.base import MOST, Count, Fraction, Section, ThreadCount
from moe_export.recipe.calibrate import Task

Provider = Literal["cpu", "cuda"]
Operator = Literal["native", "portable"]
Cache = Literal["growing", "static", "captured"]


def default_cache(provider: str, operator: str) -> Cache:
    """The kind of KV cache that a provider uses unless the recipe gives one.

    The portable operator's experts wait for the device, so that a graph cannot capture them.
    """
    if provider == "cpu":
        return "static"
    return "captured" if operator == "native" else "static"


class SpeedSettings(Section):
    """Measurement of throughput, for every batch size with every number of threads.

    Attributes:
        batch_sizes: Sequences that run together.
        threads: Numbers of threads.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens that are decoded.
        repeats: Repetitions of each measurement.
    """

    batch_sizes: tuple[Count, ...] = (1,)
    threads: tuple[ThreadCount, ...] = (1, 2)
    prompt_tokens: Count = 128
    new_tokens: Count = 64
    repeats: Count = 5


class GateSettings(Section):
    """Limits of what is measured; failing one still writes the report and ends with exit code 5.

    A limit that the recipe gives fails if its value cannot be computed: without the model that it
    is about, without a baseline, or if the baseline solves nothing. A default applies where there
    is a value.

    Attributes:
        max_logit_error: Largest difference of logits, exported pruned model against torch.
        min_greedy_agreement: Least share of equal greedy tokens between the same two.
        max_quantized_kl_nats: Largest KL, exported quantized model against dequantized weights in
            torch. The two differ because kernels of quantized weights round activations to int8.
        min_quantized_top1_agreement: Least share of equal most likely tokens between the same two.
        min_recovery: Least share of the baseline's score that the last variant reaches.
        max_kl_nats: Largest KL of the last variant from the baseline.
        eval: Largest fall of a task of the `eval` section from the unpruned model, as a share of
            the unpruned model's value; of a perplexity, the largest rise.
    """

    max_logit_error: Annotated[float, Field(gt=0)] = 1e-4
    min_greedy_agreement: Fraction = 1.0
    max_quantized_kl_nats: Annotated[float, Field(gt=0)] = 1e-3
    min_quantized_top1_agreement: Fraction = 0.98
    min_recovery: Fraction | None = None
    max_kl_nats: Annotated[float, Field(gt=0)] | None = None
    eval: Annotated[float, Field(ge=0)] | None = None


class ValidateSettings(Section):
    """Measurements of the exported models, the providers that run them, and limits.

    Attributes:
        providers: Execution providers of ONNX Runtime; all of them are measured.
        operator: `native` runs the experts in the native library, `portable` as the function of
            standard operators that the model carries; neither stands in for the other.
        cache: Kind of KV cache while tokens are decoded. `static` writes into buffers that stay
            where they are, and on cpu get longer from time to time; `captured` does too, and ONNX
            Runtime captures the step in a CUDA graph (provider cuda and operator native only);
            `growing` copies the cache at every step. Unless given, it is `static` on cpu, and on
            cuda `captured`, or `static` with the portable operator.
        tasks: Held-out documents that the models are scored on.
        greedy_tokens: Tokens of each greedy comparison.
        greedy_prompts: Number of greedy comparisons.
        sequence_length: Most tokens of a document.
        speed: Measurement of throughput.
        gates: Limits.
    """

    providers: Annotated[tuple[Provider, ...], Field(min_length=1)] = ("cpu",)
    operator: Operator = "native"
    cache: Cache | None = None
    tasks: tuple[Task, ...] = ()
    greedy_tokens: Count = 64
    greedy_prompts: Count = 4
    sequence_length: Annotated[int, Field(ge=2, le=MOST)] = 2048
    speed: SpeedSettings = SpeedSettings()
    gates: GateSettings = GateSettings()

    @model_validator(mode="after")
    def _captured_where_it_can_be(self) -> ValidateSettings:
        if self.cache == "captured" and (self.providers != ("cuda",) or self.operator != "native"):
            raise ValueError(
                "cache captured needs the provider cuda alone and the operator native; choose "
                "static, or leave cache out"
            )
        return self

    def cache_on(self, provider: str) -> Cache:
        """The kind of KV cache on a provider."""
        return self.cache or default_cache(provider, self.operator)
