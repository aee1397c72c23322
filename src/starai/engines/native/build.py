"""Compiles the C++ files of this folder into one shared library for exactly this machine.

The library lies in the user's cache under a name made of everything that decides its content:
sources, flags, compiler and CPU. Knows nothing about what is inside, and needs no torch.

``python -m starai.engines.native.build`` builds it now and says what it did.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from starai.core.errors import ConfigurationRefused

if sys.platform != "win32":
    import fcntl

#: Off switch: with ``STARAI_NATIVE=0`` everything runs on torch alone.
SWITCH: Final = "STARAI_NATIVE"
SOURCES: Final = Path(__file__).resolve().parent
#: g++ first: its OpenMP runtime is the one torch's Linux wheels carry, and there must be one only.
_COMPILERS: Final = ("g++", "c++", "clang++")
_FLAGS: Final = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
#: Tried in this order; an old or bare compiler may know neither its CPU nor OpenMP.
_VARIANTS: Final = (("-march=native", "-fopenmp"), ("-march=native",), ())
#: A slow, busy laptop needs one minute; whatever takes longer hangs.
COMPILE_LIMIT_S: Final = 240.0
_VERSION_LIMIT_S: Final = 10.0
#: Between two looks at whether another process has built the library.
_LOOK_S: Final = 0.1
#: Libraries kept in the cache: of a few checkouts, versions and compilers at once.
_KEPT: Final = 8
#: Of the compiler's complaint, what fits a line of a log.
_COMPLAINT_CHARS: Final = 300


def build() -> Path:
    """The library for this machine and these sources, compiled unless it was before.

    Raises:
        ConfigurationRefused: switched off, no compiler, or it failed; says which.
    """
    if os.environ.get(SWITCH, "1") == "0":
        raise ConfigurationRefused(f"native kernels are switched off ({SWITCH}=0)")
    folder = _cache()
    stem = _digest(*_parts())
    compiler = find_compiler()
    if compiler is None:
        built = sorted(path for path in folder.glob(f"{stem}-*.so") if _is_ours(path))
        if built:
            return built[-1]
        raise ConfigurationRefused("no C++ compiler found (set CXX, or install g++)")
    path = folder / f"{stem}-{_digest(_version(compiler).encode())}.so"
    if _is_ours(path):
        return path
    with _lock(folder / "lock"):
        if not _is_ours(path):  # else another process built it while this one waited
            _compile(compiler, path)
    return path


def find_compiler() -> list[str] | None:
    """The command that compiles C++ here, ``$CXX`` first; None when there is none.

    Raises:
        ConfigurationRefused: ``$CXX`` has quotes that do not end.
    """
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise ConfigurationRefused(f"CXX is no command: {error}") from error
    for command in ([chosen] if chosen else []) + [[name] for name in _COMPILERS]:
        if program := shutil.which(command[0]):
            return [program, *command[1:]]
    return None


def forget(path: Path) -> None:
    """Drop a library that does not load, so that the next `build` makes it again."""
    with suppress(OSError):
        path.unlink()


def _is_ours(path: Path) -> bool:
    """Whether the library is there and only its owner, who runs this, could have changed it."""
    try:
        info = path.stat()
    except OSError:
        return False
    return sys.platform == "win32" or (info.st_uid == os.getuid() and not info.st_mode & 0o022)


def _parts() -> Iterator[bytes]:
    """What decides the content of the library, but for the compiler."""
    for path in sorted(SOURCES.glob("*.h")) + sorted(SOURCES.glob("*.cpp")):
        yield path.name.encode()
        yield path.read_bytes()
    yield repr((_FLAGS, _VARIANTS, platform.machine(), sys.platform)).encode()
    yield _cpu()


def _cpu() -> bytes:
    """Names the CPU and its instruction sets: a library must not meet a lesser one."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.processor()} {platform.machine()}".encode()
    wanted = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _digest(*parts: bytes) -> str:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.hexdigest()[:20]


def _version(compiler: list[str]) -> str:
    done = _run([*compiler, "--version"], _VERSION_LIMIT_S)
    return f"{shlex.join(compiler)}\n{done.stdout}"


def _cache() -> Path:
    """The user's own folder for kernels, which nobody else may write to.

    Raises:
        ConfigurationRefused: it cannot be made, or others could put a library there.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(home).expanduser() / "starai" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.stat()
    except (OSError, RuntimeError) as error:
        raise ConfigurationRefused(f"no cache folder for native kernels: {error}") from error
    if sys.platform != "win32" and (info.st_uid != os.getuid() or info.st_mode & 0o022):
        raise ConfigurationRefused(f"{folder} is open to other users; make it yours (chmod 700)")
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One compilation at a time; without locks two would merely do the same work."""
    try:
        with path.open("ab") as file:
            if sys.platform != "win32":
                _wait_for(file)
            yield
    except OSError as error:
        raise ConfigurationRefused(f"cannot build native kernels: {error}") from error


def _wait_for(file: BinaryIO) -> None:
    """Lock the file, or go on without: whoever holds it for so long will not build anything."""
    for _ in range(int(COMPILE_LIMIT_S / _LOOK_S)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return


def _compile(compiler: list[str], path: Path) -> None:
    """Compile under another name, then rename: a half-written library never has the right name."""
    sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
    complaint = ""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        made = Path(folder) / path.name
        for variant in _VARIANTS:
            command = [*compiler, *_FLAGS, *variant, "-o", str(made), *sources]
            done = _run(command, COMPILE_LIMIT_S)
            if done.returncode == 0:
                _settle(made)
                made.replace(path)
                _forget_old(path.parent)
                return
            # The first complaint counts: later variants only ask for less.
            complaint = complaint or done.stderr.strip()[:_COMPLAINT_CHARS]
    raise ConfigurationRefused(f"{compiler[0]} cannot compile the native kernels: {complaint}")


def _settle(made: Path) -> None:
    """Nobody else may write it, and it is whole on the disk before it has its name."""
    made.chmod(0o755)
    with made.open("rb+") as file:
        os.fsync(file.fileno())


def _forget_old(folder: Path) -> None:
    """Keep the newest libraries only; what a process has loaded stays until it ends."""
    built = sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime_ns)
    for path in built[:-_KEPT]:
        with suppress(OSError):  # Windows keeps what is in use
            path.unlink()


def _run(command: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - the user's own compiler, given as a list
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationRefused(f"{command[0]} does not run: {error}") from error


def main() -> None:
    """Build and print the outcome. A machine without a compiler is no failure."""
    try:
        sys.stdout.write(f"native kernels: {build()}\n")
    except ConfigurationRefused as refused:
        sys.stdout.write(f"no native kernels, torch will do: {refused.message}\n")


if __name__ == "__main__":
    main()
