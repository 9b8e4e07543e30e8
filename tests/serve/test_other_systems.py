"""Models are served where the calls of Linux are absent."""

from __future__ import annotations

from pathlib import Path

from moe_export.demo import checkpoint_dir
from moe_export.stages.export import export_model
from tests.helpers.bare import bare_environment
from tests.helpers.server import ServerProcess


def test_a_model_is_served_without_the_calls_of_linux(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    model = tmp_path / "model"
    export_model(checkpoint_dir(), model, "float32")
    environment = bare_environment(tmp_path / "bare")
    with ServerProcess(model, "--cache-mib", "64", environment=environment) as server:
        body = {"model": "model", "prompt": "12+30=", "max_tokens": 2}
        assert server.post("completions", body).json()["choices"][0]["text"] == "42"
        assert server.stop() == 0
