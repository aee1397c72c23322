"""The builder of native kernels, with a compiler of three lines that leaves a trace of its work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from starai.core.errors import ConfigurationRefused
from starai.engines.native import build

COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "compiler {version}"; exit 0; fi
{before}
while [ "$1" != -o ]; do shift; done
echo once >> "$TRACE"
echo "made" > "$2"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, and a trace of compilations, of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    monkeypatch.delenv(build.SWITCH, raising=False)
    return tmp_path / "cache" / "starai" / "kernels"


def use_compiler(
    folder: Path, patch: pytest.MonkeyPatch, version: int = 1, before: str = ""
) -> None:
    """Make such a compiler the one that ``$CXX`` names."""
    path = folder / "cxx"
    path.write_text(COMPILER.format(version=version, before=before))
    path.chmod(0o755)
    patch.setenv("CXX", str(path))


def compilations(folder: Path) -> int:
    """How often the compiler made something."""
    trace = folder / "trace"
    return len(trace.read_text().split()) if trace.exists() else 0


def test_a_library_is_compiled_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second build finds what the first one made, and nothing else lies in the cache."""
    use_compiler(tmp_path, monkeypatch)
    first, second = build.build(), build.build()
    assert first == second
    assert first.read_text() == "made\n"
    assert compilations(tmp_path) == 1
    assert sorted(p.name for p in cache.iterdir()) == sorted([first.name, "lock"])


def test_another_compiler_makes_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version of the compiler does not use what the old one made."""
    use_compiler(tmp_path, monkeypatch, version=1)
    old = build.build()
    use_compiler(tmp_path, monkeypatch, version=2)
    assert build.build() != old
    assert compilations(tmp_path) == 2


def test_the_cache_stays_small(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many versions the newest stay, the one just made among them."""
    for version in range(12):
        use_compiler(tmp_path, monkeypatch, version=version)
        made = build.build()
    left = set(cache.glob("*.so"))
    assert len(left) == 8
    assert made in left


def test_changed_sources_make_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library of other sources is never taken for this one's."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "a.cpp").write_text("int a;")
    monkeypatch.setattr(build, "SOURCES", sources)
    use_compiler(tmp_path, monkeypatch)
    old = build.build()
    (sources / "b.h").write_text("")
    assert build.build() != old


def test_without_a_compiler_an_earlier_library_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who removes the compiler after installing keeps the kernels."""
    use_compiler(tmp_path, monkeypatch)
    built = build.build()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert build.build() == built


def test_without_a_compiler_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without compiler and library says what would help."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationRefused, match="install g"):
        build.build()


def test_the_switch_turns_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """STARAI_NATIVE=0 builds nothing."""
    monkeypatch.setenv(build.SWITCH, "0")
    with pytest.raises(ConfigurationRefused, match="switched off"):
        build.build()


def test_a_failing_compiler_is_quoted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason holds what the compiler said, and no half-made library stays."""
    use_compiler(tmp_path, monkeypatch, before="echo 'it is broken' >&2; exit 1")
    with pytest.raises(ConfigurationRefused, match="it is broken"):
        build.build()
    assert [p.name for p in cache.iterdir()] == ["lock"]


def test_a_hanging_compiler_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that does not end is ended, and the reason names it."""
    use_compiler(tmp_path, monkeypatch, before="exec sleep 60")
    monkeypatch.setattr(build, "COMPILE_LIMIT_S", 0.3)
    with pytest.raises(ConfigurationRefused, match="does not run"):
        build.build()


def test_a_lesser_compiler_gets_lesser_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler without OpenMP still makes a library."""
    use_compiler(tmp_path, monkeypatch, before='case "$*" in *openmp*) exit 1;; esac')
    build.build()
    assert compilations(tmp_path) == 1


def test_a_cache_open_to_others_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can put a library where ours is looked for."""
    use_compiler(tmp_path, monkeypatch)
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(ConfigurationRefused, match="chmod 700"):
        build.build()


def test_a_library_that_others_may_write_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where everybody may write the file, it may hold anything: it is not loaded."""
    use_compiler(tmp_path, monkeypatch)
    built = build.build()
    built.write_text("foreign")
    built.chmod(0o777)
    assert build.build().read_text() == "made\n"
    assert built.stat().st_mode & 0o022 == 0
    built.chmod(0o777)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ConfigurationRefused, match="install g"):
        build.build()


def test_an_odd_compiler_command_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes that do not end are told, not a crash."""
    monkeypatch.setenv("CXX", "g++ 'x")
    with pytest.raises(ConfigurationRefused, match="CXX is no command"):
        build.build()


@pytest.mark.skipif(sys.platform == "win32", reason="locks files as Unix does")
def test_a_builder_that_stands_still_keeps_nobody_waiting(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is never given up is waited for as long as a compilation may take."""
    use_compiler(tmp_path, monkeypatch)
    cache.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(build, "COMPILE_LIMIT_S", 0.5)
    code = (
        "import fcntl, time\n"
        f"file = open({str(cache / 'lock')!r}, 'ab')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print(flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert build.build().read_text() == "made\n"
    finally:
        holder.kill()
        holder.communicate()


def test_a_cache_that_cannot_be_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in place of the cache folder is told, not a crash."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_compiler(tmp_path, monkeypatch)
    with pytest.raises(ConfigurationRefused, match="no cache folder"):
        build.build()


def test_processes_that_race_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several workers that start at once one compiles; all print the same library."""
    use_compiler(tmp_path, monkeypatch, before="sleep 0.3")
    command = [sys.executable, "-m", "starai.engines.native.build"]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(3)
    ]
    lines = {process.communicate(timeout=60)[0] for process in started}
    assert len(lines) == 1
    assert lines.pop().startswith("native kernels: ")
    assert compilations(tmp_path) == 1


def test_building_by_hand_without_a_compiler_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make install` goes on where there is no compiler, and says so in one line."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    build.main()
    assert capsys.readouterr().out.startswith("no native kernels, torch will do: no C++ compiler")
