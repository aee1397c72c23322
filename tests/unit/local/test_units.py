"""Services of each system: their files say what they should, and the system's tools are called."""

from __future__ import annotations

import plistlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from starai.cli.main import cli
from starai.core.errors import ConfigurationRefused
from starai.local.units import KINDS, Unit, install, kind_here, uninstall
from starai.local.units.base import run_tool

COMMAND = ("/opt/x y/python", "-m", "starai.cli", "node", "start", "--label", '50% "off" $HOME \\')
UNIT = Unit("attic", COMMAND, Path("logs/attic.log"))


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is written into the real home."""
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_systemd_unit_restarts_politely_and_quotes_its_command() -> None:
    """No shell, specifier or variable is let loose on the arguments; a good end is an end."""
    text = KINDS["systemd"].render(UNIT)
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert line.startswith('ExecStart="/opt/x y/python" "-m" "starai.cli" "node" "start" "--label"')
    assert line.endswith('"50%% \\"off\\" $$HOME \\\\"')
    assert "Restart=on-failure" in text
    assert "NoNewPrivileges=yes" in text
    assert "WantedBy=default.target" in text


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_itself_finds_nothing_wrong(tmp_path: Path) -> None:
    """`systemd-analyze verify` reads the unit without a word."""
    python = tmp_path / "py thon"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    file = tmp_path / "starai-attic.service"
    file.write_text(KINDS["systemd"].render(Unit("attic", (str(python), *COMMAND[1:]), UNIT.log)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    said = [line for line in done.stderr.splitlines() if "starai-attic" in line]
    assert (done.returncode, said) == (0, [])


def test_the_launch_agent_is_a_property_list() -> None:
    """It starts at login, comes back after a crash and stays away after a good end."""
    made = plistlib.loads(KINDS["launchd"].render(UNIT).encode())
    assert made["Label"] == "starai.attic"
    assert made["ProgramArguments"] == list(COMMAND)
    assert made["RunAtLoad"] is True
    assert made["KeepAlive"] == {"SuccessfulExit": False}


def test_the_scheduled_task_is_xml() -> None:
    """It starts at logon, without privileges, for ever, and is started again when it fails."""
    text = KINDS["schtasks"].render(UNIT)
    space = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    root = ET.fromstring(text.partition("\n")[2])

    def at(path: str) -> str | None:
        return root.findtext("/".join(f"t:{part}" for part in path.split("/")), None, space)

    assert at("Actions/Exec/Command") == COMMAND[0]
    assert at("Actions/Exec/Arguments") == subprocess.list2cmdline(COMMAND[1:])
    assert at("Principals/Principal/RunLevel") == "LeastPrivilege"
    assert at("Settings/ExecutionTimeLimit") == "PT0S"
    assert at("Settings/RestartOnFailure/Interval") == "PT1M"
    assert at("Triggers/LogonTrigger/Enabled") == "true"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_installing_writes_the_file_and_uninstalling_removes_it(name: str) -> None:
    """Each system's own tool is told, by the file's own name, and nothing is left."""
    kind, ran = KINDS[name], list[Sequence[str]]()
    path = install(kind, UNIT, ran.append)
    assert path.read_text(kind.encoding()) == kind.render(UNIT)
    assert all(command[0] in ("systemctl", "launchctl", "schtasks") for command in ran)
    assert "attic" in " ".join(ran[-1])
    started = len(ran)
    assert uninstall(kind, UNIT, ran.append) == path
    assert len(ran) > started
    assert not path.exists()
    with pytest.raises(ConfigurationRefused, match="not installed"):
        uninstall(kind, UNIT, ran.append)
    assert kind.hint(UNIT)


def test_a_system_without_its_tool_is_told_what_to_do(tmp_path: Path) -> None:
    """A missing tool, and one that says no, are one sentence each."""
    with pytest.raises(ConfigurationRefused, match="--print"):
        run_tool(("no-such-tool-here",))
    no = tmp_path / "no"
    no.write_text("#!/bin/sh\necho 'not today' >&2\nexit 4\n")
    no.chmod(0o755)
    with pytest.raises(ConfigurationRefused, match="not today"):
        run_tool((str(no),))


def test_the_command_shows_without_installing(tmp_path: Path) -> None:
    """`--print` needs no membership; options of `node start` travel along, tokens do not."""

    def run(*words: str) -> tuple[int, str]:
        where = ("--home", str(tmp_path / "h"))
        done = CliRunner().invoke(cli, ["node", "install-service", *where, *words])
        return done.exit_code, done.output

    code, shown = run("--print", "--for-system", "systemd", "--model", "org/name", "--slots", "2")
    assert code == 0
    assert '"--model" "org/name" "--slots" "2"' in shown
    assert f'"{tmp_path}/h"' in shown
    for words, said in [
        (("--model", "mock"), "starai join TOKEN"),
        (("--print", "--token", "sat_x"), "token must not"),
        (("--print", "--name", "../x"), "cannot be a service's name"),
    ]:
        code, shown = run(*words)
        assert code == 1
        assert said in shown
    assert kind_here() in KINDS
