"""A recipe on 8, 16, ... 1,024 GPUs, on paper: how long, for how much, and what it is that more GPUs do not help."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.estimates.estimate import Estimate, StageEstimate, estimate_again
from pipeline.recipe.schema import Recipe
from stages.blocks import HardwareSettings
from stages.rules import Refusal, find_refusals
from stages.settings import PPOSettings, PretrainSettings, RMSettings, SFTSettings
from stages.spec import StageName

GPU_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
PER_MACHINE = 8
_NOTABLE = 0.1  # of a stage's time: what is less holds nothing up
_MOST = 0.5  # of a stage's time: from there on something takes over


@dataclass(frozen=True)
class Scaled:
    """A recipe on so many GPUs.

    Args:
        gpus: Of its processes; a server's own come on top.
        stages: What each needs.
        working: GPUs that have a record of each batch, by stage.
    """

    gpus: int
    stages: list[StageEstimate]
    working: dict[StageName, int]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def gpu_seconds(self) -> float:
        """That are paid for, idle ones too."""
        return sum(stage.seconds * (self.gpus + (stage.serving.own if stage.serving else 0)) for stage in self.stages)

    def share(self, name: str) -> float:
        """Share of all time that a kind of work takes: `sending`, or `rollout`."""
        spent = sum(_get_spent(stage, name) for stage in self.stages)
        return spent / self.seconds if self.seconds else 0.0


def scale_up(recipe: Recipe, estimate: Estimate) -> list[Scaled]:
    """Say what a recipe needs on more and more GPUs, eight to a machine, without those on which a stage would be refused.

    Args:
        recipe: Resolved recipe.
        estimate: Of it on eight GPUs of a machine, or fewer.
    """
    refused = find_refused(recipe, (stage.stage for stage in estimate.stages))
    return [_scale(recipe, estimate, gpus) for gpus in GPU_COUNTS if gpus not in refused]


def find_refused(recipe: Recipe, stages: Iterable[StageName]) -> dict[int, list[Refusal]]:
    """Find the numbers of GPUs on which a stage would be refused, such as those by which its batch cannot be shared out, and why."""
    chosen = list(stages)
    found = {gpus: [refusal for stage in chosen for refusal in _find_refusals(recipe, stage, gpus)] for gpus in GPU_COUNTS}
    return {gpus: list(dict.fromkeys(refusals)) for gpus, refusals in found.items() if refusals}


def _find_refusals(recipe: Recipe, stage: StageName, gpus: int) -> Iterator[Refusal]:
    hardware = _spread(recipe, stage, gpus)
    processes = hardware.processes * hardware.nodes
    settings = recipe.settings(stage)
    return find_refusals(stage, settings, hardware, engine=hardware.engine, num_processes=processes, judge=recipe.judge)


def tell_refused(refused: Mapping[int, list[Refusal]]) -> Iterator[str]:
    """Say which numbers of GPUs are left out: a line for each key of the recipe that refuses them."""
    for key in dict.fromkeys(refusal.key for refusals in refused.values() for refusal in refusals):
        which = [gpus for gpus, refusals in refused.items() if any(refusal.key == key for refusal in refusals)]
        first = next(refusal.message for refusal in refused[which[0]] if refusal.key == key)
        onwards = len(which) > 1 and which == [gpus for gpus in GPU_COUNTS if gpus >= which[0]]
        numbers = f"{which[0]:,} GPUs and more" if onwards else f"{', '.join(f'{gpus:,}' for gpus in which)} GPUs"
        yield f"{numbers} left out: {key}: {first}"


def holds_for_more(processes: int) -> bool:
    """Whether a trace for so many holds for eight and more: one holds everything alone, those of more may have smaller micro-batches."""
    return 1 < processes <= PER_MACHINE


def _scale(recipe: Recipe, estimate: Estimate, gpus: int) -> Scaled:
    made, working = list[StageEstimate](), dict[StageName, int]()
    for stage in estimate.stages:
        working[stage.stage] = min(gpus, _get_batch(recipe, stage.stage))
        hardware = _spread(recipe, stage.stage, gpus)
        made.append(estimate_again(recipe.model_copy(update={"hardware": hardware}), estimate, stage.stage))
    return Scaled(gpus, made, working)


def _spread(recipe: Recipe, stage: StageName, gpus: int) -> HardwareSettings:
    """Spread a stage over so many GPUs, or as many as have work."""
    working = min(gpus, _get_batch(recipe, stage))
    per_machine = min(PER_MACHINE, working)
    return recipe.hardware.model_copy(update={"processes": per_machine, "nodes": max(working // per_machine, 1)})


def _get_batch(recipe: Recipe, stage: StageName) -> int:
    """Records that can be shared out at once."""
    settings = recipe.settings(stage)
    if isinstance(settings, PPOSettings):
        return min(settings.minibatch_size, settings.ptx_batch_size or settings.minibatch_size)
    return settings.batch_size if isinstance(settings, PretrainSettings | SFTSettings | RMSettings) else max(GPU_COUNTS)


def _get_spent(stage: StageEstimate, name: str) -> float:
    if name == "sending":
        return sum(part.sending_s for part in stage.parts) * stage.factor
    return sum(part.seconds for part in stage.parts if part.name in ("rollout", "answers", "held-out answers")) * stage.factor


def list_limits(scaled: Iterable[Scaled]) -> Iterator[str]:
    """Say of each stage from how many GPUs on what holds it up."""
    rows = list(scaled)
    for place, stage in enumerate(rows[0].stages if rows else ()):
        for words in dict.fromkeys(word for row in rows for word in _find_limits(row.stages[place])):
            first = next(row.gpus for row in rows if words in _find_limits(row.stages[place]))
            yield f"{stage.stage}: from {first:,} GPUs on, {words}" if first > rows[0].gpus else f"{stage.stage}: {words}"
        idle = next((row for row in rows if row.working[stage.stage] < row.gpus), None)
        if idle is not None:
            working = idle.working[stage.stage]
            yield f"{stage.stage}: of {idle.gpus:,} GPUs and more, {working:,} have work: no batch has more records"


def _find_limits(stage: StageEstimate) -> list[str]:
    found: list[str] = []
    if _get_spent(stage, "sending") > _MOST * stage.seconds:
        found.append("waiting for what GPUs send takes most of its time")
    if stage.stage == "ppo" and _get_spent(stage, "rollout") > _MOST * stage.seconds:
        found.append("the rollout takes most of its time")
    if any(part.unfilled and part.seconds * stage.factor > _NOTABLE * stage.seconds for part in stage.parts):
        found.append("micro-batches no longer fill the GPUs: reading weights, or launching kernels, takes longer than products")
    return found
