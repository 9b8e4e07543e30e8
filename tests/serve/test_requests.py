"""Requests that the server refuses, and its limits, keys and signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from moe_export.cli import main
from tests.helpers.server import ServerProcess

GOOD: dict[str, Any] = {"model": "demo", "prompt": "12+30=", "max_tokens": 2}
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("completions", GOOD | {"model": "gpt-4"}, 404, "model", "this server has 'demo'"),
        ("completions", {"model": "demo"}, 400, "prompt", "'prompt' is missing"),
        ("completions", GOOD | {"prompt": []}, 400, "prompt", "'prompt' is wrong"),
        ("completions", GOOD | {"prompt": [[1], []]}, 400, "prompt", "'prompt' is wrong"),
        ("completions", GOOD | {"prompt": [1024]}, 400, "prompt", "the model has 1024 tokens"),
        ("completions", GOOD | {"prompt": [-1]}, 400, "prompt", "'prompt' is wrong"),
        ("completions", GOOD | {"prompt": "a " * 600}, 400, "prompt", "more than the 512 tokens"),
        ("completions", GOOD | {"max_tokens": 510}, 400, "prompt", "lower max_tokens"),
        ("completions", GOOD | {"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ("completions", GOOD | {"temperature": 3}, 400, "temperature", "less than or equal to 2"),
        ("completions", GOOD | {"top_p": 0}, 400, "top_p", "greater than 0"),
        ("completions", GOOD | {"logprobs": 21}, 400, "logprobs", "less than or equal to 20"),
        ("completions", GOOD | {"stop": [""]}, 400, "stop", "at least 1 character"),
        ("completions", GOOD | {"n": 0}, 400, "n", "greater than or equal to 1"),
        ("completions", GOOD | {"best_of": 3}, 400, "best_of", "leave it out"),
        ("completions", GOOD | {"presence_penalty": 0.5}, 400, "presence_penalty", "is wrong"),
        ("completions", GOOD | {"logit_bias": {"1": 2}}, 400, "logit_bias", "is wrong"),
        ("completions", GOOD | {"suffix": "x"}, 400, "suffix", "is wrong"),
        ("completions", GOOD | {"top_k": 5}, 400, "top_k", "'top_k' is not supported"),
        ("completions", GOOD | {"stream_options": {}}, 400, "stream_options", "stream: true"),
        (
            "completions",
            GOOD | {"stream_options": {"x": 1}},
            400,
            "stream_options",
            "stream_options.x",
        ),
        ("completions", [GOOD], 400, None, "no JSON object"),
        ("chat/completions", {"model": "demo"}, 400, "messages", "'messages' is missing"),
        ("chat/completions", CHAT | {"messages": []}, 400, "messages", "at least 1 item"),
        (
            "chat/completions",
            CHAT | {"messages": [{"role": "system", "content": "x"}]},
            400,
            "messages",
            "refuses the messages: no system",
        ),
        ("chat/completions", CHAT | {"tools": []}, 400, "tools", "'tools' is not supported"),
        ("chat/completions", CHAT | {"top_logprobs": 1}, 400, "top_logprobs", "logprobs: true"),
        (
            "chat/completions",
            CHAT | {"response_format": {"type": "json_object"}},
            400,
            "response_format",
            "'text'",
        ),
        ("nothing", GOOD, 404, None, "Not Found"),
        ("models", GOOD, 405, None, "Method Not Allowed"),
    ],
)
def test_a_wrong_request_is_refused_by_the_key_that_is_wrong(
    server: ServerProcess, path: str, body: Any, status: int, param: str | None, words: str
) -> None:
    response = server.post(path, body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_null_is_as_if_a_key_were_absent(server: ServerProcess) -> None:
    absent = ("n", "stop", "seed", "logprobs", "suffix", "logit_bias", "stream_options", "user")
    response = server.post("completions", GOOD | {"temperature": 0} | dict.fromkeys(absent))
    assert response.json()["choices"][0]["text"] == "42"


def test_bodies_that_are_no_json_or_too_large_are_refused(server: ServerProcess) -> None:
    url = f"{server.url}/completions"
    kind = {"content-type": "application/json"}
    assert httpx.post(url, content="{", headers=kind).status_code == 400
    assert httpx.post(url, content="[" * 100_000, headers=kind).status_code == 400
    assert httpx.post(url, content="\xff", headers=kind).json()["error"]["code"] == "invalid_json"
    plain = httpx.post(url, content="{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    large = httpx.post(url, content=b" " * ((4 << 20) + 1), headers=kind)
    assert large.json()["error"]["code"] == "body_too_large"


def test_a_key_is_needed_for_all_but_health(demo: Path) -> None:
    with ServerProcess(demo, environment={"MOE_EXPORT_API_KEY": "secret"}) as server:
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            server.client("wrong").models.list()
        assert server.post("completions", GOOD).status_code == 401
        root = server.url.removesuffix("/v1")
        assert httpx.get(f"{root}/metrics").status_code == 401
        assert httpx.get(f"{root}/health").json() == {"status": "ok"}
        made = server.client("secret").completions.create(**GOOD, temperature=0)
        assert made.choices[0].text == "42"
        assert server.stop() == 0


def test_requests_beyond_the_queue_are_told_to_come_back(demo: Path) -> None:
    long = GOOD | {"max_tokens": 500, "prompt": "The", "seed": 1}
    with ServerProcess(demo, "--rows", "1", "--queue", "2", "--threads", "1") as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.post("completions", long), range(8)))
        refused = [answer for answer in answers if answer.status_code == 429]
        given = [answer.json()["choices"][0]["text"] for answer in answers if answer.is_success]
        assert len(given) >= 3
        assert len(given) + len(refused) == 8
        assert len(set(given)) == 1
        many = server.post("completions", GOOD | {"n": 4})
        assert many.status_code == 429
        assert many.headers["retry-after"] == "1"
        assert many.json()["error"]["type"] == "rate_limit_error"
        assert server.metrics()["moe_export_waiting_sequences"] == 0


def test_a_client_that_leaves_frees_its_row(server: ServerProcess) -> None:
    long = GOOD | {"prompt": "The", "max_tokens": 500, "temperature": 2, "n": 8, "seed": 1}
    whole = server.post("completions", long).json()["usage"]["completion_tokens"]
    assert whole > 1000
    name = "moe_export_step_sequences_sum"
    for body in (long, long | {"stream": True}):
        before = server.metrics()[name]
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) as raw:
            text = httpx.Request("POST", f"{server.url}/completions", json=body)
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(text.content), text.content)
            )
            wait_for(server, "moe_export_running_sequences", 8)
        wait_for(server, "moe_export_running_sequences", 0)
        assert server.metrics()[name] < before + whole / 2


def wait_for(server: ServerProcess, name: str, value: float) -> None:
    deadline = time.monotonic() + 20
    while server.metrics()[name] != value:
        assert time.monotonic() < deadline, server.metrics()[name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_the_running_answer(demo: Path, number: int) -> None:
    with ServerProcess(demo, "--threads", "1") as server:
        stream = server.client().completions.create(
            model="demo", prompt="The", max_tokens=400, temperature=2, seed=3, stream=True
        )
        events = [next(stream)]
        server.process.send_signal(number)
        time.sleep(0.2)
        with pytest.raises(openai.APIConnectionError):
            server.client().models.list()
        events += list(stream)
        assert events[-1].choices[0].finish_reason in ("stop", "length")
        assert server.process.wait(timeout=30) == 0
        assert server.process.stderr is not None
        assert server.process.stderr.read() == ""


def test_an_answer_that_takes_too_long_is_cut_off_by_the_end(demo: Path) -> None:
    with ServerProcess(demo, "--rows", "1", "--threads", "1", "--grace", "1") as server:
        stream = server.client().completions.create(
            model="demo", prompt="The", max_tokens=500, temperature=2, n=64, stream=True
        )
        next(stream)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10


def test_the_server_is_not_opened_to_others_without_a_key(
    demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOE_EXPORT_API_KEY", raising=False)
    assert main(["serve", str(demo), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "give --api-key" in capsys.readouterr().err


def test_what_cannot_be_served_is_refused_in_a_sentence(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(demo), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    assert main(["serve", str(demo), "--context", "513"]) == 2
    assert "more than the 512 positions" in capsys.readouterr().err
    assert main(["serve", str(demo), "--rows", "64", "--cache-mib", "1"]) == 4
    assert "lower --rows or --context" in capsys.readouterr().err
    assert main(["serve", str(tmp_path)]) == 9


def test_a_missing_package_is_named_with_its_extra(demo: Path) -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from moe_export.cli import main; sys.exit(main(['serve', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr == "moe-export: uvicorn is not installed; install moe-export[serve]\n"
