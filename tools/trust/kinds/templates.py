"""Chat templates of strangers: damaged, endless, greedy, and reaching for Python."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.kinds.base import RIGHT, Case, Kind, copy_model, run_words, write_recipe
from tools.trust.mutate import change_bytes

MARK = "executed"
"""File that a template would write if it could run code."""

GOOD = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"

HOSTILE = (
    "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ range(10**8) | list }}",
    "{{ messages[0] | pprint * 10**8 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch " + MARK + "') }}",
    "{{ self.__init__.__globals__.__builtins__.open('" + MARK + "', 'w') }}",
    "{{ lipsum.__globals__['os'].popen('touch " + MARK + "').read() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ raise_exception('roles must take turns') }}",
    "{{ messages[9].content }}",
    "{{ undefined.x }}",
    "{{ 1 / 0 }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% set x = messages %}{{ x.append(x) }}{{ x }}",
    "{{ messages.clear() }}",
    "{{ strftime_now('%Y' * 10**7) }}",
    "{{ '\ud800' }}",
    "{{ none }}",
    "",
    "{% for m in messages %}{{ m.content.format(m) }}{% endfor %}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
)

PIECES = (
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "|",
    "if",
    "endfor",
    "tojson",
    "~",
    "\\",
    "'",
    "()",
    "loop.",
    "..",
)


class Templates(Kind):
    """Nothing that a template says may be executed, or take more than its seconds."""

    NAME = "chat templates"
    WHAT = "24 hostile templates, pieces of Jinja, and damaged files"
    SHARE = 0.25

    def prepare(self) -> None:
        tiny_checkpoint(self.base / "model")

    def case(self, random: Random, place: Path) -> Case:
        model = copy_model(self.base / "model", place)
        template, what = _template(random)
        if random.random() < 0.5:
            path = model / "tokenizer_config.json"
            content = json.loads(path.read_text()) | {"chat_template": template}
            path.write_text(json.dumps(content))
        else:
            raw = template.encode("utf-8", "surrogatepass")
            (model / "chat_template.jinja").write_bytes(raw)
        rows = '{"messages": [{"role": "user", "content": "hello there"}]}\n' * 4
        (place / "data.jsonl").write_text(rows)
        source = {"jsonl": "data.jsonl", "chat_template": True}
        calibrate = {"sources": [source], "sequences": 2, "sequence_length": 48}
        write_recipe(place, calibrate=calibrate)
        return Case(what, [run_words("--until", "calibrate")], lambda _: _judge(place))


def _template(random: Random) -> tuple[str, str]:
    way = random.randrange(3)
    if way == 0:
        template = random.choice(HOSTILE)
        return template, template[:60]
    if way == 1:
        raw, what = change_bytes(random, GOOD.encode())
        return raw.decode("utf-8", "replace"), what
    at = random.randrange(len(GOOD))
    piece = random.choice(PIECES)
    return GOOD[:at] + piece + GOOD[at:], f"{piece} at {at}"


def _judge(place: Path) -> str:
    return "a template has run code" if list(place.rglob(MARK)) else RIGHT
