"""Seconds that were measured at some depths -> at the model's own, and never less or more than can be true of them.

    seconds = a x layers + b x (layers + DEARER x outside)         a, b >= 0, by least squares

`outside` is what is computed outside of layers, as many of them as make so many operations. It takes no less than nothing, and for an
operation no more than DEARER times what layers take. A line without these bounds, through two depths of which the shallower one was
disturbed, goes below zero in a model of many layers.
"""

import math
from collections.abc import Sequence

DEARER = 4.0  # a head has its softmax beside products, of a large vocabulary


def fit_seconds(measured: Sequence[tuple[int, float]], layers: int, outside: float) -> float:
    """Say what a phase takes with so many layers.

    Args:
        measured: (layers, seconds), at least one.
        layers: Of the model; where it was measured with all of them, that counts.
        outside: Operations outside of layers, over those of a layer; infinite: not known, or none are in layers.
    """
    if whole := [seconds for depth, seconds in measured if depth == layers]:
        return sum(whole) / len(whole)

    def most(depth: int) -> float:
        return float(depth)

    def least(depth: int) -> float:
        return 1.0 if math.isinf(outside) else depth + DEARER * outside

    mm, ll, ml = (sum(one(depth) * other(depth) for depth, _ in measured) for one, other in ((most, most), (least, least), (most, least)))
    ms, ls = (sum(column(depth) * seconds for depth, seconds in measured) for column in (most, least))
    determinant = mm * ll - ml * ml
    if determinant > 1e-9 * mm * ll:
        a, b = (ms * ll - ls * ml) / determinant, (ls * mm - ms * ml) / determinant
        if a >= 0 and b >= 0:
            return a * most(layers) + b * least(layers)
    # Else the better of the two bounds: squares that are left are those of the seconds less what is explained.
    return ms / mm * most(layers) if ms * ms / mm > ls * ls / ll else ls / ll * least(layers)
