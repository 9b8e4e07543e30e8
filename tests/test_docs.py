"""The documents say what the code does."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from moe_export import errors
from moe_export.cli import EXIT_CODES, _parser
from moe_export.graph.decoder import FORMAT_VERSION
from moe_export.op import packed, packed_linear, spec
from moe_export.recipe.load import load_recipe
from moe_export.scores import SCORES
from moe_export.stages import STAGES
from tools.pages import demo_compare, platforms
from tools.pages.page import read_data
from tools.pages.readme import filled

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
FOLDERS = ("*.md", "docs/**/*.md", "recipes/*.md", "examples/*.md")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(folder))
GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("docs/guide/*.md"))]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def links(page: Path) -> list[str]:
    """Targets of the links of a page that lead to files of the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [target for target in targets if not target.startswith(("http:", "https:"))]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.strip().replace(" ", "-") for word in words}


def dead_links(page: Path) -> list[str]:
    """Links of a page to files or headings that are not there."""
    dead = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def reached(start: Path) -> set[Path]:
    """Pages that links lead to from a page, directly or through others."""
    seen, waiting = set(), [start]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        waiting += [t for t in targets - seen if t.suffix == ".md" and t.exists()]
    return seen


def fenced(page: Path, language: str) -> list[str]:
    """Blocks of code of a page in a language; the empty one is a shell's."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for word, text in blocks if word == language]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = next(line for line in README.splitlines() if line.endswith("tools/check"))
    script = (ROOT / ".ci" / "run").read_text().replace("pip install -q ", "pip install ")
    assert command in script


def test_the_readme_is_short() -> None:
    assert len(README.split()) < 900


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_every_page_is_reached_from_the_readme() -> None:
    orphans = set(PAGES) - reached(ROOT / "README.md")
    assert names(sorted(orphans)) == []


def test_dead_links_and_orphans_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "orphan.md").write_text("# Alone")
    (tmp_path / "other.md").write_text("# A heading: with `code`\n[back](index.md)")
    index = tmp_path / "index.md"
    index.write_text(
        "[good](other.md#a-heading-with-code) [bad](other.md#none) [gone](gone.md)\n[web](https://x.org)"
    )
    assert dead_links(index) == ["other.md#none", "gone.md"]
    assert reached(index) == {index, tmp_path / "other.md"}


def test_the_tables_of_the_readme_are_those_of_the_committed_figures() -> None:
    for page in (demo_compare, platforms):
        name = page.__name__.rpartition(".")[2]
        assert filled(README, name, page.readme_table(read_data(name))) == README


def test_the_reference_lists_every_command() -> None:
    page = (ROOT / "docs/reference/command-line.md").read_text()
    actions = next(a for a in _parser()._actions if a.dest == "command")
    assert actions.choices is not None
    for command in actions.choices:
        assert re.search(rf"^## {command}\b", page, re.MULTILINE), command


def statements(block: str) -> Iterator[list[str]]:
    """Words of each statement of a shell block; a quoted word may run over lines."""
    text = ""
    for line in block.replace("\\\n", "").splitlines():
        text += f"{line}\n"
        if text.count('"') % 2 == 0:
            yield shlex.split(text)
            text = ""


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of the calls of moe-export that a page shows, in blocks and within sentences."""
    shown = [words for block in fenced(page, "") for words in statements(block)]
    shown += [shlex.split(text) for text in re.findall(r"`(moe-export [^`]+)`", page.read_text())]
    for words in shown:
        places = [place for place, word in enumerate(words) if word.endswith("moe-export")]
        yield from (words[place + 1 :] for place in places)


@pytest.mark.parametrize("page", GUIDES, ids=names(GUIDES))
def test_the_commands_of_the_guides_are_understood(page: Path) -> None:
    for arguments in commands(page):
        try:
            _parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page.name}: moe-export {shlex.join(arguments)}")
        for word in arguments:
            assert not word.startswith("recipes/") or (ROOT / word).exists(), word


@pytest.mark.parametrize("page", GUIDES, ids=names(GUIDES))
def test_the_recipes_of_the_guides_are_valid(page: Path, tmp_path: Path) -> None:
    needed = {
        "model": {"source": "demo"},
        "calibrate": {"sources": [{"demo": "sums"}]},
        "plan": {"keep": 0.5},
    }
    for block in fenced(page, "yaml"):
        content = needed | yaml.safe_load(block)
        if content.get("quantize", {}).get("experts") == "auto":
            content["plan"] = {"target_bytes": "6GiB"}
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(content))
        load_recipe(recipe)


@pytest.mark.parametrize("page", GUIDES, ids=names(GUIDES))
def test_the_python_of_the_guides_uses_names_that_exist(page: Path) -> None:
    import moe_export

    for block in fenced(page, "python"):
        compile(block, str(page), "exec")
        for name in re.findall(r"\bmoe_export\.(\w+)", block):
            assert hasattr(moe_export, name) or find_spec(f"moe_export.{name}"), name


def test_the_architecture_page_is_one_page_and_names_every_stage_and_folder() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 110
    folders = {path.parent.name for path in ROOT.glob("moe_export/*/__init__.py")}
    for name in [*STAGES, *folders]:
        assert name in ARCHITECTURE, name
    for folder in folders:
        assert f"`{folder}`" in ARCHITECTURE, folder


def test_the_architecture_page_says_where_things_are() -> None:
    section = ARCHITECTURE.split("## Where is …?")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 7
    for row in rows:
        assert re.findall(r"`([\w/.]+/?)`", row), row
        for name, symbol in re.findall(r"`([\w/.]+\.\w+)`(?:: `(\w+)`)?", row):
            path = ROOT / "moe_export" / name
            assert path.exists(), name
            defined = rf"^(\s*def |\S.*\b){symbol}\("
            assert not symbol or re.search(defined, path.read_text(), re.MULTILINE), symbol


@pytest.mark.parametrize(
    "kind", [e for e in vars(errors).values() if isinstance(e, type) and hasattr(e, "exit_code")]
)
def test_every_exit_code_is_documented(kind: type[errors.MoeExportError]) -> None:
    assert re.search(rf"\b{kind.exit_code} \S", EXIT_CODES)
    assert re.search(rf"{kind.__name__} +{kind.exit_code} ", errors.__doc__ or "")
    page = (ROOT / "docs/guide/troubleshooting.md").read_text()
    assert re.search(rf"^\| {kind.exit_code} \| \w", page, re.MULTILINE)
    assert re.search(rf"^## {kind.exit_code}: \w", page, re.MULTILINE)


@pytest.mark.parametrize(
    ("thing", "version"),
    [
        ("operator in a model", spec.VERSION),
        ("packed experts", packed.VERSION),
        ("packed matrices", packed_linear.VERSION),
        ("exported model", FORMAT_VERSION),
    ],
)
def test_the_compatibility_page_has_the_versions_of_the_code(thing: str, version: object) -> None:
    page = (ROOT / "docs/reference/compatibility.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {thing} |"))
    assert row.split("|")[2].rstrip().endswith(f": {version}")


def messages() -> Iterator[str]:
    """Strings of the package, with … in the place of what is put into them."""
    for path in (ROOT / "moe_export").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_of_the_troubleshooting_page_are_real() -> None:
    page = (ROOT / "docs/guide/troubleshooting.md").read_text()
    leads = re.findall(r"^- (.*?`): ", page, re.MULTILINE)
    quoted = [quote for lead in leads for quote in re.findall(r"`([^`]+ [^`]+)`", lead)]
    assert len(quoted) > 20
    known = set(messages())
    for quote in quoted:
        pieces = [piece.strip(" '") for piece in re.split(r"…|\b[NM]\b|libmoe\w+\.so", quote)]
        for piece in pieces:
            assert len(piece) < 4 or any(piece in message for message in known), quote


def test_every_score_states_its_formula_unit_and_source() -> None:
    for score in SCORES.values():
        assert len(score.formula) > 40, score.name
        assert score.unit, score.name
        assert score.source, score.name


def test_no_document_names_a_path_of_some_machine() -> None:
    for page in [*PAGES, *ROOT.glob("docs/results/data/*.json"), *ROOT.rglob("moe_export/**/*.md")]:
        assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", page.read_text()), page
