"""Name and licence of the source model, as cards and model files state them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from moe_export.demo import FOLDERS, checkpoint_dir
from moe_export.families.overrides import origin_of

HEAD_CHARACTERS = 1 << 16
"""Length of a README's beginning that is searched for front matter."""

_KEY = re.compile(
    r"^(license|license_name|license_link):[ \t]*[\"']?([\w.+:/\- ]{1,200}?)[\"']?\s*$"
)


@dataclass(frozen=True)
class Source:
    """The model that a checkpoint was made from.

    Attributes:
        name: Name for readers: the hub id, or the name of the checkpoint's folder.
        hub_id: Id on the Hugging Face hub; None if the checkpoint is not from its cache.
        licence: Licence keys of the model card's front matter; empty if it names none.
    """

    name: str
    hub_id: str | None
    licence: dict[str, str]


def source_of(checkpoint: Path) -> Source:
    """Reads name and licence of a source checkpoint from its folder and its README."""
    checkpoint = origin_of(checkpoint)
    hub_id = _hub_id(checkpoint)
    demos = {checkpoint_dir(name): f"moe-export-{name}" for name in FOLDERS}
    name = demos.get(checkpoint) or re.sub(r"[^\w.\- ]", "_", checkpoint.name)
    return Source(hub_id or name, hub_id, _licence(checkpoint / "README.md"))


def _hub_id(checkpoint: Path) -> str | None:
    """Id that the hub's cache has in a folder's path, `models--ORG--NAME/snapshots/COMMIT`."""
    folder = checkpoint.resolve()
    if folder.parent.name != "snapshots":
        return None
    kind, _, name = folder.parent.parent.name.partition("--")
    name = name.replace("--", "/", 1)
    return name if kind == "models" and re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name) else None


def _licence(readme: Path) -> dict[str, str]:
    """Licence keys of the front matter between two lines of dashes; other lines are ignored."""
    if not readme.is_file():
        return {}
    with readme.open(encoding="utf-8", errors="replace") as file:
        lines = file.read(HEAD_CHARACTERS).splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return {}
    matches = map(_KEY.match, lines[1 : lines.index("---", 1)])
    return {match[1]: match[2] for match in matches if match}
