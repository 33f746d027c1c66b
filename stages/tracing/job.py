"""One stage at one depth: its phases run, and what each needs is taken down."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator

from stages.models.attention import PACKED
from stages.models.probe import Ways, find_ways
from stages.responses.generation import decide_decoding
from stages.responses.graphs import find_obstacle
from stages.responses.narrow import count_bytes, narrow
from stages.spec import StageName
from stages.tracing.decoding import decode, make_rows
from stages.tracing.live import Live
from stages.tracing.peers import Peers
from stages.tracing.report import FEW_ROWS, Depth, Phase, TraceSpec
from stages.tracing.training import Steps
from stages.trl.fitting import fused_head_fits

_FEWEST, _MOST, _LONG_S = 2, 20, 1.0  # runs of what is measured in seconds: short phases come again until so much time is over
_DECODED = 4  # tokens of each answer that are decoded to measure
_FEWER = 8  # times fewer rows, by which a second point of the line from rows to seconds is measured


@dataclass(frozen=True)
class Tried:
    """What was tried of a family on a miniature of the model, before there are fake tensors."""

    ways: Ways
    additive: bool  # responses are decoded with one mask for all layers
    fused_head_fits: bool


def try_family(config: Any) -> Tried:
    """Try what the family of a configuration can do.

    Raises:
        StageError: it cannot go through the stages; exit code 2.
    """
    ways = find_ways(config)
    return Tried(ways, decide_decoding(config, PACKED if ways.packed else ways.attention) == "additive", fused_head_fits(config))


@dataclass
class Job:
    """One stage at one depth, and what was seen of it."""

    spec: TraceSpec
    stage: StageName
    config: Any
    tried: "Tried"
    layers: int
    live: Live
    accelerator: Accelerator
    peers: Peers | None = None  # that measure at once
    deepest: bool = False  # whether what a stage takes will be read off at this depth, or near it
    phases: dict[str, Phase] = field(default_factory=dict[str, Phase])
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    measured: dict[str, list[float]] = field(default_factory=dict[str, list[float]])  # seconds of each phase, each time that it came
    narrow: int = 0  # bytes of the copy by which a GPU decodes
    captured: bool = False  # whether a GPU decodes by CUDA graphs
    cache: int = 0  # bytes of keys and values of one token
    row: int = 0  # operations of one token, where a server decodes

    def run(self, steps: Steps, prefix: str = "") -> None:
        """Run phases, and take down what each needs: of one that comes several times the most, but the median time of all but the first."""
        for name, work in steps:
            start = self.live.start()
            seconds = self._time(work)
            name = prefix + name
            self.measured.setdefault(name, []).append(seconds)
            if (before := self.phases.get(name)) is None:
                self.phases[name] = Phase(start=start, peak=self.live.peak, flops=self.live.flops, seconds=seconds)
            else:
                self.phases[name] = Phase(
                    start=max(start, before.start),
                    peak=max(self.live.peak, before.peak),
                    flops=max(self.live.flops, before.flops),
                    seconds=median(self.measured[name][1:]),
                )

    def _time(self, work: Callable[[], Any]) -> float:
        """Do something, and say how long it took: alone what it computed, a thread's share; among others by the clock.

        Those wait for one another, which is no computing.
        """
        if self.peers:
            self.peers.wait()
            begun_s = time.perf_counter()
            work()
            return self.peers.average(time.perf_counter() - begun_s)
        begun_s = time.process_time()
        work()
        return (time.process_time() - begun_s) / torch.get_num_threads()

    def repeat(self) -> Iterator[None]:
        """Come back as often as phases are run: once; to measure twice, since the first finds nothing in memory and does not count.

        At the deepest, those that are short come more often: one run of a few milliseconds says little of all others.
        """
        begun_s = time.thread_time()
        for number in range(1, _MOST + 1):
            yield
            took_s = time.thread_time() - begun_s  # on a machine that others keep busy as often
            if self.peers:
                took_s = self.peers.average(took_s)  # all come back as often
            if not self.spec.measure or (number >= _FEWEST and (took_s > _LONG_S or not self.deepest)):
                return

    def load(self, build: Callable[[], Any]) -> Any:
        """Build models, as a phase."""
        built: list[Any] = []
        self.run(iter([("load", lambda: built.append(build()))]))
        return built[0]

    def run_often(self, make_steps: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """Run the same phases, several times where their seconds are measured."""
        for _ in self.repeat():
            self.run(iter(make_steps()))

    def answer(self, model: Any, count: int, prompt: int, response: int, prefix: str) -> None:
        """Decode answers; where seconds are measured by few rows too, as those last ones are that are longer than others."""
        few, measure = max(count // _FEWER, 1), self.spec.measure
        self.tokens |= {f"{prefix}prefill": count * prompt, f"{prefix}decode": count, f"{prefix}{FEW_ROWS}": few}
        decoders = [model]
        if self.spec.on_gpu and self.spec.hardware.computes_in_bfloat16:
            self.narrow = count_bytes(model)
            self.run(iter([("narrow", lambda: decoders.append(narrow(model)))]), prefix)
        self.captured = self.spec.on_gpu and self.tried.additive and find_obstacle(decoders[-1]) is None
        lengths = (prompt, response)
        given = {"additive": self.tried.additive, "on_gpu": self.spec.on_gpu}
        rows = make_rows(decoders[-1], count, *lengths, **given)
        self.run(decode(rows, steps=_DECODED if measure else 1, half=measure), prefix)
        self.cache = rows.cache.count_bytes_per_token()
        if measure and few < count:
            for name, work in decode(make_rows(model, few, *lengths, **given), steps=_DECODED, half=True):
                if name == "decode":
                    self.run(iter([(FEW_ROWS, work)]), prefix)
                else:
                    work()

    def look_at_row(self, model: Any) -> None:
        """See how large keys and values are and what a token takes, where a server decodes."""
        rows = make_rows(model, 1, 8, 2, additive=self.tried.additive, on_gpu=False)
        for _, work in decode(rows, steps=1):
            self.live.start()
            work()
        self.cache, self.row = rows.cache.count_bytes_per_token(), self.live.flops

    def complete(self, depth: Depth, *, accumulates: bool) -> Depth:
        """Add what all phases left behind."""
        seen = {"phases": self.phases, "narrow": self.narrow, "captured": self.captured, "cache": self.cache, "row": self.row}
        return depth.model_copy(update=seen | {"accumulates": accumulates})
