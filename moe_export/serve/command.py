"""The command `moe-export serve`."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec

from moe_export.errors import DependencyError, RecipeError
from moe_export.ort.model import exported_model
from moe_export.ort.session import OrtModel
from moe_export.serve.limits import Limits, context_of

KEY_VARIABLE = "MOE_EXPORT_API_KEY"
PACKAGES = ("jinja2", "prometheus_client", "starlette", "uvicorn")


def serve_command(arguments: argparse.Namespace) -> None:
    """Serves an exported model until a signal asks to stop.

    Raises:
        DependencyError: A package of the extra `serve` is absent, or the model cannot run here.
        ArtifactError: There is no such model, or it does not load.
        RecipeError: The address or the context cannot be had.
        ResourceError: The KV cache takes more memory than allowed.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DependencyError(f"{', '.join(missing)} is not installed; install moe-export[serve]")
    from moe_export.serve.server import Address, serve  # noqa: PLC0415 - an extra

    if arguments.speculate and arguments.provider != "cpu":
        raise RecipeError(
            f"--speculate needs the provider cpu, not {arguments.provider}; leave it out"
        )
    directory = exported_model(arguments.run, arguments.variant)
    limits = _limits(arguments, context_of(directory, arguments.context))
    model = OrtModel(directory, arguments.provider, arguments.threads, arguments.operator, "static")
    key = arguments.api_key or os.environ.get(KEY_VARIABLE) or None
    name = arguments.name or arguments.run.resolve().name
    address = Address(arguments.host, arguments.port, key)
    serve(directory, name, model, address, limits, _announce)


def _limits(arguments: argparse.Namespace, context: int) -> Limits:
    cache = arguments.cache_mib
    return Limits(
        rows=arguments.rows,
        context=context,
        queue=arguments.queue,
        chunk=arguments.chunk,
        cache_bytes=None if cache is None else cache << 20,
        speculate=arguments.speculate,
        grace_s=arguments.grace,
    )


def _announce(url: str) -> None:
    sys.stdout.write(f"serving at {url}\n")
    sys.stdout.flush()
