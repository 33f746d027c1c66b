"""SFT and RM on a pretend GPU (tests/pretend_gpu.py): every branch for a GPU runs, and makes what the CPU makes."""

import pytest
import torch

from data.tokens import EncodedComparison, EncodedPair
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.models.tokenizer import align_special_tokens, load_tokenizer
from stages.process.context import StageContext
from stages.trl.rm import make_ranking_trainer
from stages.trl.sft import make_sft_trainer
from stages.trl.training import train
from tests.pretend_gpu import pretend_gpu


def draw_ids(generator, length):
    return torch.randint(4, 800, (length,), generator=generator).tolist()


@pytest.fixture
def train_two_steps(make_stage, plain_hardware, base_model_dir):
    """train_two_steps("sft", device) -> (weights by name, the trained model)."""

    def run(stage, device, micro_batch_size=2, **changes):
        hardware = plain_hardware.model_copy(update={"device": device, "attention": "auto", **changes})
        sizes = {"batch_size": 4, "micro_batch_size": micro_batch_size}
        made = make_stage(stage, tag=f"{device}-{micro_batch_size}-{len(changes)}", hardware=hardware, epochs=1, log_every=1, **sizes)
        made.spec.checkpoint_dir.mkdir()
        context, base, generator = StageContext(made.spec), str(base_model_dir), torch.Generator().manual_seed(0)
        tokenizer = load_tokenizer(base)
        if stage == "sft":
            pairs = [EncodedPair(draw_ids(generator, 3 + index), draw_ids(generator, 4 + 2 * index)) for index in range(8)]
            trainer = make_sft_trainer(context, made.spec.settings, load_policy(base, hardware), tokenizer, pairs, pairs[:2])
        else:
            model = init_reward_model(base, hardware, seed=1)
            align_special_tokens(model, tokenizer)
            items = [
                EncodedComparison(draw_ids(generator, 5), [draw_ids(generator, 3 + index + k) for k in range(3)], (1, 2, 3), "")
                for index in range(8)
            ]
            trainer = make_ranking_trainer(context, made.spec.settings, model, tokenizer, items, items[:2])
        assert train(trainer, context) == 2
        return {name: weight.detach().cpu().clone() for name, weight in trainer.model.named_parameters()}, trainer

    return run


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_one_process_that_sees_two_gpus_trains_on_one_of_them_what_the_cpu_trains(train_two_steps, stage):
    expected, _ = train_two_steps(stage, "cpu")
    with pretend_gpu(2):
        found, trainer = train_two_steps(stage, "auto")
        assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 2
        assert trainer.args.ddp_find_unused_parameters is False
        assert all(parameter.is_cuda for parameter in trainer.model.parameters())
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_a_micro_batch_never_makes_the_cpu_wait_for_the_gpu(train_two_steps, stage):
    waits = {}
    for micro_batch_size in (4, 1):  # two micro-batches in two steps, or eight
        with pretend_gpu() as gpu:
            train_two_steps(stage, "auto", micro_batch_size)
        waits[micro_batch_size] = dict(gpu.syncs)
    assert waits[1] == waits[4]
