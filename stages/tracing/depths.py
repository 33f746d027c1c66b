"""With how many layers a model is traced: bytes at two depths, between which they are linear; seconds as deep as their time allows."""

from collections.abc import Sequence

from transformers import PretrainedConfig

_MEASURE_S = 30.0  # of one stage, at all depths: that it computes, so that a machine which others keep busy goes as deep
_CLOCK_S = 180.0  # the same by the clock, with all that it waits
_LEAST_SHARE = 10  # of what a model of few layers takes, they take a tenth at least, its embeddings and head the rest
_MEMORY_SHARE = 0.25  # of what there is: a process takes up to three times its tensors, in which freed ones leave holes


def find_depths(config: PretrainedConfig) -> tuple[int, int, int]:
    """Say how many layers the model has, and two smaller numbers between which it grows by whole periods of its layers.

    The first layer is left out of the difference: it reads the embeddings, which a model holds to its end anyway.

    Returns:
        (small, larger, the model's own).
    """
    text = config.get_text_config()
    total: int = text.num_hidden_layers
    lists = [[repr(kind) for kind in value] for value in vars(text).values() if isinstance(value, list | tuple) and len(value) == total]

    def recurs(period: int) -> bool:
        return all(kinds[place] == kinds[place - period] for kinds in lists for place in range(period, total))

    period = next(period for period in range(1, total + 1) if recurs(period))
    small = max(period, 2)
    return min(small, total), min(small + period, total), total


def find_next(
    depths: tuple[int, int],
    measured: Sequence[int],
    took_s: Sequence[float],
    clock_s: float,
    peaks: tuple[int, int],
    flops: tuple[int, int],
    total: int,
    memory: int,
) -> int | None:
    """Say with how many layers seconds are measured next; None: that was all.

    Where nothing deeper fits than the two depths, they are measured again: what a layer takes is the small difference of two numbers.

    Args:
        depths: At which bytes and operations were counted.
        measured: Depths so far, at least one.
        took_s: Seconds that this process computed at each.
        clock_s: By the clock, at all.
        peaks: Bytes of tensors that live at once at the two depths.
        flops: Operations that are made there.
        total: Layers of the model.
        memory: Bytes that this machine has.
    """
    small, larger = depths
    spent_s = sum(took_s)
    left_s = min(_MEASURE_S - spent_s, (_CLOCK_S - clock_s) * spent_s / max(clock_s, 1e-9))  # others go on as they did
    if measured[-1] == total or measured[-1] > larger:
        return None
    if len(measured) == 1:
        return total if goes_straight(depths, peaks, flops, took_s[0], left_s, total, memory) else larger
    if len(measured) == 2:
        again = small if spent_s <= left_s else None
        return find_deepest(depths, peaks, (took_s[0], took_s[1]), left_s, total, memory) or again
    return larger if len(measured) == 3 else None


def goes_straight(
    depths: tuple[int, int], peaks: tuple[int, int], flops: tuple[int, int], took_s: float, left_s: float, total: int, memory: int
) -> bool:
    """Whether all layers fit into the time and the memory, as far as the first depth tells: then nothing is measured between the two.

    A layer takes no more than its share of what few layers took, embeddings and head and all; and as often as it is estimated by its
    operations, twice that is taken.

    Args:
        depths: Of which the first was measured, and at which bytes and operations were counted.
        peaks: Bytes of tensors that live at once there.
        flops: Operations that are made there.
        took_s: Seconds that the first depth took.
        left_s: That may still be taken.
        total: Layers of the model.
        memory: Bytes that this machine has.
    """
    steps = (total - depths[0]) / max(depths[1] - depths[0], 1)
    grown = 1 + steps * (flops[1] - flops[0]) / max(flops[0], 1)
    in_time = took_s * min(total / depths[0], 2 * grown) <= left_s
    return in_time and peaks[0] + steps * (peaks[1] - peaks[0]) <= _MEMORY_SHARE * memory


def find_deepest(
    depths: tuple[int, int], peaks: tuple[int, int], took_s: tuple[float, float], left_s: float, total: int, memory: int
) -> int | None:
    """Say how deep seconds are measured, after they were at two depths; None: no deeper.

    What a layer takes is the difference of two depths, so what disturbs them counts the more often the deeper the model itself is; and a
    few layers may stay in a processor's cache between two steps of a decoder, where all of them do not. So the deepest is the model's own
    depth, if half a minute and a quarter of the memory allow it.

    Args:
        depths: At which they were measured, in layers.
        peaks: Bytes of tensors that live at once with so many layers, at most.
        took_s: Seconds that each took.
        left_s: That may still be taken.
        total: Layers of the model.
        memory: Bytes that this machine has.
    """
    period, last = depths[1] - depths[0], depths[1]
    a_layer_s = max((took_s[1] - took_s[0]) / period, took_s[1] / (_LEAST_SHARE * last))  # two depths alone may be disturbed
    in_time = (left_s - took_s[1]) / a_layer_s
    fitting = (_MEMORY_SHARE * memory - peaks[1]) * period / max(peaks[1] - peaks[0], 1)
    more = int(min(in_time, fitting) // period) * period
    layers = min(last + more, total)
    return layers if layers > last else None
