"""The compiled library: one OpenMP runtime, refused when it computes wrongly, right without AVX."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from starai.engines.native import build, library, selftest

if library.load() is None:
    pytest.skip(f"no native kernels: {library.why_not()}", allow_module_level=True)


def compile_to(path: Path, *arguments: str) -> ctypes.CDLL:
    """A library of its own, compiled by the compiler that the builder would use."""
    compiler = build.find_compiler()
    assert compiler is not None
    command = [*compiler, "-O1", "-std=c++17", "-fPIC", "-shared", "-o", str(path), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return ctypes.CDLL(str(path))


def in_a_fresh_python(code: str, **more: str) -> str:
    """What the code prints in a process where nothing is loaded yet."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_no_reason_when_it_is_loaded() -> None:
    """A library that is there needs no excuse."""
    assert library.why_not() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the map of a Linux process")
def test_one_openmp_runtime_serves_torch_and_kernels() -> None:
    """After a parallel product the process holds one OpenMP library, and it is torch's."""
    code = (
        "import torch\n"
        "from starai.engines.native import linear, library\n"
        "assert library.load() is not None, library.why_not()\n"
        "linear.set_threads(2)\n"
        "linear.linear(torch.ones(64, 256), torch.ones(256, 256))\n"
        "maps = open('/proc/self/maps').read().split()\n"
        "print(*sorted({m for m in maps if 'libgomp' in m or 'libomp' in m or 'libiomp' in m}))\n"
    )
    loaded = in_a_fresh_python(code).split()
    assert len(loaded) == 1
    assert f"{os.sep}torch{os.sep}" in loaded[0]


def test_switched_off_it_gives_the_reason_and_torch_the_answer() -> None:
    """With STARAI_NATIVE=0 nothing is loaded, why is told, and products are still right."""
    code = (
        "import torch\n"
        "from starai.engines.native import linear, library\n"
        "codes = torch.arange(-6, 6, dtype=torch.int8).reshape(2, 6)\n"
        "y = linear.linear_int8(torch.full((1, 6), 127.0), codes, torch.ones(2))\n"
        "print(library.load(), library.why_not(), y.tolist(), sep='|')\n"
    )
    loaded, reason, values = in_a_fresh_python(code, STARAI_NATIVE="0").strip().split("|")
    assert (loaded, values) == ("None", "[[-2667.0, 1905.0]]")
    assert "STARAI_NATIVE=0" in reason


def test_a_library_that_computes_wrongly_is_found_out(tmp_path: Path) -> None:
    """A product that returns without doing anything does not pass the self-test."""
    source = tmp_path / "idle.cpp"
    source.write_text('extern "C" void starai_linear() {}')
    found = selftest.complaint(compile_to(tmp_path / "idle.so", str(source)))
    assert found.startswith("the compiled library computes wrongly (float32, 1 rows")


def test_a_library_that_was_cut_is_built_again(tmp_path: Path) -> None:
    """What a power cut left of a library does not switch the kernels off for good."""
    code = (
        "import os, sys\n"
        "from starai.engines.native import build, library\n"
        "path = build.build()\n"
        "os.truncate(path, 0)\n"
        "library.load()\n"
        "print(path.stat().st_size)\n"
    )
    compiler = tmp_path / "cxx"
    compiler.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo 1; exit 0; fi\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'cp "{build.build()}" "$2"\n'
    )
    compiler.chmod(0o755)
    more = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert int(in_a_fresh_python(code, **more)) > 10_000


def test_a_library_of_another_kind_has_no_symbol(tmp_path: Path) -> None:
    """A library without our symbols is told from one that computes wrongly."""
    source = tmp_path / "other.cpp"
    source.write_text("int nothing;")
    with pytest.raises(AttributeError):
        selftest.complaint(compile_to(tmp_path / "other.so", str(source)))


def test_plain_loops_compute_the_same(tmp_path: Path) -> None:
    """Compiled for no CPU in particular, without OpenMP, the linear layers pass the self-test."""
    plain = compile_to(tmp_path / "plain.so", str(build.SOURCES / "linear.cpp"))
    plain.starai_abilities.restype = ctypes.c_int64
    assert plain.starai_abilities() == 0
    assert selftest.complaint(plain) == ""


def test_the_machine_has_limits() -> None:
    """Peaks and read rate are those of some computer, and integers are not slower than floats."""
    kinds = [library.COUNT] * 3
    peak = library.function("starai_peak", *kinds, returns=ctypes.c_double)
    read = library.function("starai_read_bandwidth", *kinds, returns=ctypes.c_double)
    assert peak is not None
    assert read is not None
    floats, integers = peak(0, 1, 3), peak(2, 1, 3)
    assert 1e8 < floats < 1e13
    assert integers >= 0.9 * floats
    assert 0.05 < read(1 << 24, 1, 2) < 1e4
