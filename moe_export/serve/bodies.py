"""Bodies of requests, checked; a key that the server does not act on is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_export.serve.problems import RequestError

MOST_STOPS = 16
MOST_CHOICES = 128
MOST_ALTERNATIVES = 20

ItemT = TypeVar("ItemT")
Several = Annotated[list[ItemT], Field(min_length=1)]
Tokens = Several[Annotated[int, Field(ge=0)]]
Zero = Annotated[float, Field(ge=0, le=0)]
StopString = Annotated[str, Field(min_length=1)]

BodyT = TypeVar("BodyT", bound="Body")


class StreamOptions(BaseModel):
    """Options of a stream.

    Attributes:
        include_usage: True if a last event counts the tokens.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class Body(BaseModel):
    """Keys of both kinds of completion; null is as if a key were absent.

    Attributes:
        model: Name of the model, which must be the one served.
        n: Number of answers to each prompt.
        temperature: Divisor of the logits; 0 takes the most likely token.
        top_p: Share of probability that tokens are drawn from.
        seed: Seed of the draws; answer number i to a prompt is drawn with seed + i.
        stop: String or strings that end the text.
        stream: True if the answer comes as events.
        stream_options: Options of the stream.
        user: Ignored, as are `metadata` and `service_tier`.
        presence_penalty: 0, as are `frequency_penalty` and `logit_bias`, which are not supported.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    presence_penalty: Zero = 0.0
    frequency_penalty: Zero = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        """Strings that end the text."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def counts_usage(self) -> bool:
        """True if a last event counts the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(Body):
    """Body of `/v1/completions`.

    Attributes:
        prompt: Text, token ids, or a list of either.
        max_tokens: Largest number of new tokens.
        logprobs: Number of most likely tokens to score beside each token; None for no scores.
        echo: True if the text and the scores of the prompt come first.
        best_of: `n`, as nothing else is supported.
        suffix: Empty, as filling in is not supported.
    """

    prompt: str | Tokens | Several[str] | Several[Tokens]
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool = False
    best_of: int | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    def prompts(self) -> list[str | list[int]]:
        """Prompts one by one, each a text or token ids."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast("list[str | list[int]]", [self.prompt] if single else self.prompt)


class TextPart(BaseModel):
    """Part of a message.

    Attributes:
        type: `text`, as the model reads nothing else.
        text: The text.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """Message of a conversation.

    Attributes:
        role: Who speaks, as the chat template names it.
        content: Text, or parts of it.
        name: Name of the speaker, for templates that use it.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Message as chat templates read it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": content, **named}


class TextFormat(BaseModel):
    """Form of an answer.

    Attributes:
        type: `text`, as no other form can be enforced.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class ChatBody(Body):
    """Body of `/v1/chat/completions`.

    Attributes:
        messages: The conversation.
        max_tokens: Largest number of new tokens; as many as the context holds if None.
        max_completion_tokens: Newer name of `max_tokens`.
        logprobs: True if tokens are scored.
        top_logprobs: Number of most likely tokens to score beside each token.
        response_format: Form of the answer.
        store: False, as answers are not kept.
    """

    messages: Several[Message]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    response_format: TextFormat | None = None
    store: Literal[False] = False


def parse(kind: type[BodyT], text: bytes) -> BodyT:
    """Reads a body.

    Raises:
        RequestError: It is no JSON object, or a key is unknown, missing or wrong.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {error}", code="invalid_json") from error
    if not isinstance(content, dict):
        raise RequestError(400, "the body is no JSON object", code="invalid_json")
    try:
        return kind.model_validate({k: v for k, v in content.items() if v is not None})
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> RequestError:
    """Error that names a wrong key."""
    # Every kind that a key may have reports an error; the deepest is of the kind that was meant.
    first = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    path = [str(part) for part in first["loc"]]
    key = path[0] if path else "body"
    if first["type"] == "extra_forbidden":
        return RequestError(
            400,
            f"{'.'.join(path)!r} is not supported; leave it out",
            param=key,
            code="unsupported_parameter",
        )
    missing = first["type"] == "missing"
    problem = "is missing" if missing else f"is wrong: {first['msg'].lower()}"
    return RequestError(400, f"{key!r} {problem}", param=key, code="invalid_value")
