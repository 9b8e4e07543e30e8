"""Answers of a real server to the official client, held against the model in this process."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

import moe_export
from moe_export.demo import tasks
from tests.helpers.server import ServerProcess

NEW_TOKENS = 24
PROMPTS = [document.prompt for kind in tasks.KINDS for document in tasks.test_items(kind, 12)]
LONG = "The file is read and the text of it is written. " * 12


def complete(server: ServerProcess, prompt: str, **options: object) -> str:
    options = {"temperature": 0, "max_tokens": NEW_TOKENS, "model": server.name} | options
    made = server.client().completions.create(prompt=prompt, **options)  # type: ignore[call-overload]
    text: str = made.choices[0].text
    return text


def test_greedy_answers_that_share_steps_are_those_of_generate(
    server: ServerProcess, model: moe_export.Model
) -> None:
    before = server.metrics()
    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(lambda prompt: complete(server, prompt), PROMPTS))
    assert texts == [model.generate(prompt, NEW_TOKENS) for prompt in PROMPTS]
    after = server.metrics()
    name = "moe_export_step_sequences"
    steps = after[f"{name}_count"] - before[f"{name}_count"]
    assert after[f"{name}_sum"] - before[f"{name}_sum"] > 3 * steps


def test_a_prompt_longer_than_a_chunk_gets_the_answer_of_generate(
    server: ServerProcess, model: moe_export.Model
) -> None:
    assert len(model.tokenizer.encode_prompt(LONG)) > 4 * 32
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda prompt: complete(server, prompt), [LONG, *PROMPTS[:6], LONG]))
    assert texts == [model.generate(p, NEW_TOKENS) for p in [LONG, *PROMPTS[:6], LONG]]


def test_a_stream_has_the_text_of_the_answer_and_counts_its_tokens(
    server: ServerProcess, model: moe_export.Model
) -> None:
    events = list(
        server.client().completions.create(
            model=server.name,
            prompt=PROMPTS[0],
            temperature=0,
            max_tokens=NEW_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [event.choices[0].text for event in events if event.choices]
    assert len(texts) > 3
    assert "".join(texts) == model.generate(PROMPTS[0], NEW_TOKENS)
    assert [event.choices[0].finish_reason for event in events[:-2]] == [None] * (len(events) - 2)
    assert events[-2].choices[0].finish_reason in ("stop", "length")
    assert events[-1].usage is not None
    assert events[-1].usage.prompt_tokens == len(model.tokenizer.encode_prompt(PROMPTS[0]))
    assert len(texts) <= events[-1].usage.completion_tokens <= NEW_TOKENS


def test_a_conversation_goes_through_the_chat_template(
    server: ServerProcess, model: moe_export.Model
) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": [{"type": "text", "text": "What is 12+30?"}]}
    ]
    client = server.client().chat.completions
    made = client.create(
        model=server.name, messages=messages, temperature=0, max_completion_tokens=9
    )
    text = "user: What is 12+30?\nassistant:"
    assert made.choices[0].message.content == model.generate(text, 9)
    assert made.usage is not None
    assert made.usage.prompt_tokens == len(model.tokenizer.encode_prompt(text))
    events = list(
        client.create(
            model=server.name, messages=messages, temperature=0, max_tokens=9, stream=True
        )
    )
    assert events[0].choices[0].delta.role == "assistant"
    streamed = "".join(event.choices[0].delta.content or "" for event in events)
    assert streamed == made.choices[0].message.content


def test_a_conversation_without_a_limit_fills_the_context(server: ServerProcess) -> None:
    made = server.client().chat.completions.create(
        model=server.name, messages=[{"role": "user", "content": "and " * 300}], temperature=0
    )
    assert made.usage is not None
    assert made.choices[0].finish_reason == "stop" or made.usage.total_tokens == 512


def test_echo_and_logprobs_are_those_of_the_model(
    server: ServerProcess, model: moe_export.Model
) -> None:
    """The request by which lm-eval's `local-completions` scores a text."""
    sequences = [model.tokenizer.encode_prompt(text) for text in ("12+30=42.\n", LONG)]
    made = server.client().completions.create(
        model=server.name,
        prompt=sequences,
        max_tokens=1,
        logprobs=2,
        echo=True,
        seed=1234,
        temperature=0,
    )
    for choice, tokens in zip(made.choices, sequences, strict=True):
        scores = choice.logprobs
        assert scores is not None
        assert scores.token_logprobs is not None
        assert scores.top_logprobs is not None
        assert scores.tokens is not None
        logits_TV = model.logits(tokens).astype(np.float64)
        logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        expected = logprobs_TV[np.arange(len(tokens) - 1), tokens[1:]]
        assert scores.token_logprobs[0] is None
        np.testing.assert_allclose(scores.token_logprobs[1:-1], expected, atol=1e-4)
        greedy = [model.tokenizer.piece(int(token)) for token in logprobs_TV.argmax(-1)]
        assert [max(top, key=lambda name: top[name]) for top in scores.top_logprobs[1:]] == greedy
        assert scores.tokens[-1] == greedy[-1]
        assert choice.text.startswith(model.tokenizer.decode(tokens))
        assert scores.text_offset is not None
        for token, offset in zip(scores.tokens[1:], scores.text_offset[1:], strict=True):
            text = "" if token == "<|endoftext|>" else token
            assert choice.text[offset : offset + len(text)] == text


def test_a_prompt_is_scored_without_a_new_token(server: ServerProcess) -> None:
    made = server.client().completions.create(
        model=server.name, prompt="12+30=", max_tokens=0, echo=True, logprobs=0
    )
    (choice,) = made.choices
    assert choice.text == "12+30="
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["<|endoftext|>", *"12+30="]
    assert made.usage is not None
    assert made.usage.completion_tokens == 0


def test_scores_of_a_conversation_name_the_bytes_of_tokens(server: ServerProcess) -> None:
    made = server.client().chat.completions.create(
        model=server.name,
        messages=[{"role": "user", "content": "12+30="}],
        temperature=0,
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
    )
    scored = made.choices[0].logprobs
    assert scored is not None
    assert scored.content is not None
    assert made.usage is not None
    assert len(scored.content) == made.usage.completion_tokens
    for token in scored.content:
        assert bytes(token.bytes or []).decode() == token.token
        assert token.top_logprobs[0].token == token.token
        assert [t.logprob for t in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )


@pytest.mark.parametrize("stop", ["2.", ["never", "."], "\n"])
def test_a_stop_string_ends_the_text_before_it(
    server: ServerProcess, stop: str | list[str]
) -> None:
    whole = complete(server, "12+30=")
    assert whole.startswith("42.\n")
    stops = [stop] if isinstance(stop, str) else stop
    expected = min((whole.split(one)[0] for one in stops), key=len)
    made = server.client().completions.create(
        model=server.name, prompt="12+30=", temperature=0, stop=stop
    )
    assert made.choices[0].text == expected
    assert made.usage is not None
    assert made.usage.completion_tokens == len("42.\n" if stop == "\n" else "42.")
    events = server.client().completions.create(
        model=server.name, prompt="12+30=", temperature=0, stop=stop, stream=True
    )
    choices = [event.choices[0] for event in events]
    assert "".join(choice.text for choice in choices) == expected
    assert choices[-1].finish_reason == "stop"


def test_equal_seeds_draw_equal_texts_whatever_runs_beside_them(server: ServerProcess) -> None:
    def drawn(seed: int) -> str:
        return complete(server, "The", temperature=1, seed=seed)

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(drawn, [1, 2, 3, 1, 2, 3, -1, -1]))
    assert texts[:3] == texts[3:6]
    assert texts[6] == texts[7]
    assert len(set(texts)) == 4
    several = server.client().completions.create(
        model=server.name, prompt="The", n=3, seed=1, max_tokens=NEW_TOKENS
    )
    assert [choice.text for choice in several.choices] == texts[:3]


def test_the_model_is_listed_by_the_name_of_its_folder(server: ServerProcess) -> None:
    assert [model.id for model in server.client().models.list()] == [server.name] == ["demo"]
    assert server.client().models.retrieve("demo").owned_by == "moe-export"


def test_events_of_a_stream_are_json_and_end_with_done(server: ServerProcess) -> None:
    body = {"model": server.name, "prompt": "a", "max_tokens": 2, "stream": True, "n": 2}
    events = server.post("completions", body).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1}
    assert len({chunk["id"] for chunk in chunks}) == 1
