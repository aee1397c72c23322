"""From parts to text and log-probabilities."""

from hypothesis import given, strategies as st

from starai.gateway.answering.reading import AnswerReader
from starai.gateway.asking.asks import Ask
from starai.gateway.catalogue import TextModel
from starai.models.catalog import open_model
from starai.models.codec import open_codec
from starai.protocol.generation import Finish, Part, TokenLogprobs
from starai.protocol.tokens import pack

MOCK = open_model("mock")
MODEL = TextModel(
    name="mock",
    root=MOCK.root,
    context_length=100,
    eos_token_ids=(256,),
    codec=open_codec(MOCK),
    fingerprint="fp",
)


def parts_of(ids, sizes, finish=Finish.STOP):
    parts, rest = [], list(ids)
    for size in [*sizes, len(rest)]:
        taken, rest = rest[:size], rest[size:]
        logprobs = tuple(TokenLogprobs(token, -1.0) for token in taken)
        last = not rest
        parts.append(
            Part(ids=pack(taken), code=b"", finish=finish if last else None, logprobs=logprobs)
        )
        if last:
            break
    return parts


def read_all(ask, parts):
    reader = AnswerReader(ask, MODEL)
    pieces = [reader.read(part) for part in parts]
    return pieces, reader


@given(
    st.text(alphabet="ab€🦊.", max_size=20),
    st.lists(st.integers(1, 4), max_size=30),
    st.sampled_from([(), (".",), ("ab", "€a")]),
)
def test_text_and_tokens_agree(text, sizes, stops):
    """For any chunking, the text is cut at the first stop, and tokens behind it are not told."""
    ids = [*text.encode(), 256]
    pieces, reader = read_all(Ask("mock", stops=stops, logprobs=0), parts_of(ids, sizes))
    first = min((text.find(stop) for stop in stops if stop in text), default=None)
    shown = text if first is None else text[:first]
    assert "".join(piece.text for piece in pieces) == shown
    told = bytes(placed.token.token_id for piece in pieces for placed in piece.tokens)
    assert told.decode() == shown
    offsets = [placed.offset for piece in pieces for placed in piece.tokens]
    assert offsets == [index for index, letter in enumerate(shown) for _ in letter.encode()]
    assert reader.num_tokens <= len(ids)


@given(st.lists(st.integers(0, 255), max_size=30), st.lists(st.integers(1, 4), max_size=30))
def test_any_bytes_become_text(ids, sizes):
    """Bytes that are no UTF-8 are shown as replacement characters, as in one piece."""
    pieces, _ = read_all(Ask("mock"), parts_of(ids, sizes, Finish.LENGTH))
    expected = bytes(ids).decode("utf-8", "replace")
    assert "".join(piece.text for piece in pieces) == expected


def test_half_a_character_waits():
    """A character whose bytes come in two tokens is shown when it is complete."""
    first, second = "é".encode()
    pieces, _ = read_all(Ask("mock"), parts_of([first, second, 256], [1]))
    assert [piece.text for piece in pieces] == ["", "é"]


def test_a_sign_of_life_shows_nothing():
    """A part without ids and finish leaves the answer open."""
    reader = AnswerReader(Ask("mock"), MODEL)
    piece = reader.read(Part(ids=b"", code=b""))
    assert (piece.text, piece.finish, reader.num_tokens) == ("", None, 0)
