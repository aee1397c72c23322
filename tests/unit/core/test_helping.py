"""A second process for arithmetic: answers, deaths, lateness and its end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from starai.core.errors import InternalFault
from starai.core.helping import FRAME_BYTES_MAX, STARTS_MAX, Helper

#: Turns questions round; dies, hangs or answers too much when told to.
_MODULE = f"""
import os, time
from starai.core.helping import serve

def answer(question):
    if question == b"die":
        os._exit(1)
    if question == b"hang":
        time.sleep(60)
    print("what is printed is no answer")
    return bytes({FRAME_BYTES_MAX} + 1) if question == b"flood" else question[::-1]

serve(answer)
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    """One that answers within seconds."""
    (tmp_path / "turning.py").write_text(_MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Helper("turning", answer_s=5.0)
    yield made
    made.close()


def test_it_answers_in_another_process(helper: Helper) -> None:
    """Nothing runs until it is asked; then one process answers all questions, large ones too."""
    assert helper.pid is None
    assert helper.ask(b"abc") == b"cba"
    assert helper.pid not in {None, os.getpid()}
    assert helper.ask(b"") == b""
    assert helper.ask(b"a" * 1_000_000 + b"b") == b"b" + b"a" * 1_000_000


def test_one_that_died_is_replaced_but_not_for_ever(helper: Helper) -> None:
    """A death fails the question that met it; after three nobody is started any more."""
    for _ in range(STARTS_MAX):
        assert helper.ask(b"still there") == b"ereht llits"
        with pytest.raises(InternalFault):
            helper.ask(b"die")
    with pytest.raises(InternalFault, match="no helper process is started"):
        helper.ask(b"one more")


def test_one_that_was_killed_meanwhile_is_replaced(helper: Helper) -> None:
    """Somebody kills it between two questions: one question fails, the next does not."""
    helper.ask(b"")
    assert helper.pid is not None
    os.kill(helper.pid, signal.SIGKILL)
    with pytest.raises(InternalFault):
        helper.ask(b"lost")
    assert helper.ask(b"well") == b"llew"


def test_one_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that takes too long is no answer, and its process is gone."""
    (tmp_path / "turning.py").write_text(_MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with closing(Helper("turning", answer_s=1.5)) as helper:
        helper.ask(b"")
        pid = helper.pid
        assert pid is not None
        began_s = time.monotonic()
        with pytest.raises(InternalFault):
            helper.ask(b"hang")
        assert 1.5 <= time.monotonic() - began_s < 10
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_answer_beyond_all_bounds_is_none(helper: Helper) -> None:
    """A helper that floods is ended, whatever it says."""
    with pytest.raises(InternalFault):
        helper.ask(b"flood")
    assert helper.ask(b"ab") == b"ba"


def test_closing_ends_it_whatever_it_does(helper: Helper) -> None:
    """Who waits for an answer is told, the process is gone, and none is started again."""
    helper.ask(b"")
    pid, failed = helper.pid, threading.Event()
    assert pid is not None

    def ask() -> None:
        with pytest.raises(InternalFault):
            helper.ask(b"hang")
        failed.set()

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.05)
    helper.close()
    assert failed.wait(5)
    asking.join()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(InternalFault, match="no helper process is started"):
        helper.ask(b"after the end")


def test_it_ends_with_its_asker(helper: Helper) -> None:
    """With nobody at the other end of its pipe it goes by itself, as after a `kill -9`."""
    helper.ask(b"")
    process = helper._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(5) == 0


def test_one_that_cannot_be_started_fails_as_one_that_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there is no room for one more process its asker hears what it hears of a death."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with closing(Helper("turning", answer_s=5.0)) as helper:
        with pytest.raises(InternalFault, match="can be started"):
            helper.ask(b"")
        assert helper.pid is None


def test_what_was_not_waited_for_answers_no_later_question(
    helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who is torn away from an answer leaves none behind for who asks next."""

    def torn(_: object) -> None:
        raise MemoryError

    helper.ask(b"")
    with monkeypatch.context() as context:
        context.setattr("starai.core.helping._take", torn)
        with pytest.raises(MemoryError):
            helper.ask(b"first")
    assert helper.ask(b"next!") == b"!txen"
