from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.errors import CheckpointError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / "models--a--b" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text("a password")
    return folder


def copied(model: Path) -> dict[str, str]:
    out = model.parents[3] / "out"
    copy_tokenizer_files(model, out)
    assert not any(path.is_symlink() for path in out.iterdir())
    return {path.name: path.read_text() for path in out.iterdir()}


def test_files_and_links_within_the_checkpoint_are_copied(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    (model / "own").mkdir()
    (model / "own" / "template").write_text("hello")
    (model / "chat_template.jinja").symlink_to("own/template")
    (model / "notes.txt").write_text("not a tokenizer's")
    assert copied(model) == {"tokenizer.json": "{}", "chat_template.jinja": "hello"}


def test_the_links_of_a_hub_cache_are_followed(model: Path) -> None:
    blobs = model.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / "0123").write_text("{}")
    (model / "tokenizer.json").symlink_to("../../blobs/0123")
    assert copied(model) == {"tokenizer.json": "{}"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.symlink_to(path.parents[4] / "secret"), "outside the checkpoint"),
        (lambda path: path.symlink_to("../../../../secret"), "outside the checkpoint"),
        (lambda path: path.symlink_to("nowhere"), "a link to nothing"),
        (lambda path: path.symlink_to(path.name), "a link to nothing"),
        (lambda path: path.symlink_to("/dev/zero"), "outside the checkpoint"),
        (lambda path: path.mkdir(), "cannot be read"),
        (os.mkfifo, "cannot be read"),
    ],
)
def test_a_file_that_is_not_the_checkpoints_own_is_refused(
    model: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(model / "chat_template.jinja")
    with pytest.raises(CheckpointError, match=words):
        copied(model)
    assert not list((model.parents[3] / "out").iterdir())


def test_links_to_links_that_leave_the_checkpoint_are_refused(model: Path) -> None:
    (model / "inner").symlink_to(model.parents[3] / "secret")
    (model / "tokenizer.json").symlink_to("inner")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        copied(model)
