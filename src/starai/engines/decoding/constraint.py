"""Keeps an answer inside a grammar: which tokens may come next, as a mask over the vocabulary.

::

    grammars = Grammars(codec, manifest.eos_token_ids)          # once per model
    constraint = grammars.constraint(generation.grammar, accepted_ids)
    token = draw(constraint.mask(logits)); constraint.take(token)

The mask is a function of the grammar and the tokens so far, nothing else: another node that
replays the accepted tokens stands in the same state. Forced tokens are not skipped but drawn like
all others, so positions and noise stay those of the canonical sampler. An end token is allowed
exactly where the text so far is complete. Knows nothing about models.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from starai.core.errors import InvalidRequest, StarAIError
from starai.engines.decoding.grammars import (
    check_grammar,
    load_library,
    parser_limits,
    refused,
    written_out,
)
from starai.engines.sampler import Floats
from starai.models.codec import TextCodec
from starai.protocol.generation import Grammar

if TYPE_CHECKING:
    import llguidance

#: Compiled grammars kept per model; an application uses a handful. Each holds a few MB, at most 50.
_COMPILED_MAX: Final = 32
#: Twice what the deepest grammar needs: some systems give a thread an eighth of what others do.
_STACK_BYTES: Final = 16 << 20
#: Without these the library cannot walk every text.
_PRINTABLE: Final = range(0x20, 0x7F)


#: For each byte of a packed mask, what its eight tokens' logits get added: 0 or -inf.
_ADDED: Final = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.float32(0.0),
    np.float32(-np.inf),
).astype(np.float32)


class Constraint:
    """Where one answer stands in its grammar. Made by `Grammars.constraint`."""

    def __init__(self, grammar: Grammar, matcher: llguidance.LLMatcher, shared: _Shared) -> None:
        """Take a matcher of one's own, and what is the same for the whole vocabulary."""
        self._grammar = grammar
        self._matcher = matcher
        self._shared = shared
        self._packed: NDArray[np.uint8] | None = None

    def _mask(self) -> NDArray[np.uint8]:
        """One bit a token; kept until the next `take`."""
        if self._packed is None:
            packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if self._matcher.is_error():
                raise refused(self._grammar, self._matcher.get_error())
            self._packed = packed[: self._shared.added.shape[0]]
        return self._packed

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next: [vocabulary].

        Raises:
            InvalidRequest: the grammar is too complex here, or lets nothing follow.
        """
        size = self._shared.vocab_size
        return np.unpackbits(self._mask(), count=size, bitorder="little").view(np.bool_)

    def mask(self, logits: Floats) -> Floats:
        """``logits`` [vocabulary] with -inf where nothing may come; the argument is not changed.

        Raises:
            InvalidRequest: as `allowed`.
        """
        size, added = self._shared.vocab_size, self._shared.added
        # A table and an addition take 40 us at 150,000 tokens; choosing by booleans up to 1,300.
        np.take(_ADDED, self._mask(), axis=0, out=added, mode="clip")
        # Rows are wider than the vocabulary where a model's matrix is padded.
        masked = np.empty_like(logits)
        masked[size:] = -np.inf
        np.add(logits[:size], added.reshape(-1)[:size], out=masked[:size])
        return masked

    def take(self, token_id: int) -> None:
        """The answer grew by ``token_id``.

        Raises:
            InvalidRequest: it is not allowed here, or the grammar is too complex behind it. From
                then on every call of this or `allowed` raises.
        """
        self._packed = None
        if not self._matcher.consume_token(token_id):
            fault = f"token {token_id} does not follow it, or it is too complex behind that"
            raise refused(self._grammar, fault)

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is all that the grammar asks for; more may be allowed."""
        return bool(self._matcher.is_accepting())

    @property
    def may_end(self) -> bool:
        """Whether an end token may come next."""
        return any(self._mask()[end >> 3] >> (end & 7) & 1 for end in self._shared.ends)

    def fork(self) -> Constraint:
        """A second one at the same place, for a second answer (beams)."""
        return Constraint(self._grammar, self._matcher.deep_copy(), self._shared)


class _Shared:
    """What all constraints of a vocabulary share: its size, its end tokens, room to work."""

    def __init__(self, vocab_size: int, ends: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self.ends = ends
        self.added = np.empty(((vocab_size + 7) // 8, 8), np.float32)


class Grammars:
    """Compiles grammars for one model's vocabulary, and remembers those that it compiled."""

    def __init__(self, codec: TextCodec, ends: Iterable[int]) -> None:
        """Serve the vocabulary of ``codec``; ``ends`` are the tokens that end an answer.

        Nothing is computed before the first grammar: 150,000 tokens take a second and 80 MB.
        """
        self._codec = codec
        self._shared = _Shared(codec.vocab_size, sorted(ends))
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, Future[llguidance.LLMatcher]] = OrderedDict()
        # One at a time: what hostile grammars cost is a core, never all of them.
        self._compiler = ThreadPoolExecutor(1, "starai-grammars")

    def prepare(self, grammar: Grammar) -> bool:
        """Whether `constraint` would not have to wait; if not, it is compiled aside from now on.

        A grammar that cannot be used is ready, too: `constraint` says why.
        """
        return self._compiling(grammar).done()

    def constraint(self, grammar: Grammar, accepted: Sequence[int] = ()) -> Constraint:
        """A constraint that stands behind the ``accepted`` tokens of the answer.

        Raises:
            InvalidRequest: the grammar cannot be used or contradicts ``accepted``, or this
                model's tokens cannot spell every text.
            ConfigurationRefused: llguidance is not installed.
        """
        try:
            matcher = self._compiling(grammar).result()
        except StarAIError:
            del self._compiled[grammar]
            raise
        made = Constraint(grammar, matcher.deep_copy(), self._shared)
        for token_id in accepted:
            made.take(token_id)
        return made

    def _compiling(self, grammar: Grammar) -> Future[llguidance.LLMatcher]:
        found = self._compiled.get(grammar)
        if found is None:
            # The pool's thread is made by its first task.
            usual = threading.stack_size(_STACK_BYTES)
            try:
                found = self._compiled[grammar] = self._compiler.submit(self._compile, grammar)
            finally:
                threading.stack_size(usual)
            if len(self._compiled) > _COMPILED_MAX:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return found

    def _compile(self, grammar: Grammar) -> llguidance.LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._codec, self._shared.ends)
        text = written_out(grammar)
        library = load_library()
        matcher: llguidance.LLMatcher = library.LLMatcher(
            self._tokenizer, text, log_level=0, limits=parser_limits()
        )
        if matcher.is_error():
            check_grammar(grammar)  # raises, and knows the place
        # A grammar that no text satisfies shows it at the first mask.
        matcher.compute_bitmask()
        if matcher.is_error():
            raise refused(grammar, "no text satisfies it, or it is too complex")
        return matcher


class _Vocabulary:
    """A vocabulary as the library reads it: a `TokenizerWrapper`'s content."""

    def __init__(self, codec: TextCodec, ends: Sequence[int]) -> None:
        ids = range(codec.vocab_size)
        self.tokens = [codec.token_bytes(id_) for id_ in ids]
        # What is shown but adds nothing to a text is a control token: no grammar spells it.
        control = {id_ for id_ in ids if self.tokens[id_] and not codec.decode((id_,))}
        self.special_token_ids = sorted(control | set(ends))
        self.eos_token_id = ends[0]
        self.bos_token_id = None
        plain = {token for id_, token in enumerate(self.tokens) if id_ not in control}
        if not all(bytes((value,)) in plain for value in _PRINTABLE):
            raise InvalidRequest(
                "this model's vocabulary lacks characters; it cannot follow a grammar",
                param="grammar",
            )
        self._encode = codec.encode
        self._control = control
        self.greedy: Callable[[str], Sequence[int]] = lambda _: ()

    def __call__(self, text: str | bytes) -> Sequence[int]:
        """The spelling of a text that a grammar forces: the model's own, where it has one.

        A tokenizer that puts a blank before every text has none for the middle of one.
        """
        wanted = text if isinstance(text, str) else text.decode()
        spelled = [id_ for id_ in self._encode(wanted) if id_ not in self._control]
        if b"".join(self.tokens[id_] for id_ in spelled) == wanted.encode():
            return spelled
        return self.greedy(wanted)


def _tokenizer(codec: TextCodec, ends: Sequence[int]) -> llguidance.LLTokenizer:
    library = load_library()
    vocabulary = _Vocabulary(codec, ends)
    tokenizer: llguidance.LLTokenizer = library.LLTokenizer(
        library.TokenizerWrapper(vocabulary), n_vocab=codec.vocab_size, eos_token=list(ends)
    )
    vocabulary.greedy = tokenizer.greedy_tokenize
    return tokenizer
