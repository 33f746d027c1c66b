"""What `rlhf plan --cost` says, asked of a real trace of a tiny model."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys

from pytest import approx, mark, raises
from typer import BadParameter

from pipeline.cli.costs import _keep
from pipeline.cli.options import make_console
from pipeline.cli.recipes import plan_command
from pipeline.cost.calibration import Calibration
from pipeline.cost.changes import list_changes
from pipeline.cost.memory import PhaseMemory, Verdict, sum_host
from pipeline.cost.setup import Setup
from pipeline.cost.times import Spent
from pipeline.errors import ConfigError, StoreError
from pipeline.estimates.estimate import Estimate, StageEstimate, _measure_held, _tell_crowding, _tell_prices, make_estimate
from pipeline.estimates.fits import Fit, find_fits
from pipeline.estimates.machine import Machine, choose_machine
from pipeline.estimates.past import correct_alike
from pipeline.estimates.room import _find_machine, warn_of_room
from pipeline.estimates.scale import holds_for_more, list_limits, scale_up
from pipeline.pasted import keep_store
from pipeline.recipe.load import find_recipe, load_recipe
from pipeline.report.costs import print_estimate, print_fits
from stages.blocks import HardwareSettings
from stages.settings import EvaluateSettings, PPOSettings, SFTSettings
from stages.tracing.report import Depth, TraceReport

# Embeddings and head, and of each layer queries, keys, values, outputs, three products of the feed-forward and two norms.
WEIGHTS = 2 * 512 * 64 + 6 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64


@mark.slow  # the one start of a trace with its own imports: all others are warm
def test_a_configuration_alone_tells_memory_disk_time_and_money(recipe, tmp_path):
    given = ["--only", "sft", "--gpu", "h100", "--set", "hardware.price_per_gpu_hour=2", "--records", "demonstrations=3200"]
    command = [sys.executable, "-P", "-m", "pipeline.cli", "plan", str(recipe), "--cost", "--json", *given]
    done = subprocess.run([*command, "--store", str(tmp_path / "store")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^tracing .*, \d+ s so far$", done.stderr, re.MULTILINE)  # nobody waits for a pipe in silence
    said = json.loads(done.stdout)
    (sft,) = said["stages"]
    assert sft["weights"] == WEIGHTS and sft["learning"] == [WEIGHTS]
    assert sft["verdict"] == "fits" and sft["fits_with"] == []
    backward = sft["phases"]["backward"]["device"]
    assert backward["weights"] == approx(4 * WEIGHTS, rel=0.001)  # and a few numbers of the rotary embedding
    assert backward["optimizer"] == 8 * WEIGHTS
    assert sft["disk"]["checkpoint"] == approx(12 * WEIGHTS, rel=0.1)
    assert sft["seconds"]["train"] > 0
    assert said["price_per_gpu_hour"] == [2, 2]
    assert [path.parent.name for path in (tmp_path / "store").rglob("*.json")] == ["estimates"]  # to be compared with what it takes


@mark.slow
@mark.usefixtures("warm")
def test_a_machine_that_is_too_small_does_not_fit(recipe, tmp_path):
    read = load_recipe(find_recipe(str(recipe)), [], has_files=False)
    machine = Machine("cpu", None, 1e6, None)
    estimate = make_estimate(read, ["sft"], tmp_path, machine, with_time=False)
    assert estimate.stages[0].verdict.word == "does not fit"


@mark.slow
@mark.usefixtures("warm")
def test_what_past_runs_say_corrects_the_changes_that_fit_too(recipe, tmp_path):
    def read(change):
        if "hardware.processes" in change or len(change) > 1:
            raise ConfigError(["one is enough"])
        return load_recipe(find_recipe(str(recipe)), [f"{key}={value}" for key, value in change.items()], has_files=False)

    machine = dataclasses.replace(choose_machine(HardwareSettings(), "t4"), memory=1.2e9)
    records = {"demonstrations": 3200}
    (counted,) = make_estimate(read({"sft.micro_batch_size": "32"}), ["sft"], tmp_path, machine, records=records).stages
    past = dataclasses.replace(counted, calibration=Calibration(1.5, 1.1, 3))
    (fit,) = find_fits(past, read, read({}), tmp_path, machine, records, lambda message: None)
    assert past.seconds == approx(1.5 * counted.seconds)
    assert fit.estimate.seconds == approx(1.5 * sum(part.seconds for part in fit.estimate.parts))


@mark.parametrize(
    ("options", "said"),
    [
        ({"only": "pretrain"}, "found pretrain, but the recipe has no block of that name"),
        ({"force": True}, "found --force beside --cost"),
        ({"gpus": 8, "overrides": ["rm.batch_size=12"]}, "rm.batch_size: found 12, needed a multiple of the number of processes"),
    ],
)
def test_what_nothing_could_be_said_of_is_refused_before_a_trace(recipe, tmp_path, options, said):
    with raises((BadParameter, StoreError, ConfigError), match=said):
        plan_command(str(recipe), cost=True, gpu="h100", store=tmp_path / "store", **{"overrides": [], "records": []} | options)
    assert not (tmp_path / "store").exists()


def test_a_plan_is_kept_where_it_can_be_and_a_store_that_is_made_for_it_is_told(recipe, tmp_path, capsys):
    read = load_recipe(find_recipe(str(recipe)), [], has_files=False)
    estimate = Estimate(Machine("cpu", None, 1e10, None), 1, [], {}, [], TraceReport(resident=0, import_s=0.0))
    store = tmp_path / "new" / "store"
    _keep(store, read, estimate, make_console(err=True))
    assert capsys.readouterr().err == f"made {store}, where this is kept to be compared with what it takes\n"
    _keep(store, read, estimate, make_console(err=True))
    assert capsys.readouterr().err == ""
    (store / "estimates" / ".lock").unlink()
    (store / "estimates").rmdir()
    (store / "estimates").symlink_to(tmp_path)  # is not followed
    _keep(store, read, estimate, make_console(err=True))
    assert capsys.readouterr().err.startswith(f"not kept to be compared with what it takes: {store}/estimates: a link")


def test_a_trace_for_fewer_than_eight_processes_or_eight_holds_for_more_and_none_for_more_than_eight():
    assert [holds_for_more(processes) for processes in (1, 2, 8, 16)] == [False, True, True, False]


def test_a_gpu_that_the_table_does_not_have_is_refused():
    with raises(ConfigError, match="found 'h999', needed one of"):
        choose_machine(HardwareSettings(), "h999")
    with raises(ConfigError, match="give --gpu h100"):
        choose_machine(HardwareSettings(device="cuda"), None)
    assert choose_machine(HardwareSettings(price_per_gpu_hour=1.5), "h100").price == (1.5, 1.5)


def test_a_plan_says_that_others_kept_cores_busy_while_it_measured():
    assert list(_tell_crowding(TraceReport(resident=0, import_s=0.0, crowded=0.1))) == []
    (note,) = _tell_crowding(TraceReport(resident=0, import_s=0.0, crowded=1.26))
    assert note.startswith("other programs kept 1.3 cores busy that were needed to measure")


def test_a_plan_says_to_the_cent_what_whole_rankings_cost(recipe):
    changes = ["sample.prompts=12", "rounds.price_per_ranking=0.5", "ranking.overlap=0.1", "ranking.repeats=0.1"]
    (note,) = _tell_prices(load_recipe(find_recipe(str(recipe)), changes, has_files=False), [], {})
    assert note == "labels: 12 prompts are 15 rankings, $7.50 a round, if two people rank"


def test_changes_begin_with_what_costs_nothing():
    one = Setup("none", on_gpu=True)
    changes = list(list_changes("sft", SFTSettings(), one, 1024))
    assert changes[0] == {"sft.micro_batch_size": "1"}
    assert changes[1] == {"sft.micro_batch_size": "1", "sft.gradient_checkpointing": "true"}
    assert {"hardware.processes": "8", "hardware.zero_stage": "3"}.items() <= changes[2].items()
    assert changes[-1]["sft.lora"] == "{quantize: nf4}"
    own = SFTSettings.model_validate({"lora": {"rank": 4, "alpha": 64}})
    assert list(list_changes("sft", own, one, 1024))[-1]["sft.lora.quantize"] == "nf4"  # all else of the adapter stays
    ppo = next(list_changes("ppo", PPOSettings(), one, 3000))
    assert ppo == {"ppo.rollout_micro_batch_size": "16", "ppo.max_tokens_per_microbatch": "3000"}
    asked = [change for change in list_changes("ppo", PPOSettings(), one, 3000) if "ppo.rollout.engine" in change]
    assert [change["ppo.rollout.engine"] for change in asked] == ["vllm"] and "ppo.rollout_micro_batch_size" not in asked[0]
    shared = Setup("deepspeed", 8, 8, 3)
    assert any(change.get("sft.eval_samples") == "0" for change in list_changes("sft", SFTSettings(), shared, 1024))
    assert list(list_changes("evaluate", EvaluateSettings(), one, 3000)) == [{"evaluate.batch_size": "16"}]


def test_a_change_is_printed_as_a_shell_and_a_recipe_read_it(recipe):
    served = next(change for change in list_changes("ppo", PPOSettings(), Setup("none"), 1024) if "ppo.rollout.engine" in change)
    read = load_recipe(find_recipe(str(recipe)), shlex.split(Fit(served, None).words)[1::2], has_files=False)
    assert read.ppo.rollout.options == ["--tensor-parallel-size", "8", "--gpu-memory-utilization", "0.45"]
    for change in ({"sft.lora": "{quantize: nf4}"}, {"sft.gradient_checkpointing": "true", "hardware.processes": "8"}):
        words = shlex.split(Fit(change, None).words)
        assert words[::2] == ["--set"] * len(change)
        assert words[1::2] == [f"{key}={value}" for key, value in change.items()]
    read = load_recipe(find_recipe(str(recipe)), ["sft.lora={rank: 4, alpha: 64}", "sft.lora.quantize=nf4"], has_files=False)
    assert (read.sft.lora.rank, read.sft.lora.alpha, read.sft.lora.quantize) == (4, 64, "nf4")


def test_options_to_paste_are_one_line_each(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    need = Depth(layers=2, phases={}, parameters=1, learning=[1], held=1, whole=1, checkpoint=1, output=1)
    verdict, spent = Verdict("tight", 70e9, 85.9e9), [Spent("train", 7200.0, "")]
    made = StageEstimate("ppo", need, Setup("none", 8), [PhaseMemory("update", {}, {})], verdict, spent, 0)
    estimate = Estimate(
        choose_machine(HardwareSettings(price_per_gpu_hour=2), "h100"), 1, [], {}, [], TraceReport(resident=0, import_s=0.0)
    )
    fits = [Fit(change, made) for change in list_changes("ppo", PPOSettings(), Setup("none"), 1024)]
    keep_store("my store", "store")
    print_fits(make_console(), "ppo", fits, estimate)
    lines = capsys.readouterr().out.splitlines()
    # What is pasted is options: behind which command, with the store that was named.
    assert lines[0].endswith("with one of these behind the same command, or behind `rlhf run --store 'my store'`:")
    assert lines[1] == "70.0 GB, tight, 2:00:00, from $32:"
    assert lines[2::2] == [f"  {fit.words}" for fit in fits]
    cheap = Fit({}, dataclasses.replace(made, parts=[Spent("train", 7.2, "")]))
    print_fits(make_console(), "ppo", [cheap], estimate)
    assert ", from $0.03:" in capsys.readouterr().out


def test_the_table_fits_80_columns_and_the_arithmetic_says_of_what_the_peak_is_made(capsys):
    parts = {"weights": 10**10, "activations": 10**9}
    need = Depth(layers=2, phases={}, parameters=1, learning=[1], held=1, whole=1, checkpoint=1, output=1)
    stage = StageEstimate(
        "evaluate",
        need,
        Setup("none"),
        [PhaseMemory("answers/prefill", parts, {})],
        Verdict("does not fit", 99.9e9, 85.9e9),
        [Spent("answers", 99_999.0, "")],
        90 * 10**9,
    )
    estimate = Estimate(choose_machine(HardwareSettings(), "h100"), 1, [stage], {}, [], TraceReport(resident=0, import_s=0.0))
    print_estimate(make_console(), estimate, explain=True)
    heading, row, *explained = capsys.readouterr().out.splitlines()[1:]
    assert "answers/prefill" in row and max(len(heading), len(row)) <= 80
    assert any("weights 10,000,000,000 + activations 1,000,000,000" in line for line in explained)


@mark.slow
@mark.usefixtures("warm")
def test_a_vllm_server_is_in_the_time_in_the_memory_that_it_shares_and_in_the_price_of_what_it_has(recipe, tmp_path):
    h100 = choose_machine(HardwareSettings(), "h100")

    def plan(*more):
        read = load_recipe(find_recipe(str(recipe)), ["ppo.rollout.engine=vllm", "ppo.save_minutes=5", *more], has_files=False)
        return make_estimate(read, ["ppo"], tmp_path, h100)

    beside = plan("ppo.rollout.options=[--gpu-memory-utilization, '0.45']")
    apart = plan("ppo.rollout.command=[env, 'CUDA_VISIBLE_DEVICES=6,7', vllm]", "ppo.rollout.options=[--tensor-parallel-size, '2']")
    spent = [{part.name: part.seconds for part in each.stages[0].parts} for each in (beside, apart)]
    assert spent[0]["rollout"] > 0 and spent[0]["update"] == spent[1]["update"]
    assert beside.stages[0].verdict.need - apart.stages[0].verdict.need == approx(0.45 * h100.memory)
    assert (beside.stages[0].gpus, apart.stages[0].gpus) == (1, 3)
    assert any("45% of the memory" in note for note in beside.notes)
    assert any("2 x h100 of its own" in note for note in apart.notes)


@mark.slow
@mark.usefixtures("warm")
def test_more_gpus_bring_less_and_less_and_the_plan_says_what_holds_them_up(recipe, tmp_path):
    changes = ["hardware.processes=8", "hardware.zero_stage=3", "sft.batch_size=128", "sft.eval_samples=0"]
    read = load_recipe(find_recipe(str(recipe)), changes, has_files=False)
    h100 = choose_machine(HardwareSettings(), "h100")
    estimate = make_estimate(read, ["sft"], tmp_path, h100, records={"demonstrations": 100_000})
    past = dataclasses.replace(estimate.stages[0], calibration=Calibration(1.5, 1.1, 3))
    corrected = correct_alike(estimate, dataclasses.replace(estimate, stages=[past]))
    scaled = scale_up(read, estimate)
    slower = scale_up(read, corrected)
    assert [each.seconds for each in slower] == approx([1.5 * each.seconds for each in scaled])
    assert [each.share("sending") for each in slower] == approx([each.share("sending") for each in scaled])
    assert list(list_limits(slower)) == list(list_limits(scaled))
    assert [each.gpus for each in scaled] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert scaled[0].seconds == approx(estimate.seconds)
    assert [each.working["sft"] for each in scaled] == [8, 16, 32, 64, 128, 128, 128, 128]  # no batch has more records
    assert scaled[-1].seconds == scaled[4].seconds and scaled[-1].gpu_seconds == approx(8 * scaled[4].gpu_seconds)
    limits = list(list_limits(scaled))
    assert any("micro-batches no longer fill the GPUs" in line for line in limits)  # of a model this small
    assert any(line.startswith("sft: of 256 GPUs and more, 128 have work") for line in limits)
    sft = scaled[0].stages[0]
    waiting = dataclasses.replace(sft, parts=[dataclasses.replace(part, sending_s=part.seconds) for part in sft.parts])
    assert "sft: waiting for what GPUs send takes most of its time" in list_limits([dataclasses.replace(scaled[0], stages=[waiting])])


def test_a_small_model_is_not_looked_at_before_it_runs(recipe, tmp_path):
    read = load_recipe(find_recipe(str(recipe)), ["hardware.device=cpu"], has_files=False)
    assert warn_of_room(read, ["sft"], tmp_path) == []


@mark.parametrize(
    ("visible", "gib"),
    [(None, 24), ("1,0", 80), ("GPU-77aa", 80), ("GPU-77aa0001-b", 80), ("2", None), ("MIG-0f3e", None), ("", "cpu"), ("-1", "cpu")],
)
def test_the_room_is_that_of_the_gpu_that_stages_will_see(recipe, tmp_path, monkeypatch, visible, gib):
    """Of a slice nvidia-smi tells the memory of the whole GPU."""
    rows = ["GPU-13c4, 24576, 8.6, [N/A]", "GPU-77aa0001-b, 81920, 9.0, Disabled", "GPU-9d, 81920, 9.0, Enabled"]
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = _find_machine(load_recipe(find_recipe(str(recipe)), ["hardware.device=auto"], has_files=False))
    if gib in (None, "cpu"):
        assert (machine and machine.name) == gib
    else:
        assert machine is not None and machine.memory == gib * 2**30


def test_the_disk_holds_models_that_are_kept_and_those_that_may_be_the_best():
    need = Depth(layers=2, phases={}, parameters=1, learning=[1], held=1, whole=1, checkpoint=1, output=1, kept=100, best=7)

    def measure(**settings):
        return _measure_held(PPOSettings.model_validate({"iterations": 60} | settings), need)

    assert measure() == 0
    assert measure(keep_every=10) == 5 * 100  # the last is published anyway
    assert measure(keep_every=10, publish="best", eval_every=10) == 6 * 100 + 3 * 7  # of two checkpoints, and one more
    assert measure(publish="best", eval_every=50) == 7
    assert _measure_held(SFTSettings(publish="best", eval_every=10), need) == 3 * 7
    assert _measure_held(EvaluateSettings(), need) == 0


def test_each_process_of_a_machine_loads_and_one_saves():
    assert sum_host(PhaseMemory("load", {}, {"weights": 10}), 8) == 80
    assert sum_host(PhaseMemory("save", {}, {"weights": 10, "bytes of the file": 5}), 8) == 15
