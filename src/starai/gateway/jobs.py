"""From an `Ask` to the tasks that answer it: token ids, limits, keys for the sampler."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from starai.core.clock import Clock
from starai.core.errors import ContextTooLong, InvalidRequest
from starai.core.randomness import Randomness, uuid7
from starai.core.threads import in_thread
from starai.gateway.asking.asks import Ask
from starai.gateway.asking.refusals import check_range
from starai.gateway.asking.shaping import Checker, grammar_of
from starai.gateway.catalogue import TextModel
from starai.gateway.paying.keys import Account
from starai.gateway.paying.pricing import PriceBook
from starai.models.manifest import SamplingDefaults
from starai.protocol.generation import Generation, Sampling, sample_key
from starai.protocol.ports import Submission
from starai.protocol.tokens import count, pack

#: Longer texts are tokenised in a thread: 16k characters take about 2 ms, during which nobody
#: else would be served.
_INLINE_CHARACTERS_MAX: Final = 16_384


#: Tokens that a node may have made of an answer that is broken off, beyond those seen: the work
#: of a fast one in a second or two. They are on record, and so are charged.
_UNSEEN_TOKENS_MAX: Final = 256


class Job:
    """An admitted request on its way: its tasks, and what has come of them."""

    __slots__ = (
        "ask",
        "completion_tokens",
        "cost",
        "created",
        "model",
        "owed",
        "prompt_tokens",
        "reserved",
        "started",
        "tasks",
    )

    def __init__(
        self,
        ask: Ask,
        model: TextModel,
        tasks: Sequence[Submission],
        prompt_tokens: int,
        now_ms: int,
    ) -> None:
        """Take one task a choice, in the order of the choices."""
        self.ask = ask
        self.model = model
        self.tasks = tasks
        #: Seconds since the Unix epoch.
        self.created = now_ms // 1000
        #: Each prompt counted once, however many choices answer it.
        self.prompt_tokens = prompt_tokens
        #: The most tokens that this can use.
        self.reserved = prompt_tokens + sum([task.generation.max_tokens for task in tasks])
        self.completion_tokens = 0
        #: What the tasks that ended cost by the tokens seen of them, in nano-USD.
        self.cost = 0
        #: What is or can still be charged for them: more where an answer was broken off.
        self.owed = 0
        #: Whether a node has taken up any of the tasks.
        self.started = False

    @property
    def is_free(self) -> bool:
        """Whether no price is set for it."""
        return not self.tasks[0].price.price_id

    @property
    def cost_max(self) -> int:
        """The most that this can cost, in nano-USD."""
        return sum(
            task.price.charge(count(task.generation.prompt), task.generation.max_tokens)
            for task in self.tasks
        )

    def settle(self, index: int, answer_tokens: int, *, ended: bool) -> None:
        """Note what a task costs that a node took up, once nothing more is read of it."""
        task = self.tasks[index]
        if not task.price.price_id:
            return
        prompt, most = count(task.generation.prompt), task.generation.max_tokens
        self.cost += task.price.charge(prompt, answer_tokens)
        if ended:
            most = answer_tokens
        elif not task.generation.whole:
            most = min(most, answer_tokens + _UNSEEN_TOKENS_MAX)
        self.owed += task.price.charge(prompt, most)

    @property
    def used(self) -> int:
        """The tokens used so far."""
        return self.prompt_tokens + self.completion_tokens if self.started else 0

    @property
    def hex_id(self) -> str:
        """The first task's id, which names the whole answer."""
        return self.tasks[0].task_id.hex()


class JobMaker:
    """Turns asks into jobs."""

    def __init__(
        self,
        clock: Clock,
        randomness: Randomness,
        *,
        default_max_tokens: int,
        deadline_s: float,
        prices: PriceBook,
    ) -> None:
        """Bound answers of unstated length by ``default_max_tokens``, all by ``deadline_s``."""
        self._prices = prices
        self._clock = clock
        self._randomness = randomness
        self._default_max_tokens = default_max_tokens
        self._deadline_ms = int(deadline_s * 1000)
        self._checker = Checker()
        # As short-lived as the memory that it parts: nodes keep prompts while they run.
        self._cache_secret = randomness.take(32)

    async def make(self, ask: Ask, model: TextModel, account: Account) -> Job:
        """The job of an ask; the account's limit bounds answers of unstated length further.

        Raises:
            InvalidRequest: the prompt is empty or holds ids outside the vocabulary, or no answer
                can have the form that is asked for.
            ContextTooLong: prompt and answer do not fit the model's context.
        """
        grammar = grammar_of(ask, model.codec.tool_style)
        if grammar is not None:
            await self._checker.check(grammar, ask)
        prompts = await _tokenise(ask, model)
        for token_id in ask.logit_bias:
            check_range("logit_bias", token_id, 0, model.codec.vocab_size - 1)
        prompt_tokens = sum(map(len, prompts))
        room, tokens_max = None, account.limits.tokens_max
        if tokens_max is not None:
            # Or a key with a small limit could never leave the length open.
            room = max(1, (tokens_max - prompt_tokens) // ask.num_choices)
        cache_salt = self._cache_salt(account)
        now_ms = self._clock.now_ms()
        price = self._prices.at(model.name, now_ms)
        # A prompt is paid for once, however many choices answer it.
        further = msgspec.structs.replace(price, input_nano_usd=0) if ask.n > 1 else price
        tasks: list[Submission] = []
        for prompt in prompts:
            check_range("context_tokens", ask.context_tokens, 0, len(prompt) - 1)
            max_tokens = self._max_tokens(ask, model, len(prompt), room)
            packed = pack(prompt)
            for number in range(ask.n):
                generation = Generation(
                    prompt=packed,
                    max_tokens=max_tokens,
                    sampling=self._sampling(ask, len(tasks), model.sampling),
                    stop_token_ids=model.eos_token_ids,
                    salt=self._randomness.take(16),
                    top_logprobs=ask.logprobs,
                    cache_salt=cache_salt,
                    priority=ask.priority,
                    grammar=grammar,
                    embed=ask.embed,
                    context_tokens=ask.context_tokens,
                    regions=ask.regions,
                    # Behind a stop string no more tokens are wanted: somebody has to look.
                    whole=not ask.stream and not ask.stops,
                )
                tasks.append(
                    Submission(
                        task_id=uuid7(self._clock, self._randomness),
                        model=model.name,
                        model_root=model.root,
                        customer=account.customer,
                        deadline_ms=now_ms + self._deadline_ms,
                        generation=generation,
                        price=further if number else price,
                    )
                )
        return Job(ask, model, tasks, prompt_tokens, now_ms)

    def _max_tokens(self, ask: Ask, model: TextModel, prompt: int, room: int | None) -> int:
        context = model.context_length
        field = ask.prompt_field
        if ask.embed and prompt <= context:
            return 0
        if ask.max_tokens is None:
            if prompt >= context:
                raise ContextTooLong(
                    f"This model's maximum context length is {context} tokens. However, your "
                    f"{field} resulted in {prompt} tokens. Please reduce the length of the "
                    f"{field}.",
                    param=field,
                )
            longest = min(self._default_max_tokens, context - prompt)
            return longest if room is None else min(longest, room)
        if prompt + ask.max_tokens > context:
            raise ContextTooLong(
                f"This model's maximum context length is {context} tokens. However, you "
                f"requested {prompt + ask.max_tokens} tokens ({prompt} in the {field}, "
                f"{ask.max_tokens} in the completion). Please reduce the length of the {field} "
                "or completion.",
                param=field,
            )
        return ask.max_tokens

    def _cache_salt(self, account: Account) -> bytes:
        """Whose memory of prompts may be shared: this account's own, and nobody can guess it."""
        if not account.cache_salt:
            key = b"starai/v1/cache-salt" + account.entry.key_hash
            account.cache_salt = hmac.digest(self._cache_secret, key, "sha256")[:16]
        return account.cache_salt

    def _sampling(self, ask: Ask, index: int, advice: SamplingDefaults) -> Sampling:
        key = self._randomness.take(32) if ask.seed is None else sample_key(ask.seed, index)
        return Sampling(
            sample_key=key,
            temperature=advice.temperature if ask.temperature is None else ask.temperature,
            top_p=advice.top_p if ask.top_p is None else ask.top_p,
            top_k=advice.top_k if ask.top_k is None else ask.top_k,
            min_p=advice.min_p if ask.min_p is None else ask.min_p,
            presence_penalty=ask.presence_penalty,
            frequency_penalty=ask.frequency_penalty,
            logit_bias=ask.logit_bias,
        )


async def _tokenise(ask: Ask, model: TextModel) -> list[list[int]]:
    """The token ids of each prompt; none is empty."""
    if ask.messages is not None:
        texts = [message["content"] for message in ask.messages]
    else:
        texts = [prompt for prompt in ask.prompts if isinstance(prompt, str)]
    try:
        if sum(map(len, texts)) > _INLINE_CHARACTERS_MAX:
            prompts = await in_thread(partial(_encode, ask, model))
        else:
            prompts = _encode(ask, model)
    except InvalidRequest as error:
        error.param = error.param or ask.prompt_field
        raise
    if not all(prompts):
        raise InvalidRequest(
            f"Invalid '{ask.prompt_field}': it must not be empty.", param=ask.prompt_field
        )
    return prompts


def _encode(ask: Ask, model: TextModel) -> list[list[int]]:
    codec = model.codec
    if ask.messages is not None:
        return [codec.render_chat(ask.messages, ask.tools.told if ask.tools else ())]
    prompts = []
    for prompt in ask.prompts:
        if isinstance(prompt, str):
            prompts.append(codec.encode(prompt))
            continue
        if prompt:
            check_range(ask.prompt_field, min(prompt), 0, codec.vocab_size - 1)
            check_range(ask.prompt_field, max(prompt), 0, codec.vocab_size - 1)
        prompts.append(prompt)
    return prompts
