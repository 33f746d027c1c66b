"""Work and rates -> seconds.

On a GPU of the table
    products    operations / (rate of the data sheet x share that is reached), all GPUs at once
    a step of decoding   the larger of (weights + keys and values read) / bandwidth and operations / rate, and the launches of each layer
    several GPUs         bytes of weights and gradients that are sent / the link's rate, where that is not hidden behind the products

Measured: the seconds that each phase took on this machine, by tokens; what does not depend on tokens by the number of steps.
"""

from dataclasses import dataclass

from pipeline.cost.amounts import Amount
from pipeline.cost.machines import BANDWIDTH_SHARE, GPU, LAYER_LAUNCH_S, MFU_SCORE, MFU_TRAIN, NETWORK
from pipeline.cost.setup import Setup
from stages.tracing.report import Depth

_LEARNING = ("forward", "backward", "update")
_HIDDEN = 0.5  # of what is sent while products run


@dataclass(frozen=True)
class Spent:
    """Seconds of one part of a stage, and what they are made of: words for `--explain`."""

    name: str
    seconds: float
    how: str


def time_on_gpus(name: str, amount: Amount, need: Depth, tokens: dict[str, int], gpu: GPU, setup: Setup, kv_bytes: float) -> Spent:
    """Say how long one part of a stage takes on GPUs.

    Args:
        name: Of the part.
        amount: Of work.
        need: The traced stage.
        tokens: Phase of the trace -> tokens that went through it there.
        gpu: What computes.
        setup: How many of them, and what they share.
        kv_bytes: Keys and values of one token.
    """
    seconds, words = 0.0, list[str]()
    for phase, through in amount.phases.items():
        if phase not in need.phases or not tokens.get(phase):
            continue
        operations = need.phases[phase].flops / tokens[phase] * through
        share = MFU_TRAIN if phase in _LEARNING else MFU_SCORE
        part = operations / (gpu.flops * share * setup.processes)
        seconds += part
        words.append(f"{phase}: {operations:.3g} operations / ({setup.processes} x {gpu.flops:.3g} x {share}) = {part:.3g} s")
    for phase, steps in amount.steps.items():
        if phase.endswith("decode"):
            part, how = _time_decoding(amount, need, gpu, kv_bytes)
        else:
            part, how = _time_step(need, gpu, setup)
        seconds += steps * part
        words.append(f"{phase}: {steps:,.0f} steps x {how}")
    sent = _count_sent(amount, need, tokens, setup)
    if sent:
        rate = min(gpu.link, NETWORK if setup.processes > setup.per_node else gpu.link)
        part = sent / rate * (1 - _HIDDEN)
        seconds += part
        words.append(f"sent: {sent:.3g} B / {rate:.3g} B/s, half of it hidden = {part:.3g} s")
    return Spent(name, seconds, "; ".join(words))


def _time_decoding(amount: Amount, need: Depth, gpu: GPU, kv_bytes: float) -> tuple[float, str]:
    read = 2 * need.parameters + amount.rows * amount.width * kv_bytes
    by_memory = read / (gpu.bandwidth * BANDWIDTH_SHARE)
    by_products = 2 * need.parameters * amount.rows / (gpu.flops * MFU_SCORE)
    launches = LAYER_LAUNCH_S * need.layers
    seconds = max(by_memory, by_products, launches)
    return seconds, (
        f"the largest of {read:.3g} B / ({gpu.bandwidth:.3g} B/s x {BANDWIDTH_SHARE}) = {by_memory:.2g} s, products {by_products:.2g} s "
        f"and launches {launches:.2g} s"
    )


def _time_step(need: Depth, gpu: GPU, setup: Setup) -> tuple[float, str]:
    """AdamW reads and writes weight, gradient and moments; offloaded, over the bus to the host."""
    moved = 28 * sum(need.learning) / (setup.processes if setup.engine == "deepspeed" else 1)
    rate = 12e9 if setup.offload_optimizer else gpu.bandwidth * BANDWIDTH_SHARE
    return moved / rate, f"{moved:.3g} B / {rate:.3g} B/s"


def _count_sent(amount: Amount, need: Depth, tokens: dict[str, int], setup: Setup) -> float:
    """Bytes that each process sends: gradients once a step, at ZeRO stage 3 the weights for each micro-batch forward and backward."""
    if setup.processes == 1:
        return 0.0
    share = (setup.processes - 1) / setup.processes
    steps = sum(count for phase, count in amount.steps.items() if phase == "optimizer")
    sent = 2 * 4 * sum(need.learning) * steps * share
    if setup.engine == "deepspeed" and setup.zero_stage == 3 and need.learning:
        for phase, through in amount.phases.items():
            if tokens.get(phase):
                passes = 2 if phase == "update" else 1
                sent += passes * need.whole * share * through / tokens[phase] / setup.processes
    return sent


def time_measured(name: str, amount: Amount, need: Depth, tokens: dict[str, int], processes: int, step_s: float = 0.0) -> Spent:
    """Say how long one part of a stage takes where its phases were timed on this machine.

    Args:
        name: Of the part.
        amount: Of work.
        need: With seconds of one process.
        tokens: Phase -> tokens that went through it there.
        processes: That share the tokens.
        step_s: What surrounds an optimizer step.
    """
    seconds, words = 0.0, list[str]()
    for phase, through in amount.phases.items():
        if phase in need.phases and tokens.get(phase):
            each = need.phases[phase].seconds / tokens[phase]
            seconds += through * each / processes
            words.append(f"{phase}: {through:,.0f} tokens x {1e6 * each:.3g} µs / {processes}")
    for phase, steps in amount.steps.items():
        if phase in need.phases:
            each = need.phases[phase].seconds + (step_s if phase == "optimizer" else 0.0)
            seconds += steps * each
            words.append(f"{phase}: {steps:,.0f} x {1e3 * each:.3g} ms")
    return Spent(name, seconds, "; ".join(words))
