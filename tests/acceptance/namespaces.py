"""Networks that are really apart: Linux network namespaces, joined by routers that translate.

::

    hub (10.77.0.1) ──10.77.1.0/30── router 1 (NAT) ──192.168.50.0/24── device 1
                    ──10.77.2.0/30── router 2 (NAT) ──192.168.50.0/24── device 2

Both devices have the same private address, as in two homes; the hub knows no way to either.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

HUB_ADDRESS = "10.77.0.1"


def possible() -> bool:
    """Whether this machine lets us make namespaces."""
    if not (shutil.which("ip") and shutil.which("nft")) or os.geteuid() != 0:
        return False
    name = f"starai-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


def run(*words: str, stdin: str = "") -> None:
    """Run a command; its complaint is the failure."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


#: What a home router does: it translates addresses, and lets nothing in that was not asked for.
_ROUTER = """
table ip nat {
    chain out {
        type nat hook postrouting priority 100;
        oifname "wan" masquerade
    }
}
table ip filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname "lan" accept
    }
}
"""


class Internet:
    """A hub and two homes behind routers."""

    def __init__(self) -> None:
        self._prefix = f"sa{os.getpid()}"

    def name(self, what: str) -> str:
        """A namespace's name."""
        return f"{self._prefix}-{what}"

    def inside(self, what: str, *words: str) -> list[str]:
        """The command that runs ``words`` in a namespace."""
        return ["ip", "netns", "exec", self.name(what), *words]

    def do(self, what: str, *words: str, stdin: str = "") -> None:
        """Run something in a namespace."""
        run(*self.inside(what, *words), stdin=stdin)

    def build(self) -> None:
        """Make all of it."""
        for what in ("hub", "router1", "router2", "device1", "device2"):
            run("ip", "netns", "add", self.name(what))
            self.do(what, "ip", "link", "set", "lo", "up")
        self.do("hub", "ip", "address", "add", f"{HUB_ADDRESS}/32", "dev", "lo")
        for number in (1, 2):
            self._home(number)

    def _home(self, number: int) -> None:
        hub, router, device = "hub", f"router{number}", f"device{number}"
        self._cable(f"{self._prefix}u{number}", hub, f"up{number}", router, "wan")
        self._cable(f"{self._prefix}d{number}", router, "lan", device, "eth")
        for what, link, address in (
            (hub, f"up{number}", f"10.77.{number}.1/30"),
            (router, "wan", f"10.77.{number}.2/30"),
            (router, "lan", "192.168.50.1/24"),
            (device, "eth", "192.168.50.2/24"),
        ):
            self.do(what, "ip", "address", "add", address, "dev", link)
            self.do(what, "ip", "link", "set", link, "up")
        self.do(router, "ip", "route", "add", "default", "via", f"10.77.{number}.1")
        self.do(device, "ip", "route", "add", "default", "via", "192.168.50.1")
        self.do(router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self.do(router, "nft", "-f", "-", stdin=_ROUTER)

    def _cable(self, link: str, one: str, one_name: str, other: str, other_name: str) -> None:
        peer = f"{link}p"
        run("ip", "link", "add", link, "type", "veth", "peer", "name", peer)
        for end, what, name in ((link, one, one_name), (peer, other, other_name)):
            run("ip", "link", "set", end, "netns", self.name(what))
            self.do(what, "ip", "link", "set", end, "name", name)

    def block(self, number: int, *ports: int) -> None:
        """Let router ``number`` swallow what goes to these TCP ports, without a word."""
        listed = ", ".join(map(str, ports))
        rule = f"insert rule ip filter forward tcp dport {{ {listed} }} drop\n"
        self.do(f"router{number}", "nft", "-f", "-", stdin=rule)

    def unblock(self, number: int) -> None:
        """Let it through again."""
        rules = (
            "flush chain ip filter forward\nadd rule ip filter forward ct state"
            ' established,related accept\nadd rule ip filter forward iifname "lan" accept\n'
        )
        self.do(f"router{number}", "nft", "-f", "-", stdin=rules)

    def remove(self) -> None:
        """Leave nothing behind."""
        for what in ("device1", "device2", "router1", "router2", "hub"):
            subprocess.run(
                ["ip", "netns", "del", self.name(what)], capture_output=True, check=False
            )


@contextmanager
def internet() -> Iterator[Internet]:
    """Two homes and a hub inside the context."""
    made = Internet()
    try:
        made.build()
        yield made
    finally:
        made.remove()
