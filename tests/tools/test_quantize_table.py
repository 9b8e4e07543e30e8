"""The page of the comparison of formats, from figures made by hand."""

from __future__ import annotations

from typing import Any

from tools.pages.bitsandbytes_peer import LAYERS
from tools.pages.quantization import FORMATS, KEEPS, METHODS, PEER, markdown

SCORES = {"mean_exact_match": 0.9, "text_loss_nats": 3.0, "text_kl_nats": 0.00123}


def figures(peer_version: str | None) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    for keep in KEEPS:
        results.append({"keep": keep, "format": "float", "method": None, **SCORES})
        for name, sizes in FORMATS.items():
            results += [
                {"keep": keep, "format": name, "group_size": size, "method": method, "bits": 4.5}
                | SCORES
                for size in sizes
                for method in METHODS
            ]
        results += [
            {"keep": keep, "format": layer, "method": PEER, "bits": 4.1, **SCORES}
            for layer in (LAYERS if peer_version else ())
        ]
    return {"items": 7, PEER: peer_version, "baseline": SCORES, "results": results}


def test_every_format_and_every_peer_has_a_row_of_as_many_cells_as_the_head() -> None:
    page = markdown(figures("0.50.2"))
    rows = [line for line in page.splitlines() if line.startswith("|")]
    each = sum(map(len, FORMATS.values())) + len(LAYERS) + 2
    assert len(rows) == len(KEEPS) * each
    assert {line.count("|") for line in rows} == {3 + 2 * len(METHODS) + 1}
    assert page.count("| nf4 | 64 | 4.50 | 1.23 | 1.23 | 1.23 | 90.00% | 90.00% | 90.00% |") == 3
    assert page.count("| Linear4bit nf4 | | 4.10 | 1.23 | | | 90.00% | | |") == 3
    assert "bitsandbytes 0.50.2" in page


def test_the_page_says_where_the_peer_was_absent() -> None:
    page = markdown(figures(None))
    assert "bitsandbytes was not installed, so that its layers are not compared." in page
    assert "Linear4bit" not in page
