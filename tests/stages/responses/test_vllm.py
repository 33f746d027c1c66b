"""What can be said of a vLLM server without vLLM: command, messages. With it: tests/end_to_end/vllm."""

import copy
import itertools
import json
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from safetensors.torch import load_file

from stages.blocks import HardwareSettings, LoRASettings, TokenSettings
from stages.models.adapters import apply_lora
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.responses.engine import Draw
from stages.responses.vllm_client import VLLMEngine, read_response
from stages.responses.vllm_server import list_weights_dirs, make_command, open_vllm, shares_gpu
from stages.responses.vllm_weights import find_room, measure_handed_over, save_weights
from stages.settings import PPOSettings, RolloutSettings
from stages.spec import StageSpec
from tests.pretend_gpu import pretend_gpu


@pytest.fixture
def make_context(tmp_path):
    def make(**rollout):
        settings = PPOSettings(rollout=RolloutSettings(engine="vllm", **rollout), lora=LoRASettings(rank=20))
        spec = StageSpec(
            stage="ppo",
            settings=settings,
            tokens=TokenSettings(),
            hardware=HardwareSettings(precision="float32"),
            models={"sft": "/models/sft"},
            data={},
            seed=7,
            output_dir=tmp_path / "output",
            checkpoint_dir=tmp_path / "checkpoints",
            events_path=tmp_path / "events.jsonl",
        )
        return StageContext(spec), settings

    return make


def test_the_command_samples_from_the_whole_distribution_and_has_room_for_the_adapter(make_context):
    context, settings = make_context(command=["env", "A=1", "vllm"], options=["--tensor-parallel-size", "2"])
    command = make_command(context, settings, 640, "127.0.0.1", 8000)
    assert command[:5] == ["env", "A=1", "vllm", "serve", "/models/sft"] and command[-2:] == ["--tensor-parallel-size", "2"]
    pairs = dict(itertools.pairwise(command))
    assert (pairs["--max-model-len"], pairs["--max-lora-rank"], pairs["--dtype"]) == ("640", "32", "float32")
    assert (pairs["--logprobs-mode"], pairs["--generation-config"]) == ("processed_logprobs", "vllm")
    without_lora = make_command(context, settings.model_copy(update={"lora": None}), 640, "127.0.0.1", 8000)
    assert "--enable-lora" not in without_lora and "dummy" in without_lora


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ({"command": ["no-such-vllm"]}, "no-such-vllm is not a program on"),
        ({"command": [sys.executable, "-c", "raise ValueError('no room')"]}, "exit code 1 before it answered: ValueError: no room"),
        ({"server": "http://127.0.0.1:9"}, "a server that answers is needed"),
    ],
    ids=["no program", "it ends", "nobody there"],
)
def test_a_server_that_does_not_come_up_is_told(make_context, ranks, tmp_path, rollout, said):
    context, settings = make_context(**rollout)
    with pytest.raises(StageError, match=said), open_vllm(context, ranks, settings, 64):
        pass
    assert not (tmp_path / "rollout").exists()


def test_a_secret_that_the_server_prints_does_not_stay_in_its_log(make_context, ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "canary-4711-canary")
    context, settings = make_context(command=[sys.executable, "-c", "import os; raise ValueError('no ' + os.environ['MY_TOKEN'])"])
    with pytest.raises(StageError), open_vllm(context, ranks, settings, 64):
        pass
    log = (tmp_path / "vllm.log").read_text()
    assert "ValueError: no ***" in log and "canary" not in log


def test_a_server_that_refuses_is_told_with_what_it_said(make_context, tmp_path, ranks):
    context, _ = make_context()

    class NotVLLM(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404, "nothing of the kind")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), NotVLLM)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(StageError, match=r"(?s)/v1/models: 404 .*nothing of the kind"):
            VLLMEngine(context, ranks, f"http://127.0.0.1:{server.server_port}", "key", [tmp_path])
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"not json", r"found 'not json', needed the models that it serves"),
        (b'{"data": []}', "needed the models that it serves, one of them a base"),
        (b'{"data": [3]}', "needed the models"),
        (b"[" * 100_000, "needed the models"),
        (b"\xff", "needed the models"),
    ],
)
def test_an_answer_that_is_no_vllms_is_told_in_one_line(make_context, tmp_path, ranks, reply, said):
    context, _ = make_context()

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(StageError, match=said) as caught:
            VLLMEngine(context, ranks, f"http://127.0.0.1:{server.server_port}", "key", [tmp_path])
    finally:
        server.shutdown()
        server.server_close()
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"token_ids": [1, 2], "logprobs": None},
        {"token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [], "logprobs": {"token_logprobs": []}},
        {"token_ids": [1] * 5, "logprobs": {"token_logprobs": [-1.0] * 5}},
        {"token_ids": [10], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [-1], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [True], "logprobs": {"token_logprobs": [-1.0]}},
        {"token_ids": [1], "logprobs": {"token_logprobs": [float("nan")]}},
        {"token_ids": [1], "logprobs": {"token_logprobs": [0.5]}},
        {"token_ids": "12", "logprobs": {"token_logprobs": [-1.0, -1.0]}},
    ],
)
def test_a_response_that_cannot_be_is_refused(choice):
    with pytest.raises((ValueError, TypeError, LookupError)):
        read_response({"choices": [choice]}, max_tokens=4, num_rows=10)
    whole = read_response({"choices": [{"token_ids": [1, 9], "logprobs": {"token_logprobs": [-0.5, 0]}}]}, max_tokens=4, num_rows=10)
    assert (whole.ids, whole.logprobs) == ([1, 9], [-0.5, 0.0])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_server_is_given_weights_in_the_precision_of_the_products(tiny, tmp_path, bfloat16):
    policy = tiny.policy()
    if bfloat16:
        tiny.compute_in_bfloat16(policy)
    save_weights(policy, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == policy.state_dict().keys()  # the head too, though it is tied
    for name, weight in policy.state_dict().items():
        narrow = bfloat16 and weight.dim() > 1  # vectors a server may keep wider
        assert found[name].dtype == (torch.bfloat16 if narrow else torch.float32), name
        assert torch.equal(found[name].float(), weight.to(found[name].dtype).float())
    assert measure_handed_over(policy) == sum(weight.nbytes for weight in found.values())


def test_weights_go_through_memory_where_the_server_is_on_this_machine_and_there_is_room(tmp_path):
    memory, beside = list_weights_dirs(tmp_path, None)
    assert memory.parent == Path("/dev/shm") and beside == tmp_path / "rollout" and list_weights_dirs(tmp_path, None)[0] == memory
    assert list_weights_dirs(tmp_path / "another", None)[0] != memory
    assert list_weights_dirs(tmp_path, "http://elsewhere:8000") == [beside]
    assert find_room([Path("/dev/shm"), tmp_path], 1000) == Path("/dev/shm")
    assert find_room([Path("/dev/shm"), tmp_path], 10**16) == tmp_path  # which then says itself that it is full


class SleepyServer(BaseHTTPRequestHandler):
    """Holds weights and a cache of keys and values as vLLM does, and answers only with both; `told` is all that it was asked."""

    def do_GET(self):
        self.reply({"data": [{"id": "base"}]})

    def do_POST(self):
        url = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        query, held = parse_qs(url.query), self.server.held
        told = "".join([url.path, *(f" {value}" for values in query.values() for value in values)])
        match url.path, query:
            case "/sleep", {"level": [level]}:
                held["kv_cache"] = held["weights"] = False
                self.server.forgot = level == "2"
            case "/wake_up", {"tags": tags}:
                held |= dict.fromkeys(tags, True)
            case "/collective_rpc", _ if body["method"] == "reload_weights":
                self.server.forgot = self.server.forgot and not held["weights"]
                assert (Path(body["kwargs"]["weights_path"]) / "model.safetensors").exists()
            case "/v1/load_lora_adapter", _:
                assert held["weights"] and (Path(body["lora_path"]) / "adapter_model.safetensors").exists()
            case "/v1/completions", _ if not all(held.values()) or self.server.forgot:
                return self.send_error(500, f"asleep: {held}")
        if not self.server.told or self.server.told[-1] != told:
            self.server.told.append(told)
        self.reply({"success": True, "choices": [{"token_ids": [5, 1], "logprobs": {"token_logprobs": [-1.0, -2.0]}}]})

    def reply(self, found):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_):
        pass


class Sleepless(SleepyServer):
    def do_POST(self):
        return self.send_error(404) if "/sleep" in self.path else super().do_POST()


@contextmanager
def run_sleepy_server(handler=SleepyServer):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.held, server.forgot, server.told = {"weights": True, "kv_cache": True}, False, []
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


FULL = ["/wake_up weights", "/collective_rpc", "/wake_up kv_cache", "/reset_prefix_cache true", "/v1/completions", "/sleep 2"]
ADAPTER = ["/wake_up weights kv_cache", "/v1/load_lora_adapter", "/v1/completions", "/sleep 1"]


@pytest.mark.parametrize("lora", [False, True])
def test_g10_a_server_on_the_same_gpu_is_awake_for_no_longer_than_it_is_asked(make_context, tiny, ranks, lora):
    policy = tiny.policy()
    with run_sleepy_server() as server:
        context, settings = make_context(server=f"http://127.0.0.1:{server.server_port}", sleep=True)
        if lora:
            policy = apply_lora(policy, LoRASettings(rank=2), "CAUSAL_LM", context.spec.hardware)
        else:
            settings = settings.model_copy(update={"lora": None})
        with open_vllm(context, ranks, settings, 64) as engine:
            assert server.held == {"weights": False, "kv_cache": False}  # before the first prompt too
            server.told.clear()
            for seed in (1, 2):
                answers = engine.answer(tiny.actor_learner(policy), [[3, 4], [5]], tiny.sampling(), Draw(seed))
                assert [answer.ids for answer in answers] == [[5, 1]] * 2
                assert server.held == {"weights": False, "kv_cache": False} and server.forgot != lora
    told = [word for word in server.told if word != "/v1/unload_lora_adapter"]
    assert told == (ADAPTER if lora else FULL) * 2


@pytest.mark.parametrize("lora", [False, True])
def test_a_process_on_another_node_hands_nothing_over_and_looks_into_none_of_the_main_ones_directories(
    make_context, tiny, ranks, tmp_path, lora
):
    policy = tiny.policy()
    with run_sleepy_server() as server:
        context, _ = make_context()
        if lora:
            policy = apply_lora(policy, LoRASettings(rank=2), "CAUSAL_LM", context.spec.hardware)
        other = copy.copy(ranks)
        other.index, other.is_main = 1, False
        engine = VLLMEngine(context, other, f"http://127.0.0.1:{server.server_port}", "key", [tmp_path / "of node 0"])
        engine.load(tiny.actor_learner(policy))
    assert server.told == [] and not (tmp_path / "of node 0").exists()


def test_g10_a_server_that_cannot_sleep_is_told_with_what_to_do(make_context, ranks):
    needed = r"start it with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode, or set ppo\.rollout\.sleep: false"
    with run_sleepy_server(Sleepless) as server:
        context, settings = make_context(server=f"http://127.0.0.1:{server.server_port}", sleep=True)
        with pytest.raises(StageError, match=needed), open_vllm(context, ranks, settings, 64):
            pass


def test_g10_a_server_sleeps_by_itself_where_it_shares_the_stages_gpu(make_context):
    def sleeps(**rollout):
        return shares_gpu(*make_context(**rollout))

    assert not sleeps() and sleeps(sleep=True)  # a CPU gives no memory away
    with pretend_gpu():
        assert sleeps() and not sleeps(sleep=False)
        assert not sleeps(command=["env", "CUDA_VISIBLE_DEVICES=7", "vllm"]) and not sleeps(server="http://elsewhere:8000")
        context, settings = make_context(options=["--gpu-memory-utilization", "0.6"])
        command = make_command(context, settings, 640, "127.0.0.1", 8000)
        assert "--enable-sleep-mode" in command and command[-2:] == ["--gpu-memory-utilization", "0.6"] and "0.4" in command
