"""Many clients at once, by the command that measures throughput."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.bench import serve
from tools.pages.serve import markdown


def test_no_request_of_many_clients_is_lost_and_every_answer_is_that_of_one(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main([str(demo), "--clients", "32", "--requests", "3"]) == 0
    figures = json.loads(capsys.readouterr().out)
    one, many = figures["loads"]
    assert figures["sent"] == figures["equal"] == many["answered"] == 96
    assert one["answered"] == 100
    assert many["new_tokens"] > 96
    assert "96 requests of 32 clients: 96 answered, 96 with the text" in markdown(figures)
