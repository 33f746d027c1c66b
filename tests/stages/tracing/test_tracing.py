"""What a trace of fake tensors says against the same code on real ones, and against a deeper model."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys

from accelerate import Accelerator
from pytest import approx, fixture, mark, raises
from transformers import LlamaConfig, MistralConfig, Qwen3MoeConfig
from trl.kernels import chunked_logprob

from pipeline.cost.traced import extrapolate
from stages.blocks import HardwareSettings, LoRASettings, TokenSettings
from stages.evaluate.measure import describe_answers
from stages.internals import fakes
from stages.process.errors import StageError
from stages.spec import EXIT_MISSING, STAGES
from stages.tracing import __main__ as program
from stages.tracing import figures
from stages.tracing.__main__ import _answer_in_a_fork, _open_config
from stages.tracing.depths import find_deepest, find_depths, find_next, goes_straight
from stages.tracing.job import Job, try_family
from stages.tracing.live import Live
from stages.tracing.report import Depth, Phase, StageTrace, TraceReport, TraceSpec
from stages.tracing.resident import measure_resident
from stages.tracing.work import trace
from stages.trl.tiles import head_by_triton
from tests.bench.protocol import ROOT

LORA = {"rank": 4}
CASES = {
    "sft": ({"batch_size": 4, "micro_batch_size": 2, "eval_samples": 4}, {"batch_size": 2, "micro_batch_size": 2, "lora": LORA}),
    "rm": ({"batch_size": 2, "micro_batch_size": 2},),
    "ppo": (
        {"rollout_batch_size": 4, "minibatch_size": 4, "max_tokens_per_microbatch": 128},
        {"rollout_batch_size": 4, "minibatch_size": 4, "lora": LORA, "gradient_checkpointing": True, "ptx_coef": 1.0},
    ),
    "evaluate": ({"batch_size": 4, "prompts": 3, "policy_samples": 2},),
}


@fixture(scope="module")
def config():
    return LlamaConfig(
        hidden_size=64, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, vocab_size=512
    )


@fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def run(stage, settings, config, layers, accelerator, *, real=False, precision="float32", **given):
    spec = TraceSpec(
        base_model="none",
        tokens=TokenSettings(max_prompt_tokens=32, max_response_tokens=32),
        hardware=HardwareSettings(precision=precision),
        stages={stage: STAGES[stage].settings(**settings).model_dump(mode="json")},
        report_path="none",
        **given,
    )
    tried = try_family(config)
    live = Live()
    if real:
        with live:
            return trace(Job(spec, stage, config, tried, layers, live, accelerator))
    with fakes(), live:
        return trace(Job(spec, stage, config, tried, layers, live, accelerator))


@mark.slow
@mark.parametrize(("stage", "settings"), [(stage, settings) for stage, cases in CASES.items() for settings in cases])
def test_fake_tensors_hold_what_real_ones_hold_and_peaks_are_linear_in_depth(stage, settings, config, accelerator):
    two, three, five = (run(stage, settings, config, layers, accelerator) for layers in (2, 3, 5))
    real = run(stage, settings, config, 5, accelerator, real=True)
    assert five.held == real.held and five.learning == real.learning
    assert not five.learning or 4 * five.learning[0] <= five.held
    assert five.largest == 4 * 512 * 64  # embeddings
    for name, found in real.phases.items():
        if name == "load":  # real weights are drawn by other operations
            continue
        assert five.phases[name].peak == approx(found.peak, rel=0.005), name
        assert five.phases[name].flops == found.flops, name
        line = two.phases[name].peak + 3 * (three.phases[name].peak - two.phases[name].peak)
        assert line == approx(five.phases[name].peak, rel=0.005), name


@mark.slow
def test_what_zero_3_keeps_whole_and_gives_away_in_a_forward_is_counted(accelerator):
    config = LlamaConfig(
        hidden_size=512, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, intermediate_size=512, vocab_size=256
    )

    def count(stage, reward_lora=None, **settings):
        settings = CASES[stage][0] | {"lora": LORA} | settings
        depth = run(stage, settings, config, 2, accelerator, shares=True, reward_lora=reward_lora)
        return depth.small, depth.passed

    norms = 5 * 512
    # Each pair of rank 4: queries, output and three of the MLP 512 to 512, keys and values 512 to 256.
    adapters = 2 * 4 * (5 * (512 + 512) + 2 * (512 + 256))
    below = 256 * 512 + 512 * 512 + 2 * 256 * 512  # embeddings, the first layer's queries, keys and values
    assert count("rm") == ([4 * (norms + adapters + 2 * 512)], 4 * below)  # with the scalar head, and peft's copy, which learns
    assert count("sft") == ([4 * (norms + adapters)], 4 * below)
    # Where activations are recomputed, backward begins at the embeddings; so it does where all learn.
    assert count("sft", gradient_checkpointing=True) == ([4 * (norms + adapters)], 0)
    assert count("sft", lora=None) == ([4 * norms], 0)
    # PPO gives frozen weights away anyway. The critic's head has a bias.
    assert count("ppo") == ([4 * (norms + adapters), 4 * (norms + adapters + 513)], 0)
    # A critic on the SFT model's tensors has the reward model's adapter below its own; norms are the policy's.
    on_shared = count("ppo", reward_lora=LoRASettings.model_validate(LORA))
    assert on_shared == ([4 * (norms + adapters), 4 * (2 * adapters + 513)], 0)


def test_what_a_process_holds_before_it_opens_a_model_is_not_what_the_process_holds_that_started_it():
    child = "from stages.tracing.resident import measure_resident; print(measure_resident())"
    parent = "import subprocess, sys; held = bytearray(b'x') * 300_000_000; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    held = int(subprocess.run([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, check=True).stdout)
    assert 1e6 < held < 1e8 < measure_resident()  # which has imported what a trace does


@mark.slow
def test_a_mixture_of_experts_holds_and_computes_among_fake_tensors_what_real_ones_do(accelerator):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    config = Qwen3MoeConfig(**sizes, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.0)
    fake = run("ppo", CASES["ppo"][0], config, 2, accelerator)
    real = run("ppo", CASES["ppo"][0], config, 2, accelerator, real=True)
    assert (fake.held, fake.learning) == (real.held, real.learning)
    for name, found in real.phases.items():
        if name != "load":
            assert fake.phases[name].flops == found.flops, name
            assert fake.phases[name].peak == approx(found.peak, rel=0.01), name


@mark.slow
@mark.parametrize("experts", [1, 2, 4])
def test_a_servers_row_takes_the_experts_that_a_token_meets(experts, accelerator):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    config = Qwen3MoeConfig(**sizes, head_dim=16, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=experts)
    depth = run("ppo", CASES["ppo"][0] | {"rollout": {"engine": "vllm"}}, config, 2, accelerator)
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 64 * 4 + experts * 3 * 64 * 32  # attention's, the router's, the experts'
    assert depth.row == 2 * (2 * layer + 64 * 512)  # attention to a few tokens is not counted
    assert not any("decode" in name for name in depth.phases)


@mark.slow
def test_short_records_on_this_machine_are_planned_as_long_as_they_are(accelerator, config):
    given = {"longest": {"comparisons": (16, 20)}, "largest": {"comparisons": [80, 70, 60, 46]}}
    settings = {"batch_size": 4, "micro_batch_size": 4}
    known, limited = (run("rm", settings, config, 2, accelerator, answers=4, **more) for more in (given, {}))
    # 256 tokens in place of 4 x (32 + 4 x 32), and not 4 x (16 + 4 x 20) either: none of them has four answers of the longest.
    assert known.phases["forward"].flops / limited.phases["forward"].flops == approx(256 / 640, rel=0.02)


@mark.slow
def test_an_evaluation_decodes_no_more_rows_than_it_has_answers(config, accelerator):
    few, many = (
        run("evaluate", {"prompts": 3, "samples": 2, "policy_samples": 2, "batch_size": size}, config, 2, accelerator) for size in (6, 64)
    )
    assert few.phases["answers/decode"].flops == many.phases["answers/decode"].flops > 0


@mark.slow
def test_a_gpu_captures_steps_of_one_mask_for_all_layers_without_weights_in_4_bits(config, accelerator):
    windowed = MistralConfig(**config.to_dict() | {"sliding_window": 16})
    ppo = {"rollout_batch_size": 4, "minibatch_size": 4, "lora": LORA}
    sft, in_4_bits = (CASES["sft"][0] | {"lora": lora} for lora in (LORA, LORA | {"quantize": "nf4"}))

    def captures(config, stage, settings, *, on_gpu=True):
        depth = run(stage, settings, config, 2, accelerator, precision="bfloat16", on_gpu=on_gpu)
        return extrapolate(StageTrace(layers=2, depths=[depth], tokens={})).captured

    assert captures(config, "ppo", ppo) and captures(config, "sft", sft) and captures(config, "evaluate", CASES["evaluate"][0])
    assert not captures(config, "sft", in_4_bits)
    assert not captures(windowed, "ppo", ppo)
    assert not captures(config, "ppo", ppo, on_gpu=False)


@mark.slow
@mark.parametrize("changes", [{}, {"share_weights": False}])
def test_models_in_4_bits_with_a_reward_model_of_its_own_hold_what_real_ones_hold(changes, config, accelerator):
    settings = {"rollout_batch_size": 4, "minibatch_size": 4, "lora": LORA | {"quantize": "nf4"}, **changes}
    fake, real = (run("ppo", settings, config, 2, accelerator, real=real) for real in (False, True))
    plain = run("ppo", settings | {"lora": LORA}, config, 2, accelerator)
    assert fake.held == approx(real.held, rel=0.01) and fake.learning == real.learning
    assert fake.held < 0.8 * plain.held


@mark.slow
def test_a_gpu_decodes_by_a_narrow_copy_and_a_cache_of_one_block(config, accelerator):
    settings = {"rollout_batch_size": 4, "minibatch_size": 4, "lora": LORA}
    wide = run("ppo", settings, config, 2, accelerator, precision="bfloat16")
    gpu = run("ppo", settings, config, 2, accelerator, precision="bfloat16", on_gpu=True)
    linear = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)  # of two layers; the head is in bfloat16 already, as nothing adapts it
    adapters = 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert (wide.narrow, gpu.narrow) == (0, 2 * (linear + adapters))
    # Keys and values in bfloat16: 2 layers, 2 heads of 16 numbers; a GPU's cache has 128 columns to spare.
    assert gpu.cache == wide.cache == 2 * 2 * 2 * 16 * 2
    rows, columns = 4, 64 + 128 + 32
    assert wide.kept == wide.output > 4 * 4 * (2 * (64 + 64))  # an adapter, as it is published
    assert wide.best > 3 * 4 * wide.learning[0]  # with its moments
    assert gpu.phases["rollout/widen"].start - gpu.phases["rollout/prefill"].start == approx(rows * columns * gpu.cache, rel=0.05)


def test_layers_that_alternate_are_traced_by_whole_periods():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = LlamaConfig(hidden_size=64, num_hidden_layers=12, num_attention_heads=4)
    assert find_depths(config) == (2, 3, 12)
    config.layer_types = kinds * 2
    assert find_depths(config) == (6, 12, 12)


@mark.parametrize(
    ("took_s", "memory", "layers"),
    [
        ((1.0, 1.1), 10**12, 30),  # 0.05 s a layer: all thirty in 2.4 s
        ((4.0, 6.0), 10**12, 18),  # 20 s are left, 14 of them for layers at 1 s each, by whole periods of two
        ((10.0, 12.0), 10**12, None),  # 8 s are left, and as deep as the last again would take 12
        ((5.0, 4.0), 10**12, 30),  # disturbed: four layers take a tenth of 4 s at least, 0.1 s each
        ((1.0, 1.1), 4 * 3500, 8),  # 1,000 bytes at four layers, 500 a layer: 2,500 more are five, and so two periods
        ((1.0, 1.1), 4 * 1500, None),
    ],
)
def test_seconds_are_measured_as_deep_as_time_and_memory_allow(took_s, memory, layers):
    assert find_deepest((2, 4), (0, 1000), took_s, 30 - sum(took_s), 30, memory) == layers


@mark.parametrize(
    ("took_s", "flops", "memory", "straight"),
    [
        (1.5, (100, 200), 10**12, True),  # at most 15 times as long: 22.5 of 28.5 s
        (3.0, (100, 120), 10**12, True),  # 3.8 times the operations, taken twice: 22.8 of 27 s
        (3.0, (100, 200), 10**12, False),  # 15 times as long: 45 s
        (4.0, (100, 120), 10**12, False),  # 30.4 of 26 s
        (1.5, (100, 200), 4 * 13_999, False),  # 1,000 bytes at two more layers: 14,000 at thirty
        (1.5, (100, 200), 4 * 14_000, True),
    ],
)
def test_measuring_goes_straight_to_all_layers_where_the_first_two_tell_that_they_fit(took_s, flops, memory, straight):
    assert goes_straight((2, 4), (0, 1000), flops, took_s, 30 - took_s, 30, memory) == straight


@mark.parametrize(
    ("measured", "took_s", "clock_s", "memory", "layers"),
    [
        ([2], [1.5], 1.5, 10**12, 30),
        ([2], [1.5], 9.0, 10**12, 30),  # others have five parts of six: 28.5 s of 28.5, which are 171 by the clock
        ([2], [1.5], 18.0, 10**12, 4),  # of eleven parts of twelve: (180 - 18) / 12 = 13.5 s are left, and 22.5 may be needed
        ([2, 4], [4.0, 6.0], 10.0, 10**12, 18),
        ([2, 4], [4.0, 6.0], 120.0, 10**12, None),  # 60 s by the clock are 5 s of computing
        ([2, 4], [1.0, 1.1], 2.1, 4 * 1500, 2),  # no memory for more: both again
        ([2, 4, 2], [1.0, 1.1, 2.0], 4.1, 4 * 1500, 4),
        ([2, 4, 2, 4], [1.0, 1.1, 2.0, 2.1], 6.2, 4 * 1500, None),
        ([2, 4, 18], [4.0, 6.0, 20.0], 30.0, 10**12, None),
        ([2, 30], [1.5, 22.5], 24.0, 10**12, None),
    ],
)
def test_what_is_computed_says_how_deep_seconds_are_measured_and_the_clock_only_far_beyond(measured, took_s, clock_s, memory, layers):
    assert find_next((2, 4), measured, took_s, clock_s, (0, 1000), (100, 200), 30, memory) == layers


def test_a_model_of_no_more_layers_than_are_counted_is_measured_whole():
    assert find_next((2, 2), [2], [1.0], 1.0, (10, 10), (10, 10), 2, 10**12) is None
    assert find_next((2, 3), [2, 3], [9.0, 13.0], 22.0, (0, 10), (10, 15), 3, 10**12) is None


def test_seconds_are_measured_on_records_of_mean_length_at_the_peaks_and_operations_that_were_counted():
    def depth(layers):
        phases = {name: Phase(start=0, peak=peak * layers, flops=10 * layers) for name, peak in (("forward", 5), ("backward", 7))}
        return Depth(layers=layers, phases=phases, parameters=1, learning=[], held=1, whole=1, checkpoint=0, output=0)

    lengths = {
        "demonstrations": {"prompt": 20.4, "response": 0.2, "answers": 1.0},
        "comparisons": {"prompt": 9, "response": 9, "answers": 3.6},
    }
    traced = TraceReport(
        lengths={kind: {"records": 5, "held_out": 0, "most_answers": 4, **read} for kind, read in lengths.items()},
        stages={"sft": StageTrace(layers=9, depths=[depth(2), depth(3)], tokens={})},
        resident=0,
        import_s=0.0,
    )
    given = {"tokens": TokenSettings(max_prompt_tokens=64, max_response_tokens=32), "hardware": HardwareSettings(), "report_path": "none"}
    spec = TraceSpec(base_model="none", stages={"sft": {}}, timed=True, **given)
    measured = spec.to_measure(traced)
    assert (measured.measure, measured.timed, measured.data, measured.longest) == (True, False, {}, {})
    assert (measured.tokens.max_prompt_tokens, measured.tokens.max_response_tokens, measured.answers) == (20, 1, 4)
    assert (measured.peaks, measured.flops) == ({"sft": (14, 21)}, {"sft": (40, 60)})
    unread = spec.to_measure(traced.model_copy(update={"lengths": {}}))
    assert (unread.tokens, unread.answers) == (spec.tokens, 2)


def end_as(code):
    return os._exit(code) if code >= 0 else os.kill(os.getpid(), -code)


@mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM, 1])
def test_a_trace_whose_copy_is_ended_ends_as_that_one_does(code, monkeypatch):
    monkeypatch.setattr(program, "_answer", lambda spec: end_as(code))
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(_answer_in_a_fork(None)[0]))
    process.start()
    process.join(60)
    assert process.exitcode == code


def test_what_a_copy_says_comes_out_whole(monkeypatch):
    said = (EXIT_MISSING, TraceReport(resident=0, import_s=0.0, error="no model", tried_s=0.25))
    monkeypatch.setattr(program, "_answer", lambda spec: said)
    assert _answer_in_a_fork(None) == said


def test_a_hubs_model_that_cannot_be_reached_is_told_with_what_a_plan_needs_of_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with raises(
        StageError, match=r"^no-one/nothing cannot be .*; needed its config.json alone: `hf download no-one/nothing config.json`"
    ) as told:
        _open_config("no-one/nothing", None)
    assert told.value.exit_code == EXIT_MISSING
    (tmp_path / "empty").mkdir()
    with raises(StageError) as told:
        _open_config(str(tmp_path / "empty"), None)
    assert "hf download" not in str(told.value)


def test_on_a_gpu_trls_head_holds_its_tile_and_computes_as_much(config, accelerator, monkeypatch):
    for limit in ("_MAX_LOGITS", "_MAX_PADDED_LOGITS"):
        monkeypatch.setattr(f"stages.trl.sft.{limit}", 0)  # TRL's head, however few logits there are
    settings = {"batch_size": 16, "micro_batch_size": 16, "eval_samples": 0}
    by_torch = run("sft", settings, config, 2, accelerator)
    before = chunked_logprob._forward_tile
    with head_by_triton():
        by_triton = run("sft", settings, config, 2, accelerator)
    assert chunked_logprob._forward_tile is before
    in_float32 = 4 * 16 * 63 * 512  # a tile of logits, of all rows and tokens but the last
    for name in ("forward", "backward"):
        assert by_triton.phases[name].flops == by_torch.phases[name].flops
        assert by_triton.phases[name].peak <= by_torch.phases[name].peak - in_float32


@mark.slow
def test_of_sft_at_1_billion_weights_an_h200_held_what_is_said(warm_start):
    """Measured by `make gpu-check GPU=steps` on an H200 with torch 2.11, in GiB."""
    command = [sys.executable, "-P", "-m", "tests.bench.gpu_memory", "sft"]
    done = subprocess.run(command, cwd=ROOT, env=warm_start(), capture_output=True, text=True, check=True)
    said = {form: float(size) for form, size in re.findall(r"(all weights|LoRA)  sft ([\d.]+) GiB", done.stdout)}
    assert said == {"all weights": approx(38.4, rel=0.05), "LoRA": approx(20.7, rel=0.05)}


def test_what_evaluate_says_in_the_end_is_timed_by_its_own_code(monkeypatch):
    settings = {"prompts": 4, "samples": 2, "policy_samples": 2}
    given = {"tokens": TokenSettings(max_prompt_tokens=8, max_response_tokens=8), "hardware": HardwareSettings(), "report_path": "none"}
    described: list[str] = []

    def describe(measured, few):
        described.append(measured.subject.name)
        return describe_answers(measured, few)

    monkeypatch.setattr(figures, "describe_answers", describe)
    assert figures.measure_intervals(TraceSpec(base_model="none", stages={"evaluate": settings}, kept=2, **given)) > 0
    assert len(described) == len(set(described)) == 6 + 2  # base, PPO and SFT in two ways, what PPO kept in one
