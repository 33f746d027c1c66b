"""Published runs on paper: each within a factor of 1.5, by closed forms and the shares of the rates that a plan uses; not by a plan."""

from pytest import approx

from pipeline.cost.amounts import Amount
from pipeline.cost.machines import BANDWIDTH_SHARE, GPUS, MFU_TRAIN
from pipeline.cost.times import time_served
from stages.tracing.report import Depth
from tests.pipeline.cost.closed_forms import PPORun, count_training, time_ppo, to_petaflop_days

BILLION = 1e9


def within(found, published, factor=1.5):
    return published / factor <= found <= published * factor


def test_a_petaflop_day_is_a_day_at_a_petaflop():
    assert to_petaflop_days(86_400e15) == 1.0


def test_gpt_3s_pretraining_took_3640_petaflop_days():
    """Brown et al. 2020, table D.1: 175 B weights, 300 B tokens."""
    assert to_petaflop_days(count_training(175 * BILLION, 300 * BILLION)) == approx(3640, rel=0.01)


def test_instructgpts_sft_took_4_9_petaflop_days():
    """Ouyang et al. 2022, appendix C: 16 epochs; table 6: 12,725 prompts; windows of 2,048 tokens, of which the paper pays each."""
    found = to_petaflop_days(count_training(175 * BILLION, 12_725 * 2048 * 16))
    assert found == approx(5.07, abs=0.01)
    assert within(found, 4.9)


def test_instructgpts_ppo_ptx_took_60_petaflop_days():
    """Appendix C: 256 k episodes, one epoch; RM and critic of 6 B; 8 pre-training examples for each episode; windows of 2,048 tokens."""
    episodes = 256_000
    run = PPORun(175 * BILLION, 6 * BILLION, episodes, 1024, 1024, ptx_tokens=8 * episodes * 2048)
    days = {name: to_petaflop_days(operations) for name, operations in run.count().items()}
    assert days["ptx"] == approx(51.0, abs=0.1)  # the most of it is not PPO
    assert days["update"] == approx(6.6, abs=0.1)
    assert within(sum(days.values()), 60)


def test_deepspeed_chats_13b_took_9_hours_on_8_a100():
    """Yao et al. 2023 (arXiv 2308.01320), table 1: step 3 of OPT-13B with a critic of 350 M: 135 M tokens, half of them sampled.

    Batches of 1,024 pairs; 256 + 256 tokens; activation checkpointing in its script, which adds a forward to each update.
    """
    gpu, gpus = GPUS["a100"], 8
    run = PPORun(13 * BILLION, 0.35 * BILLION, 135e6 / 512, 256, 256)
    rates = {"flops": gpu.flops, "bandwidth": gpu.bandwidth, "mfu": MFU_TRAIN, "bandwidth_share": BANDWIDTH_SHARE}
    seconds = time_ppo(run, gpus=gpus, rows=1024 / gpus, **rates)
    recomputed = seconds["update"] / 3
    hours = (sum(seconds.values()) + recomputed) / 3600
    assert within(hours, 9)


def test_deepspeed_chats_kernels_decode_an_answer_of_1_3b_in_2_5_s_on_v100():
    """A log of its repository (`actor_opt-1.3b_critic_opt-350m_globalBatchSize64.log`): 4 prompts a GPU, 256 + 256 tokens.

    Fused kernels, as a vLLM server has them; OPT-1.3B has 24 layers, whose keys and values are 2 x 2,048 numbers of 2 B a token.
    """
    sizes = {"parameters": 1.3e9, "cache": 24 * 2 * 2048 * 2, "learning": [0], "held": 0, "whole": 0, "checkpoint": 0, "output": 0}
    need = Depth(layers=24, phases={}, **sizes)
    answers = Amount({"prefill": 4 * 256}, {"decode": 255}, rows=4, width=384)
    assert within(time_served("rollout", answers, need, GPUS["v100-32"], 1, 0, 1).seconds, 2.5, 1.1)


def test_decoding_is_bound_by_memory_with_few_rows_and_by_products_with_many():
    run = PPORun(1 * BILLION, 0, 64, 1, 100)
    given = {"gpus": 1, "flops": 1e14, "bandwidth": 1e12, "mfu": 1.0, "bandwidth_share": 1.0}
    prefill = 2e9 * 64 / 1e14
    assert time_ppo(run, rows=1, **given)["rollout"] == approx(64 * 100 * 2e9 / 1e12 + prefill)
    assert time_ppo(run, rows=64, **given)["rollout"] == approx(100 * 2e9 / 1e12 + prefill)  # 2e9 x 64 / 1e14 = 1.28 ms < 2 ms
    assert time_ppo(run, rows=64, **given | {"bandwidth": 1e13})["rollout"] == approx(100 * 2e9 * 64 / 1e14 + prefill)
