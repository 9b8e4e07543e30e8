"""Errors of requests, in the form of the OpenAI API."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """Request that the server refuses or cannot answer.

    Args:
        status: HTTP status.
        message: Sentence that says what is wrong and what to do.
        param: Key of the body that is wrong.
        code: Word for programs.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def content(self) -> dict[str, Any]:
        """Body of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def failed() -> RequestError:
    """Error of a request whose step failed or was cut off by the end of the server."""
    return RequestError(
        500, "the server could not finish this request; send it again", code="generation_failed"
    )
