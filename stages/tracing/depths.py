"""With how many layers a model is traced: bytes at two depths, between which they are linear; seconds as deep as their time allows."""

from transformers import PretrainedConfig

from stages.tracing.report import Depth

_MEASURE_S = 15.0  # of one stage, at all depths
_MOST_DEEPER = 4.0  # times as deep as before, at most
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


def find_deeper(last: Depth, period: int, total: int, memory: int, took_s: float, spent_s: float) -> int | None:
    """Say how deep seconds are measured next, after they were at one depth; None: that was deep enough.

    What a layer takes is the difference of two depths, so what disturbs them counts the more often the deeper the model itself is; and a
    few layers may stay in a processor's cache between two steps of a decoder, where all of them do not. So the deepest is the model's own
    depth, if a quarter of a minute and of the memory allows it.

    Args:
        last: What was seen at the last depth.
        period: Layers by which depths differ.
        total: Layers of the model.
        memory: Bytes that this machine has.
        took_s: Seconds that the last depth took; one n times as deep takes n times as long at most.
        spent_s: Seconds of all depths until now.
    """
    bytes_a_layer = (last.held + _STATE_BYTES * sum(last.learning)) / last.layers  # at most: embeddings are in it
    fitting = _MEMORY_SHARE * memory / bytes_a_layer
    most = min(total, fitting, last.layers * min(_MOST_DEEPER, (_MEASURE_S - spent_s) / max(took_s, 1e-3)))
    layers = total if most == total else last.layers + int((most - last.layers) // max(period, 1)) * period
    return layers if layers > last.layers else None
