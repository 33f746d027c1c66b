"""A stage at two depths -> the same at the model's own: everything in a trace is linear in the number of layers."""

import math

from pipeline.cost.fitted import fit_seconds
from stages.tracing.report import FEW_ROWS, Depth, Phase, StageTrace


def extrapolate(trace: StageTrace, counted: StageTrace | None = None) -> Depth:
    """Lay a line through two depths, for each phase and each number by itself; which phase has the peak can change on the way.

    Args:
        trace: Of which seconds are laid through all depths, between bounds: see `fit_seconds`.
        counted: The same stage with operations, where seconds were measured without them.
    """
    small, large = trace.depths[0], trace.depths[-1]
    layers = trace.layers

    def line(at_small: float, at_large: float) -> float:
        if large.layers == small.layers:
            return at_small
        return at_small + (at_large - at_small) * (layers - small.layers) / (large.layers - small.layers)

    def whole(at_small: int, at_large: int) -> int:
        return round(line(at_small, at_large))

    return Depth(
        layers=layers,
        phases={
            name: Phase(
                start=whole(phase.start, large.phases[name].start),
                peak=whole(phase.peak, large.phases[name].peak),
                flops=whole(phase.flops, large.phases[name].flops),
                seconds=fit_seconds(
                    [(depth.layers, depth.phases[name].seconds) for depth in trace.depths], layers, _find_outside(counted or trace, name)
                ),
            )
            for name, phase in small.phases.items()
        },
        parameters=whole(small.parameters, large.parameters),
        learning=[whole(*pair) for pair in zip(small.learning, large.learning, strict=True)],
        accumulates=small.accumulates,
        held=whole(small.held, large.held),
        whole=whole(small.whole, large.whole),
        small=[whole(*pair) for pair in zip(small.small, large.small, strict=True)],
        passed=whole(small.passed, large.passed),
        largest=whole(small.largest, large.largest),
        narrow=whole(small.narrow, large.narrow),
        captured=small.captured,
        cache=whole(small.cache, large.cache),
        row=whole(small.row, large.row),
        checkpoint=whole(small.checkpoint, large.checkpoint),
        output=whole(small.output, large.output),
        kept=whole(small.kept, large.kept),
        best=whole(small.best, large.best),
    )


def _find_outside(counted: StageTrace, name: str) -> float:
    """Say how much of a phase is outside of layers, in layers, by what was counted at two depths."""
    small, large = counted.depths[0], counted.depths[-1]
    name = name.removesuffix(FEW_ROWS) + "decode" if name.endswith(FEW_ROWS) else name

    def count(depth: Depth) -> int:
        return sum(depth.learning) if name == "optimizer" else depth.phases[name].flops if name in depth.phases else 0

    between = count(large) - count(small)
    if between <= 0:
        return math.inf
    return max(count(small) * (large.layers - small.layers) / between - small.layers, 0.0)
