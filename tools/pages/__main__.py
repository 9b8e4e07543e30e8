"""Makes a page of results: `python -m tools.pages NAME [OPTIONS]`. Without a name, lists them."""

from __future__ import annotations

import argparse
import ast
import sys
from importlib import import_module
from pathlib import Path


def pages() -> dict[str, str]:
    """Names of the pages, each with the first sentence of its module; no module is imported."""
    trees = {path.stem: ast.parse(path.read_text()) for path in Path(__file__).parent.glob("*.py")}
    return {
        name: (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
        for name, tree in sorted(trees.items())
        if any(isinstance(node, ast.FunctionDef) and node.name == "make" for node in tree.body)
    }


def main(words: list[str]) -> int:
    """Makes the page that the first word names; returns the exit code."""
    known = pages()
    if not words or words[0] in ("-h", "--help"):
        print(*(f"{name:<16} {sentence}" for name, sentence in known.items()), sep="\n")
        return 0
    name, *options = words
    if name not in known:
        print(f"tools.pages: no page is called {name}; there are {', '.join(known)}")
        return 2
    module = import_module(f"tools.pages.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m tools.pages {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_options(parser)
    module.make(parser.parse_args(options))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
