"""`validation.json`: parity with torch, accuracy on held-out documents, and the recipe's gates."""

from __future__ import annotations

from typing import ClassVar

from moe_export.artifacts.base import JsonArtifact, Record


class TaskScores(Record):
    """Scores of one model on the held-out documents of one task.

    Attributes:
        items: number of documents.
        answer_tokens: number of scored tokens.
        exact_match: fraction of documents with every answer token right; None for a task without
            answers.
        exact_match_stderr: standard error of `exact_match`; None for a task without answers.
        loss_nats: mean negative log-likelihood per scored token.
        perplexity: exp(`loss_nats`).
        kl_nats: mean divergence from the baseline per scored token; absent without a baseline.
        top1_agreement: fraction of scored tokens whose most likely token is the baseline's; absent
            without a baseline.
        loss_nats_stderr: standard error of `loss_nats` over the documents; absent for one document.
        kl_nats_stderr: standard error of `kl_nats` over the documents; absent for one document or
            without a baseline.
        first_token_match: fraction of documents with the first answer token right; absent for a
            task without answers.
        first_token_match_stderr: standard error of `first_token_match`.
        choice_accuracy: fraction of documents whose answer is likelier than every wrong choice;
            absent for a task without choices.
        choice_accuracy_stderr: standard error of `choice_accuracy`.
    """

    items: int
    answer_tokens: int
    exact_match: float | None
    exact_match_stderr: float | None
    loss_nats: float
    perplexity: float
    kl_nats: float | None = None
    top1_agreement: float | None = None
    loss_nats_stderr: float | None = None
    kl_nats_stderr: float | None = None
    first_token_match: float | None = None
    first_token_match_stderr: float | None = None
    choice_accuracy: float | None = None
    choice_accuracy_stderr: float | None = None


class VariantScores(Record):
    """Scores of one exported variant.

    Attributes:
        tasks: scores by task name.
        mean_exact_match: mean over the tasks with answers, fraction; None if no task has answers.
    """

    tasks: dict[str, TaskScores]
    mean_exact_match: float | None


class Parity(Record):
    """Distance of an exported model from the torch model of the same checkpoint.

    Attributes:
        max_logit_error: largest absolute difference of any logit.
        tokens: number of compared tokens.
        kl_nats: mean divergence from torch per token.
        top1_agreement: fraction of tokens after which both models find the same token most likely.
        first_bad_layer: layer at which a difference above the gate begins, the number of layers if
            the head is at fault; None within the gate or without one.
        tied_tokens: number of compared tokens for which the router of that layer has equal logits
            at the edge of its choice; absent if there are none.
    """

    max_logit_error: float
    tokens: int
    kl_nats: float
    top1_agreement: float
    first_bad_layer: int | None
    tied_tokens: int | None = None


class NotFinite(Record):
    """Logits of a variant that are infinite or NaN.

    Such a position is scored as if every token were equally likely.

    Attributes:
        positions: number of positions without finite logits.
        of: number of positions that were looked at.
        first_layer: layer whose output first makes the residual stream infinite or NaN; the number
            of layers if only the logits are.
        first_tensor: name of that output in the graph.
    """

    positions: int
    of: int
    first_layer: int
    first_tensor: str


class Greedy(Record):
    """Greedy decoding of an exported model, held against torch.

    Attributes:
        prompts: number of continued prompts.
        new_tokens: number of tokens generated after each prompt.
        agreement: fraction of the generated tokens before each prompt's first difference.
    """

    prompts: int
    new_tokens: int
    agreement: float


class AnswerEnds(Record):
    """Ends of a task's answers in the unpruned model's own text.

    Attributes:
        documents: number of documents that were looked at.
        foreseen: number of them after whose answer the unpruned model finds an end-of-sequence
            token most likely.
        required: True if answers have to end with it, which takes half of the documents.
    """

    documents: int
    foreseen: int
    required: bool


class ProviderResults(Record):
    """Results on one execution provider.

    Attributes:
        parity: distance from torch by variant.
        greedy: greedy decoding by variant; None without prompts.
        variants: scores by variant.
        not_finite: variants with logits that are not finite; absent if there are none.
        answer_ends: ends of the answers by task, where the recipe leaves it to the unpruned model
            and that model was exported; absent if there is no such task.
    """

    parity: dict[str, Parity]
    greedy: dict[str, Greedy | None]
    variants: dict[str, VariantScores]
    not_finite: dict[str, NotFinite] | None = None
    answer_ends: dict[str, AnswerEnds] | None = None


class Gate(Record):
    """A limit of the recipe and its outcome.

    Attributes:
        name: name of the limit in the recipe, or `finite_logits`, which is listed when it fails.
        provider: execution provider of the measurement.
        limit: limit, in the unit of the value.
        value: measured value; None if it could not be computed.
        passed: True if there is a value and it is within the limit.
        detail: cause of a failure and advice, as far as they are known; absent otherwise.
    """

    name: str
    provider: str
    limit: float
    value: float | None
    passed: bool
    detail: str | None = None


class Validation(JsonArtifact):
    """Results of validation; two runs of a recipe on one machine give the same file.

    Attributes:
        providers: results by execution provider, in the recipe's order.
        recovery: mean over the tasks with answers of the product's exact match divided by the
            baseline's, on the first provider; None without a baseline that solves anything.
        gates: every limit that applies.
        warning: default limit of KL where no limit of the recipe guards what the product can do;
            absent where one does. It stops nothing.
    """

    FILE: ClassVar[str] = "validation.json"

    providers: dict[str, ProviderResults]
    recovery: float | None
    gates: tuple[Gate, ...]
    warning: Gate | None = None

    @property
    def first_provider(self) -> ProviderResults:
        """Results on the first provider of the recipe."""
        return next(iter(self.providers.values()))
