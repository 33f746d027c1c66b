"""What can be said of a vLLM server without vLLM: command, messages. With it: tests/end_to_end/vllm."""

import itertools
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from stages.blocks import HardwareSettings, LoRASettings, TokenSettings
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.responses.vllm_client import VLLMEngine
from stages.responses.vllm_server import make_command, open_vllm
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
            VLLMEngine(context, ranks, f"http://127.0.0.1:{server.server_port}", "key", tmp_path)
    finally:
        server.shutdown()
        server.server_close()
