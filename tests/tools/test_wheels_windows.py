"""A folder in Wine has the library for Windows alone, and must give the tokens of Linux."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.wheels import windows
from tools.wheels.archive import write_wheel

HERE = {"answer": [7, 5, 9]}


def test_other_tokens_than_on_linux_are_refused() -> None:
    windows.compare("packed", HERE, [7, 5, 9])
    for tokens in ([7, 5], [7, 5, 8], []):
        with pytest.raises(RuntimeError, match=r"^packed: tokens in Wine are .* \[7, 5, 9\]"):
            windows.compare("packed", HERE, tokens)
    with pytest.raises(RuntimeError, match=r"^packed: tokens in Wine are \[\]"):
        windows.compare("packed", {"answer": []}, [])


def test_the_copy_of_a_folder_has_the_library_for_windows_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("libmoe_export_ops.so", "moe_export_ops-win_amd64.dll", "model.onnx"):
        (tmp_path / "model" / name).write_bytes(b"of Linux")
    wheel = tmp_path / "a.whl"
    write_wheel(wheel, "a-1.dist-info", {"moe_export_ops/moe_export_ops.dll": b"of Windows"})
    copy = windows.with_library(tmp_path / "model", wheel, tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        "model.onnx": b"of Linux",
        "moe_export_ops.dll": b"of Windows",
    }


def test_the_prompt_is_a_line_of_ids_and_so_is_the_answer(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nread a b\nprintf "%s %s %s\\r\\n" "$b" "$a" "$1"\n')
    program.chmod(0o755)
    assert windows.tokens_in_wine([str(program)], [3, 4], 16, tmp_path) == [4, 3, 16]
