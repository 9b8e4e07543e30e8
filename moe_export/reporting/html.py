"""Parts of a page; everything that is not markup is escaped here, and nothing is fetched."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from moe_export.reporting.palette import variables
from moe_export.reporting.tables import Table

_VERDICTS = {"pass": "pass", "FAIL": "fail"}


def page(title: str, body: str) -> str:
    """Renders a document with its style, for light and dark screens and for paper."""
    style = files("moe_export.reporting").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (
        "".join(f"--{name}:{pair[n]};" for name, pair in variables().items()) for n in (0, 1)
    )
    colours = (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{colours}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def paragraph(words: str, kind: str = "") -> str:
    """Renders words as a paragraph."""
    return f"<p{_class(kind)}>{_text(words)}</p>"


def figure(picture: str, caption: str = "") -> str:
    """Renders a picture, which is markup, with an optional caption, which is text."""
    below = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>\n{picture}{below}\n</figure>"


def pair(*blocks: str) -> str:
    """Renders blocks side by side if there is room."""
    return (
        '<div class="pair">\n' + "\n".join(f"<div>{block}</div>" for block in blocks) + "\n</div>"
    )


def details(summary: str, block: str) -> str:
    """Renders a folded block under a summary."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{block}\n</details>"


def preformatted(text: str) -> str:
    """Renders text with its own line breaks."""
    return f"<pre>{escape(text)}</pre>"


def table(content: Table, kind: str = "") -> str:
    """Renders a table that scrolls if it is too wide; the second line of a cell is set small.

    Rows with the same first cell form a group if a second column of words tells them apart. A group
    is drawn without lines inside, and with the cell once.
    """
    head = "".join(
        f"<th{_class('words' if column < content.words else '')}>{escape(cell)}</th>"
        for column, cell in enumerate(content.head)
    )
    bodies: list[str] = []
    previous = None
    for number, row in enumerate(content.rows):
        repeated = content.words > 1 and row[0] == previous
        previous = row[0]
        line = f"<tr>{''.join(_cells(content, number, repeated))}</tr>"
        if repeated:
            bodies[-1] += line
        else:
            bodies.append(line)
    groups = "".join(f'<tbody class="group">{body}</tbody>' for body in bodies)
    inside = f"<thead><tr>{head}</tr></thead>{groups}"
    return f'<div class="scroll"><table{_class(kind)}>{inside}</table></div>'


def _cells(content: Table, number: int, repeated: bool) -> list[str]:
    cells = []
    for column, text in enumerate(content.rows[number]):
        words = "words" if column < content.words else ""
        kind = f"{words} {_VERDICTS.get(text, '')}".strip()
        shown, *below = ("" if repeated and column == 0 else escape(text)).split("\n")
        if (number, column) in content.strong:
            shown = f"<strong>{shown}</strong>"
        if column == 0 and number < len(content.keys):
            shown = (
                f'<span class="key" style="background:var(--{content.keys[number]})"></span>{shown}'
            )
        small = "".join(f"<small>{line}</small>" for line in below)
        cells.append(f"<td{_class(kind)}>{shown}{small}</td>")
    return cells


def headline(strip: list[tuple[str, str, str]]) -> str:
    """Renders the figures at the top, each with its label and words."""
    items = "".join(
        f'<div><dt>{escape(label)}</dt><dd class="figure">{escape(number)}</dd>'
        f'<dd class="words">{_text(words)}</dd></div>'
        for label, number, words in strip
    )
    return f'<dl class="strip">{items}</dl>'


def verdict(passed: bool, words: str, rest: str = "") -> str:
    """Renders the outcome of the gates, followed by plain words."""
    return (
        f'<p class="verdict"><span class="{"pass" if passed else "fail"}">{escape(words)}</span> '
        f"{escape(rest)}</p>"
    )


def _text(words: str) -> str:
    """Escapes words; a percentage does not break before its sign."""
    return escape(words).replace(" %", "&nbsp;%")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
