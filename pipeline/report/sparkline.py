"""How a figure went -> a line of blocks."""

import math
from collections.abc import Sequence

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"


def draw_sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """Draw values as blocks from the lowest to the highest, each the mean of those in its place; `?` where they are no numbers.

    Example: 0, 1, 2, 3 give `▁▃▆█`.
    """
    columns = [values[len(values) * place // width : len(values) * (place + 1) // width] for place in range(width)]
    if len(values) < width:
        columns = [[value] for value in values]
    means = [
        math.fsum(value / len(column) for value in column) if all(map(math.isfinite, column)) else math.nan for column in columns if column
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if high == low:
        return "".join("?" if math.isnan(mean) else blocks[len(blocks) // 2 - 1] for mean in means)
    top = len(blocks) - 1
    return "".join("?" if math.isnan(mean) else blocks[round((mean / 2 - low / 2) / (high / 2 - low / 2) * top)] for mean in means)
