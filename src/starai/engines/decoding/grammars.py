"""Checks and compiles what an answer must look like; says which place of a bad schema is at fault.

The work is done by llguidance (MIT licence). It knows JSON Schema but for a few keywords, Rust's
regular expressions and a dialect of Lark. This module adds bounds: text nested or chained so
deeply that the library would overflow its stack is refused before it gets there.
Knows nothing about tokens; `constraint` does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec

from starai.core.errors import ConfigurationRefused, InvalidRequest
from starai.core.limits import GRAMMAR_CHARACTERS_MAX
from starai.protocol.generation import Grammar

if TYPE_CHECKING:
    import llguidance

#: The library descends by recursion, into each reference where it meets it first, and a stack that
#: overflows ends the process. No chain is longer than the sum of the depths at which references
#: stand: 8 MiB, a thread's usual stack, end at 1,700 levels.
_REFERENCES_MAX: Final = 128
_LEVELS_MAX: Final = 1000
_DEPTH_MAX: Final = 60
_LARK_LINES_MAX: Final = 256
#: Schemas inside Lark are wrapped, in calls of tools for example.
_DEPTH_IN_LARK_MAX: Final = _DEPTH_MAX + 8
#: The library counts remainders for ``multipleOf``, one state of up to 500 bytes for each, at once
#: and without a limit: 9,999,991 takes minutes and 3 GB, this at most a second and 50 MB. Where
#: several meet (allOf), so does their least common multiple; whether they meet is not looked for.
_MULTIPLE_MAX: Final = 100_000
#: Strings of one choice.
_CHOICES_MAX: Final = 4096
#: Subschemas that are tried one by one to find the one at fault.
_BLAMED_MAX: Final = 256
#: Between JSON's tokens: nothing, a blank, or a new line with its indent. Unbounded white space
#: (the library's default) lets a weak model write blanks until its limit.
WHITE_SPACE: Final = {"whitespace_pattern": r"( |\n {0,32})?"}
_ANY_OBJECT: Final = '{"type":"object"}'
_LONGEST_MESSAGE: Final = 300
#: Where a schema holds schemas: as values of an object, as itself, as items of a list.
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
_SINGLES: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
_LISTS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_JSON: Final = json.JSONDecoder()
_SCHEMA_IN_LARK: Final = re.compile(r"%json\s*")


def check_grammar(grammar: Grammar) -> None:
    """Compile ``grammar`` for nobody; costs a millisecond, hostile ones up to two seconds.

    Raises:
        InvalidRequest: it cannot be used; says why, and where in a schema.
        ConfigurationRefused: llguidance is not installed.
    """
    fault = _fault(written_out(grammar))
    if not fault:
        return
    place = ""
    if grammar.kind == "json_schema":
        place = _place(msgspec.json.decode(grammar.text), fault)
    raise refused(grammar, fault, place)


def refused(grammar: Grammar, fault: str, place: str = "") -> InvalidRequest:
    """The error that tells of a ``fault`` of ``grammar`` (at ``place``, if that is known)."""
    where = f" at {place}" if place else ""
    reason = fault.partition("\n<")[0].strip()[:_LONGEST_MESSAGE]
    return InvalidRequest(f"the {grammar.kind} cannot be used{where}: {reason}", param="grammar")


def load_library() -> Any:
    """The module llguidance.

    Raises:
        ConfigurationRefused: it is not installed.
    """
    try:
        import llguidance  # noqa: PLC0415 - only who constrains answers needs it
    except ModuleNotFoundError as error:
        raise ConfigurationRefused(
            "constrained answers need llguidance: install starai[engine]"
        ) from error
    return llguidance


def parser_limits() -> llguidance.LLParserLimits:
    """What one grammar may cost: about a second to compile and 10 ms a token, at worst."""
    return load_library().LLParserLimits(  # type: ignore[no-any-return]
        # As many as a choice may have strings, and then some.
        max_items_in_row=10_000,
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        # Its verbose messages quote the answer so far.
        verbose_errors=False,
    )


def written_out(grammar: Grammar) -> str:
    """The grammar as llguidance takes it; bounded, but not compiled.

    Raises:
        InvalidRequest: it is too large, too deep or not of its kind.
    """
    if len(grammar.text) > GRAMMAR_CHARACTERS_MAX:
        raise refused(grammar, f"it has more than {GRAMMAR_CHARACTERS_MAX} characters")
    matcher = load_library().LLMatcher
    match grammar.kind:
        case "json_object":
            return _schema(matcher, grammar, _ANY_OBJECT)
        case "json_schema":
            check_schema(grammar)
            return _schema(matcher, grammar, grammar.text)
        case "regex":
            return str(matcher.grammar_from_regex(grammar.text))
        case "choice":
            return str(matcher.grammar_from_lark(_choice(grammar)))
        case "lark":
            if grammar.text.count("\n") >= _LARK_LINES_MAX:
                raise refused(grammar, f"it has more than {_LARK_LINES_MAX} lines")
            if grammar.text.count('"$ref"') > _REFERENCES_MAX:
                raise refused(grammar, f"it has more than {_REFERENCES_MAX} references ($ref)")
            _check_lark(grammar)
            return str(matcher.grammar_from_lark(grammar.text))


def _schema(matcher: Any, grammar: Grammar, text: str) -> str:
    try:
        return str(matcher.grammar_from_json_schema(text, overrides=WHITE_SPACE))
    except (ValueError, RecursionError) as error:
        raise refused(grammar, str(error)) from error


def _choice(grammar: Grammar) -> str:
    try:
        strings = msgspec.json.decode(grammar.text, type=list[str])
    except (msgspec.DecodeError, RecursionError) as error:
        raise refused(grammar, "it is not a JSON list of strings") from error
    if not strings or not all(strings) or len(strings) > _CHOICES_MAX:
        raise refused(grammar, f"it needs 1 to {_CHOICES_MAX} strings, none of them empty")
    return "start: " + " | ".join(msgspec.json.encode(one).decode() for one in strings)


def check_schema(grammar: Grammar) -> None:
    """Refuse a JSON schema that is none, or too deep or too entangled to be compiled safely.

    Raises:
        InvalidRequest: it is.
    """
    try:
        schema = msgspec.json.decode(grammar.text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refused(grammar, "it is not JSON") from error
    if not isinstance(schema, dict):
        raise refused(grammar, "it is not a JSON object")
    _check_bounds(grammar, schema, _DEPTH_MAX)


def _check_lark(grammar: Grammar) -> None:
    for place in _SCHEMA_IN_LARK.finditer(grammar.text):
        try:
            schema, _ = _JSON.raw_decode(grammar.text, place.end())
        except (ValueError, RecursionError) as error:
            raise refused(grammar, "what follows %json is not JSON") from error
        _check_bounds(grammar, schema, _DEPTH_IN_LARK_MAX)


def _check_bounds(grammar: Grammar, schema: Any, depth_max: int) -> None:
    references, levels, multiple = 0, 0, 1
    pending: list[tuple[Any, int]] = [(schema, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > depth_max:
            raise refused(grammar, f"it is nested deeper than {depth_max} levels")
        if isinstance(value, dict):
            references += "$ref" in value
            levels += depth * ("$ref" in value)
            multiple = math.lcm(multiple, _whole(value.get("multipleOf")))
            if multiple > _MULTIPLE_MAX:
                raise refused(grammar, f"all its multipleOf together exceed {_MULTIPLE_MAX}")
            pending += [(child, depth + 1) for child in value.values()]
        elif isinstance(value, list):
            pending += [(child, depth + 1) for child in value]
    if references > _REFERENCES_MAX:
        raise refused(grammar, f"it has more than {_REFERENCES_MAX} references ($ref)")
    if levels > _LEVELS_MAX:
        raise refused(
            grammar,
            f"its references ($ref) stand {levels} levels deep in all, not up to"
            f" {_LEVELS_MAX}: place them less deep",
        )


def _whole(number: object) -> int:
    """A number's digits without its point and the zeros around; 1 for what is no such number."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return 1
    return int("".join(map(str, Decimal(repr(number)).normalize().as_tuple().digits))) or 1


def _fault(grammar: str) -> str:
    """What is wrong with a grammar as llguidance takes it; empty: nothing."""
    return str(load_library().LLMatcher.validate_grammar(grammar, None, limits=parser_limits()))


def _place(schema: dict[str, Any], fault: str) -> str:
    """The innermost subschema that has ``fault`` by itself, as a path from the root ``$``."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    place, inner, tried = "$", schema, 0
    while True:
        for name, child in _children(inner):
            tried += 1
            if tried > _BLAMED_MAX:
                return place
            text = msgspec.json.encode({**shared, **child})
            matcher = load_library().LLMatcher
            if _fault(matcher.grammar_from_json_schema(text.decode())) == fault:
                place, inner = f"{place}.{name}", child
                break
        else:
            return place


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in _MAPS:
        held = schema.get(key)
        if isinstance(held, dict):
            yield from ((f"{key}.{n}", c) for n, c in held.items() if isinstance(c, dict))
    for key in _SINGLES:
        if isinstance(schema.get(key), dict):
            yield key, schema[key]
    for key in _LISTS:
        held = schema.get(key)
        if isinstance(held, list):
            yield from ((f"{key}[{n}]", c) for n, c in enumerate(held) if isinstance(c, dict))
