"""The equations of memory and time, against numbers worked by hand."""

import dataclasses

from pytest import approx, mark

from pipeline.cost.amounts import Amount, Lengths, count_answers, count_training
from pipeline.cost.machines import CONTEXT_BYTES, GPU, GPUS, HANDOVER, VLLM_STEP_S
from pipeline.cost.memory import CPU_LIBRARIES, PhaseMemory, add_overhead, find_peak, judge, measure_holes, measure_phases
from pipeline.cost.money import price_labels, price_storage
from pipeline.cost.plan import count_opened, list_parts
from pipeline.cost.serving import Serving, find_serving
from pipeline.cost.setup import Setup
from pipeline.cost.times import time_measured, time_models, time_on_gpus, time_served
from pipeline.cost.traced import extrapolate
from stages.blocks import RolloutSettings
from stages.process.need import measure_checkpoints, measure_most
from stages.settings import EvaluateSettings, PPOSettings, SFTSettings
from stages.tracing.report import Depth, Phase, StageTrace
from tests.bench.sizes import SIZES

ZERO = {"parameters": 0, "learning": [0], "held": 0, "whole": 0, "checkpoint": 0, "output": 0}


def make_depth(layers, phases, **more):
    return Depth(layers=layers, phases={name: Phase(**phase) for name, phase in phases.items()}, **(ZERO | more))


def test_each_phase_is_extrapolated_by_itself_and_then_the_peak_is_found():
    two = make_depth(2, {"a": {"start": 0, "peak": 100, "flops": 10}, "b": {"start": 5, "peak": 90, "flops": 0}}, held=20)
    three = make_depth(3, {"a": {"start": 0, "peak": 110, "flops": 14}, "b": {"start": 6, "peak": 115, "flops": 0}}, held=25)
    found = extrapolate(StageTrace(layers=10, depths=[two, three], tokens={}))
    assert (found.layers, found.held) == (10, 60)
    assert (found.phases["a"].peak, found.phases["a"].flops) == (180, 42)
    assert (found.phases["b"].peak, found.phases["b"].start) == (290, 13)  # the other phase is the larger one by now


def test_a_model_of_one_depth_is_itself():
    two = make_depth(2, {"a": {"start": 0, "peak": 100, "flops": 10}})
    assert extrapolate(StageTrace(layers=2, depths=[two], tokens={})).phases["a"].peak == 100


NEED = make_depth(
    4,
    {
        "load": {"start": 0, "peak": 400, "flops": 0},
        "forward": {"start": 1600, "peak": 1900, "flops": 0},
        "backward": {"start": 1800, "peak": 2000, "flops": 0},
    },
    parameters=100,
    learning=[100],
    held=400,
    whole=400,
)
DRAINED = make_depth(
    4, {"backward": {"start": 400, "peak": 700, "flops": 0}}, parameters=100, learning=[60, 40], held=400, whole=240, accumulates=True
)


def test_one_process_holds_all_that_was_traced():
    phases = {phase.name: phase for phase in measure_phases(NEED, Setup("none", on_gpu=False))}
    assert phases["backward"].device == {"weights": 400, "optimizer": 800, "gradients": 400, "activations": 400}
    assert find_peak(list(phases.values())).name == "backward"
    assert phases["load"].total == 400


def test_a_process_of_a_cpu_holds_tensors_libraries_and_the_holes_of_the_largest_pass():
    forward = PhaseMemory("forward", {"weights": 400, "activations": 300}, {})
    save = PhaseMemory("save", {"weights": 900}, {})  # nothing is freed before it whose place it could take
    assert measure_holes([forward, save], takes_turns=False) == approx(0.8 * 300)
    assert measure_holes([forward, save], takes_turns=True) == approx(2.0 * 300)
    assert measure_holes([save], takes_turns=True) == 0
    assert add_overhead(save, on_gpu=False, processes=2, resident=5e8, holes=240) == approx(900 + 240 + 5e8 + CPU_LIBRARIES)


def test_gradients_that_come_in_an_update_are_none_of_its_activations():
    need = make_depth(2, {"update": {"start": 1200, "peak": 1700, "flops": 0}}, learning=[60, 40], held=400)
    (update,) = measure_phases(need, Setup("none", on_gpu=False))
    assert update.device == {"weights": 400, "optimizer": 800, "gradients": 400, "activations": 100}


def test_the_policys_gradients_stay_while_the_critic_learns():
    phases = {"update": {"start": 400, "peak": 700, "flops": 0}, "backward": {"start": 400, "peak": 700, "flops": 0}}
    need = make_depth(2, phases, learning=[60, 40], held=400, whole=240)
    for stage, kept in ((1, 4 * 60), (2, 4 * 60 // 4), (3, 4 * 100 // 4)):
        update, backward = measure_phases(need, Setup("deepspeed", 4, 4, stage, on_gpu=False))
        assert update.device["gradients"] == kept
        assert backward.device["gradients"] == (100 if stage == 3 else 0)


def test_a_large_model_is_written_file_by_file():
    def write(size):
        need = make_depth(2, {"save": {"start": 7, "peak": 7 + size, "flops": 0}}, learning=[1])
        (phase,) = measure_phases(need, Setup("none", on_gpu=True))
        return phase.host

    assert write(10**9) == {"weights": 10**9, "bytes of the file": 10**9}
    assert write(282 * 10**9) == {"weights": 282 * 10**9, "bytes of the file": 50 * 10**9}  # 70 B in float32


def test_ddp_adds_buckets_of_all_gradients():
    phases = {phase.name: phase for phase in measure_phases(NEED, Setup("ddp", 2, 2, on_gpu=False))}
    assert phases["backward"].total == 2000 + 400


@mark.parametrize(
    ("stage", "weights", "optimizer", "gradients"),
    [(1, 400, 12 * 100 // 4, 400), (2, 400, 12 * 100 // 4, 100), (3, 100, 12 * 100 // 4, 100)],
)
def test_zero_shares_out_what_its_stage_says(stage, weights, optimizer, gradients):
    (phase,) = measure_phases(DRAINED, Setup("deepspeed", 4, 4, stage, on_gpu=False))
    assert (phase.device["weights"], phase.device["optimizer"], phase.device["gradients"]) == (weights, optimizer, gradients)
    assert phase.device["activations"] == 300
    assert phase.device.get("gathered weights", 0) == (240 if stage == 3 else 0)


@mark.parametrize(
    ("whole", "activations", "forward", "backward", "by_ppo"),
    [
        # All come in one buffer, and are copied from it: 98 MB and 98 MB. A trainer goes back with the copies. PPO's forward ends with the
        # buffer alone; its activations of 30 MB are less than the copies with which it begins, by 68 MB.
        (98 * 10**6, 149 * 10**6, 196 * 10**6, 98 * 10**6, 98 * 10**6),
        (98 * 10**6, 30 * 10**6, 196 * 10**6, 98 * 10**6, 166 * 10**6),
        # Buffers have 50 million numbers of 4 B. 10**9 may be gathered, and a weight stays if it comes again within as many: of 300 million
        # the first comes after 600 million, or 900 where activations are recomputed; of 500 million some are fetched again on the way back.
        (12 * 10**8, 3 * 10**9, 1400 * 10**6, 1200 * 10**6, 200 * 10**6),
        (2 * 10**9, 3 * 10**9, 2200 * 10**6, 2200 * 10**6, 200 * 10**6),
        (32 * 10**9, 3 * 10**9, 4200 * 10**6, 4200 * 10**6, 4200 * 10**6),
    ],
)
def test_at_stage_3_ppos_forward_gives_gathered_weights_away_and_a_trainers_keeps_them(whole, activations, forward, backward, by_ppo):
    names = ("forward", "backward", "update", "ptx", "optimizer")
    phases = {name: {"start": 0, "peak": whole + activations, "flops": 0} for name in names}
    need = make_depth(2, phases | {"rollout/decode": {"start": 0, "peak": whole, "flops": 0}}, learning=[1], held=whole, whole=whole)
    found = [phase.device["gathered weights"] for phase in measure_phases(need, Setup("deepspeed", 2, 2, 3, on_gpu=True))]
    assert found == [forward, backward, by_ppo, by_ppo, 0, whole]


def test_at_stage_3_adapters_stay_whole_and_backward_does_not_come_to_what_is_below_the_first():
    # A Llama of 25 M under adapters of rank 16, in numbers: 24 projections of its MLPs, 16 + 16 of its attention, embeddings and head.
    large = 4 * (24 * 1408 * 512 + 16 * 512 * 512 + 16 * 256 * 512 + 2 * 822 * 512)
    # In each layer adapters of three projections of the MLP, two and two of attention; norms. None has more than 100,000 numbers.
    small = 4 * (8 * 16 * (3 * (1408 + 512) + 2 * (512 + 512) + 2 * (256 + 512)) + 17 * 512)
    passed = 4 * (822 * 512 + 512 * 512 + 2 * 256 * 512)  # embeddings; the first layer's queries, keys and values
    assert (large, small, passed) == (97_738_752, 4_818_944, 3_780_608)

    def gather(names, small, passed):
        held = sum(small) + large
        phases = {name: {"start": 0, "peak": held + 132 * 10**6, "flops": 0} for name in names}
        need = make_depth(8, phases, learning=[1], held=held, whole=small[0] + large, small=small, passed=passed)
        return [phase.device["gathered weights"] for phase in measure_phases(need, Setup("deepspeed", 2, 2, 3, on_gpu=False))]

    # A buffer without adapters, copies without what is passed by, adapters; a step gives all away and gathers adapters in its end.
    assert gather(("forward", "backward", "optimizer"), [small], passed) == [
        large + large - passed + small,
        large - passed + small,
        small,
    ]
    # PPO's critic holds the reward model's adapter too. A rollout has the policy's weights, and what the critic's step left.
    assert gather(("update", "rollout/decode"), [small, 2 * small], 0) == [large + 3 * small, large + 3 * small]


def test_between_cpus_gloo_keeps_a_copy_of_what_is_gathered_of_each_model_and_of_the_ranks_piece():
    need = make_depth(2, {"update": {"start": 400, "peak": 700, "flops": 0}}, learning=[60, 40], held=400, whole=240)

    def count(stage, on_gpu):
        return measure_phases(need, Setup("deepspeed", 4, 4, stage, on_gpu=on_gpu))[0].device["communication"]

    assert count(3, on_gpu=False) == 2 * 4 * 60 + 4 * (240 + 60)  # buckets of the policy's and the critic's gradients, then copies
    assert count(2, on_gpu=False) == 4 * 60
    assert count(3, on_gpu=True) == 2 * 2 * 10**9


def test_loading_in_pieces_holds_one_whole_weight_beside_the_piece():
    # 1,217 M weights of 4 B on two processes, the largest of them 262 MB: 2,696 MB. tests/bench/README.md measured 2,678.
    phases = {"load": {"start": 0, "peak": 4868 * 10**6, "flops": 0}}
    need = make_depth(2, phases, learning=[1], held=4868 * 10**6, largest=262 * 10**6)

    def load(stage, on_gpu):
        (phase,) = measure_phases(need, Setup("deepspeed", 2, 2, stage, on_gpu=on_gpu))
        return (phase.host if on_gpu else phase.device)["weights"]

    assert load(3, on_gpu=False) == load(3, on_gpu=True) == 2434 * 10**6 + 262 * 10**6
    assert load(2, on_gpu=False) == 4868 * 10**6


def test_without_accumulation_gradients_come_as_activations_go():
    need = DRAINED.model_copy(update={"accumulates": False})
    gradients = [measure_phases(need, Setup("deepspeed", 4, 4, stage, on_gpu=False))[0].device["gradients"] for stage in (2, 3)]
    assert gradients == [0, 100]


def test_what_is_offloaded_lies_in_the_hosts_memory():
    (phase,) = measure_phases(DRAINED, Setup("deepspeed", 4, 4, 3, True, True, on_gpu=True))
    assert phase.host == {"weights": 100, "optimizer": 300, "gradients": 100}
    assert "optimizer" not in phase.device and "weights" not in phase.device


def test_a_verdict_is_tight_from_80_percent_on():
    assert [judge(need, 100).word for need in (80, 81, 100, 101)] == ["fits", "tight", "tight", "does not fit"]


def test_training_goes_forward_over_held_out_records_and_back_over_none():
    amount = count_training(tokens=10, batch_records=4, records=100, epochs=2, scored_tokens=50)
    assert amount.phases == {"forward": 2050, "backward": 2000}
    assert amount.steps == {"optimizer": 50}


def test_answers_are_decoded_in_batches_of_each_process():
    amount = count_answers(64, prompt=10, quantiles=[20], rows=8, processes=2, prefix="rollout/")
    assert amount.phases == {"rollout/prefill": 640}
    assert amount.steps == {"rollout/decode": 4 * 19}  # the prefill gives each its first token
    assert (amount.rows, amount.width) == (8, 20)


def test_an_answer_takes_all_its_steps_however_many_processes_there_are():
    def count(answers, processes):
        return count_answers(answers, prompt=10, quantiles=[20], rows=8, processes=processes, prefix="", at_once=512).steps["decode"]

    assert count(64, 64) == count(64, 256) == count(1, 1024) == 19
    assert count(3, 2) == 19  # one process answers two, in two rows
    assert count(1024, 128) == 2 * 19


ROUND = GPU(memory=1e10, flops=1e12, bandwidth=1e11, link=1e9, watts=100, float32=1e11)


def test_products_take_their_operations_over_the_share_of_the_rate_of_all_gpus():
    need = make_depth(2, {"forward": {"start": 0, "peak": 0, "flops": 7 * 10**12}}, learning=[0])
    spent = time_on_gpus("train", Amount({"forward": 200.0}), need, {"forward": 100}, ROUND, Setup("none"))
    assert spent.seconds == approx(2 * 7e12 / (1e12 * 0.35))


def test_a_decoding_step_reads_weights_keys_and_values():
    need = make_depth(
        1, {"rollout/decode": {"start": 0, "peak": 0, "flops": 1}}, parameters=5 * 10**9, whole=10**10, cache=10**6, learning=[0]
    )
    amount = Amount({}, {"rollout/decode": 10.0}, rows=4, width=100)
    spent = time_on_gpus("rollout", amount, need, {}, ROUND, Setup("none"))
    assert spent.seconds == approx(10 * ((1e10 + 4 * 100 * 1e6) / (1e11 * 0.6) + 0.15e-3))


def test_a_captured_step_adds_its_small_kernels_and_a_launched_one_takes_no_less_than_its_launches():
    phases = {"rollout/decode": {"start": 0, "peak": 0, "flops": 0}}
    need = make_depth(10, phases, parameters=3 * 10**7, whole=12 * 10**7, learning=[1], captured=True)
    amount = Amount({}, {"rollout/decode": 100.0}, rows=1)

    def decode(need, setup):
        spent = time_on_gpus("rollout", amount, need, {}, ROUND, setup)
        return spent.seconds / 100, spent.how

    read = 2 * 3e7 / (1e11 * 0.6)  # 1 ms
    for setup in (Setup("none"), Setup("ddp", 2, 2), Setup("deepspeed", 2, 2, 2)):
        seconds, how = decode(need, setup)
        assert seconds == approx(read + 10 * 0.15e-3)
        assert "and small kernels 0.0015 s, as a CUDA graph)" in how and "launch" not in how
    launched = need.model_copy(update={"captured": False})
    for depth, setup in ((launched, Setup("none")), (need, Setup("deepspeed", 2, 2, 3))):  # weights that are shared out
        seconds, how = decode(depth, setup)
        assert seconds == approx(10 * 0.9e-3)
        assert "and small kernels 0.0015 s; without a CUDA graph at least launches 0.009 s)" in how
    larger = launched.model_copy(update={"parameters": 6 * 10**8, "whole": 24 * 10**8})  # reads for 20 ms
    assert decode(larger, Setup("none"))[0] == approx(20 * read + 10 * 0.15e-3)
    nothing_learns = need.model_copy(update={"learning": []})  # evaluate opens whole models
    assert decode(nothing_learns, Setup("deepspeed", 2, 2, 3))[0] == approx(read + 10 * 0.15e-3)


@mark.parametrize(
    ("size", "rows", "step_ms", "measured_ms", "launched_ms"),
    [
        # Weights and cache, 0.27 + 0.68 GB at 2.01e12 B/s: 0.47 ms; 12 x 0.15 ms.
        ("wide", 64, 2.27, 2.04, 10.8),
        # 2.40 + 9.66 GB: 6.00 ms; 16 x 0.15 ms.
        ("1b", 256, 8.40, 9.4, 14.4),
    ],
)
def test_a_rollout_by_captured_steps_takes_what_it_took_on_an_h100(size, rows, step_ms, measured_ms, launched_ms):
    """Prompts of 64 to 256 tokens, 256 new ones; measured: the whole rollout by its 256 steps, the first of which is the prefill."""
    shape, gpu = SIZES[size], GPUS["h100"]
    tokens = {"rollout/prefill": rows * 160, "rollout/decode": rows}
    phases = {name: {"start": 0, "peak": 0, "flops": 2 * shape.parameters * through} for name, through in tokens.items()}
    sizes = {"parameters": shape.parameters, "whole": 4 * shape.parameters, "cache": shape.layers * 2 * shape.hidden * 2}
    need = make_depth(shape.layers, phases, **sizes, captured=True)
    amount = count_answers(rows, 160, [256], rows, 1, "rollout/")
    assert amount.steps == {"rollout/decode": 255} and (amount.rows, amount.width) == (rows, 288)

    def decode(need, **phases):
        return time_on_gpus("rollout", dataclasses.replace(amount, phases=phases), need, tokens, gpu, Setup("none")).seconds

    assert 1e3 * decode(need) / 255 == approx(step_ms, rel=0.01)
    assert 1e3 * decode(need, **amount.phases) / 256 == approx(measured_ms, rel=0.2)
    assert 1e3 * decode(need.model_copy(update={"captured": False})) / 255 == approx(launched_ms, rel=0.01)


def test_measured_seconds_go_by_tokens_and_by_steps():
    need = make_depth(
        1,
        {"forward": {"start": 0, "peak": 0, "flops": 1, "seconds": 0.5}, "optimizer": {"start": 0, "peak": 0, "flops": 0, "seconds": 0.1}},
    )
    spent = time_measured("train", Amount({"forward": 1000.0}, {"optimizer": 3.0}), need, {"forward": 100}, processes=2)
    assert spent.seconds == approx(1000 * 0.005 / 2 + 0.3)


def test_models_are_opened_as_often_as_stages_open_them_and_adapters_are_merged_into_one_that_is_opened_anew():
    adapter, merged = {"lora": {"merge": False}}, {"lora": {"merge": True}}
    assert [count_opened(SFTSettings.model_validate(given)) for given in ({}, adapter, merged)] == [1, 1, 2]
    ppo = [PPOSettings.model_validate(given) for given in ({}, adapter, adapter | {"share_weights": False}, merged)]
    assert [count_opened(each) for each in ppo] == [4, 2, 4, 3]
    assert [count_opened(each, reward_adapter=True) for each in ppo] == [4, 1, 4, 2]
    assert [count_opened(EvaluateSettings(), kept) for kept in (0, 3)] == [4, 7]


def test_models_take_as_long_as_their_bytes():
    found = time_models(3, 2e9, 5e9, 0.4e-9, 1e-9)
    assert found.seconds == approx(3 * 0.8 + 5.0)
    assert found.how == "opening 3 x 2e+09 B x 0.4 s/GB; writing 5e+09 B x 1 s/GB"
    assert time_models(3, 2e9, 5e9, 0.0, 0.0).how.startswith("not measured")


def test_the_disk_holds_three_checkpoints_or_two_and_the_output():
    assert measure_checkpoints(10, saves=5) == (30, 20)
    assert measure_checkpoints(10, saves=1, complete=1) == (10, 10)
    assert measure_most(10, 4, saves=5) == 30
    assert measure_most(10, 14, saves=5) == 34
    assert measure_most(10, 4, saves=0) == 4


def test_where_nothing_learns_each_process_holds_whole_models_and_sends_nothing():
    phases = {"answers/prefill": {"start": 400, "peak": 500, "flops": 60}}
    need = make_depth(4, phases, parameters=100, learning=[], held=400, whole=400)
    for stage in (2, 3):
        setup = Setup("deepspeed", processes=4, per_node=4, zero_stage=stage, on_gpu=True)
        (answers,) = measure_phases(need, setup)
        assert answers.device == {"weights": 400, "optimizer": 0, "gradients": 0, "activations": 100}
        spent = time_on_gpus("answers", Amount({"answers/prefill": 10.0}), need, {"answers/prefill": 10}, GPU(1, 1.0, 1e12, 1, 1, 1), setup)
        assert spent.seconds == approx(60 / (4 * 0.40))


def test_at_stage_3_weights_come_for_each_micro_batch_forward_and_backward():
    names = ("forward", "backward", "update", "ptx")
    need = make_depth(2, {name: {"start": 0, "peak": 0, "flops": 0} for name in names}, learning=[0], whole=400, held=400)

    def wait(*phases):
        amount = Amount(dict.fromkeys(phases, 40.0))
        spent = time_on_gpus("", amount, need, dict.fromkeys(names, 10), GPU(1, 1.0, 1, 1.0, 1, 1), Setup("deepspeed", 2, 2, 3))
        return spent.sending_s

    # Two micro-batches on each of two processes, half of 400 B each time; half of that is hidden.
    assert wait("forward", "backward") == wait("update") == wait("ptx") == 2 * 2 * 200 / 2


def test_held_out_records_are_not_packed():
    lengths = {"demonstrations": Lengths(records=100, prompt=10, response=10, held_out=5, known=True)}
    settings = SFTSettings(packing=True, epochs=1, eval_samples=0)
    train = list_parts(settings, lengths, (60, 40), 1)["train"]
    assert train.phases["backward"] == 100 * 20
    looks = (train.phases["forward"] - train.phases["backward"]) / (5 * 20)
    assert looks == 2  # after the epoch, and in the end


def test_sft_answers_no_more_prompts_than_are_held_out():
    def count(**held):
        lengths = {"demonstrations": Lengths(records=100, prompt=10, response=10, **held)}
        return list_parts(SFTSettings(eval_samples=64), lengths, (60, 40), 1)["answers"].phases["answers/prefill"]

    # Greedy and sampled.
    assert (count(), count(held_out=5, known=True), count(held_out=500, known=True)) == (2 * 640, 2 * 50, 2 * 640)
    assert count(held_out=0, known=True) == 0


def test_responses_by_vllm_are_counted_apart_from_what_the_stage_itself_computes():
    lengths = {"prompts": Lengths(8, 10, 0), "demonstrations": Lengths(8, 10, 20)}
    parts = list_parts(PPOSettings.model_validate({"rollout": {"engine": "vllm"}, "eval_samples": 4}), lengths, (60, 40), 1)
    for name in ("rollout", "held-out answers"):
        assert set(parts[name].phases) == {"prefill"} and set(parts[name].steps) == {"decode"}
    assert set(parts["held-out scores"].phases) == {"score/reward", "score/policy"}


def test_a_server_needs_its_part_of_the_weights_on_each_gpu():
    beside, apart = Serving(8, 0, 0.45), Serving(1, 1, 0.0)
    assert beside.measure_least(70 * 10**9) == 2 * 70e9 / 8 + CONTEXT_BYTES
    assert not beside.lacks_room(70 * 10**9, 85.9e9)
    assert beside.lacks_room(200 * 10**9, 85.9e9)  # 51 GB of 38.7
    assert apart.lacks_room(70 * 10**9, 85.9e9) and not apart.lacks_room(30 * 10**9, 85.9e9)
    assert not Serving(1, 1, 0.0, known=False).lacks_room(70 * 10**9, 85.9e9)  # elsewhere


def test_a_row_of_a_decoder_takes_the_operations_that_were_traced():
    need = make_depth(
        1, {"rollout/decode": {"start": 0, "peak": 0, "flops": 4 * 10**9}}, parameters=10**12, whole=2 * 10**12, cache=0, learning=[0]
    )
    fast = dataclasses.replace(ROUND, bandwidth=1e18)
    spent = time_on_gpus("", Amount({}, {"rollout/decode": 10.0}, rows=100), need, {"rollout/decode": 4}, fast, Setup("none"))
    assert spent.seconds == approx(10 * (100 * 1e9 / (1e12 * 0.4) + 0.15e-3))  # a mixture of experts: 5e8 of 1e12 weights


def test_labels_are_paid_for_what_two_people_rank_and_what_is_asked_again():
    labels = price_labels(900, overlap=0.1, again=0.1, price=0.5)
    assert (labels.rankings, labels.dollars) == (approx(1100), approx(550))
    assert price_storage(50e9, 0.02) == approx(1.0)
    few = price_labels(12, overlap=0.1, again=0.1, price=0.5)  # 14.67, of which the last is a ranking too
    assert (few.rankings, few.dollars) == (15, 7.5)


def test_a_micro_batch_takes_no_less_than_its_weights_take_to_be_read():
    # 2 operations a token and weight: 10**9 weights, each read once. A token in each of 100 micro-batches.
    need = make_depth(2, {"forward": {"start": 0, "peak": 0, "flops": 2 * 10**9}}, learning=[0])
    spent = time_on_gpus("train", Amount({"forward": 100.0}), need, {"forward": 1}, ROUND, Setup("none"))
    assert spent.unfilled and spent.seconds == approx(100 * 2e9 / (1e11 * 0.6))  # 2 B a weight
    full = time_on_gpus("train", Amount({"forward": 100.0}), need, {"forward": 100}, ROUND, Setup("none"))
    assert not full.unfilled


def test_a_micro_batch_of_a_small_model_takes_no_less_than_its_kernels_take_to_be_launched():
    need = make_depth(3, {"forward": {"start": 0, "peak": 0, "flops": 200}, "update": {"start": 0, "peak": 0, "flops": 600}}, learning=[0])
    forward = time_on_gpus("", Amount({"forward": 50.0}), need, {"forward": 10}, ROUND, Setup("none"))
    update = time_on_gpus("", Amount({"update": 50.0}, least=8), need, {"update": 10}, ROUND, Setup("none"))
    assert forward.unfilled and forward.seconds == approx(5 * 3 * 0.9e-3)
    assert update.seconds == approx(8 * 2 * 3 * 0.9e-3)  # forward and backward, in each of 8 minibatches


def test_an_older_gpu_computes_in_float32_and_decodes_from_weights_twice_as_wide():
    old = GPU(memory=1e10, flops=1e12, bandwidth=1e11, link=1e9, watts=100, float32=1e11, capability=7.5)
    assert (old.rate("bfloat16"), old.rate("float32"), ROUND.rate("bfloat16")) == (5e10, 1e11, 1e12)
    assert (ROUND.rate("float32", tf32=True), old.rate("float32", tf32=True)) == (5e11, 1e11)
    need = make_depth(1, {"rollout/decode": {"start": 0, "peak": 0, "flops": 1}}, parameters=10**9, whole=4 * 10**9, learning=[0])
    amount = Amount({}, {"rollout/decode": 1.0}, rows=1, width=1)
    assert time_on_gpus("rollout", amount, need, {}, old, Setup("none", precision="float32")).seconds == approx(
        4e9 / (1e11 * 0.6) + 0.15e-3
    )


def test_a_narrow_copy_is_made_where_half_of_what_is_free_holds_it():
    phases = {"rollout/decode": {"start": 500, "peak": 900, "flops": 0}}
    need = make_depth(2, phases, parameters=100, learning=[10], held=400, whole=400, narrow=100)
    (roomy,), (scarce,) = (measure_phases(need, Setup("none"), room) for room in (700.0, 650.0))
    # Weights 400 and the optimizer's 80 are there before: 220 or 170 are free.
    assert roomy.device["narrow copy"] == 100 and roomy.total == 900
    assert "narrow copy" not in scarce.device and scarce.total == 800


def test_a_server_has_its_own_gpus_or_a_share_of_the_stages():
    def find(**rollout):
        return find_serving(RolloutSettings.model_validate({"engine": "vllm"} | rollout))

    assert find_serving(RolloutSettings()) is None
    assert find() == Serving(1, 0, 0.4, sleeps=True)
    assert find(sleep=False) == Serving(1, 0, 0.9)
    assert find(options=["--tensor-parallel-size=8", "--gpu-memory-utilization", "0.45"]) == Serving(8, 0, 0.45, sleeps=True)
    assert find(command=["env", "CUDA_VISIBLE_DEVICES=6,7", "vllm"], options=["-tp", "2"]) == Serving(2, 2, 0.0)
    assert find(server="http://node7:8000") == Serving(1, 1, 0.0, known=False)
    assert find(options=["--tensor-parallel-size", "0"]).gpus == 1


def test_a_server_shares_weights_and_rows_out_and_is_handed_new_weights():
    need = make_depth(1, {}, parameters=10**9, cache=10**6, learning=[0])
    amount = Amount({"prefill": 1000.0}, {"decode": 10.0}, rows=4, width=100)
    gpu = GPU(memory=1e10, flops=1e12, bandwidth=1e11, link=1e9, watts=100, float32=1e11)
    spent = time_served("rollout", amount, need, gpu, 2, handed=2e9, times=3)
    read = 2e9 + 4 * 100 * 1e6
    assert spent.seconds == approx(2e9 * 1000 / (2 * 1e12 * 0.4) + 10 * (read / (2 * 1e11 * 0.6) + VLLM_STEP_S) + 3 * 2e9 / HANDOVER)


def test_a_server_reads_of_a_mixture_of_experts_what_its_rows_meet_and_multiplies_what_a_token_meets():
    need = make_depth(1, {}, parameters=10**9, row=5 * 10**8, learning=[0])  # a token meets a quarter of the weights

    def serve(rows, **tokens):
        amount = Amount({"prefill": 0.0} | tokens, {"decode": 10.0}, rows=rows, width=100)
        return time_served("rollout", amount, need, ROUND, 1, handed=0, times=0).seconds

    assert serve(1) == approx(10 * (0.5e9 / (1e11 * 0.6) + VLLM_STEP_S))  # 2.5e8 weights of 2 B
    assert serve(2) == approx(10 * (0.875e9 / (1e11 * 0.6) + VLLM_STEP_S))  # three quarters of them twice missed: 9 / 16
    assert serve(256) == approx(10 * (256 * 5e8 / (1e12 * 0.4) + VLLM_STEP_S))  # products; all weights would take 33 ms, these 320
    assert serve(1, prefill=1000.0) - serve(1) == approx(1000 * 5e8 / (1e12 * 0.4))


def test_our_own_decoder_reads_no_more_of_a_mixture_of_experts_either():
    phases = {"rollout/decode": {"start": 0, "peak": 0, "flops": 2 * 10**9}}
    need = make_depth(1, phases, parameters=10**9, whole=2 * 10**9, learning=[0])
    few = time_on_gpus("", Amount({}, {"rollout/decode": 10.0}, rows=2), need, {"rollout/decode": 4}, ROUND, Setup("none"))
    assert few.seconds == approx(10 * (2 * (1 - 0.75**2) * 1e9 / (1e11 * 0.6) + 0.15e-3))


def test_evaluation_counts_what_ppo_kept_and_lengths_as_they_are():
    lengths = {
        "prompts": Lengths(100, 10, 0, held_out=32),
        "demonstrations": Lengths(100, 10, 20, quantiles=(10.0, 20.0, 30.0)),
        "comparisons": Lengths(100, 10, 20, answers=4, held_out=50),
    }
    settings = EvaluateSettings(prompts=64, samples=8, policy_samples=2, comparisons=40, probe_prompts=10, batch_size=16)
    parts = list_parts(settings, lengths, (60, 40), 1, 3)
    answers = 32 * (2 + 1 + (1 + 3) * 2 + 1 + 8 + 1)  # base, PPO, what it kept, SFT; greedy ones
    assert parts["answers"].phases["answers/prefill"] == 10 * answers
    told = 32 * (10 + 2 * 20)
    assert parts["log-probabilities"].phases["score/policy"] == 2 * (4 * told + 32 * (10 + 2 * 40))  # by the model itself, and by SFT
    scored = 4 * told + 32 * (90 + 10 + 8 * 20 + 2 * 30 + 50) + 40 * (10 + 4 * 20) + 10 * (10 + 6 * 20)
    assert parts["scores"].phases["score/reward"] == scored


def test_ppo_ptx_counts_what_is_mixed_in():
    lengths = {"prompts": Lengths(8, 10, 0), "demonstrations": Lengths(8, 10, 20)}
    settings = {"iterations": 5, "rollout_batch_size": 8, "minibatch_size": 4, "ppo_epochs": 2, "ptx_coef": 1.0, "ptx_batch_size": 6}
    mixed = list_parts(PPOSettings.model_validate(settings), lengths, (60, 40), 1)["ptx"]
    assert mixed.phases == {"ptx": 5 * 2 * 2 * 6 * 30}
    texts = list_parts(PPOSettings.model_validate(settings | {"ptx_data": "texts"}), lengths, (60, 40), 1)["ptx"]
    assert texts.phases == {"ptx": 5 * 2 * 2 * 6 * 100}


def test_however_few_tokens_a_gpu_has_it_goes_through_each_minibatch_and_each_rollout():
    lengths = {"prompts": Lengths(8, 10, 0), "demonstrations": Lengths(8, 10, 20)}
    settings = {"iterations": 5, "rollout_batch_size": 8, "minibatch_size": 4, "ppo_epochs": 2, "ptx_coef": 1.0, "eval_samples": 0}
    parts = list_parts(PPOSettings.model_validate(settings), lengths, (60, 40), 64)
    assert {name: part.least for name, part in parts.items()} == {"rollout": 5, "score": 5, "update": 20, "ptx": 20}
    need = make_depth(2, {"ptx": {"start": 0, "peak": 0, "flops": 6 * 10**11}}, learning=[0], whole=400, held=400)
    few = time_on_gpus("ptx", parts["ptx"], need, {"ptx": 100}, ROUND, Setup("deepspeed", 64, 8, 3))
    # A micro-batch of 100 tokens: 3 times 10**9 weights of 2 B are read in each of 20 minibatches, of which a GPU has 2 tokens.
    assert few.unfilled and few.seconds - few.sending_s == approx(20 * 3 * 2e9 / (1e11 * 0.6))
    assert few.sending_s == approx(20 * 2 * 400 * 63 / 64 / 1e9 / 2)
