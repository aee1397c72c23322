"""The kinds of engines by name; each is imported when it is opened."""

from __future__ import annotations

from pathlib import Path

from starai.core.errors import ConfigurationRefused
from starai.engines.base import Engine, EngineSpec
from starai.models.catalog import open_model

#: A bound that keeps a mistyped number from reserving all memory.
_SLOTS_MAX = 1024


def open_engine(spec: EngineSpec) -> Engine:
    """The engine that ``spec`` asks for, ready to admit.

    Raises:
        ConfigurationRefused: unknown kind, impossible numbers, or the ``engine`` extra is missing.
        ModelNotFound: there is no such model.
        ModelFileRefused: the model's files are wrong, or this engine cannot run them.
    """
    if not 1 <= spec.slots <= _SLOTS_MAX or spec.threads < 0:
        raise ConfigurationRefused(f"slots lies between 1 and {_SLOTS_MAX}; threads is 0 or more")
    manifest = open_model(spec.model, Path(spec.store) if spec.store else None)
    if spec.kind == "external":
        from starai.engines.external.engine import ExternalEngine  # noqa: PLC0415 - load what is used

        return ExternalEngine(manifest, spec)
    if manifest.kind == "served":
        raise ConfigurationRefused(f"{manifest.name} has no weights here: name its server by a URL")
    if (spec.kind == "mock") != (manifest.kind == "mock"):
        raise ConfigurationRefused("the mock engine runs the model 'mock', and nothing else does")
    if spec.kind == "mock":
        from starai.engines.mock import MockEngine  # noqa: PLC0415 - load what is used

        return MockEngine(manifest, spec)
    if spec.kind == "text":
        try:
            from starai.engines.text.lean import lean_imports  # noqa: PLC0415 - torch is heavy

            with lean_imports():
                from starai.engines.text.engine import TextEngine  # noqa: PLC0415 - so is this
        except ModuleNotFoundError as error:
            raise ConfigurationRefused(
                f"the text engine needs {error.name}: install starai[engine]"
            ) from error
        return TextEngine(manifest, spec)
    raise ConfigurationRefused(f"there is no engine {spec.kind!r}: choose text, external or mock")
