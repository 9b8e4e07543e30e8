"""Start and end of the server."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from moe_export.documents.tokens import TextTokenizer
from moe_export.errors import RecipeError
from moe_export.ort.session import OrtModel
from moe_export.serve.app import Service
from moe_export.serve.chat import ChatTemplate
from moe_export.serve.engine import Engine
from moe_export.serve.limits import Limits, check_cache
from moe_export.serve.metrics import Metrics
from moe_export.serve.reading import Reader


@dataclass(frozen=True)
class Address:
    """Address that the server listens on.

    Attributes:
        host: Name or number of the interface.
        port: Port; 0 for any that is free.
        key: API key that requests must carry; None if none is needed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None

    def listen(self) -> socket.socket:
        """Opens the socket.

        Raises:
            RecipeError: The address is open to others and there is no key, or it cannot be used.
        """
        try:
            family, *_, target = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[
                0
            ]
            if self.key is None and not ipaddress.ip_address(target[0]).is_loopback:
                raise RecipeError(
                    f"{self.host} can be reached from other machines; set MOE_EXPORT_API_KEY or "
                    "give --api-key, or listen on 127.0.0.1"
                )
            listening = socket.socket(family, socket.SOCK_STREAM)
            try:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind(target)
            except OSError:
                listening.close()
                raise
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RecipeError(
                f"the server cannot listen on {self.host} port {self.port} ({reason}); "
                "choose another with --host or --port"
            ) from error
        return listening


class Server(uvicorn.Server):
    """Server that ends with exit code 0 after a signal, once running requests are answered."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals in the event loop, and does not raise them again at the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self.handle_exit, number, None)
            except NotImplementedError:  # Windows's event loop
                signal.signal(number, self.handle_exit)
        yield


def serve(
    directory: Path,
    name: str,
    model: OrtModel,
    address: Address,
    limits: Limits,
    ready: Callable[[str], None],
) -> None:
    """Serves a model until a signal asks to stop.

    Args:
        directory: Folder of the exported model.
        name: Name of the model in requests.
        model: Session with a static cache.
        address: Address to listen on.
        limits: Limits of the server.
        ready: Function that is called with the server's URL once it accepts requests.

    Raises:
        RecipeError: The address cannot be used.
        ResourceError: The KV cache takes more memory than allowed.
    """
    check_cache(model, limits)
    metrics = Metrics()
    engine = Engine(model, limits, metrics)
    service = _service(directory, name, model, engine, metrics, limits, address.key)
    listening = address.listen()
    config = uvicorn.Config(
        service.app(),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=limits.grace_s,
    )
    engine.start()
    try:
        listening.listen(config.backlog)
        host, port = listening.getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        asyncio.run(Server(config).serve(sockets=[listening]))
    finally:
        engine.stop()
        listening.close()


def _service(
    directory: Path,
    name: str,
    model: OrtModel,
    engine: Engine,
    metrics: Metrics,
    limits: Limits,
    key: str | None,
) -> Service:
    tokenizer = TextTokenizer(directory)
    vocabulary = int(model.session.get_outputs()[0].shape[-1])
    reader = Reader(name, tokenizer, ChatTemplate(directory), vocabulary, limits.context)
    return Service(name, engine, tokenizer, reader, metrics, limits.body_bytes, key)
