"""What stages took, over what was said of them -> a factor for the next plan, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_FEWEST, _LEAST = 1.25, 1.10  # times and by which one run may be off, and however many


@dataclass(frozen=True)
class Calibration:
    """By what times are multiplied.

    Args:
        factor: The median of taken / said.
        spread: Times and by which the next run may be off.
        runs: How many there were.
    """

    factor: float
    spread: float
    runs: int


def calibrate(ratios: Sequence[float]) -> Calibration | None:
    """Make a factor of ratios taken / said: their median, which one run on a busy machine does not move; None: there are none.

    The spread is that of the ratios around it, 1.4826 times their median distance in logarithms doubled (two standard deviations, were
    they normal); a single run says nothing of it.
    """
    if not ratios:
        return None
    factor = median(ratios)
    distance = median(max(ratio / factor, factor / ratio) for ratio in ratios)
    spread = _FEWEST if len(ratios) == 1 else max(distance ** (2 * 1.4826), _LEAST)
    return Calibration(factor, spread, len(ratios))
