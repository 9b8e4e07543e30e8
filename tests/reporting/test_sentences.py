"""Sentences of a report that depend on the paths that ran."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from moe_export.ort import execution
from moe_export.ort.execution import PLAIN_KERNELS, execution_path
from moe_export.reporting.sentences import execution_sentence
from tests.helpers.report_artifacts import REPORT


def test_a_report_says_that_portable_kernels_may_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = REPORT.execution
    assert PLAIN_KERNELS not in execution_sentence(REPORT)
    library = SimpleNamespace(kernel="portable")
    monkeypatch.setattr(execution, "describe", lambda: library)
    plain = entry.model_copy(update={"variant": "quantized", "path": execution_path("native")})
    for entries in ((plain,), (entry, plain)):
        sentence = execution_sentence(REPORT.model_copy(update={"execution": entries}))
        assert sentence.endswith(f". {PLAIN_KERNELS}")
