"""Hosts in processes of their own: right, and never a hang when one dies, stops or babbles."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from starai.core.errors import (  # noqa: E402
    ConfigurationRefused,
    ContextTooLong,
    DeadlinePassed,
    EngineDied,
    InvalidRequest,
    ModelNotFound,
)
from starai.engines.star.hosts import ProcessHosts, ThreadHosts  # noqa: E402
from starai.engines.star.messages import Load, Merged, Ship  # noqa: E402
from starai.engines.star.phase_two import Link, PhaseTwo  # noqa: E402
from starai.engines.star.planning import plan_blocks  # noqa: E402
from starai.engines.star.session import StarSession  # noqa: E402
from starai.engines.star.shards import to_array  # noqa: E402
from starai.protocol.generation import Sampling  # noqa: E402

CONTEXT = [int(n) for n in np.random.default_rng(5).integers(3, 200, 75)]
QUERY = [17, 150, 33]
SAMPLING = Sampling(b"k" * 32, temperature=0.9)
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@pytest.fixture(scope="module")
def folder(model_of, tmp_path_factory):
    """The tiny Llama as files."""
    where = tmp_path_factory.mktemp("llama")
    model_of("llama").save_pretrained(where)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
    (where / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(where)


@pytest.fixture(scope="module")
def processes(folder):
    """Two hosts, for several tests: the one that kills them comes last."""
    hosts = ProcessHosts(Load(folder), 2)
    yield hosts
    hosts.close()


def answers(session, mode, max_tokens=12):
    return list(session.generate(QUERY, SAMPLING, max_tokens=max_tokens, mode=mode))


def threads(model, count, **options):
    return StarSession(model, ThreadHosts([model] * count), answer_tokens_max=64, **options)


def test_processes_answer_as_threads_do(model_of, processes):
    """Two processes give the tokens that threads give, asked in every layer and gathered."""
    model = model_of("llama")
    plan = plan_blocks(len(CONTEXT), hosts=2, page=4)
    apart = StarSession(model, processes, answer_tokens_max=64)
    inside = threads(model, 2)
    try:
        for session in (apart, inside):
            session.prefill(CONTEXT, plan)
        expected = answers(inside, PhaseTwo.GATHERED)
        assert len(expected) == 12
        assert answers(inside, PhaseTwo.DISTRIBUTED) == expected
        assert answers(apart, PhaseTwo.DISTRIBUTED) == expected
        assert answers(apart, PhaseTwo.GATHERED) == expected
        # A second question about the same context begins afresh.
        assert answers(apart, PhaseTwo.DISTRIBUTED) == expected
    finally:
        inside.close()


@pytest.mark.slow
def test_a_host_refuses_what_it_cannot_load():
    """A missing model is that error, not a dead process."""
    with pytest.raises(ModelNotFound, match="host 0"):
        ProcessHosts(Load("/nowhere/at/all"), 1)


def test_recurrent_models_are_refused_everywhere(model_of):
    """Neither a session nor a host takes a model with a state."""
    import transformers  # noqa: PLC0415

    mamba = transformers.AutoModelForCausalLM.from_config(
        transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20)
    )
    with pytest.raises(ConfigurationRefused, match="mamba"):
        ThreadHosts([mamba])
    with pytest.raises(ConfigurationRefused, match="mamba"):
        StarSession(mamba, ThreadHosts([]))


def test_out_of_turn_is_refused(model_of):
    """Asking before a context, merging out of turn and shipping nothing are errors, and no hang."""
    session = threads(model_of("llama"), 1)
    with pytest.raises(InvalidRequest, match="context before a query"):
        answers(session, PhaseTwo.GATHERED)
    hosts = ThreadHosts([model_of("llama")])
    numbers = to_array(torch.zeros(1, 1, 1))
    for command in (Ship(int8=False), Merged(0, numbers, numbers)):
        hosts.send(0, command, 1)
        assert hosts.receive(0, 1).code == InvalidRequest.code
    hosts.close()
    session.close()


def test_questions_have_limits(model_of):
    """Too long a question, an empty one and a foreign plan are refused; the session lives on."""
    session = threads(model_of("llama"), 1)
    try:
        with pytest.raises(InvalidRequest, match="plan"):
            session.prefill(CONTEXT, plan_blocks(len(CONTEXT) + 1, page=4))
        with pytest.raises(InvalidRequest, match="plan"):
            session.prefill(CONTEXT, plan_blocks(len(CONTEXT), hosts=2, page=4))
        session.prefill(CONTEXT, plan_blocks(len(CONTEXT), page=4))
        with pytest.raises(ContextTooLong):
            answers(session, PhaseTwo.GATHERED, max_tokens=62)
        with pytest.raises(InvalidRequest, match="empty"):
            session.generate([], SAMPLING, max_tokens=3)
        assert len(answers(session, PhaseTwo.GATHERED, max_tokens=61)) == 61
        stop = answers(session, PhaseTwo.GATHERED)[3]
        ids = list(session.generate(QUERY, SAMPLING, max_tokens=12, stop_token_ids=[stop]))
        assert ids[-1] == stop
        assert len(ids) <= 4
    finally:
        session.close()


def test_the_session_chooses_by_its_own_shape(model_of):
    """The cost model is fed with the model's true bytes per token and the hosts in use."""
    session = threads(model_of("llama"), 2)
    try:
        session.prefill(CONTEXT, plan_blocks(len(CONTEXT), hosts=2, page=4))
        assert session.shape.kv_bytes_per_token == 3 * 2 * 2 * 8 * 4
        assert session.shape.linear_parameters == 3 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 48 * 3)
        slow = session.choose(Link(0.1, 1e9), query_tokens=3, output_tokens=20)
        assert slow.mode is PhaseTwo.GATHERED
    finally:
        session.close()


class _One:
    """One of several hosts as if it were the only one."""

    count = 1

    def __init__(self, hosts, number):
        self._hosts = hosts
        self._number = number

    def send(self, host, command, timeout_s):
        self._hosts.send(self._number, command, timeout_s)

    def receive(self, host, timeout_s):
        return self._hosts.receive(self._number, timeout_s)

    def close(self):
        pass


def test_dead_and_silent_hosts_are_errors_and_no_hang(model_of, processes):
    """A host that stops meets its deadline, one that is killed is named; the session is over."""
    plan = plan_blocks(len(CONTEXT), hosts=1, page=4)
    cases = (
        (signal.SIGSTOP, DeadlinePassed, "said nothing"),
        (signal.SIGKILL, EngineDied, "ended"),
    )
    sessions = [
        StarSession(model_of("llama"), _One(processes, n), answer_tokens_max=64, layer_timeout_s=2)
        for n in range(2)
    ]
    try:
        for number, (session, (how, error, words)) in enumerate(zip(sessions, cases, strict=True)):
            session.prefill(CONTEXT, plan)
            stream = session.generate(QUERY, SAMPLING, max_tokens=12, mode=PhaseTwo.DISTRIBUTED)
            next(stream)
            os.kill(processes.pids[number], how)
            with pytest.raises(error, match=words):
                list(stream)
            with pytest.raises(EngineDied, match="over"):
                session.prefill(CONTEXT, plan)
    finally:
        processes.close()
    for pid in processes.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
