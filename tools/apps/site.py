"""Web site with the page of the examples, an export and packages of npm, on this machine alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tools.apps.environments import DRIVERS, EXAMPLES


def site(packages: Path, model: Path) -> Path:
    """Folder of the site, which is made anew.

    Args:
        packages: Folder with `node_modules`.
        model: Folder of an exported model.
    """
    folder = packages / "site"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("node", "web"):
        shutil.copytree(
            EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns("node_modules", "model")
        )
    shutil.copyfile(DRIVERS / "transformers_js.html", folder / "web" / "transformers_js.html")
    (folder / "web" / "node_modules").symlink_to(packages / "node_modules")
    (folder / "web" / "model").symlink_to(model)
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Writes nothing."""


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """URL of a server of a folder's files, which runs within the block."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
