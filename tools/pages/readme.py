"""Tables in README.md that are made from the figures of a page."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def filled(readme: str, name: str, content: str) -> str:
    """The README with a table between its two marks.

    Args:
        readme: Text of the README, with the marks `<!-- NAME -->` and `<!-- /NAME -->` once each.
        name: Name of the page.
        content: Table in Markdown.

    Raises:
        ValueError: The marks are not there exactly once.
    """
    marks = re.compile(rf"(<!-- *{name} *-->).*?(<!-- */{name} *-->)", re.DOTALL)
    text, count = marks.subn(lambda found: f"{found[1]}\n{content}\n{found[2]}", readme)
    if count != 1:
        raise ValueError(
            f"README.md: found the marks <!-- {name} --> and <!-- /{name} --> {count} "
            "times, expected them once; put both around the place of the table"
        )
    return text


def write(name: str, content: str) -> None:
    """Writes a table between its two marks.

    Raises:
        ValueError: The marks are not there exactly once.
    """
    text = filled(README.read_text(encoding="utf-8"), name, content)
    README.write_text(text, encoding="utf-8")
