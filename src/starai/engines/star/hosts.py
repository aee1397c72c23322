"""The hosts of a session, and two ways to have some: processes on this machine, and threads.

A session says commands to numbered hosts and hears replies, each with a deadline; where hosts are
is not its business. A host that dies or stays silent is an error that names it, never a hang.
Knows nothing about attention.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO, Final, Protocol

from starai.core.errors import (
    ConfigurationRefused,
    DeadlinePassed,
    EngineDied,
    MalformedFrame,
    ModelFileRefused,
    ModelNotFound,
    StarAIError,
)
from starai.engines.star.messages import (
    Command,
    Failed,
    Load,
    Reply,
    read_reply,
    write_frame,
)

#: Commands that wait for a host: it is told one at a time, plus one `Merged` a layer.
_COMMANDS_MAX: Final = 4
#: Replies that wait for the session: a shard's layers, which hold back the host's pipe.
_REPLIES_MAX: Final = 4
#: How long a host may take to end by itself before it is killed.
_END_S: Final = 1.5
#: How often a host that waits for room looks whether the session is still there.
_LOOK_UP_S: Final = 0.1
_KNOWN: Final = {e.code: e for e in (ConfigurationRefused, ModelFileRefused, ModelNotFound)}


class Hosts(Protocol):
    """H hosts, numbered from 0. One session uses them at a time."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def send(self, host: int, command: Command, timeout_s: float) -> None:
        """Tell a host something.

        Raises:
            EngineDied: the host is gone.
            DeadlinePassed: it takes nothing any more.
        """
        ...

    def receive(self, host: int, timeout_s: float) -> Reply:
        """A host's next reply.

        Raises:
            EngineDied: the host is gone.
            DeadlinePassed: it said nothing for ``timeout_s`` seconds.
        """
        ...

    def close(self) -> None:
        """End all hosts; harmless when done twice."""
        ...


class _Mailbox:
    """A host's two queues; None in either means that its side is gone."""

    def __init__(self, number: int) -> None:
        self._name = f"Star host {number}"
        self.commands: queue.Queue[Command | None] = queue.Queue(_COMMANDS_MAX)
        self.replies: queue.Queue[Reply | None] = queue.Queue(_REPLIES_MAX)
        self._gone = False

    def send(self, command: Command, timeout_s: float) -> None:
        if self._gone:
            raise EngineDied(f"{self._name} has ended")
        try:
            self.commands.put(command, timeout=timeout_s)
        except queue.Full:
            raise DeadlinePassed(
                f"{self._name} took no command for {timeout_s:g} s: it hangs or is overloaded"
            ) from None

    def receive(self, timeout_s: float) -> Reply:
        if self._gone:
            raise EngineDied(f"{self._name} has ended")
        try:
            reply = self.replies.get(timeout=timeout_s)
        except queue.Empty:
            raise DeadlinePassed(
                f"{self._name} said nothing for {timeout_s:g} s: it hangs or is overloaded"
            ) from None
        if reply is None:
            self._gone = True
            raise EngineDied(f"{self._name} has ended")
        return reply

    def reply(self, reply: Reply | None) -> None:
        """From the host's side: hand a reply over, unless the session hung up meanwhile."""
        while not self._gone:
            with contextlib.suppress(queue.Full):
                self.replies.put(reply, timeout=_LOOK_UP_S)
                return

    def hang_up(self) -> None:
        """Have both sides see the end, even if their queues are full."""
        self._gone = True
        for waiting in (self.commands, self.replies):
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
        with contextlib.suppress(queue.Full):
            self.commands.put_nowait(None)


class ThreadHosts:
    """Hosts in threads of this process, on models that are loaded already: for tests."""

    def __init__(self, models: Sequence[Any]) -> None:
        """One host for each model; they may be the same one."""
        from starai.engines.star.host import StarHost  # noqa: PLC0415 - torch is heavy

        self._boxes = [_Mailbox(number) for number in range(len(models))]
        self.hosts = [
            StarHost(model, _ThreadChannel(box))
            for model, box in zip(models, self._boxes, strict=True)
        ]
        self._threads = [threading.Thread(target=host.serve, daemon=True) for host in self.hosts]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """See `Hosts`."""
        return len(self._boxes)

    def send(self, host: int, command: Command, timeout_s: float) -> None:
        """See `Hosts`."""
        self._boxes[host].send(command, timeout_s)

    def receive(self, host: int, timeout_s: float) -> Reply:
        """See `Hosts`."""
        return self._boxes[host].receive(timeout_s)

    def close(self) -> None:
        """See `Hosts`."""
        for box in self._boxes:
            box.hang_up()
        for thread in self._threads:
            thread.join(_END_S)


class _ThreadChannel:
    """A mailbox from the host's side."""

    def __init__(self, box: _Mailbox) -> None:
        self._box = box

    def receive(self) -> Command | None:
        return self._box.commands.get()

    def send(self, reply: Reply) -> None:
        self._box.reply(reply)


class ProcessHosts:
    """Hosts in processes of their own on this machine, each with the model loaded."""

    def __init__(self, load: Load, count: int, *, start_timeout_s: float = 120) -> None:
        """Start ``count`` hosts and wait until all are ready.

        Raises:
            ConfigurationRefused, ModelNotFound, ModelFileRefused: as a host says.
            EngineDied: a host ended.
            DeadlinePassed: a host was not ready in time.
        """
        self._hosts = [_Process(number) for number in range(count)]
        try:
            for number in range(count):
                self.send(number, load, start_timeout_s)
            for number in range(count):
                refuse_failure(number, self.receive(number, start_timeout_s))
        except StarAIError:
            self.close()
            raise

    @property
    def count(self) -> int:
        """See `Hosts`."""
        return len(self._hosts)

    @property
    def pids(self) -> list[int]:
        """The process of each host."""
        return [host.process.pid for host in self._hosts]

    def send(self, host: int, command: Command, timeout_s: float) -> None:
        """See `Hosts`."""
        self._hosts[host].box.send(command, timeout_s)

    def receive(self, host: int, timeout_s: float) -> Reply:
        """See `Hosts`."""
        return self._hosts[host].box.receive(timeout_s)

    def close(self) -> None:
        """See `Hosts`."""
        for host in self._hosts:
            host.box.hang_up()
        for host in self._hosts:
            host.end()


class _Process:
    """One host's process, and the two threads that carry frames between it and its mailbox."""

    def __init__(self, number: int) -> None:
        self.box = _Mailbox(number)
        self.process = subprocess.Popen(
            # -P: no file of the current folder may pose as a module
            [sys.executable, "-P", "-m", "starai.engines.star.host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C reaches the whole terminal group; the session alone decides when a host ends.
            start_new_session=True,
        )
        assert self.process.stdin is not None  # noqa: S101 - asked for above
        assert self.process.stdout is not None  # noqa: S101
        self._threads = [
            threading.Thread(target=work, args=(pipe,), daemon=True)
            for work, pipe in ((self._write, self.process.stdin), (self._read, self.process.stdout))
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, pipe: BinaryIO) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (command := self.box.commands.get()) is not None:
                write_frame(pipe, command)
        with contextlib.suppress(OSError, ValueError):
            pipe.close()

    def _read(self, pipe: BinaryIO) -> None:
        with contextlib.suppress(OSError, ValueError, MalformedFrame):
            while (reply := read_reply(pipe)) is not None:
                self.box.reply(reply)
        self.box.reply(None)

    def end(self) -> None:
        """Closing stdin asks the host to end; kill it when it does not."""
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join(_END_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


def refuse_failure(host: int, reply: Reply) -> Reply:
    """Pass a reply on, or raise what a host failed with."""
    if isinstance(reply, Failed):
        kind = _KNOWN.get(reply.code, EngineDied)
        raise kind(f"Star host {host}: {reply.message}")
    return reply
