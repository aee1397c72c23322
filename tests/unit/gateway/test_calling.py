"""Calls of tools are found in an answer however it is cut up; everything else stays text."""

import json

import pytest
from hypothesis import given, strategies as st

from starai.gateway.answering.calling import Call, CallReader

F = '<tool_call>\n{"name": "f", "arguments": {"a": "</b>"}}\n</tool_call>'
G = '<tool_call>{"name":"g","arguments":{}}</tool_call>'
BARE = '{"name": "f", "parameters": {"a": 1}}'
CASES = [
    ("hermes", "Just text < and <tool", "Just text < and <tool", ""),
    ("hermes", F, "", "f"),
    ("hermes", "Let me see.\n" + F, "Let me see.", "f"),
    ("hermes", F + "\n" + G, "", "fg"),
    ("hermes", F + "\n" + G + "\nDone", "\nDone", "fg"),
    ("hermes", F.removesuffix("</tool_call>"), "", "f"),
    ("hermes", "<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", ""),
    ("hermes", "<tool_call>{", "<tool_call>{", ""),
    ("hermes", G.replace("g", "h", 1), G.replace("g", "h", 1), ""),
    ("hermes", "a  \n b \n", "a  \n b \n", ""),
    ("hermes", '<tool_call>{"name":"f","arguments":[1]}</tool_call>', None, ""),
    ("llama3", BARE, "", "f"),
    ("llama3", BARE + "; " + BARE, "", "ff"),
    ("llama3", '{"name": "nobody", "parameters": {}}', '{"name": "nobody", "parameters": {}}', ""),
    ("llama3", '{"a": 1} and text', '{"a": 1} and text', ""),
    ("llama3", "Text {", "Text {", ""),
    ("llama3", "  ", "  ", ""),
]


def read(style, pieces):
    reader = CallReader(style, {"f", "g"})
    found = [reader.push(piece) for piece in pieces] + [reader.flush()]
    return "".join(one.text for one in found), [call for one in found for call in one.calls]


@pytest.mark.parametrize(("style", "text", "shown", "names"), CASES)
def test_answers(style, text, shown, names):
    """What is shown, and what is called."""
    found, calls = read(style, [text])
    assert found == (text if shown is None else shown)
    assert "".join(call.name for call in calls) == names


@given(st.sampled_from(CASES), st.lists(st.integers(1, 30), max_size=20))
def test_any_cutting_gives_the_same(case, sizes):
    """A stream finds what the whole answer holds."""
    style, text, *_ = case
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    assert read(style, [*pieces, text[at:]]) == read(style, [text])


def test_arguments_are_json():
    """Written out as a JSON object, whatever the model's own way was."""
    assert read("hermes", [F])[1] == [Call("f", json.dumps({"a": "</b>"}))]
    assert read("llama3", [BARE])[1] == [Call("f", '{"a": 1}')]


def test_text_before_a_call_is_shown_at_once():
    """Only what may be the beginning of a call waits."""
    reader = CallReader("hermes", {"f"})
    assert reader.push("Hello ").text == "Hello"
    assert reader.push("world <to").text == " world"
    assert reader.push("ol> x").text == " <tool> x"


@given(st.text(max_size=60))
def test_any_text_is_shown_or_called(text):
    """Nothing gets lost, nothing fails."""
    for style in ("hermes", "llama3"):
        assert read(style, [text]) == (text, [])
