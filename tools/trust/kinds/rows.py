"""Files of documents: JSON lines, arrays, gzip, Parquet, plain text, and conversations."""

from __future__ import annotations

import gzip
import io
import json
import math
from pathlib import Path
from random import Random
from typing import Any

from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.kinds.base import RIGHT, ROWS, Case, Kind, copy_model, run_words, write_recipe
from tools.trust.kinds.tokenizer import is_text, plain_tokens, sequences
from tools.trust.mutate import VALUES, change_bytes, change_json

FORMS = ("jsonl", "jsonl", "jsonl", "json", "jsonl.gz", "parquet", "txt")


class Rows(Kind):
    """Accepted files are parsed again by `json`, and every sequence must be a text of them."""

    NAME = "documents"
    WHAT = "values and bytes of JSON lines, arrays, gzip, Parquet and text"
    SHARE = 1.4

    def prepare(self) -> None:
        tiny_checkpoint(self.base / "model")

    def case(self, random: Random, place: Path) -> Case:
        copy_model(self.base / "model", place)
        form = random.choice(FORMS)
        rows, what = [dict(row) for row in ROWS], ""
        if random.random() < 0.6:
            number = random.randrange(len(rows))
            rows[number], what = _changed_row(random, rows[number])
        raw = _file(rows, form)
        if raw is None or not what:
            raw, more = change_bytes(random, raw or _file([dict(row) for row in ROWS], form) or b"")
            what += more
        name = f"data.{form}"
        (place / name).write_bytes(raw)
        kind = "text" if form == "txt" else "jsonl"
        calibrate = {"sources": [{kind: name}], "sequences": 4, "sequence_length": 48}
        write_recipe(place, calibrate=calibrate)
        return Case(
            f"{form}: {what}",
            [run_words("--until", "calibrate")],
            lambda _: RIGHT if form in ("txt", "parquet") else _judge(place, name),
        )


class Conversations(Kind):
    """Rows with `messages`, `conversations` and `tools` for a chat template."""

    NAME = "conversations"
    WHAT = "values in messages, ShareGPT conversations and tools, with a template"
    SHARE = 0.25

    def prepare(self) -> None:
        model = tiny_checkpoint(self.base / "model")
        path = model / "tokenizer_config.json"
        template = (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
            "{% if tools %}{{ tools | tojson }}{% endif %}"
        )
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))

    def case(self, random: Random, place: Path) -> Case:
        copy_model(self.base / "model", place)
        row: dict[str, Any] = random.choice(
            (
                {
                    "messages": [
                        {"role": "user", "content": "hi"},
                        {"role": "assistant", "content": "a"},
                    ]
                },
                {
                    "conversations": [
                        {"from": "human", "value": "hi"},
                        {"from": "gpt", "value": "a"},
                    ]
                },
                {"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "clock"}]},
            )
        )
        changed, what = change_json(random, row)
        text = "".join(json.dumps(each) + "\n" for each in (row, changed, row, row))
        (place / "data.jsonl").write_text(text)
        source = {"jsonl": "data.jsonl", "chat_template": True}
        calibrate = {"sources": [source], "sequences": 4, "sequence_length": 48}
        write_recipe(place, calibrate=calibrate)
        return Case(what, [run_words("--until", "calibrate")], lambda _: _no_python_words(place))


def _changed_row(random: Random, row: dict[str, Any]) -> tuple[Any, str]:
    if random.random() < 0.5:
        value = random.choice(VALUES)
        return row | {"text": value}, f"text = {value!r:.60}"
    return change_json(random, row)


def _file(rows: list[Any], form: str) -> bytes | None:
    """Content of a file of rows; None if the form cannot hold them."""
    if form == "parquet":
        return _parquet(rows)
    if form == "json":
        return json.dumps(rows).encode()
    if form == "txt":
        return "\n".join(
            str(row.get("text")) if isinstance(row, dict) else "" for row in rows * 9
        ).encode("utf-8", "surrogatepass")
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(raw, mtime=0) if form.endswith("gz") else raw


def _parquet(rows: list[Any]) -> bytes | None:
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow import parquet  # noqa: PLC0415

    file = io.BytesIO()
    try:
        parquet.write_table(pa.Table.from_pylist(rows), file)
    except Exception:  # noqa: BLE001 - values that no column can hold
        return None
    return file.getvalue()


def _judge(place: Path, name: str) -> str:
    texts = _texts(place / name)
    if texts is None:
        return "rows that are no rows with a text are accepted"
    tokens = plain_tokens(place / "model", texts)
    wrong = [each for each in sequences(place / "run") if not is_text(each, tokens, 48)]
    return f"a sequence is no text of the rows: {wrong[0][:12]}" if wrong else RIGHT


def _texts(path: Path) -> list[str] | None:
    """Texts of the rows as Python's json reads them; None if some row has none."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        if raw.lstrip()[:1] == b"[":
            rows = json.loads(raw)
        else:
            rows = [json.loads(line.decode()) for line in raw.split(b"\n") if line.strip()]
    except ValueError:
        return None
    texts = [row.get("text") if isinstance(row, dict) else None for row in rows]
    return [_text(each) for each in texts] if all(map(_is_text, texts)) else None


def _is_text(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return False
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _no_python_words(place: Path) -> str:
    """Rendered text holds no value that Python has written in its own words."""
    texts = [bytes(token for token in each if token < 256) for each in sequences(place / "run")]
    tokens = plain_tokens(place / "model", [": None", ": {'", ": ['", ": True", ": False"])
    for sequence in sequences(place / "run"):
        for part in tokens:
            if any(sequence[at : at + len(part)] == part for at in range(len(sequence))):
                return "a value became Python text"
    return RIGHT if texts else ""
