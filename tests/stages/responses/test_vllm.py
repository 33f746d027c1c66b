"""What can be said of vLLM rollouts without vLLM: weights of tokens, guard, command, messages. With it: tests/end_to_end/vllm."""

import itertools
import math
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import torch

from stages.ppo.guards import require_same_policy
from stages.ppo.losses import compute_importance_weights, compute_policy_losses
from stages.ppo.metrics import describe_engine
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.responses.engine import TorchEngine
from stages.responses.figures import TokenFigures
from stages.responses.vllm_client import VLLMEngine
from stages.responses.vllm_server import make_command, open_vllm
from stages.settings import HardwareSettings, LoRASettings, PPOSettings, RolloutSettings, TokenSettings
from stages.spec import StageSpec

MASK = torch.tensor([[True, True, True], [True, False, False]])
TRAINER = torch.tensor([[math.log(0.5), math.log(0.1), math.log(0.9)], [math.log(0.2), 0.0, 0.0]])
ENGINE = torch.tensor([[math.log(0.25), math.log(0.2), math.log(0.1)], [math.log(0.2), -7.0, 0.0]])


def test_weights_are_ratios_up_to_the_cap_by_hand():
    weights = compute_importance_weights(TRAINER, ENGINE, MASK, 3.0)
    assert torch.allclose(weights, torch.tensor([[2.0, 0.5, 3.0], [1.0, 1.0, 1.0]]))


def test_weighted_advantages_weigh_the_loss():
    torch.manual_seed(0)
    logprobs, old, advantages, weights = -torch.rand(4, 6), -torch.rand(4, 6), torch.randn(4, 6), 2 * torch.rand(4, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    weighed = compute_policy_losses(logprobs, old, advantages * weights, mask, 0.2)
    assert torch.allclose(weighed, weights * compute_policy_losses(logprobs, old, advantages, mask, 0.2))


def test_the_gap_and_the_share_of_capped_tokens_by_hand():
    figures = TokenFigures(TRAINER, TRAINER, TRAINER, TRAINER)
    metrics = describe_engine(ENGINE, figures, MASK, 3.0, lambda tensor: tensor)
    assert metrics["rollout/logprob_gap"] == pytest.approx((math.log(2) + math.log(2) + math.log(9) + 0) / 4)
    assert metrics["rollout/importance_capped"] == pytest.approx(1 / 4)
    assert "rollout/importance_capped" not in describe_engine(ENGINE, figures, MASK, None, lambda tensor: tensor)


def test_an_engine_that_samples_from_another_model_is_refused():
    require_same_policy(0.02, 1)
    with pytest.raises(StageError, match=r"iteration 3: .* 1\.5 nats a token .* at most 0\.3 is needed"):
        require_same_policy(1.5, 3)


class Stale(TorchEngine):
    """Samples from a policy that it was given once."""

    def __init__(self, actor, autocast):
        super().__init__(64, autocast)
        self.actor = actor

    def answer(self, actor, *arguments, **options):
        return super().answer(self.actor, *arguments, **options)


def test_a_trainer_notices_weights_that_did_not_arrive(tiny, make_trainer, full_precision):
    trainer = make_trainer(rollout=RolloutSettings(engine="vllm"))
    trainer.engine = Stale(tiny.actor_learner(tiny.policy(seed=9)), full_precision)
    with pytest.raises(StageError, match="samples from another model"):
        trainer.step()


def test_the_torch_engine_says_what_the_trainer_says(make_trainer):
    metrics = make_trainer().step()
    assert metrics["rollout/logprob_gap"] < 1e-5
    assert "rollout/importance_capped" not in metrics


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
def test_a_server_that_does_not_come_up_is_told(make_context, accelerator, tmp_path, rollout, said):
    context, settings = make_context(**rollout)
    with pytest.raises(StageError, match=said), open_vllm(context, settings, accelerator, 64):
        pass
    assert not (tmp_path / "rollout").exists()


def test_a_server_that_refuses_is_told_with_what_it_said(make_context, tmp_path, accelerator):
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
            VLLMEngine(context, accelerator, f"http://127.0.0.1:{server.server_port}", "key", tmp_path)
    finally:
        server.shutdown()
        server.server_close()
