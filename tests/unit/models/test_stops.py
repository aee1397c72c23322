"""Stop strings: the same text whatever the tokens are."""

import itertools

from hypothesis import given, strategies as st

from starai.models.stops import StopScanner

LETTERS = st.text(alphabet="ab€", max_size=40)
STOPS = st.lists(st.text(alphabet="ab€", min_size=1, max_size=5), min_size=1, max_size=4)


def scan(stops, pieces):
    scanner = StopScanner(stops)
    shown = [scanner.push(piece) for piece in pieces]
    return "".join([*shown, scanner.flush()]), scanner.stopped


def cut(text, borders):
    places = sorted({0, len(text), *(border % (len(text) + 1) for border in borders)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


@given(LETTERS, STOPS, st.lists(st.integers(0, 100), max_size=20))
def test_text_up_to_the_first_stop(text, stops, borders):
    """For any chunking, the text before the earliest stop string is shown, or all of it."""
    first = min((text.find(stop) for stop in stops if stop in text), default=None)
    shown, stopped = scan(stops, cut(text, borders))
    assert shown == (text if first is None else text[:first])
    assert stopped == (first is not None)


@given(LETTERS, STOPS, st.lists(st.integers(0, 100), max_size=20))
def test_nothing_is_taken_back(text, stops, borders):
    """Whatever is shown stays true: every step shows a prefix of the final text."""
    scanner = StopScanner(stops)
    final, _ = scan(stops, [text])
    shown = ""
    for piece in cut(text, borders):
        shown += scanner.push(piece)
        assert final.startswith(shown)


def test_a_stop_that_spans_three_tokens():
    """A stop string is found across token borders, and its beginning is never shown."""
    scanner = StopScanner(["STOP"])
    assert [scanner.push(piece) for piece in ("go S", "T", "OP now")] == ["go ", "", ""]
    assert scanner.stopped


def test_a_false_alarm_is_shown_late():
    """Text that only looked like a stop string appears as soon as that is known."""
    scanner = StopScanner(["STOP"])
    assert [scanner.push(piece) for piece in ("S", "T", "ART")] == ["", "", "START"]
    assert not scanner.stopped


def test_nothing_comes_after_a_stop():
    """Once stopped, further text is dropped."""
    scanner = StopScanner(["."])
    assert scanner.push("a.b") == "a"
    assert scanner.push("c") == ""
    assert scanner.flush() == ""
