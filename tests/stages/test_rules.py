"""What a stage refuses before anything is loaded; the recipe's checks say the same with file and line (tests/pipeline/recipe)."""

import sys

import pytest

from stages.blocks import HardwareSettings, LoRASettings
from stages.evaluate_settings import JudgeSettings
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.process.runtime import check_rules
from stages.rules import find_refusals
from stages.sample_settings import SampleSettings
from stages.settings import PPOSettings, RMSettings, SFTSettings

QLORA = {"lora": LoRASettings(quantize="nf4")}
ZERO_3 = HardwareSettings(engine="deepspeed", zero_stage=3)


def refused(stage, settings, hardware=None, engine=None, num_processes=1):
    hardware = hardware or HardwareSettings()
    return [key for key, _ in find_refusals(stage, settings, hardware, engine=engine or hardware.engine, num_processes=num_processes)]


@pytest.mark.parametrize(
    ("stage", "settings", "keys"),
    [
        ("sft", SFTSettings(), ["sft.batch_size"]),
        ("rm", RMSettings(batch_size=12), []),
        ("ppo", PPOSettings(), ["ppo.minibatch_size"]),
        ("ppo", PPOSettings(minibatch_size=6, rollout_batch_size=12, ptx_batch_size=4), ["ppo.ptx_batch_size"]),
    ],
)
def test_sizes_that_three_processes_cannot_share_are_refused(stage, settings, keys):
    assert refused(stage, settings, num_processes=3) == keys
    assert refused(stage, settings) == []


def test_several_processes_need_an_engine():
    hardware = HardwareSettings(engine="none")
    assert refused("sft", SFTSettings(), hardware, num_processes=2) == ["hardware.engine"]
    assert refused("sft", SFTSettings(), hardware) == []


def test_4_bits_need_bitsandbytes_whole_weights_and_our_own_rollouts(monkeypatch):
    pytest.importorskip("bitsandbytes")
    assert refused("ppo", PPOSettings(**QLORA)) == []
    assert refused("ppo", PPOSettings(**QLORA), ZERO_3) == ["ppo.lora.quantize"]
    assert refused("ppo", PPOSettings(**QLORA, rollout={"engine": "vllm"})) == ["ppo.lora.quantize"]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert refused("sft", SFTSettings(**QLORA)) == ["sft.lora.quantize"]
    assert refused("sft", SFTSettings(lora=LoRASettings())) == []


def test_a_weight_in_the_loss_is_refused_where_answers_are_only_sampled():
    assert refused("sample", SampleSettings(rollout={"engine": "vllm", "importance_cap": 3.0})) == ["sample.rollout.importance_cap"]
    assert refused("sample", SampleSettings(rollout={"engine": "vllm", "importance_cap": 2.0})) == []  # as recipes in artifacts have it
    assert refused("ppo", PPOSettings(rollout={"engine": "vllm", "importance_cap": 3.0})) == []


def test_an_average_needs_whole_weights():
    assert refused("ppo", PPOSettings(ema_decay=0.9), ZERO_3) == ["ppo.ema_decay"]
    assert (
        refused("ppo", PPOSettings(ema_decay=0.9), HardwareSettings(zero_stage=3), engine="auto") == []
    )  # the stage knows what auto takes
    assert refused("ppo", PPOSettings(ema_decay=0.9), HardwareSettings(zero_stage=3), engine="deepspeed") == ["ppo.ema_decay"]


def test_to_choose_by_a_judge_there_must_be_one():
    by_judge = PPOSettings(publish="best", publish_by="judge")
    assert refused("ppo", by_judge) == ["ppo.publish_by"]
    assert not list(find_refusals("ppo", by_judge, HardwareSettings(), engine="auto", num_processes=1, judge="data.demo.rule:judge"))
    assert refused("ppo", PPOSettings(publish="best")) == refused("ppo", PPOSettings(publish_by="judge")) == []


def test_a_stage_tells_all_that_it_refuses_with_exit_code_2(make_stage):
    context = StageContext(make_stage("sft", hardware=HardwareSettings(engine="none", device="cpu")).spec)
    check_rules(context)
    context.world_size = 3
    with pytest.raises(
        StageError, match=r"^hardware\.engine: found none with 3 processes.* \| sft\.batch_size: found \d+, needed a multiple"
    ) as caught:
        check_rules(context)
    assert caught.value.exit_code == 2


def test_the_best_step_of_sft_needs_a_judge_where_that_chooses_and_whole_weights():
    by_judge = SFTSettings(publish="best", publish_by="judge")
    assert refused("sft", by_judge) == ["sft.publish_by"]
    assert list(find_refusals("sft", by_judge, HardwareSettings(), engine="none", num_processes=1, judge="mine:judge")) == []
    assert refused("sft", SFTSettings(publish="best", publish_by="judge", judge=JudgeSettings(reward_model="rm@v1"))) == []
    llm = {"url": "http://h/v1", "model": "big"}
    assert refused("sft", SFTSettings(judge=JudgeSettings.model_validate({"llm": llm}))) == []
    more = JudgeSettings.model_validate({"llm": llm | {"samples": 2}})  # of one sampled answer to each prompt
    assert refused("sft", SFTSettings(judge=more)) == ["sft.judge.llm.samples"]
    assert refused("sft", SFTSettings(publish="best")) == refused("sft", SFTSettings(publish_by="judge")) == []
    assert refused("sft", SFTSettings(publish="best"), ZERO_3) == ["sft.publish"]
    assert refused("sft", SFTSettings(), ZERO_3) == []
