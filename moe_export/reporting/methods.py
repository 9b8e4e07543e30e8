"""Methods of measurement, in words that stand beside the figures."""

from __future__ import annotations

from moe_export.artifacts.report_making import Method
from moe_export.artifacts.validation import Validation
from moe_export.ort.predicted_memory import RUNTIME_BYTES
from moe_export.recipe import SpeedSettings
from moe_export.variants import BASELINE


def methods_of(validation: Validation, speed: SpeedSettings) -> tuple[Method, ...]:
    """Describes the method of every figure that a run has measured.

    Args:
        validation: results of validation.
        speed: the recipe's `validate.speed`.
    """
    methods = {
        "kept": "Share of all expert intermediate dimensions (rows) that the plan keeps.",
        "weights bytes": (
            "Size of model.onnx.data as the file system gives it. The prediction is the plan's, "
            "made from the graph before anything was written."
        ),
        "load peak, steady": (
            "Resident memory of a fresh process, less what it held with ONNX Runtime imported: the "
            "peak while the session loads, and the level after a short generation. The prediction "
            "is the size of model.onnx.data and "
            f"{RUNTIME_BYTES / 1e6:.1f} MB for the runtime; it is made for the CPU."
        ),
        "device memory": (
            "What the NVIDIA driver counts as in use on the device, by all processes, less what it "
            "counted before loading: after loading, weights and what the runtime takes ahead; and "
            "the most after any measured run. The KV cache is counted from its shape, for the "
            "largest batch at full length, and is part of the peak."
        ),
        "exact match": (
            "Share of held-out items whose every answer token is the most likely one given the "
            "tokens before it (teacher-forced, which is the same as greedy decoding giving exactly "
            "that answer). Standard error sqrt(p (1 - p) / items)."
        ),
        "likeliest choice, first token": (
            "Share of items whose answer has a higher probability after the prompt than every "
            "wrong choice (the product over all its tokens), and share whose first answer token is "
            "the most likely one. Standard errors as above."
        ),
        "loss, perplexity": (
            "Mean negative log-likelihood per answer token, in nats; tasks without answers are "
            "scored on all their tokens. Perplexity is exp(loss)."
        ),
        "recovery": (
            "Mean over the tasks with answers of the exact match divided by the baseline's."
        ),
        "KL, top-1 agreement": (
            "Per answer token: divergence of the variant's distribution from the baseline's, in "
            "nats, and share of tokens whose most likely next token is the same. The standard "
            "error of KL is over documents."
        ),
        "logit error, greedy agreement": (
            "Each exported model against the torch model of the same checkpoint: the largest "
            "difference of any logit, mean divergence and top-1 agreement per token, and the share "
            "of greedy tokens up to the first difference. A quantized model's weights are "
            "dequantized in torch; what differs is that its kernels round activations to int8."
        ),
        "prefill, decode": (
            f"Tokens per second of all sequences together: a prompt of {speed.prompt_tokens} "
            f"tokens, then {speed.new_tokens} greedy tokens through the KV cache, {speed.repeats} "
            "times after a warm-up, in a process of its own; median, with least and most."
        ),
        "active parameters": (
            "Everything outside the routed experts, and the experts that a calibration token is "
            "sent to on average."
        ),
        "stage peak": "Highest resident memory of the process while the stage ran.",
    }
    if "cuda" not in validation.providers:
        del methods["device memory"]
    has_baseline = any(BASELINE in results.variants for results in validation.providers.values())
    if not has_baseline:
        for quantity in ("recovery", "KL, top-1 agreement"):
            methods[quantity] += " Not measured here: the unpruned model was not exported."
    return tuple(Method(quantity=quantity, method=method) for quantity, method in methods.items())
