"""Requests as the engine takes them: tokens, limits, and the form of the answer."""

from __future__ import annotations

from dataclasses import dataclass

from moe_export.documents.tokens import TextTokenizer
from moe_export.serve.answers import Answer, ChatAnswer, CompletionAnswer
from moe_export.serve.bodies import Body, ChatBody, CompletionBody
from moe_export.serve.chat import ChatTemplate
from moe_export.serve.job import Asked
from moe_export.serve.problems import RequestError
from moe_export.serve.tickets import choices_of


@dataclass(frozen=True)
class Reading:
    """Request that passed all checks.

    Attributes:
        asked: Request for each choice; the choices of one prompt are neighbours.
        answer: Form of the answer.
        prompt_tokens: Number of tokens of the prompts, each counted once.
    """

    asked: list[Asked]
    answer: Answer
    prompt_tokens: int


class Reader:
    """Reader of request bodies for one model.

    Args:
        name: Name of the model in requests.
        tokenizer: The model's tokenizer.
        template: The model's chat template.
        vocabulary: Number of tokens of the model.
        context: Largest number of tokens of prompt and answer.
    """

    def __init__(
        self,
        name: str,
        tokenizer: TextTokenizer,
        template: ChatTemplate,
        vocabulary: int,
        context: int,
    ) -> None:
        self._name, self._tokenizer, self._template = name, tokenizer, template
        self._vocabulary, self._context = vocabulary, context

    def completion(self, body: CompletionBody) -> Reading:
        """Reads a body of `/v1/completions`.

        Raises:
            RequestError: The model is another one, or a prompt is wrong or too long.
        """
        self._check(body)
        if body.best_of not in (None, body.n):
            raise RequestError(
                400, "best_of other than n is not supported; leave it out", param="best_of"
            )
        prompts = [self._tokens(prompt) for prompt in body.prompts()]
        asked = [
            choice
            for prompt in prompts
            for choice in choices_of(self._completion_asked(body, prompt), body.n)
        ]
        texts = [p if isinstance(p, str) else self._tokenizer.decode(p) for p in body.prompts()]
        echoed = [text if body.echo else "" for text in texts for _ in range(body.n)]
        answer = CompletionAnswer(self._name, self._tokenizer, body.logprobs, echoed)
        return Reading(asked, answer, sum(map(len, prompts)))

    def chat(self, body: ChatBody) -> Reading:
        """Reads a body of `/v1/chat/completions`.

        Raises:
            RequestError: The model is another one, it has no chat template, or the conversation is
                too long.
        """
        self._check(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError(
                400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value"
            )
        text = self._template.render([message.plain() for message in body.messages])
        # The template has written the special tokens.
        prompt = self._tokenizer.encode_text(text)
        new_tokens = body.max_completion_tokens or body.max_tokens
        if new_tokens is None:
            new_tokens = max(1, self._context - len(prompt))
        self._fit(prompt, new_tokens, "messages")
        alternatives = (body.top_logprobs or 0) if body.logprobs else None
        asked = self._asked(body, prompt, new_tokens, alternatives)
        answer = ChatAnswer(self._name, self._tokenizer, body.logprobs, body.n)
        return Reading(choices_of(asked, body.n), answer, len(prompt))

    def _completion_asked(self, body: CompletionBody, prompt: list[int]) -> Asked:
        self._fit(prompt, body.max_tokens, "prompt")
        scored = body.echo and body.logprobs is not None
        return self._asked(body, prompt, body.max_tokens, body.logprobs, scored)

    def _asked(
        self,
        body: Body,
        prompt: list[int],
        new_tokens: int,
        alternatives: int | None,
        score_prompt: bool = False,
    ) -> Asked:
        return Asked(
            prompt,
            new_tokens,
            body.temperature,
            body.top_p,
            None if body.seed is None else body.seed % 2**64,
            body.stops,
            alternatives,
            score_prompt,
        )

    def _check(self, body: Body) -> None:
        if body.model != self._name:
            raise RequestError(
                404,
                f"there is no model {body.model!r}; this server has {self._name!r}",
                param="model",
                code="model_not_found",
            )
        if body.stream_options is not None and not body.stream:
            raise RequestError(400, "stream_options needs stream: true", param="stream_options")

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode_prompt(prompt)
        for token in prompt:
            if token >= self._vocabulary:
                raise RequestError(
                    400,
                    f"the prompt has token {token}, and the model has {self._vocabulary} tokens",
                    param="prompt",
                    code="invalid_value",
                )
        return prompt

    def _fit(self, prompt: list[int], new_tokens: int, param: str) -> None:
        if not prompt:
            raise RequestError(400, "the prompt has no tokens", param=param, code="invalid_value")
        if len(prompt) + new_tokens > self._context:
            raise RequestError(
                400,
                f"the prompt has {len(prompt)} tokens and {new_tokens} new ones are asked for, "
                f"which is more than the {self._context} tokens of the context; shorten the "
                "prompt or lower max_tokens",
                param=param,
                code="context_length_exceeded",
            )
