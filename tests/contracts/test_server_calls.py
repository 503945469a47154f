"""What `VLLMServerEngine` does when servers fail or answer wrongly, with stand-ins for them."""

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from forking import run_forked
from fulgurite.engines.vllm_server import VLLMServerEngine, write_shards
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.types import ConfigError, Prompt, SamplingSpec
from servers import Drop, Front, Pretender
from tiny import TINY

MODEL, TOKENIZER = CausalLM.load(TINY), load_tokenizer(TINY)
SPEC = SamplingSpec(max_new_tokens=5, n=2)
CHOICE = Pretender.choice([3, 4], [-0.5, -0.5])


def prompts(count):
    return [Prompt(id=f"q{i}", token_ids=(3 + i % 10, 4)) for i in range(count)]


def bound(*fronts, **settings):
    engine = VLLMServerEngine([front.url for front in fronts], **{"deadline_s": 20, "retries": 2, **settings})
    engine.bind(MODEL, TOKENIZER)
    engine.load_weights(MODEL.named_full_weights(), 0)
    return engine


def expected(asked):
    return [p.token_ids + (i + 3,) for p in asked for i in range(SPEC.n)]


class Scripted(Pretender):
    """Answers the first requests for completions by `script`: a status, a drop, something else to say, or to hang."""

    def __init__(self, *script, **settings):
        super().__init__(MODEL, **settings)
        self.script, self.lock, self.ended = list(script), threading.Lock(), threading.Event()

    def complete(self, body):
        with self.lock:
            step = self.script.pop(0) if self.script else "answer"
        if step == "answer":
            return super().complete(body)
        if step == "hang":
            self.ended.wait(30)
        if step in ("hang", "drop"):
            raise Drop
        return (step, {"error": "no"}) if isinstance(step, int) else (200, step)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"urls": []}, r"urls is \[\]; expected different servers"),
        ({"urls": ["localhost:8000"]}, "each as http://HOST:PORT"),
        ({"urls": ["http://a:8000/v1"]}, "without a path"),
        ({"urls": ["http://a:800000"]}, "each as http://HOST:PORT"),
        ({"urls": ["http://a:8000", "http://a:8000/"]}, "expected different servers"),
        ({"weights_dir": "/no/such"}, "weights_dir /no/such is no folder"),
        ({"max_tokens": 1}, "max_tokens is 1; expected at least 2"),
        ({"deadline_s": 0}, "deadline_s is 0; expected more than 0"),
        ({"retries": -1}, "retries is -1; expected 0 or more"),
        ({"in_flight": 0}, "in_flight is 0; expected at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        VLLMServerEngine(**{"urls": ["http://127.0.0.1:8000"], **settings})


def test_a_url_where_nothing_listens_is_named_with_the_command_that_starts_a_server():
    with Front(None) as front:
        url = front.url
    with pytest.raises(ConfigError, match=f"no vLLM server at {url}.*bash tools/serve.sh MODEL"):
        VLLMServerEngine([url]).bind(MODEL, TOKENIZER)


@pytest.mark.parametrize(
    "method, answer, words",
    [
        ("call", (404, "{}"), "lacks vLLM's development endpoints .VLLM_SERVER_DEV_MODE=1"),
        ("call", (500, "no attribute"), "lacks the worker extension .*fulgurite.engines.weights.WorkerChecksums.*no attribute"),
        ("greet", (200, {"choices": [Pretender.choice([5], [-1.5])]}), "log-probability -1.5; expected 0.*processed_logprobs"),
    ],
)  # fmt: skip
def test_what_a_server_lacks_is_named(method, answer, words):
    server = Pretender(MODEL)
    setattr(server, method, lambda *_: answer)
    with Front(server) as front, pytest.raises(ConfigError, match=f"the server at {front.url} .*{words}.*bash tools/serve.sh"):
        VLLMServerEngine([front.url]).bind(MODEL, TOKENIZER)


def test_servers_with_weights_of_different_types_are_refused():
    with (
        Front(Pretender(MODEL)) as one,
        Front(Pretender(MODEL, dtype="bfloat16")) as two,
        Front(Pretender(MODEL, dtype="float16")) as half,
    ):
        for fronts in ((one, two), (half,)):
            with pytest.raises(ConfigError, match=f"{fronts[-1].url}.*expected float32 or bfloat16, the same for all"):
                bound(*fronts)
        assert bound(two).dtype == torch.bfloat16


def test_the_smallest_limit_holds():
    with Front(Pretender(MODEL)) as front:
        assert bound(front).limit == 100  # the server's
        assert bound(front, max_tokens=40).limit == 40
        with pytest.raises(ConfigError, match="'q0' has 2 tokens.*at most 6"):
            bound(front, max_tokens=6).generate(prompts(1), SPEC)


def test_a_server_that_never_answers_ends_the_call_in_bounded_time():
    server = Scripted(*["hang"] * 9)
    with Front(server) as front:
        engine = bound(front, deadline_s=0.5, retries=1)
        threads, begin = threading.active_count(), time.monotonic()
        with pytest.raises(RuntimeError) as error:
            engine.generate(prompts(3), SPEC)
        assert 1.0 < time.monotonic() - begin < 4
        server.ended.set()
    assert str(error.value) == (
        f"prompt 'q0' was not completed in 2 attempts; {front.url}/v1/completions did not answer within 0.5 s; "
        "restart it: the run goes on from its last checkpoint with --ckpt_path last"
    )
    while threading.active_count() > threads and time.monotonic() - begin < 10:
        time.sleep(0.05)  # the stand-in's own threads
    assert threading.active_count() <= threads


def test_a_server_that_answers_a_byte_at_a_time_meets_the_deadline_too():
    server = Pretender(MODEL)

    class Dripping(Front):
        def handle(self, request):
            if server.model is None:
                request.send_response(200)
                request.end_headers()
                while not self.closed.wait(0.1):
                    request.wfile.write(b" ")
            super().handle(request)

    with Dripping(server) as front:
        engine = bound(front, deadline_s=0.5, retries=0)
        server.model, begin = None, time.monotonic()
        with pytest.raises(RuntimeError, match="did not answer within 0.5 s"):
            engine.generate(prompts(1), SPEC)
        assert time.monotonic() - begin < 3


@pytest.mark.parametrize("failure", [500, 503, "drop", "no JSON"])
def test_a_failure_is_asked_again_with_the_same_request(failure):
    with Front(Scripted(failure)) as front:
        completions = bound(front).generate(prompts(1), SPEC)
        first, second = front.completions()
    assert [c.token_ids for c in completions] == expected(prompts(1)) and first == second


def test_a_refused_request_is_not_asked_again_and_cancels_the_others():
    server = Scripted("hang", 400)
    with Front(server) as front:
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match="request for prompt 'q[01]' was refused: .* status 400"):
            bound(front).generate(prompts(2), SPEC)
        assert time.monotonic() - begin < 5 and len(front.completions()) == 2
        server.ended.set()


@pytest.mark.parametrize(
    "choices, words",
    [
        ([CHOICE], "expected 2 choices, found 1"),
        ([CHOICE] * 3, "expected 2 choices, found 3"),
        (None, "expected choices with token_ids"),
        ([CHOICE, {**CHOICE, "token_ids": None}], "expected choices with token_ids"),
        ([CHOICE, {**CHOICE, "logprobs": None}], "expected choices with token_ids"),
        ([CHOICE, Pretender.choice([3, 4], [-0.5, float("nan")])], "finite log-probability.*nan"),
        ([CHOICE, Pretender.choice([3, 4], [-0.5, None])], "expected choices with token_ids"),
        ([CHOICE, Pretender.choice([3, 4], [-0.5])], r"found 2 tokens, log-probabilities \[-0.5\]"),
        ([CHOICE, Pretender.choice([], [])], "found 0 tokens"),
        ([CHOICE, {**CHOICE, "finish_reason": "abort"}], "'abort'"),
    ],
)
def test_an_answer_without_whole_completions_is_an_error(choices, words):
    with Front(Scripted({"choices": choices, "system_fingerprint": "1"})) as front:
        with pytest.raises(RuntimeError, match=f"{front.url} answered the request for prompt 'q0' wrongly: .*{words}"):
            bound(front).generate(prompts(1), SPEC)
        assert len(front.completions()) == 1


def test_requests_are_spread_and_completions_come_in_order():
    with Front(Pretender(MODEL)) as one, Front(Pretender(MODEL)) as two:
        asked = prompts(20)
        completions = bound(one, two).generate(asked, SPEC)
        assert (len(one.completions()), len(two.completions())) == (10, 10)
    assert [c.token_ids for c in completions] == expected(asked)
    assert {c.logprobs for c in completions} == {(-0.5,) * 3}


def test_no_more_requests_are_in_flight_than_allowed():
    open_now, most, lock = [], [], threading.Lock()

    class Slow(Pretender):
        def complete(self, body):
            with lock:
                open_now.append(1)
                most.append(len(open_now))
            time.sleep(0.02)
            with lock:
                open_now.pop()
            return super().complete(body)

    with Front(Slow(MODEL)) as front:
        bound(front, in_flight=3).generate(prompts(12), SPEC)
    assert max(most) == 3


def test_a_dead_server_among_several_is_left_out_until_the_next_load():
    with Front(Pretender(MODEL)) as alive, Front(Pretender(MODEL)) as dead:
        engine = bound(alive, dead, in_flight=2)
        dead.close()
        asked = prompts(12)
        assert [c.token_ids for c in engine.generate(asked, SPEC)] == expected(asked)
        assert len(alive.completions()) == 12
        with pytest.raises(RuntimeError, match=f"version 3 did not reach every server: {dead.url}/.* cannot be reached"):
            engine.load_weights(MODEL.named_full_weights(), 3)
        with pytest.raises(RuntimeError, match="holds no weights"):
            engine.generate(asked, SPEC)


def test_a_failing_server_is_left_alone_while_another_answers():
    with Front(Pretender(MODEL)) as sound, Front(Scripted(*[500] * 99)) as failing:
        asked = prompts(12)
        assert [c.token_ids for c in bound(sound, failing, in_flight=1).generate(asked, SPEC)] == expected(asked)
        assert len(sound.completions()) == 12 and len(failing.completions()) <= 2  # those open before the first failure


def test_a_restarted_server_gets_no_request_before_the_next_load():
    one, two = Pretender(MODEL), Pretender(MODEL)
    with Front(one) as first, Front(two) as second:
        both, alone = bound(first, second), bound(second, retries=1)
        two.process = "2"
        asked = prompts(8)
        assert [c.token_ids for c in both.generate(asked, SPEC)] == expected(asked) and len(first.completions()) == 8
        with pytest.raises(RuntimeError, match=f"{second.url} was restarted after the last weight load, so it holds other"):
            alone.generate(asked, SPEC)
        alone.load_weights(MODEL.named_full_weights(), 1)
        assert [c.token_ids for c in alone.generate(asked, SPEC)] == expected(asked)


@pytest.mark.parametrize(
    "path, answer, words",
    [
        ("/collective_rpc", (500, "shapes differ"), "status 500 shapes differ; check that this server serves the model"),
        ("/reset_prefix_cache", (200, {"success": False}), "could not reset its prefix cache"),
    ],
)
def test_a_server_that_does_not_take_the_weights_is_named(path, answer, words, tmp_path):
    server = Pretender(MODEL)
    with Front(lambda *asked: answer if server.model is None and asked[0] == path else server(*asked)) as front:
        engine = bound(front, weights_dir=str(tmp_path))
        server.model = None
        with pytest.raises(RuntimeError, match=f"the weights of version 1 did not reach every server: {front.url}.*{words}"):
            engine.load_weights(MODEL.named_full_weights(), 1)
    assert engine.version is None and not list(tmp_path.iterdir())


def test_weights_travel_in_shards_under_every_name(tmp_path):
    found = {}

    class Reading(Pretender):
        def call(self, method, arguments):
            if method == "reload_weights":
                files = sorted(tmp_path.glob("*/*.safetensors"))
                assert {str(file.parent) for file in files} == {arguments["weights_path"]}
                found.update(weight for file in files for weight in load_file(file).items())
            return super().call(method, arguments)

    with Front(Reading(MODEL)) as front:
        bound(front, weights_dir=str(tmp_path))
        methods = [body["method"] for path, body in front.asked if path == "/collective_rpc"]
    assert methods == ["weight_checksums", "update_config", "reload_weights"]
    assert front.asked[-1][0] == "/reset_prefix_cache"
    weights = dict(MODEL.named_full_weights())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    assert found.keys() == weights.keys() and all(torch.equal(found[name], w) for name, w in weights.items())
    assert not list(tmp_path.iterdir())


def test_shards_are_small(tmp_path):
    weights = {f"w{i}": torch.full((rows, 4), float(i)) for i, rows in enumerate([1, 2, 3, 9, 1, 1])}
    write_shards(iter([*weights.items(), ("again", weights["w5"])]), tmp_path, limit=5 * 16)
    shards = [load_file(file) for file in sorted(tmp_path.iterdir())]
    assert [set(shard) for shard in shards] == [{"w0", "w1"}, {"w2"}, {"w3"}, {"w4", "w5", "again"}]
    assert all(torch.equal(shard[name], weights[name]) for shard in shards for name in shard if name != "again")


def test_a_call_works_inside_a_running_event_loop():
    async def cell():
        return bound(front).generate(prompts(2), SPEC)

    with Front(Pretender(MODEL)) as front:
        assert [c.token_ids for c in asyncio.run(cell())] == expected(prompts(2))


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_rank_alone_writes_and_tells_and_all_ranks_learn_of_a_failure(fails, tmp_path):
    def load():
        rank = int(os.environ["LOCAL_RANK"])
        dist.init_process_group("gloo", rank=rank, world_size=2)
        engine = VLLMServerEngine([front.url], retries=0)
        engine.bind(MODEL, TOKENIZER)
        looked = []
        weights = ((looked.append(name) or name, weight) for name, weight in MODEL.named_full_weights())
        try:
            engine.load_weights(weights, 4)
            end = f"version {engine.version} {engine.generate(prompts(1), SPEC)[0].token_ids}"
        except RuntimeError as error:
            end = f"version {engine.version} {error}"
        assert looked == [name for name, _ in MODEL.named_full_weights()]
        Path(f"end.{rank}").write_text(end)

    server = Scripted()
    if fails:
        server.call = lambda method, arguments: (500, "no") if method == "reload_weights" else server.__class__.call(
            server, method, arguments)  # fmt: skip
    with Front(server) as front:
        assert run_forked(load, tmp_path, ranks=2) == [0, 0]
        assert [body.get("method") for _, body in front.asked].count("reload_weights") == 1
    ends = {(tmp_path / f"end.{rank}").read_text() for rank in range(2)}
    if fails:
        assert len(ends) == 1
        assert ends.pop().startswith(
            f"version None the weights of version 4 did not reach every server: {front.url}/collective"
        )
    else:
        assert ends == {f"version 4 {expected(prompts(1))[0]}"}
