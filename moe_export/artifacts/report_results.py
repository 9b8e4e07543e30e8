"""Sections of `report.json` with results: headline, accuracy, parity and execution."""

from __future__ import annotations

from moe_export.artifacts.base import Record
from moe_export.artifacts.evaluation import EvaluatedModel
from moe_export.artifacts.measurements import SpeedSetting


class Headline(Record):
    """Figures at the top: the product, which is the last variant, against the baseline.

    Attributes:
        product: name of the last variant.
        kept: fraction of rows that are kept.
        baseline_weights_bytes: weights of the unpruned model; predicted if it was not exported.
        product_weights_bytes: weights of the product.
        baseline_exact_match: mean exact match of the baseline on the first provider, fraction; None
            if not measured.
        product_exact_match: mean exact match of the product on the first provider, fraction; None
            if not measured.
        recovery: recovery of the product on the first provider; None without a baseline.
        speed_setting: conditions of the speeds: first provider, smallest batch, most threads; None
            if no speed was measured.
        gates_passed: True if every gate was met.
        product_prefill_tokens_per_s: median of the product; None if not measured.
        prefill_ratio: ratio to the baseline's median; None if either was not measured.
        product_decode_tokens_per_s: median of the product; None if not measured.
        decode_ratio: ratio to the baseline's median; None if either was not measured.
    """

    product: str
    kept: float
    baseline_weights_bytes: int
    product_weights_bytes: int
    baseline_exact_match: float | None
    product_exact_match: float | None
    recovery: float | None
    speed_setting: SpeedSetting | None
    gates_passed: bool
    product_prefill_tokens_per_s: float | None
    prefill_ratio: float | None
    product_decode_tokens_per_s: float | None
    decode_ratio: float | None


class TaskFacts(Record):
    """Scores of one variant on one task, see `TaskScores`.

    Attributes:
        task: name of the task.
        kl_nats: mean divergence from the baseline per scored token; None without one.
        top1_agreement: fraction of scored tokens whose most likely token is the baseline's; None
            without one.
        items: number of documents.
        answer_tokens: number of scored tokens.
        exact_match: fraction of documents with every answer token right; None without answers.
        exact_match_stderr: standard error of `exact_match`; None without answers.
        loss_nats: mean negative log-likelihood per scored token.
        perplexity: exp(`loss_nats`).
        loss_nats_stderr: standard error of `loss_nats`; None for one document.
        kl_nats_stderr: standard error of `kl_nats`; None for one document or without a baseline.
        first_token_match: fraction of documents with the first answer token right; None without
            answers.
        first_token_match_stderr: standard error of `first_token_match`.
        choice_accuracy: fraction of documents whose answer is likelier than every wrong choice;
            None without choices.
        choice_accuracy_stderr: standard error of `choice_accuracy`.
    """

    task: str
    kl_nats: float | None
    top1_agreement: float | None
    items: int
    answer_tokens: int
    exact_match: float | None
    exact_match_stderr: float | None
    loss_nats: float
    perplexity: float
    loss_nats_stderr: float | None
    kl_nats_stderr: float | None
    first_token_match: float | None
    first_token_match_stderr: float | None
    choice_accuracy: float | None
    choice_accuracy_stderr: float | None


class AccuracyFacts(Record):
    """Scores of one variant on one provider.

    Attributes:
        provider: execution provider, `cpu` or `cuda`.
        variant: name of the variant.
        mean_exact_match: mean over the tasks with answers, fraction; None if no task has answers.
        recovery: mean over the tasks with answers of the exact match divided by the baseline's;
            None without a baseline.
        tasks: scores of each task.
    """

    provider: str
    variant: str
    mean_exact_match: float | None
    recovery: float | None
    tasks: tuple[TaskFacts, ...]


class EvaluationFacts(Record):
    """Scores of lm-eval's tasks, see `Evaluation`.

    Attributes:
        lm_eval: version of lm-eval.
        tasks: tasks and groups that were asked for.
        limit: most documents of a task; None for all.
        models: scores by model, the unpruned ones first.
    """

    lm_eval: str
    tasks: tuple[str, ...]
    limit: int | None
    models: tuple[EvaluatedModel, ...]


class ParityFacts(Record):
    """Distance of an exported model from torch, see `Parity` and `Greedy`.

    Attributes:
        provider: execution provider, `cpu` or `cuda`.
        variant: `pruned` or `quantized`; torch has the dequantized weights of the latter.
        max_logit_error: largest absolute difference of any logit.
        kl_nats: mean divergence from torch per token.
        top1_agreement: fraction of tokens with the same most likely next token.
        compared_tokens: number of compared tokens.
        first_bad_layer: layer at which a difference above the gate begins; None within the gate.
        greedy_prompts: number of continued prompts; None without prompts.
        greedy_new_tokens: number of tokens generated after each prompt; None without prompts.
        greedy_agreement: fraction of these tokens before the first difference; None likewise.
    """

    provider: str
    variant: str
    max_logit_error: float
    kl_nats: float
    top1_agreement: float
    compared_tokens: int
    first_bad_layer: int | None
    greedy_prompts: int | None
    greedy_new_tokens: int | None
    greedy_agreement: float | None


class GateFacts(Record):
    """A limit of the recipe and its outcome, see `Gate`.

    Attributes:
        name: name of the limit in the recipe, or `finite_logits`, which is listed when it fails.
        provider: execution provider of the measurement.
        limit: limit, in the unit of the value.
        value: measured value; None if it could not be computed.
        passed: True if there is a value and it is within the limit.
        detail: cause of a failure and advice, as far as they are known; None otherwise.
    """

    name: str
    provider: str
    limit: float
    value: float | None
    passed: bool
    detail: str | None


class AnswerEndFacts(Record):
    """Ends of the answers of one task, see `AnswerEnds`.

    Attributes:
        provider: execution provider, `cpu` or `cuda`.
        task: name of the task.
        documents: number of documents that were looked at.
        foreseen: number of them after whose answer the unpruned model finds an end-of-sequence
            token most likely.
        required: True if answers had to end with it.
    """

    provider: str
    task: str
    documents: int
    foreseen: int
    required: bool


class ExecutionFacts(Record):
    """Implementation of the experts that ran.

    Attributes:
        variant: name of the variant.
        provider: execution provider, `cpu` or `cuda`.
        path: implementation in words, as in `speed[].path`.
    """

    variant: str
    provider: str
    path: str
