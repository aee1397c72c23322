"""Pulling models from a hub that really listens on the loopback, and really fails."""

from __future__ import annotations

import shutil

import anyio
import msgspec
import pytest

from starai.core.errors import (
    ConfigurationRefused,
    InvalidRequest,
    ModelFileRefused,
    ModelNotFound,
    NotFound,
    PermissionRefused,
    RateLimited,
    StoreFailed,
    Unavailable,
)
from starai.models.catalog import EMBEDDED_FOLDER, open_model
from starai.models.hub import HubTimeouts, PullProgress, pull
from starai.models.hub.pull import MARK
from starai.testing.hub_server import HubServer, running

WEIGHTS = bytes(range(256)) * 8192  # 2 MiB
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}' * 50,
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "README.md": b"read me",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another format",
}
WANTED = {name for name in FILES if name not in {"README.md", "pytorch_model.bin"}} - {
    "onnx/model.onnx"
}
HURRY = HubTimeouts(connect_s=5, read_s=5, backoff_s=0.01, backoff_s_max=0.02, attempts_max=4)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """The hub's client runs on both loops."""
    return request.param


@pytest.fixture(scope="module")
def server():
    """One listening hub for the module."""
    with running(HubServer()) as hub:
        yield hub


@pytest.fixture
def hub(server):
    """The hub with one model and no faults."""
    fresh = HubServer()
    server.models = {"acme/tiny": dict(FILES)}
    server.faults, server.commit, server.asked = fresh.faults, fresh.commit, []
    return server


async def bring(hub, store, reference="acme/tiny", **options):
    """Pull with short waits."""
    return await pull(reference, store, endpoint=hub.endpoint, **{"timeouts": HURRY, **options})


def stored(folder):
    """The content of every visible file, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARK}


def ranges(hub, name="model.safetensors"):
    """The Range headers of the requests to storage for a file."""
    return [ask.range for ask in hub.asked if ask.path == f"/storage/acme/tiny/{name}"]


@pytest.mark.anyio
async def test_pull_brings_what_a_model_needs(hub, tmp_path):
    """Configuration, tokenizer and safetensors come; pickles, other formats and prose do not."""
    folder = await bring(hub, tmp_path)
    assert folder == tmp_path / "acme" / "tiny"
    assert stored(folder) == {name: FILES[name] for name in WANTED}


@pytest.mark.anyio
async def test_a_pulled_model_opens(hub, tmp_path):
    """What was pulled is a model under its name on the hub, equal to what the hub has."""
    files = {path.name: path.read_bytes() for path in EMBEDDED_FOLDER.iterdir()}
    hub.models["acme/tiny"] = files
    await bring(hub, tmp_path)
    pulled = open_model("acme/tiny", tmp_path)
    assert (pulled.name, pulled.root) == ("acme/tiny", open_model("embedded").root)


@pytest.mark.anyio
async def test_config_comes_last(hub, tmp_path):
    """The file that makes a folder a model is fetched when all others are there."""
    await bring(hub, tmp_path)
    resolved = [ask.path.rsplit("/", 1)[1] for ask in hub.asked if "/resolve/" in ask.path]
    assert resolved[-1] == "config.json"


@pytest.mark.anyio
async def test_progress_adds_up(hub, tmp_path):
    """Progress grows over all files and ends with everything done."""
    told: list[PullProgress] = []
    await bring(hub, tmp_path, on_progress=told.append)
    total = sum(len(FILES[name]) for name in WANTED)
    done = [progress.done_bytes for progress in told]
    assert done == sorted(done)
    last = told[-1]
    assert (last.done_bytes, last.total_bytes) == (total, total)
    assert (last.files_done, last.files_total) == (len(WANTED), len(WANTED))


@pytest.mark.anyio
async def test_pulling_again_fetches_nothing(hub, tmp_path):
    """A second pull asks for the listing and nothing else."""
    await bring(hub, tmp_path)
    hub.asked.clear()
    await bring(hub, tmp_path)
    assert [ask.path for ask in hub.asked] == ["/api/models/acme/tiny/revision/main"]


@pytest.mark.anyio
async def test_a_commit_that_is_there_needs_no_hub(hub, tmp_path):
    """A revision given as a commit is known for good, even with the hub gone."""
    folder = await bring(hub, tmp_path)
    hub.asked.clear()
    assert await bring(hub, tmp_path, revision=hub.commit) == folder
    assert hub.asked == []


@pytest.mark.anyio
async def test_pulling_again_mends_a_damaged_file(hub, tmp_path):
    """A file whose size is wrong is fetched again, the others are not."""
    folder = await bring(hub, tmp_path)
    (folder / "tokenizer.json").write_bytes(b"short")
    hub.asked.clear()
    await bring(hub, tmp_path)
    assert stored(folder) == {name: FILES[name] for name in WANTED}
    assert ranges(hub) == []


@pytest.mark.anyio
async def test_a_new_commit_replaces_only_what_changed(hub, tmp_path):
    """Changed files are fetched, equal ones stay, vanished ones go."""
    folder = await bring(hub, tmp_path)
    hub.commit = "d00d" * 10
    del hub.models["acme/tiny"]["chat_template.jinja"]
    hub.models["acme/tiny"]["tokenizer.json"] = b'{"version": "2.0"}'
    hub.asked.clear()
    await bring(hub, tmp_path)
    assert stored(folder)["tokenizer.json"] == b'{"version": "2.0"}'
    assert "chat_template.jinja" not in stored(folder)
    assert ranges(hub) == []


@pytest.mark.anyio
async def test_a_cut_connection_is_resumed(hub, tmp_path):
    """After a cut the transfer goes on with Range where it stopped."""
    hub.faults.cuts, hub.faults.cut_after = 1, {"model.safetensors": 1_000_000}
    folder = await bring(hub, tmp_path)
    assert stored(folder)["model.safetensors"] == WEIGHTS
    first, second = ranges(hub)
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 1_000_000


@pytest.mark.anyio
async def test_many_cuts_with_progress_are_survived(hub, tmp_path):
    """Cuts do not add up to giving up while each attempt gets a good deal further."""
    weights = WEIGHTS * 6
    hub.models["acme/tiny"]["model.safetensors"] = weights
    hub.faults.cuts, hub.faults.cut_after = 8, {"model.safetensors": 1_300_000}
    folder = await bring(hub, tmp_path)
    assert stored(folder)["model.safetensors"] == weights


@pytest.mark.anyio
async def test_a_pull_that_gave_up_goes_on_next_time(hub, tmp_path):
    """A second pull continues the part that the first one left, and fetches nothing twice."""
    hub.faults.cuts, hub.faults.cut_after = 4, {"model.safetensors": 300_000}
    with pytest.raises(Unavailable, match="the same command goes on"):
        await bring(hub, tmp_path)
    folder = tmp_path / "acme" / "tiny"
    assert not (folder / "config.json").exists()
    hub.asked.clear()
    await bring(hub, tmp_path)
    assert stored(folder) == {name: FILES[name] for name in WANTED}
    (resumed,) = ranges(hub)
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) > 600_000
    fetched = [ask.path for ask in hub.asked if "/resolve/" in ask.path]
    assert len(fetched) == 2  # the weights and config.json


@pytest.mark.anyio
async def test_two_pulls_of_one_model_do_not_ruin_it(hub, tmp_path):
    """Of two at once one brings the model, the other says why it does not; the next is content."""
    outcomes: list[object] = []

    async def one():
        try:
            outcomes.append(await bring(hub, tmp_path))
        except StoreFailed as refused:
            outcomes.append(refused.message)

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(one)
    folder = tmp_path / "acme" / "tiny"
    assert stored(folder) == {name: FILES[name] for name in WANTED}
    assert sum("another pull" in str(outcome) for outcome in outcomes) == 1
    assert await bring(hub, tmp_path) == folder


@pytest.mark.anyio
async def test_a_hub_that_ignores_range_starts_again(hub, tmp_path):
    """A 200 to a Range request is taken from the beginning."""
    hub.faults.cuts, hub.faults.cut_after = 1, {"model.safetensors": 500_000}
    hub.faults.ignore_range = True
    folder = await bring(hub, tmp_path)
    assert stored(folder)["model.safetensors"] == WEIGHTS


@pytest.mark.anyio
async def test_a_file_that_changed_between_pulls_starts_again(hub, tmp_path):
    """The part of an older content is dropped, not continued."""
    hub.faults.cuts, hub.faults.cut_after = 4, {"model.safetensors": 300_000}
    with pytest.raises(Unavailable):
        await bring(hub, tmp_path)
    hub.commit = "d00d" * 10
    hub.models["acme/tiny"]["model.safetensors"] = WEIGHTS[::-1]
    hub.asked.clear()
    folder = await bring(hub, tmp_path)
    assert ranges(hub) == [""]
    assert stored(folder)["model.safetensors"] == WEIGHTS[::-1]
    assert not list(folder.glob("*.part"))


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
async def test_one_corruption_is_mended(hub, tmp_path, name):
    """A wrong checksum is fetched again once, for large and for small files."""
    hub.faults.corrupt, hub.faults.corruptions = name, 1
    folder = await bring(hub, tmp_path)
    assert stored(folder)[name] == FILES[name]


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
async def test_lasting_corruption_is_refused(hub, tmp_path, name):
    """A file that is wrong again and again never appears, nor does its part stay."""
    hub.faults.corrupt, hub.faults.corruptions = name, 9
    with pytest.raises(ModelFileRefused, match=f"{name} does not match its checksum"):
        await bring(hub, tmp_path)
    folder = tmp_path / "acme" / "tiny"
    assert name not in stored(folder)
    assert "config.json" not in stored(folder)
    assert not list(folder.glob(f"{name}*.part"))


@pytest.mark.anyio
@pytest.mark.parametrize("hide_length", [False, True])
async def test_more_bytes_than_listed_are_refused(hub, tmp_path, hide_length):
    """A file that does not end where the listing says fills no disk."""
    hub.faults.extra_bytes, hub.faults.hide_length = b"x" * 100, hide_length
    with pytest.raises(Unavailable, match="sent more than it listed"):
        await bring(hub, tmp_path)


@pytest.mark.anyio
async def test_a_chunked_answer_is_as_good(hub, tmp_path):
    """A hub that states no length is read to its end."""
    hub.faults.hide_length = True
    assert stored(await bring(hub, tmp_path))["model.safetensors"] == WEIGHTS


@pytest.mark.anyio
async def test_too_many_requests_are_waited_out(hub, tmp_path):
    """429 with a short Retry-After is sat out."""
    hub.faults.too_many, hub.faults.retry_after = 2, "0.05"
    assert stored(await bring(hub, tmp_path))["model.safetensors"] == WEIGHTS


@pytest.mark.anyio
async def test_a_long_pause_is_the_persons_choice(hub, tmp_path):
    """429 with a long Retry-After is told instead of sat out."""
    hub.faults.too_many, hub.faults.retry_after = 1, "3600"
    with pytest.raises(RateLimited, match="3600 s") as raised:
        await bring(hub, tmp_path)
    assert raised.value.retry_after_s == 3600


@pytest.mark.anyio
async def test_a_silent_hub_is_asked_again(hub, tmp_path):
    """A body that does not come within the read timeout is asked for again."""
    hub.faults.stalls, hub.faults.stall_s = 1, 1.0
    hurry = msgspec.structs.replace(HURRY, read_s=0.2)
    assert "config.json" in stored(await bring(hub, tmp_path, timeouts=hurry))


@pytest.mark.anyio
async def test_an_absent_hub_is_named(tmp_path):
    """Nobody listening ends in a clear, retryable error."""
    with pytest.raises(Unavailable, match="cannot be reached"):
        await pull("acme/tiny", tmp_path, endpoint="http://127.0.0.1:9", timeouts=HURRY)


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["acme/tinny", "acne/tiny"])
async def test_an_unknown_model_lists_near_names(hub, tmp_path, wrong):
    """A misspelt name comes with the right one."""
    with pytest.raises(ModelNotFound, match=rf"{wrong}: no such .* near names: acme/tiny"):
        await bring(hub, tmp_path, wrong)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "code", "error", "says"),
    [
        (401, "", ModelNotFound, "valid token with HF_TOKEN"),
        (401, "GatedRepo", PermissionRefused, "accept its licence on the hub"),
        (403, "", PermissionRefused, "accept its licence on the hub"),
        (404, "RevisionNotFound", NotFound, "no such revision"),
        (418, "", Unavailable, "answered 418"),
    ],
)
async def test_refusals_say_what_to_do(hub, tmp_path, status, code, error, says):
    """Each refusal of a hub becomes one clear sentence."""
    hub.faults.refuse, hub.faults.refuse_code = status, code
    with pytest.raises(error, match=says):
        await bring(hub, tmp_path)


@pytest.mark.anyio
async def test_the_token_goes_to_the_hub(hub, tmp_path):
    """Every request to the hub itself carries the bearer token."""
    await bring(hub, tmp_path, token="hf_secret")
    on_hub = [ask.authorization for ask in hub.asked if not ask.path.startswith("/storage")]
    assert set(on_hub) == {"Bearer hf_secret"}


@pytest.mark.anyio
async def test_a_token_never_travels_in_the_clear(tmp_path):
    """A token over plain HTTP to another machine is refused before anything is sent."""
    with pytest.raises(ConfigurationRefused, match="in the clear"):
        await pull("acme/tiny", tmp_path, endpoint="http://hub.example", token="hf_secret")


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", ["", "ftp://hub.example", "hub.example", "http://"])
async def test_a_wrong_endpoint_is_named(tmp_path, endpoint):
    """An endpoint that is no HTTP address is refused."""
    with pytest.raises(ConfigurationRefused, match="no address of a hub"):
        await pull("acme/tiny", tmp_path, endpoint=endpoint)


@pytest.mark.anyio
async def test_a_hub_without_checksums_is_asked_file_by_file(hub, tmp_path):
    """Where the listing has no checksums, the ETags of each file give them."""
    hub.faults.omit_checksums = True
    assert stored(await bring(hub, tmp_path)) == {name: FILES[name] for name in WANTED}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only pickled weights"),
        ({"config.json": b"{}", "model-Q4.gguf": b"x"}, "only GGUF weights"),
        ({"config.json": b"{}"}, "has no .safetensors weights"),
        ({"model.safetensors": b"x"}, "has no config.json"),
        ({"../../evil.json": b"x"}, "refused"),
        ({"a\\b.json": b"x"}, "refused"),
    ],
)
async def test_unfit_repositories_are_refused(hub, tmp_path, files, says):
    """What cannot be a safe model is refused with the reason, and nothing is stored."""
    hub.models["acme/odd"] = files
    with pytest.raises(ModelFileRefused, match=says):
        await bring(hub, tmp_path, "acme/odd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "reference", ["tiny", "a/b/c", "../x", "acme/..", "acme/", "acme/x?y", "acme/a..b", ""]
)
async def test_odd_references_are_refused(hub, tmp_path, reference):
    """Anything but ORG/NAME is refused before the hub is asked."""
    with pytest.raises(InvalidRequest, match="ORG/NAME"):
        await bring(hub, tmp_path, reference)
    assert hub.asked == []


@pytest.mark.anyio
async def test_an_odd_revision_is_refused(hub, tmp_path):
    """A revision that could change the path of the request is refused."""
    with pytest.raises(InvalidRequest, match="revision"):
        await bring(hub, tmp_path, revision="../main")


@pytest.mark.anyio
async def test_a_full_disk_is_seen_before_the_transfer(hub, tmp_path, monkeypatch):
    """Too little room is told with the numbers before any file is fetched."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StoreFailed, match="GB free"):
        await bring(hub, tmp_path)
    assert [ask.path for ask in hub.asked] == ["/api/models/acme/tiny/revision/main"]


@pytest.mark.anyio
async def test_a_store_that_is_a_file_is_named(hub, tmp_path):
    """A store that cannot hold folders ends in a clear error."""
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(StoreFailed, match="cannot store acme/tiny"):
        await bring(hub, tmp_path / "store")


@pytest.mark.anyio
async def test_cancelling_a_pull_keeps_what_came(hub, tmp_path):
    """A cancelled pull stops at once, leaves no model, and the next one completes it."""
    hub.faults.stalls, hub.faults.stall_s = 9, 2.0
    with anyio.move_on_after(0.3) as scope:
        await bring(hub, tmp_path)
    assert scope.cancelled_caught
    assert not (tmp_path / "acme" / "tiny" / "config.json").exists()
    hub.faults.stalls = 0
    assert stored(await bring(hub, tmp_path)) == {name: FILES[name] for name in WANTED}
