"""Exports in onnxruntime-genai, as `genai_config.json` and the exported tokenizer set it up."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from moe_export.demo import checkpoint_dir
from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel
from moe_export.stages.export import export_model
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from tools.apps.answers import END, NEW_TOKENS, demo_answers, demo_ids, demo_prompts

og = pytest.importorskip(
    "onnxruntime_genai", reason="onnxruntime-genai is not installed; it is in the extra genai"
)

BOS, PAD = 0, 1
"""Tokens of the demo model."""

IS_OLD = not hasattr(og.Tokenizer, "update_options")
"""True for version 0.9, in which the caller writes BOS."""


@dataclass
class Runtime:
    """The demo model in onnxruntime-genai.

    Attributes:
        folder: Folder of the export.
        model: Model of onnxruntime-genai.
        tokenizer: Its tokenizer.
        start: Tokens that the caller puts before a text; old versions cannot add BOS.
    """

    folder: Path
    model: Any
    tokenizer: Any
    start: list[int]

    def encode(self, text: str) -> list[int]:
        return [*self.start, *(int(token) for token in self.tokenizer.encode(text))]

    def generator(self, **search: Any) -> Any:
        params = og.GeneratorParams(self.model)
        params.set_search_options(**search)
        return og.Generator(self.model, params)

    def answer(self, ids: list[int]) -> list[int]:
        """Greedy tokens after a prompt, up to the end of the answer."""
        generator = self.generator(max_length=len(ids) + NEW_TOKENS)
        generator.append_tokens(np.array(ids, np.int32))
        return until_done(generator)


def until_done(generator: Any) -> list[int]:
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    folder = tmp_path_factory.mktemp("genai") / "model"
    export_model(checkpoint_dir(), folder, "float32", library=True)
    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    if IS_OLD:
        return Runtime(folder, model, tokenizer, [BOS])
    tokenizer.update_options(add_special_tokens="true")
    return Runtime(folder, model, tokenizer, [])


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return demo_prompts()


@pytest.fixture(scope="module")
def answers(runtime: Runtime, prompts: list[str]) -> list[list[int]]:
    """Greedy tokens of our own decoding for every prompt."""
    return demo_answers(runtime.folder, demo_ids(runtime.folder), "native")


def test_token_ids_are_those_of_the_tokenizer(runtime: Runtime, prompts: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(runtime.folder / "tokenizer.json"))
    assert len(prompts) == 86
    assert [runtime.encode(p) for p in prompts] == [tokenizer.encode(p).ids for p in prompts]


def test_answers_to_all_demo_prompts_are_ours(
    runtime: Runtime, prompts: list[str], answers: list[list[int]]
) -> None:
    assert [runtime.answer(runtime.encode(prompt)) for prompt in prompts] == answers


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_same_answers(
    side: str, runtime: Runtime, prompts: list[str], answers: list[list[int]]
) -> None:
    batch, expected = [runtime.encode(prompt) for prompt in prompts[18:26]], answers[18:26]
    longest = max(map(len, batch))
    assert len(set(map(len, batch))) > 1
    padding = [[PAD] * (longest - len(ids)) for ids in batch]
    pairs = zip(padding, batch, strict=True) if side == "left" else zip(batch, padding, strict=True)
    ids_BS = np.array([first + last for first, last in pairs], np.int32)
    if side == "right" and not runtime.start:
        own = runtime.tokenizer.encode_batch(prompts[18:26])
        np.testing.assert_array_equal(own.as_numpy(), ids_BS)
    generator = runtime.generator(batch_size=len(batch), max_length=longest + NEW_TOKENS)
    generator.append_tokens(ids_BS)
    rows: list[list[int]] = [[] for _ in batch]
    while not generator.is_done():
        generator.generate_next_token()
        for row, token in zip(rows, generator.get_next_tokens(), strict=True):
            row.append(int(token))
    shortened = [row[: row.index(END) + 1] if END in row else row for row in rows]
    lengths = [len(answer) for answer in expected]
    assert [row[:n] for row, n in zip(shortened, lengths, strict=True)] == expected


def test_streamed_text_is_the_decoded_answer(
    runtime: Runtime, prompts: list[str], answers: list[list[int]]
) -> None:
    tokenizer = Tokenizer.from_file(str(runtime.folder / "tokenizer.json"))
    for answer in answers[::8]:
        stream = runtime.tokenizer.create_stream()
        text = "".join(stream.decode(token) for token in answer if token != END)
        assert text == tokenizer.decode(answer)
        assert text


def test_a_turn_after_a_stop_string_continues_the_unfinished_answer(
    runtime: Runtime, prompts: list[str]
) -> None:
    """onnxruntime-genai never runs the last token it sampled, so the turn begins with it."""
    model = OrtModel(runtime.folder)
    for first, second in zip(prompts[:6], prompts[50:56], strict=True):
        ids, turn = runtime.encode(first), runtime.encode(second)[1:]
        generator = runtime.generator(max_length=len(ids) + len(turn) + 2 * NEW_TOKENS)
        generator.append_tokens(np.array(ids, np.int32))
        stream, text = runtime.tokenizer.create_stream(), ""
        while "=" not in text and not generator.is_done():
            generator.generate_next_token()
            text += stream.decode(generator.get_next_tokens()[0])
        assert "=" in text
        assert not generator.is_done()
        seen = [int(token) for token in generator.get_sequence(0)]
        generator.rewind_to(len(seen) - 1)
        generator.append_tokens(np.array([seen[-1], *turn], np.int32))
        expected = list(generate(model, [*seen, *turn], NEW_TOKENS, [END]))
        assert until_done(generator)[: len(expected)] == expected


def test_generation_stops_at_the_end_token_and_at_the_limit(
    runtime: Runtime, prompts: list[str], answers: list[list[int]]
) -> None:
    short = [place for place, answer in enumerate(answers) if len(answer) < NEW_TOKENS][:5]
    assert len(short) == 5
    assert all(runtime.answer(runtime.encode(prompts[place]))[-1] == END for place in short)
    ids = runtime.encode(prompts[short[0]])
    generator = runtime.generator(max_length=len(ids) + 2)
    generator.append_tokens(np.array(ids, np.int32))
    assert until_done(generator) == answers[short[0]][:2]


def test_a_chat_template_that_the_checkpoint_lists_by_name_is_rendered(tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint_dir(), tmp_path / "source")
    config = json.loads((source / "tokenizer_config.json").read_text())
    listed = [
        {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}="},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": listed}))
    export_model(source, tmp_path / "out", "float32")
    tokenizer = og.Tokenizer(og.Model(str(tmp_path / "out")))
    messages = json.dumps([{"role": "user", "content": "12+30"}])
    text = tokenizer.apply_chat_template(messages=messages, add_generation_prompt=True)
    expected = Tokenizer.from_file(str(source / "tokenizer.json")).encode("12+30=").ids
    assert [int(token) for token in tokenizer.encode(text)] == expected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type)
def test_every_family_loads_under_its_type_and_answers_as_ours(
    row: FamilyRow, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=row.config)
    pruned = pruned_checkpoint(source, tmp_path / "pruned", row.widths(24, 0, 7, 16))
    export_model(pruned, tmp_path / "out", "float32")
    own = OrtModel(tmp_path / "out")
    if own.fixed_states and IS_OLD:
        with pytest.raises(RuntimeError, match='Unknown value "layer_types"'):
            og.Model(str(tmp_path / "out"))
        return
    model = og.Model(str(tmp_path / "out"))
    ids = list(range(40, 52))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + 12)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(ids, np.int32))
    expected = list(generate(own, ids, 12, [256]))
    assert until_done(generator) == expected
