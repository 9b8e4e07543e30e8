"""Every JSON artifact: written and read again, and refused where it is not what it should be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.errors import ArtifactError
from tests.helpers.artifacts import EXAMPLES, PLAN, QUANTIZATION

EVERY = pytest.mark.parametrize("artifact", EXAMPLES, ids=lambda each: each.FILE)
Place = tuple[str | int, ...]
"""Keys and positions that lead to a value of a file."""


def content_of(artifact: JsonArtifact, folder: Path) -> dict[str, Any]:
    artifact.save(folder)
    content: dict[str, Any] = json.loads((folder / artifact.FILE).read_text())
    return content


def refusal(artifact: JsonArtifact, folder: Path, content: Any) -> str:
    """The message with which changed content is refused."""
    (folder / artifact.FILE).write_text(json.dumps(content))
    with pytest.raises(ArtifactError) as caught:
        type(artifact).load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder / artifact.FILE)), message
    assert "\n" not in message
    return message


def fields_of(value: Any, place: Place = ()) -> Iterator[tuple[Place, bool]]:
    """Every field of a record and of those in it, and whether it must be in the file."""
    if isinstance(value, Record):
        for name, field in type(value).model_fields.items():
            inner = (*place, field.serialization_alias or name)
            yield inner, field.is_required()
            yield from fields_of(getattr(value, name), inner)
    elif isinstance(value, dict | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from fields_of(item, (*place, key))


def changed(content: Any, place: Place, change: Callable[[Any, Any], None]) -> Any:
    """A copy in which the object that holds a field is changed."""
    copy = json.loads(json.dumps(content))
    parent = copy
    for part in place[:-1]:
        parent = parent[part]
    change(parent, place[-1])
    return copy


def named(place: Place) -> str:
    return ".".join(map(str, place))


@EVERY
def test_what_is_read_is_what_was_written_to_the_byte(
    artifact: JsonArtifact, tmp_path: Path
) -> None:
    content = content_of(artifact, tmp_path)
    written = (tmp_path / artifact.FILE).read_bytes()
    again = type(artifact).load(tmp_path)
    assert again == artifact
    again.save(tmp_path)
    assert (tmp_path / artifact.FILE).read_bytes() == written
    assert next(iter(content)) == "schema"
    assert content["schema"] == 1


@EVERY
def test_a_truncated_file_is_refused(artifact: JsonArtifact, tmp_path: Path) -> None:
    content_of(artifact, tmp_path)
    path = tmp_path / artifact.FILE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        ArtifactError, match=f"{artifact.FILE} cannot be read as JSON .*; remove it"
    ):
        type(artifact).load(tmp_path)


@EVERY
def test_a_file_of_another_version_is_refused(artifact: JsonArtifact, tmp_path: Path) -> None:
    content = content_of(artifact, tmp_path) | {"schema": 7}
    assert "has schema 7, this version of moe-export reads 1" in refusal(
        artifact, tmp_path, content
    )


@EVERY
def test_a_missing_file_is_named(artifact: JsonArtifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{artifact.FILE} is missing; run the stage"):
        type(artifact).load(tmp_path)


@EVERY
def test_each_field_that_is_removed_is_named(artifact: JsonArtifact, tmp_path: Path) -> None:
    content = content_of(artifact, tmp_path)
    derived = [((name,), True) for name in artifact.DERIVED]
    for place, is_required in [*fields_of(artifact), *derived]:
        without = changed(content, place, lambda parent, key: parent.pop(key))
        if is_required:
            message = refusal(artifact, tmp_path, without)
            assert f"field '{named(place)}' is missing;" in message
        else:
            (tmp_path / artifact.FILE).write_text(json.dumps(without))
            type(artifact).load(tmp_path).save(tmp_path)
            assert json.loads((tmp_path / artifact.FILE).read_text()) == without


@EVERY
def test_each_field_of_a_wrong_type_is_named(artifact: JsonArtifact, tmp_path: Path) -> None:
    content = content_of(artifact, tmp_path)
    for place, _ in fields_of(artifact):
        wrong = changed(content, place, lambda parent, key: parent.update({key: [["wrong"]]}))
        assert f"field '{named(place)}" in refusal(artifact, tmp_path, wrong)


@EVERY
def test_an_unknown_field_is_named(artifact: JsonArtifact, tmp_path: Path) -> None:
    content = content_of(artifact, tmp_path)
    for parent in {place[:-1] for place, _ in fields_of(artifact)}:
        place = (*parent, "surprise")
        more = changed(content, place, lambda inner, key: inner.update({key: 1}))
        assert f"field '{named(place)}' is unknown;" in refusal(artifact, tmp_path, more)


def test_a_number_in_quotes_is_no_number(tmp_path: Path) -> None:
    content = content_of(PLAN, tmp_path)
    content["layers"][1]["widths"][1] = "16"
    message = refusal(PLAN, tmp_path, content)
    assert "field 'layers.1.widths.1' is \"16\"; it should be a valid integer;" in message


def test_a_word_that_is_none_of_those_allowed_is_shown_with_them(tmp_path: Path) -> None:
    content = content_of(QUANTIZATION, tmp_path)
    content["tensors"]["norm"]["action"] = "dropped"
    expected = (
        "field 'tensors.norm.action' is \"dropped\"; it should be one of 'kept', 'quantized';"
    )
    assert expected in refusal(QUANTIZATION, tmp_path, content)


def test_a_long_value_is_shown_in_part(tmp_path: Path) -> None:
    content = content_of(PLAN, tmp_path)
    content["layers"] = "x" * 500
    assert len(refusal(PLAN, tmp_path, content)) < len(str(tmp_path)) + 300
