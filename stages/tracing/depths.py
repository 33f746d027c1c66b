"""With how many layers a model is traced: bytes at two depths, between which they are linear; seconds as deep as their time allows."""

from transformers import PretrainedConfig

from stages.tracing.report import Depth

_MEASURE_S = 30.0  # of one stage, at all depths
_LEAST_SHARE = 10  # of what a model of few layers takes, they take a tenth at least, its embeddings and head the rest
_MEMORY_SHARE = 0.25  # of what there is
_STATE_BYTES = 12  # of a weight that learns: its gradient and AdamW's moments


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


def find_deepest(depths: list[Depth], took_s: list[float], total: int, memory: int) -> int | None:
    """Say how deep seconds are measured, after they were at two depths; None: no deeper.

    What a layer takes is the difference of two depths, so what disturbs them counts the more often the deeper the model itself is; and a
    few layers may stay in a processor's cache between two steps of a decoder, where all of them do not. So the deepest is the model's own
    depth, if half a minute and a quarter of the memory allow it.

    Args:
        depths: What was seen at two.
        took_s: Seconds that each of them took.
        total: Layers of the model.
        memory: Bytes that this machine has.
    """
    small, last = depths
    a_layer_s = (took_s[1] - took_s[0]) / (last.layers - small.layers)
    a_layer_s = max(a_layer_s, took_s[1] / (_LEAST_SHARE * last.layers))  # two depths alone may be disturbed
    bytes_a_layer = (last.held + _STATE_BYTES * sum(last.learning)) / last.layers  # at most: embeddings are in it
    in_time = last.layers + (_MEASURE_S - sum(took_s) - took_s[1]) / a_layer_s
    most = min(total, _MEMORY_SHARE * memory / bytes_a_layer, in_time)
    period = last.layers - small.layers
    layers = total if most == total else last.layers + int((most - last.layers) // period) * period
    return layers if layers > last.layers else None
