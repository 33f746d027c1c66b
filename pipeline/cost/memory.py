"""What a rank of a stage holds at the peak of each phase: states by formula where they are shared out, the rest as it was traced.

    weights        as they are held: float32 where they learn, bfloat16 or 4 bits where they are frozen below an adapter
    optimizer      AdamW's two moments: 8 B for each weight that learns; DeepSpeed adds a master copy: 4 B
    gradients      4 B for each weight that learns
    activations    what forward and backward keep, logits, keys and values, workspaces: traced

ZeRO (Rajbhandari et al. 2020) with N ranks: stage 1 shares the optimizer out, 2 the gradients too, 3 the weights.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.cost.machines import CONTEXT_BYTES, GPU_ALLOCATOR, NCCL_BYTES, TIGHT
from pipeline.cost.setup import Setup
from stages.tracing.report import Depth, Phase

BUCKET_ELEMENTS = 500_000_000  # of DeepSpeed: gradients are reduced in buffers of so many numbers
LIVE_ELEMENTS = 1_000_000_000  # of DeepSpeed at stage 3: so many gathered weights may stay
AHEAD_ELEMENTS = 50_000_000  # of DeepSpeed at stage 3: so many come at once, in a buffer from which each weight is copied
FILE_BYTES = 50_000_000_000  # of transformers: a model is written in files of so much, one after the other
CPU_LIBRARIES = 90e6  # libraries that are loaded when they are first used, threads' stacks, kernels that oneDNN makes; see README.md
_BY_HOST = ("load", "save")
_LEARNING = ("forward", "backward", "optimizer", "update", "ptx")
_BOTH_WAYS = ("update", "ptx")
_BY_TRAINER = ("forward", "backward", "optimizer")
_DECODING = ("rollout", "answers")
_VISITS = 3  # of each weight in a micro-batch, at most: forward, forward again where activations are recomputed, backward
_HOLES, _HOLES_IN_TURN = 0.8, 2.0  # of what a pass held; measured, see README.md
_NARROW_SHARE = 0.5  # of the free memory, at most, for the copy by which a GPU decodes (`stages.responses.narrow`)

Word = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes of a rank at the peak of a phase, by what they are; on the device, and in the host's memory."""

    name: str
    device: dict[str, int]
    host: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(self.device.values())


def measure_phases(need: Depth, setup: Setup, room: float | None = None) -> list[PhaseMemory]:
    """Say what each phase of a stage holds.

    Args:
        need: The stage at the model's depth; traced without gradients and optimizer under DeepSpeed (`TraceSpec.shares`).
        setup: Engine, processes, offloading.
        room: Bytes of a GPU, where the stage decodes by a narrow copy of the policy if it is half of what is free, or less.
    """
    # Where nothing learns (evaluate), no engine is there: each process opens whole models.
    measure = _measure_shared if setup.engine == "deepspeed" and need.learning else _measure_whole
    return [_place_copy(measure(need, setup, name), need, room) for name in need.phases]


def _place_copy(phase: PhaseMemory, need: Depth, room: float | None) -> PhaseMemory:
    """Name the narrow copy, or leave it out where there is no room for it: autocast then casts weights that learn, and keeps them."""
    if not need.narrow or not phase.name.startswith(_DECODING) or "activations" not in phase.device:
        return phase
    around = phase.device | {"activations": max(phase.device["activations"] - need.narrow, 0)}
    # In each phase of decoding alike: before the copy, only what is there all the time lies in the memory.
    before = sum(size for part, size in phase.device.items() if part != "activations")
    if room is None or need.narrow <= _NARROW_SHARE * (room - before):
        return PhaseMemory(phase.name, around | {"narrow copy": need.narrow}, phase.host)
    learns = 4 * sum(need.learning) > need.narrow  # weights in float32
    return PhaseMemory(phase.name, phase.device if learns else around, phase.host)


def find_peak(phases: list[PhaseMemory]) -> PhaseMemory:
    """Find the phase that needs most of the device."""
    return max(phases, key=lambda phase: phase.total)


def measure_holes(phases: list[PhaseMemory], *, takes_turns: bool) -> float:
    """Say what a CPU's heap keeps of freed tensors (`pipeline.launch.environment`) to the stage's end.

    What passes free is not all used again by those that follow: the heap has holes, by the most that any pass held beside weights,
    gradients and optimizer.

    Args:
        phases: Of a stage.
        takes_turns: Whether passes of different shapes come in turn: in each of PPO's micro-batches the policy's and the critic's.
    """
    return (_HOLES_IN_TURN if takes_turns else _HOLES) * max((phase.device.get("activations", 0) for phase in phases), default=0)


def _measure_whole(need: Depth, setup: Setup, name: str) -> PhaseMemory:
    """One process, or several that average their gradients: each holds everything."""
    phase = need.phases[name]
    if name in _BY_HOST:
        return _by_host(phase, setup, phase.peak)
    learning = sum(need.learning)
    optimizer = 8 * learning
    there = phase.peak if name in _BOTH_WAYS else phase.start  # those come in the phase itself
    gradients = max(min(there - need.held - optimizer, 4 * learning), 0) if name in _LEARNING else 0
    parts = {"weights": need.held, "optimizer": optimizer, "gradients": gradients}
    parts["activations"] = max(phase.peak - sum(parts.values()), 0)
    if setup.engine == "ddp" and learning:
        parts["communication"] = 4 * learning  # buckets in which gradients are averaged
    return PhaseMemory(name, parts, {})


def _measure_shared(need: Depth, setup: Setup, name: str) -> PhaseMemory:
    """DeepSpeed: what is shared out is 1/N on each rank."""
    phase, ranks, stage = need.phases[name], setup.processes, setup.zero_stage
    if name in _BY_HOST:
        # At stage 3 a rank reads one whole weight after the other and keeps its piece.
        return _by_host(phase, setup, phase.peak // ranks + need.largest if stage == 3 and name == "load" else phase.peak)
    learning, largest = sum(need.learning), max(need.learning, default=0)
    device: dict[str, int] = {}
    host: dict[str, int] = {}
    weights = need.held // (ranks if stage == 3 else 1)
    (host if setup.offload_parameters else device)["weights"] = weights
    activations = max(phase.peak - need.held, 0)
    if stage == 3:
        device["gathered weights"] = _gather(need, activations, name)
    optimizer = 12 * learning // ranks
    gradients = 4 * learning // (ranks if stage >= 2 else 1)
    if stage < 3 and name != "optimizer" and not need.accumulates:
        # They come as activations go, whose peak is before: all but the policy's, which stay while the critic learns. Stage 3 has a place
        # for them from the start.
        gradients = gradients * need.learning[0] // learning if name in _BOTH_WAYS and len(need.learning) > 1 else 0
    if setup.offload_optimizer:
        host |= {"optimizer": optimizer, "gradients": gradients}
    else:
        device |= {"optimizer": optimizer, "gradients": gradients}
    buckets = len(need.learning) if stage == 3 else 1
    device["communication"] = buckets * 4 * (BUCKET_ELEMENTS if setup.on_gpu else min(BUCKET_ELEMENTS, largest))
    if stage == 3 and not setup.on_gpu:
        # What gloo copies for each model to be gathered, the rank's piece and all of them, stays in the heap; measured, see README.md.
        models = 4 if len(need.learning) > 1 else 1  # PPO's frozen ones too
        sent = min(need.whole, 4 * AHEAD_ELEMENTS)
        device["communication"] += models * (sent + sent // ranks)
    device["activations"] = activations
    return PhaseMemory(name, device, host)


def _gather(need: Depth, activations: int, name: str) -> int:
    """Say how many bytes of gathered weights DeepSpeed holds at stage 3 when a phase is at its peak.

    It fetches ahead in the order of modules that it saw in the forward before, and gives a weight away which does not come again in it
    within as many numbers as may be gathered. SFT and RM go forward and back: weights stay in between (but those that no backward comes
    to), beside the last buffer from which they were copied; it goes when the last of them is needed, and on the way back all are there.
    A step begins by giving all away. PPO scores before it learns, so that the first order is a forward's alone; what is given away by it
    (`__params_to_release`, behind an `lru_cache`) is given away ever after. A forward of its learners begins with all weights W, a buffer
    and no activations, and ends with a buffer and all activations A. What is larger than may be gathered is fetched again on the way: as
    much as may be. Small weights, most of an adapter's, are gathered after each step and stay; they are in no buffer.

    Args:
        need: The stage at the model's depth; W are the policy's weights that are not small.
        activations: A, bytes at the peak.
        name: The phase's; a rollout by the policy's own forward has all weights at once.
    """
    if name.startswith(_DECODING):
        return need.whole + sum(need.small[1:])
    small, large = sum(need.small), need.whole - sum(need.small[:1])
    live, ahead = min(large - need.passed, 4 * LIVE_ELEMENTS), min(large, 4 * AHEAD_ELEMENTS)
    if name == "optimizer":
        return small
    if large > 4 * LIVE_ELEMENTS:
        return small + live + ahead
    if name in _BY_TRAINER:
        all_stay = _VISITS * large <= 4 * LIVE_ELEMENTS
        return small + live + (ahead if name == "forward" or not all_stay else 0)
    return small + ahead + max(large - activations, 0)


def _by_host(phase: Phase, setup: Setup, peak: int) -> PhaseMemory:
    """Models are opened and merged in float32 in the host's memory; what is written is there once more, as the bytes of a file."""
    written = peak - phase.start if phase.start else 0
    parts = {"weights": peak - phase.start} | ({"bytes of the file": min(written, FILE_BYTES)} if written else {})
    if setup.on_gpu:
        return PhaseMemory("save" if phase.start else "load", {}, parts)
    return PhaseMemory("save" if phase.start else "load", parts | ({"training": phase.start} if phase.start else {}), {})


def sum_host(phase: PhaseMemory, processes: int) -> int:
    """Bytes of a machine's main memory: each of its processes loads, one of them saves."""
    return sum(phase.host.values()) * (1 if phase.name == "save" else processes)


@dataclass(frozen=True)
class Verdict:
    """Whether something fits.

    Args:
        word: In words.
        need: Bytes, all that is added to what tensors hold included.
        room: Bytes that there are.
    """

    word: Word
    need: float
    room: float


def judge(need: float, room: float) -> Verdict:
    """Compare what is needed with what there is: below 80 % it fits."""
    return Verdict("fits" if need <= TIGHT * room else "tight" if need <= room else "does not fit", need, room)


def add_overhead(phase: PhaseMemory, *, on_gpu: bool, processes: int, resident: float, holes: float = 0.0) -> float:
    """Add what a process holds beside its tensors.

    Args:
        phase: What tensors hold.
        on_gpu: Whether that is a GPU's memory.
        processes: On all nodes.
        resident: Bytes of a process before it opens a model.
        holes: Bytes that a CPU's heap keeps between tensors, see `measure_holes`.
    """
    if on_gpu:
        return phase.total * GPU_ALLOCATOR + CONTEXT_BYTES + (NCCL_BYTES if processes > 1 else 0)
    return phase.total + holes + resident + CPU_LIBRARIES
