"""Chat template of a model, rendered in a sandbox as transformers does it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from moe_export.documents.json_files import json_object
from moe_export.documents.special_tokens import TOKENIZER_CONFIG_FILE
from moe_export.documents.tokenizer_files import TEMPLATE_FILE
from moe_export.serve.problems import RequestError

LEGACY_FILE = "chat_template.json"
"""File of older checkpoints of processors, with the key of `tokenizer_config.json`."""

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """Template from `chat_template.jinja`, `tokenizer_config.json` or `chat_template.json`.

    The first that has one counts.

    Args:
        directory: Folder of the exported model.

    Raises:
        CheckpointError: A JSON file is damaged.
    """

    def __init__(self, directory: Path) -> None:
        config = json_object(directory / TOKENIZER_CONFIG_FILE)
        separate = directory / TEMPLATE_FILE
        listed = config.get(
            "chat_template", json_object(directory / LEGACY_FILE).get("chat_template")
        )
        source = separate.read_text("utf-8") if separate.exists() else listed
        self._template = None if source is None else _compiled(_default(source))
        self._special = {key: _text(config[key]) for key in SPECIAL if config.get(key) is not None}

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Text of a conversation up to where the answer begins.

        Raises:
            RequestError: The model has no template, or the template refuses the messages.
        """
        if self._template is None:
            raise RequestError(
                400,
                "the model has no chat template; use /v1/completions, or add chat_template.jinja "
                "to the folder of the model",
                code="no_chat_template",
            )
        from jinja2 import TemplateError  # noqa: PLC0415 - an extra

        try:
            text: str = self._template.render(
                messages=messages, add_generation_prompt=True, **self._special
            )
        except (TemplateError, TypeError) as error:
            raise RequestError(
                400, f"the model's chat template refuses the messages: {error}", param="messages"
            ) from error
        return text


def _default(source: Any) -> str:
    """The template itself, or the one named `default` among several."""
    if isinstance(source, str):
        return source
    named = {entry["name"]: entry["template"] for entry in source}
    return str(named.get("default", next(iter(named.values()))))


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _compiled(source: str) -> Any:
    from jinja2.exceptions import TemplateError  # noqa: PLC0415 - an extra
    from jinja2.ext import loopcontrols  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def plain(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = plain
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(source)
