"""A second process for arithmetic: Python computes on one core at a time, two processes on two.

A helper is a module that is run with ``-m`` and calls `serve`. It keeps nothing between questions,
so one that dies is replaced by a new one, and it ends when its asker does. Knows nothing of what is
asked.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Final

from starai.core.collecting import collect_rarely
from starai.core.errors import InternalFault

#: A question or an answer; what is asked together is bounded by its asker well below this.
FRAME_BYTES_MAX: Final = 16 << 20
#: Helpers that die or hang, until no more are started: something kills them, or the question does.
STARTS_MAX: Final = 3
_LENGTH: Final = struct.Struct("<I")


class Helper:
    """A helper process, started by the first question. One thread asks; any may close."""

    def __init__(self, module: str, arguments: Sequence[str] = (), *, answer_s: float) -> None:
        """Take what ``-m`` runs, and how long one answer may take."""
        # -P: no file of the current folder may pose as a module
        self._command = [sys.executable, "-P", "-m", module, *arguments]
        self._answer_s = answer_s
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._closed = False
        self._asking = threading.Lock()
        #: Since when an answer is waited for (seconds, monotonic).
        self._asked_s: float | None = None
        self._ended = threading.Event()

    @property
    def pid(self) -> int | None:
        """The number of its process, if there is one."""
        return self._process.pid if self._process is not None else None

    def ask(self, question: bytes) -> bytes:
        """What the helper answers; blocks the calling thread.

        Raises:
            InternalFault: it died, took too long, was closed, or cannot be started (any more).
        """
        with self._asking:
            process = self._process or self._start()
            self._asked_s = time.monotonic()
            answer: bytes | None = None
            try:
                assert process.stdin is not None  # noqa: S101 - asked for at its start
                assert process.stdout is not None  # noqa: S101
                _put(process.stdin, question)
                answer = _take(process.stdout)
            except OSError:
                pass  # it is gone
            finally:
                self._asked_s = None
                # Whatever went wrong: what it may still say is no answer to the next question.
                if answer is None:
                    self._end()
            if answer is None:
                raise InternalFault("a helper process died or took too long")
            return answer

    def close(self) -> None:
        """End it, whatever it does; it is not started again."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()  # ends an `ask` that is under way
        with self._asking:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._closed or self._starts == STARTS_MAX:
            raise InternalFault("no helper process is started any more")
        self._starts += 1
        self._ended = threading.Event()
        try:
            process = self._process = subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C reaches the whole terminal group; the parent alone says when a child ends.
                start_new_session=True,
            )
            threading.Thread(target=self._watch, args=(process, self._ended), daemon=True).start()
        except (OSError, RuntimeError) as error:  # no room for one more file, process or thread
            self._end()
            raise InternalFault("no helper process can be started here") from error
        return process

    def _watch(self, process: subprocess.Popen[bytes], ended: threading.Event) -> None:
        # One lasting thread that looks now and then: a timer for each question costs as much as it.
        while not ended.wait(self._answer_s / 4):
            asked_s = self._asked_s
            if asked_s is not None and time.monotonic() - asked_s > self._answer_s:
                process.kill()

    def _end(self) -> None:
        if (process := self._process) is None:
            return
        self._process = None
        self._ended.set()
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # half a question may wait in it, for nobody
                pipe and pipe.close()
        process.wait()


def serve(answer: Callable[[bytes], bytes]) -> None:
    """In the helper: answer questions until the asker is gone. Prints go to stderr."""
    collect_rarely()
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while (question := _take(questions)) is not None:
        _put(answers, answer(question))


def _put(pipe: IO[bytes], frame: bytes) -> None:
    pipe.write(_LENGTH.pack(len(frame)))
    pipe.write(frame)
    pipe.flush()


def _take(pipe: IO[bytes]) -> bytes | None:
    """The next frame; None at the end, or if it is cut off."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    frame = pipe.read(length) if length <= FRAME_BYTES_MAX else b""
    return frame if len(frame) == length else None
