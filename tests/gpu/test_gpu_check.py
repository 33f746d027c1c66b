"""The check of GPUs by itself: what it says without one, its table, and a part of it on a pretend GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.models import logprobs
from tests.bench.protocol import ROOT
from tests.bench.workload import PPOWork, make_policy, make_prompts
from tests.gpu import __main__ as check
from tests.gpu.models import measure_scaled_logits
from tests.gpu.place import Figure, Place, at_least, at_most, attempt, not_shown
from tests.gpu.rollout import sample_batched
from tests.gpu.table import holds, write_results
from tests.pretend_gpu import pretend_gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu-check", "rollout"])
    assert check.main() == 2
    assert "found no GPU that torch can use; needed: one" in capsys.readouterr().err


def test_the_table_says_what_was_found_and_which_goal_is_missed(tmp_path):
    figures = [at_most("a case", "error", 0.5, 1.0), at_least("a case", "speed", 2.0, 3.0, "x"), Figure("a case", "memory", 12345.0, "GB")]
    parts = {"kernels": {"seconds": 3.2, "problem": "", "figures": [vars(figure) for figure in figures]}}
    text = write_results(tmp_path / "gpu", "a card; its versions; a day", parts)
    lines = [line for line in text.splitlines() if line.startswith("| a case")]
    assert [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines] == [
        ["error", "0.5", "<= 1", "yes"],
        ["speed", "2 x", ">= 3", "NO"],
        ["memory", "1.234e+04 GB", "", ""],
    ]
    assert not holds(parts)
    parts["kernels"]["figures"].pop(1)
    assert holds(parts) and not holds({"kernels": parts["kernels"] | {"problem": "it ended with exit code 1"}})
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["kernels"]["seconds"] == 3.2
    assert check.read_results(tmp_path / "gpu", "a card; its versions; another day") != {}
    assert check.read_results(tmp_path / "gpu", "another card; its versions; a day") == {}


def test_what_fails_is_a_line_and_what_cannot_be_shown_is_another(tmp_path, capsys):
    def measure():
        yield Figure("a case", "speed", 2.0)
        raise ValueError("a tensor | of\nno device")

    figures = [*attempt("a case", measure()), not_shown("another", "it needs two GPUs")]
    parts = {"kernels": {"seconds": 1.0, "problem": "", "figures": [vars(figure) for figure in figures]}}
    lines = [line for line in write_results(tmp_path / "gpu", "a card", parts).splitlines() if line.startswith("| a")][1:]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        ["a case", "ValueError: a tensor / of no device", "failed", "", "NO"],
        ["another", "it needs two GPUs", "not shown", "", ""],
    ]
    assert not holds(parts) and "Traceback" in capsys.readouterr().err
    parts["kernels"]["figures"].pop(1)
    assert holds(parts)


@pytest.mark.slow
def test_a_head_that_leaves_its_cap_out_is_found(monkeypatch):
    found = [figure for figure in measure_scaled_logits("gemma2", {"final_logit_softcapping": 5.0}) if "float32" in figure.case]
    plain = logprobs.compute_logits
    monkeypatch.setattr(logprobs, "compute_logits", lambda model, states, own_head: plain(model, states, own_head=False))
    broken = [figure for figure in measure_scaled_logits("gemma2", {"final_logit_softcapping": 5.0}) if "float32" in figure.case]
    assert [figure.holds for figure in found + broken] == [True, False]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("stage", [0, 3])
def test_nothing_of_a_step_stays_in_memory(stage):
    """Weights, gradients and moments of eighteen steps, at 1.2 B weights each, would not fit into one GPU."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("steps_driver.py")), str(stage)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.rpartition("left: ")[2]) < 10_000  # of 86,000 bytes of weights, and as many of each moment


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("part", "least"), [("kernels", 12), ("models", 15), ("processes", 10)])
def test_a_part_runs_on_a_pretend_gpu_and_meets_its_goals(part, least):
    measure = check.find_measure(part)
    with pretend_gpu() as gpu:
        figures = list(measure(Place(gpu)))
    assert len(figures) >= least and not [figure for figure in figures if figure.holds is False]


@pytest.mark.slow
def test_continuous_batching_answers_every_prompt_in_full():
    work = PPOWork("tiny", 0.0, 3, 4, 8, 6, 1)
    sample_batched(make_policy("tiny", 0.0).eval(), work, make_prompts(work), num_blocks=16, max_batch_tokens=64)
    with pytest.raises(RuntimeError, match="needed 6 for each of 3 prompts"):
        sample_batched(make_policy("tiny", 0.9).eval(), work, make_prompts(work), num_blocks=16, max_batch_tokens=64)
