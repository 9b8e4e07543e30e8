"""Routes of the server."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from moe_export.documents.tokens import TextTokenizer
from moe_export.serve.answers import usage
from moe_export.serve.bodies import BodyT, ChatBody, CompletionBody, parse
from moe_export.serve.engine import Engine
from moe_export.serve.metrics import Metrics
from moe_export.serve.problems import RequestError
from moe_export.serve.reading import Reader, Reading
from moe_export.serve.tickets import Ticket

Handler = Callable[[Request], Awaitable[Response]]

CLOSED = 499
"""Status in the metrics of a request whose client has left, as nginx counts it."""

log = logging.getLogger(__name__)


@dataclass
class Service:
    """Objects that the routes use.

    Attributes:
        name: Name of the model.
        engine: Engine that runs the model.
        tokenizer: The model's tokenizer.
        reader: Reader of bodies.
        metrics: Counts and times.
        body_bytes: Largest size of a body in bytes.
        key: API key that requests must carry; None if none is needed.
    """

    name: str
    engine: Engine
    tokenizer: TextTokenizer
    reader: Reader
    metrics: Metrics
    body_bytes: int
    key: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def app(self) -> Starlette:
        """The application with all routes."""
        return Starlette(
            routes=[
                self._route("/health", self.health, "GET", public=True),
                self._route("/metrics", self.show_metrics, "GET"),
                self._route("/v1/models", self.models, "GET"),
                self._route("/v1/models/{name:path}", self.model, "GET"),
                self._route("/v1/completions", self.completions, "POST"),
                self._route("/v1/chat/completions", self.chat_completions, "POST"),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _unexpected},
        )

    async def health(self, _request: Request) -> Response:
        """Says if the engine takes work."""
        if not self.engine.alive:
            raise RequestError(503, "the engine has stopped", code="stopping")
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, _request: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, _request: Request) -> Response:
        """List of the one model."""
        return JSONResponse({"object": "list", "data": [self._facts()]})

    async def model(self, request: Request) -> Response:
        """Facts of the model."""
        name = request.path_params["name"]
        if name != self.name:
            raise RequestError(
                404,
                f"there is no model {name!r}; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )
        return JSONResponse(self._facts())

    async def completions(self, request: Request) -> Response:
        """Continues prompts."""
        body = await self._body(request, CompletionBody)
        reading = await asyncio.to_thread(self.reader.completion, body)
        return await self._answer(request, reading, body)

    async def chat_completions(self, request: Request) -> Response:
        """Answers a conversation."""
        body = await self._body(request, ChatBody)
        reading = await asyncio.to_thread(self.reader.chat, body)
        return await self._answer(request, reading, body)

    async def _answer(
        self, request: Request, reading: Reading, body: CompletionBody | ChatBody
    ) -> Response:
        ticket = Ticket(
            self.engine,
            self.metrics,
            reading.asked,
            self.tokenizer.eos_ids,
            self.tokenizer.decode,
        )
        ticket.prompt_tokens = reading.prompt_tokens
        if body.stream:
            return EventStream(ticket, _events(reading, ticket, body.counts_usage))
        try:
            choices = await _unless_closed(request, ticket)
        finally:
            ticket.cancel()
        content = reading.answer.head(streamed=False)
        content["choices"] = [
            reading.answer.whole(index, pieces) for index, pieces in enumerate(choices)
        ]
        content["usage"] = usage(ticket.prompt_tokens, ticket.new_tokens)
        return JSONResponse(content)

    async def _body(self, request: Request, kind: type[BodyT]) -> BodyT:
        """Reads a body within the limit.

        Raises:
            RequestError: It is too large, of another type or wrong.
        """
        # A page in a browser can send other types to a server on loopback without being asked.
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise RequestError(
                415, "the body must have Content-Type application/json", code="invalid_json"
            )
        text = bytearray()
        async for part in request.stream():
            text += part
            if len(text) > self.body_bytes:
                raise RequestError(
                    413, f"the body is larger than {self.body_bytes} bytes", code="body_too_large"
                )
        return parse(kind, bytes(text))

    def _route(self, path: str, handler: Handler, method: str, public: bool = False) -> Route:
        """Route that checks the key, turns errors into JSON and counts the answer."""

        async def answer(request: Request) -> Response:
            try:
                if not public:
                    self._check_key(request)
                response = await handler(request)
            except RequestError as error:
                response = JSONResponse(error.content(), error.status, error.headers)
            except ClientDisconnect:
                response = Response(status_code=CLOSED)
            self.metrics.requests.labels(path, response.status_code).inc()
            return response

        return Route(path, answer, methods=[method])

    def _check_key(self, request: Request) -> None:
        if self.key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            raise RequestError(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _facts(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "moe-export",
        }


class EventStream(StreamingResponse):
    """Stream of events, whose jobs end with the connection."""

    def __init__(self, ticket: Ticket, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.headers["cache-control"] = "no-cache"
        self._ticket = ticket

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()


async def _events(reading: Reading, ticket: Ticket, counts_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of an answer, ended by `[DONE]`."""
    answer = reading.answer
    head = answer.head(streamed=True)
    unknown: dict[str, Any] = {"usage": None} if counts_usage else {}
    try:
        for choice in answer.start():
            yield _event(head | {"choices": [choice]} | unknown)
        async for index, piece in ticket.pieces():
            if piece.text or piece.scores or piece.finish:
                yield _event(head | {"choices": [answer.chunk(index, piece)]} | unknown)
    except RequestError as error:
        yield _event(error.content())
        return
    if counts_usage:
        counted = usage(ticket.prompt_tokens, ticket.new_tokens)
        yield _event(head | {"choices": [], "usage": counted})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _unless_closed(request: Request, ticket: Ticket) -> Any:
    """All pieces of a ticket, unless the client leaves before.

    Raises:
        ClientDisconnect: The client has left.
        RequestError: A step failed.
    """
    pieces = asyncio.ensure_future(ticket.whole())
    closed = asyncio.ensure_future(_closed(request))
    try:
        await asyncio.wait({pieces, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not pieces.done():
            raise ClientDisconnect
        return pieces.result()
    finally:
        pieces.cancel()
        closed.cancel()


async def _closed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _http_error(_request: Request, error: Any) -> Response:
    """Wrong route or method, as JSON."""
    content = RequestError(error.status_code, str(error.detail), code="invalid_route").content()
    return JSONResponse(content, error.status_code, error.headers)


async def _unexpected(_request: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    content = RequestError(500, "the server has met an unexpected error").content()
    return JSONResponse(content, 500)
