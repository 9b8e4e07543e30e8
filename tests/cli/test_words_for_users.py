"""The last words of a command: one line, printable, with the exit code of its kind."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_export.cli import commands, main
from moe_export.cli.console import print_table, say, say_line
from moe_export.errors import ArtifactError, MoeExportError, ResourceError
from moe_export.reporting.markdown import escaped
from moe_export.system.memory import tells_of_exhaustion
from moe_export.system.processes import ended_by_signal

HOSTILE = "a\x1b[2Jb\nmoe-export: all is well\r\x07\x9b31m\u202e"


@pytest.mark.parametrize("name", ["verify", "compare", "generate", "bench"])
def test_a_hostile_name_of_a_run_makes_one_printable_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--prompt", "x"] if name == "generate" else []
    assert main([name, str(tmp_path / HOSTILE), *more]) == 9
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].isprintable()
    assert r"a\x1b[2Jb\nmoe-export: all is well" in lines[0]


@pytest.mark.parametrize(
    "words", [["verify", "run", HOSTILE], ["status", "r", "--threads", HOSTILE]]
)
def test_a_hostile_word_of_a_wrong_command_line_is_printable(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.isprintable()
    assert r"a\x1b[2Jb" in last or r"a\\x1b[2Jb" in last


@pytest.mark.parametrize("name", ["verify", "compare", "generate"])
def test_a_path_that_the_system_refuses_is_one_sentence(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--prompt", "x"] if name == "generate" else []
    assert main([name, "a" * 300, *more]) in (4, 9)
    assert capsys.readouterr().err.count("\n") == 1


def test_everything_that_is_printed_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    say_line(HOSTILE)
    say(HOSTILE)
    print_table(HOSTILE, (HOSTILE,), [(HOSTILE,)])
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert not {"\r", "\x07", "\x9b", "\u202e"} & set(shown)


def test_a_log_line_is_printable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "doctor", lambda _: logging.getLogger("x").warning(HOSTILE))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    main(["doctor"])
    assert "\x1b" not in capsys.readouterr().err


def test_markdown_is_printable() -> None:
    assert escaped(HOSTILE) == r"a\\x1b[2Jb moe-export: all is well \\x07\\x9b31m\\u202e"


def test_memory_that_runs_out_outside_of_a_stage_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(commands, "doctor", exhausted)
    assert main(["doctor"]) == 4
    assert "memory ran out in the command doctor" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_a_sentence(number: signal.Signals) -> None:
    code = (
        "import sys, time\n"
        "from moe_export.cli import commands, main\n"
        "commands.doctor = lambda _: [print('ready', flush=True), time.sleep(60)]\n"
        "sys.exit(main(['doctor']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == (
        "moe-export: interrupted; finished stages are kept, run the same command to resume\n"
    )


def test_under_nohup_a_closed_terminal_changes_nothing() -> None:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from moe_export.cli import interrupts\n"
        "interrupts.watch()\n"
        "signal.raise_signal(signal.SIGHUP)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dropped_interrupt_is_not_printed() -> None:
    code = (
        "import gc, signal\n"
        "from moe_export.cli import interrupts\n"
        "class Callback:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "interrupts.watch(); interrupts.silence_dropped()\n"
        "Callback(); gc.collect()\n"
        "try: interrupts.heed()\n"
        "except KeyboardInterrupt: print('heeded')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("heeded\n", "")


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGKILL, ResourceError, r"was killed \(SIGKILL\), as systems do when memory"),
        (signal.SIGTERM, ResourceError, r"was killed \(SIGTERM\)"),
        (signal.SIGSEGV, MoeExportError, r"crashed \(SIGSEGV\); run `moe-export doctor`"),
        (60, ResourceError, "was killed"),
    ],
)
def test_a_killed_process_is_told_with_its_signal(
    number: int, kind: type[MoeExportError], words: str
) -> None:
    error = ended_by_signal("the measuring process", number)
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error


def test_a_measuring_process_does_not_outlive_its_parent() -> None:
    child = (
        "import time; from moe_export.system.processes import end_with_parent\n"
        "end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        process.kill()
    for _ in range(200):
        if not _runs(number):
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


def _runs(number: int) -> bool:
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Traceback\nMemoryError", True),
        ("RuntimeException: std::bad_alloc", True),
        ("Failed to allocate memory for requested buffer of size 99", True),
        ("Got invalid dimensions for input", False),
    ],
)
def test_libraries_say_in_their_own_words_that_memory_ran_out(message: str, told: bool) -> None:
    assert tells_of_exhaustion(message) is told


@pytest.mark.parametrize("threads", ["0", "-1", "1025", "9" * 5000, "x"])
def test_a_number_of_threads_that_cannot_be_is_refused(
    threads: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "recipes/demo_50pct.yaml", "--threads", threads])
    assert ended.value.code == 2
    assert "--threads" in capsys.readouterr().err


def test_an_error_after_the_terminal_is_gone_keeps_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Gone:
        def write(self, _: str) -> None:
            raise OSError

        flush = write

    def fail(_: object) -> None:
        raise ArtifactError("x")

    monkeypatch.setattr(commands, "doctor", fail)
    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["doctor"]) == 9
