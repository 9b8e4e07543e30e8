"""Chat templates that `tokenizer_config.json` lists by name, as files of their own.

Older checkpoints list them, transformers reads both, and onnxruntime-genai and transformers.js read
one template alone: a list stops genai's tokenizer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moe_export.checkpoint import write_json
from moe_export.documents.json_files import json_object
from moe_export.documents.special_tokens import TOKENIZER_CONFIG_FILE
from moe_export.documents.tokenizer_files import TEMPLATE_FILE, TEMPLATES_FOLDER
from moe_export.errors import CheckpointError
from moe_export.system.disk import disk_error

KEY = "chat_template"
DEFAULT = "default"


def separate_listed_templates(directory: Path) -> None:
    """Writes listed templates to the files of transformers 5, and leaves the default in the config.

    Files that are there already stay. Nothing is written if the config lists none.

    Args:
        directory: Folder of an exported model with a copy of the tokenizer.

    Raises:
        CheckpointError: The list is damaged, or a name cannot be that of a file.
        ResourceError: A file cannot be written.
    """
    path = directory / TOKENIZER_CONFIG_FILE
    config = json_object(path)
    if not isinstance(config.get(KEY), list):
        return
    templates = dict(_named(entry, path) for entry in config[KEY])
    default = templates.pop(DEFAULT, None)
    for name, template in templates.items():
        _write(directory / TEMPLATES_FOLDER / f"{name}.jinja", template)
    if default is None:
        del config[KEY]
    else:
        _write(directory / TEMPLATE_FILE, default)
        config[KEY] = default
    write_json(path, config)


def _named(entry: Any, path: Path) -> tuple[str, str]:
    match entry:
        case {"name": str(name), "template": str(template)} if re.fullmatch(r"\w[\w.-]*", name):
            return name, template
    raise CheckpointError(
        f"{path}: an entry of {KEY} is no name of letters and digits with a template; correct it"
    )


def _write(path: Path, template: str) -> None:
    if path.exists():
        return
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error
