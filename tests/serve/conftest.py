from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import moe_export
from moe_export.checkpoint import Checkpoint
from moe_export.demo import checkpoint_dir
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.families import spec_of
from moe_export.graph.genai_config import CONFIG_FILE, genai_config
from tests.helpers.decoding import exported
from tests.helpers.server import ServerProcess

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
    "{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as the export stage writes it, with a chat template."""
    directory = exported(checkpoint_dir(), tmp_path_factory.mktemp("served") / "demo")
    copy_tokenizer_files(checkpoint_dir(), directory)
    config = Checkpoint(checkpoint_dir()).config
    content = json.dumps(genai_config(spec_of(config), config, {}))
    (directory / CONFIG_FILE).write_text(content)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="session")
def model(demo: Path) -> moe_export.Model:
    """The served model in this process."""
    return moe_export.load(demo, threads=1)


@pytest.fixture(scope="session")
def server(demo: Path) -> Iterator[ServerProcess]:
    """A server that most tests share."""
    with ServerProcess(demo, "--rows", "8", "--chunk", "32", "--threads", "2") as process:
        yield process
