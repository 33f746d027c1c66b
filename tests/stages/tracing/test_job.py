"""How a phase is timed, and how often it comes."""

import time

from accelerate import Accelerator
from pytest import fixture, mark
from transformers import LlamaConfig

from stages.blocks import HardwareSettings, TokenSettings
from stages.tracing.job import Job, try_family
from stages.tracing.live import Live
from stages.tracing.peers import run_together
from stages.tracing.report import TraceSpec


@fixture
def job():
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 512}
    config = LlamaConfig(**sizes)
    spec = TraceSpec(base_model="none", tokens=TokenSettings(), hardware=HardwareSettings(), stages={}, report_path="none", measure=True)
    return Job(spec, "sft", config, try_family(config), 2, Live(), Accelerator(cpu=True))


@mark.parametrize(("a_phase_s", "deepest", "times"), [(0.3, True, 4), (0.3, False, 2), (0.9, True, 2), (3.0, True, 2), (0.0, True, 20)])
def test_short_phases_are_measured_more_often_at_the_deepest(job, monkeypatch, a_phase_s, deepest, times):
    clock = iter(number * a_phase_s for number in range(100))
    monkeypatch.setattr("stages.tracing.job.time.thread_time", lambda: next(clock))
    job.deepest = deepest
    assert sum(1 for _ in job.repeat()) == times


def test_bytes_are_counted_once(job):
    job.spec, job.deepest = job.spec.model_copy(update={"measure": False}), True
    assert sum(1 for _ in job.repeat()) == 1


def test_alone_a_phase_takes_what_it_computes_and_among_others_what_the_clock_says(job):
    def measure(peers):
        job.peers = peers
        job.run(iter([("forward", lambda: time.sleep(0.3 if peers is None or peers.rank else 0.0))]))
        return job.phases.pop("forward").seconds

    assert measure(None) < 0.1  # what it waits for comes from elsewhere
    assert run_together(2, measure) > 0.14  # one waits for 0.3 s, the other not at all: the mean
