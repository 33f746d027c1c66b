"""What can be said of a vLLM server without vLLM: command, messages. With it: tests/end_to_end/vllm."""

import itertools
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from stages.blocks import HardwareSettings, LoRASettings, TokenSettings
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.responses.vllm_client import VLLMEngine, _save_weights, find_room, measure_handed_over, read_response
from stages.responses.vllm_server import list_weights_dirs, make_command, open_vllm
from stages.settings import PPOSettings, RolloutSettings
from stages.spec import StageSpec


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
    _save_weights(policy, tmp_path)
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
