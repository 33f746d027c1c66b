"""Work and rates -> seconds.

On a GPU of the table
    products    operations / (rate of the data sheet x share that is reached), all GPUs at once
    a step of decoding   the larger of (weights + keys and values read) / bandwidth and operations / rate; as a CUDA graph and the small
                         kernels of each layer, else no less than the launches of each layer
    a micro-batch        no less than its weights take to be read, and its kernels to be launched: with few tokens, or a small model
    several GPUs         bytes of weights and gradients that are sent / the link's rate, where that is not hidden behind the products

Measured: the seconds that each phase took on this machine, by tokens; what does not depend on tokens by the number of steps.
"""

from dataclasses import dataclass

from pipeline.cost.amounts import Amount
from pipeline.cost.machines import (
    BANDWIDTH_SHARE,
    GPU,
    GRAPH_LAYER_S,
    HANDOVER,
    LAYER_LAUNCH_S,
    MFU_SCORE,
    MFU_TRAIN,
    NETWORK,
    VLLM_STEP_S,
)
from pipeline.cost.setup import Setup
from stages.tracing.report import FEW_ROWS, Depth

_LEARNING = ("forward", "backward", "update", "ptx")
_BOTH_WAYS = ("update", "ptx")  # forward and backward in one phase
_IN_4_BITS = 1.5  # bytes a weight, below which linear layers are held in 4 bits
_HIDDEN = 0.5  # of what is sent while products run


@dataclass(frozen=True)
class Spent:
    """Seconds of one part of a stage, and what they are made of.

    Args:
        name: Of the part.
        seconds: All in all.
        how: Words for `--explain`.
        operations: Of its products and attention, of all GPUs.
        sending_s: Seconds of it in which GPUs only wait for what others send.
        unfilled: Whether reading the weights, or launching kernels, takes longer than the products: too few tokens for each GPU.
    """

    name: str
    seconds: float
    how: str
    operations: float = 0.0
    sending_s: float = 0.0
    unfilled: bool = False


def time_on_gpus(name: str, amount: Amount, need: Depth, tokens: dict[str, int], gpu: GPU, setup: Setup) -> Spent:
    """Say how long one part of a stage takes on GPUs.

    Args:
        name: Of the part.
        amount: Of work.
        need: The traced stage.
        tokens: Phase of the trace -> tokens that went through it there.
        gpu: What computes.
        setup: How many of them, and what they share.
    """
    seconds, total, words, unfilled = 0.0, 0.0, list[str](), False
    rate = gpu.rate(setup.precision, tf32=setup.tf32)
    for phase, through in amount.phases.items():
        if phase not in need.phases or not tokens.get(phase):
            continue
        operations = need.phases[phase].flops / tokens[phase] * through
        share = MFU_TRAIN if phase in _LEARNING else MFU_SCORE
        part = operations / (rate * share * setup.processes)
        how = f"{phase}: {operations:.3g} operations / ({setup.processes} x {rate:.3g} x {share}) = {part:.3g} s"
        # However few tokens there are, a micro-batch reads each weight: once forward, twice more backward.
        micro_batches = max(through / tokens[phase] / setup.processes, amount.least)
        read = micro_batches * need.phases[phase].flops / tokens[phase] * _get_weight_bytes(setup) / 2  # 2 operations a weight and token
        reading = read / (gpu.bandwidth * BANDWIDTH_SHARE)
        if reading > part:
            part, unfilled = reading, True
            how += f", but {micro_batches:,.0f} micro-batches read {read:.3g} B at {gpu.bandwidth * BANDWIDTH_SHARE:.3g} B/s = {part:.3g} s"
        launches = micro_batches * need.layers * LAYER_LAUNCH_S * (2 if phase in _BOTH_WAYS else 1)
        if launches > part:
            part, unfilled = launches, True
            how += f", but {micro_batches:,.0f} micro-batches launch the kernels of {need.layers} layers in {part:.3g} s"
        seconds, total = seconds + part, total + operations
        words.append(how)
    for phase, steps in amount.steps.items():
        if phase.endswith("decode"):
            part, how = _time_decoding(amount, need, _count_a_row(phase, need, tokens), gpu, setup)
        else:
            part, how = _time_step(need, gpu, setup)
        seconds += steps * part
        words.append(f"{phase}: {steps:,.0f} steps x {how}")
    sent = _count_sent(amount, need, tokens, setup)
    waiting = 0.0
    if sent:
        link = min(gpu.link, NETWORK if setup.processes > setup.per_node else gpu.link)
        waiting = sent / link * (1 - _HIDDEN)
        words.append(f"sent: {sent:.3g} B / {link:.3g} B/s, half of it hidden = {waiting:.3g} s")
    return Spent(name, seconds + waiting, "; ".join(words), total, waiting, unfilled)


def _is_partitioned(need: Depth, setup: Setup) -> bool:
    """Whether ZeRO shares weights out; where nothing learns (evaluate), no engine is there."""
    return setup.engine == "deepspeed" and setup.zero_stage == 3 and bool(need.learning)


def _get_weight_bytes(setup: Setup) -> int:
    return 2 if setup.precision == "bfloat16" else 4


def _count_a_row(phase: str, need: Depth, tokens: dict[str, int]) -> float:
    """Count the operations of one row in a decoding step: as traced, since of a mixture of experts a token meets some weights only."""
    traced = need.phases[phase].flops / tokens[phase] if phase in need.phases and tokens.get(phase) else float(need.row)
    return traced or 2.0 * need.parameters


def _count_met(rows: float, a_row: float, need: Depth) -> float:
    """Count the weights that a step of so many rows reads: those that any of them meets, at most all.

    A row meets a share of the weights, another row another one: N (1 − (1 − share)^rows). Nobody knows which experts rows choose: as if
    each were as likely. What all rows share counts as experts do, so that it is too many rather than too few between one row and many.
    """
    share = min(a_row / 2 / need.parameters, 1.0) if need.parameters else 0.0  # 2 operations a weight
    return need.parameters * (1 - (1 - share) ** max(rows, 1.0))


def _time_decoding(amount: Amount, need: Depth, a_row: float, gpu: GPU, setup: Setup) -> tuple[float, str]:
    each = _get_weight_bytes(setup)
    if need.parameters and need.whole / need.parameters < _IN_4_BITS:
        each = 0.5 + 2 * each  # read in 4 bits, written out, and read
    read = each * _count_met(amount.rows, a_row, need) + amount.rows * amount.width * need.cache
    by_memory = read / (gpu.bandwidth * BANDWIDTH_SHARE)
    by_products = a_row * amount.rows / (gpu.rate(setup.precision, tf32=setup.tf32) * MFU_SCORE)
    reading = f"{read:.3g} B / ({gpu.bandwidth:.3g} B/s x {BANDWIDTH_SHARE}) = {by_memory:.2g} s"
    products = f"products of {amount.rows:.1f} rows {by_products:.2g} s"
    kernels, launches = GRAPH_LAYER_S * need.layers, LAYER_LAUNCH_S * need.layers
    step = max(by_memory, by_products) + kernels
    how = f"the larger of {reading} and {products}, and small kernels {kernels:.2g} s"
    if need.captured and not _is_partitioned(need, setup):
        return step, f"({how}, as a CUDA graph)"
    return max(step, launches), f"({how}; without a CUDA graph at least launches {launches:.2g} s)"


def time_served(name: str, amount: Amount, need: Depth, gpu: GPU, gpus: int, handed: float, times: float) -> Spent:
    """Say how long a vLLM server takes to answer, its weights and rows shared out over its GPUs.

    Args:
        name: Of the part.
        amount: Of work, `prefill` and `decode`.
        need: The traced stage, with what a token takes in it (`Depth.row`).
        gpu: Of the server.
        gpus: How many it has.
        handed: Bytes of the weights that it is given before each rollout.
        times: How often it is.
    """
    a_row = _count_a_row("decode", need, {})
    operations = a_row * amount.phases["prefill"]
    prefill = operations / (gpus * gpu.flops * MFU_SCORE)
    read = 2 * _count_met(amount.rows, a_row, need) + amount.rows * amount.width * need.cache
    by_memory = read / (gpus * gpu.bandwidth * BANDWIDTH_SHARE)
    by_products = a_row * amount.rows / (gpus * gpu.flops * MFU_SCORE)
    step = max(by_memory, by_products) + VLLM_STEP_S
    decode, handover = amount.steps["decode"] * step, times * handed / HANDOVER
    reading = f"{read:.3g} B / ({gpus} x {gpu.bandwidth:.3g} B/s x {BANDWIDTH_SHARE}) = {by_memory:.2g} s"
    how = (
        f"prefill: {operations:.3g} operations / ({gpus} x {gpu.flops:.3g} x {MFU_SCORE}) = {prefill:.3g} s",
        f"decode: {amount.steps['decode']:,.0f} steps of {amount.rows:.1f} rows x (the larger of {reading} and products "
        f"{by_products:.2g} s, and {VLLM_STEP_S} s) = {decode:.3g} s",
        f"weights: {times:,.0f} x {handed:.3g} B / {HANDOVER:.3g} B/s = {handover:.3g} s",
    )
    operations += amount.steps["decode"] * a_row * amount.rows
    return Spent(name, prefill + decode + handover, "; ".join(how), operations)


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
    if _is_partitioned(need, setup):
        for phase, through in amount.phases.items():
            if tokens.get(phase):
                micro_batches = max(through / tokens[phase] / setup.processes, amount.least)
                sent += (2 if phase in _BOTH_WAYS else 1) * need.whole * share * micro_batches
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
        if phase in need.phases and phase.endswith("decode"):
            each = _time_rows(phase, amount.rows, need, tokens)
            seconds += steps * each
            words.append(f"{phase}: {steps:,.0f} steps of {amount.rows:.1f} rows x {1e3 * each:.3g} ms")
        elif phase in need.phases:
            each = need.phases[phase].seconds + (step_s if phase == "optimizer" else 0.0)
            seconds += steps * each
            words.append(f"{phase}: {steps:,.0f} x {1e3 * each:.3g} ms")
    return Spent(name, seconds, "; ".join(words))


def time_models(opened: int, size: float, written: float, read_s: float, write_s: float) -> Spent:
    """Say how long models take to be opened and written, by bytes.

    Args:
        opened: Models, all of one size.
        size: Bytes of one in float32.
        written: Bytes of checkpoints and of what is published.
        read_s: Seconds a byte, as measured on this machine; 0: it could not be.
        write_s: The same of writing.
    """
    if not read_s:
        return Spent("models", 0.0, "not measured: no room in the temporary directory (TMPDIR)")
    words = f"opening {opened} x {size:.3g} B x {1e9 * read_s:.2g} s/GB; writing {written:.3g} B x {1e9 * write_s:.2g} s/GB"
    return Spent("models", opened * size * read_s + written * write_s, words)


def _time_rows(phase: str, rows: float, need: Depth, tokens: dict[str, int]) -> float:
    """Say how long a decoding step of so many rows takes: on a line through the two numbers of rows that were measured."""
    few = phase.removesuffix("decode") + FEW_ROWS
    most = need.phases[phase].seconds
    if few not in need.phases or tokens[few] == tokens[phase]:
        return most
    least = min(need.phases[few].seconds, most)
    return max(least + (most - least) * (rows - tokens[few]) / (tokens[phase] - tokens[few]), least)
