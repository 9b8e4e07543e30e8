"""A server in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import openai


class ServerProcess:
    """Process of `moe-export serve`, which ends with the `with` block.

    Args:
        run: Folder to serve.
        options: Further options of the command.
        environment: Variables beside those of this process.
    """

    def __init__(self, run: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "moe_export", "serve", str(run), "--port", "0", *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        self.name = run.name
        self._clients: dict[str, openai.OpenAI] = {}
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving at http://127.0.0.1:"), self.process.communicate()[1]
        self.url = line.split()[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        for client in self._clients.values():
            client.close()

    def client(self, key: str = "none") -> openai.OpenAI:
        """The official client, which does not try again by itself; the process closes it."""
        if key not in self._clients:
            self._clients[key] = openai.OpenAI(
                base_url=self.url, api_key=key, max_retries=0, timeout=60
            )
        return self._clients[key]

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Response to a body that the client would not send."""
        return httpx.post(f"{self.url}/{path}", json=body, timeout=60, **options)

    def metrics(self) -> dict[str, float]:
        """Metrics by name and labels."""
        text = httpx.get(self.url.removesuffix("/v1") + "/metrics").text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)
