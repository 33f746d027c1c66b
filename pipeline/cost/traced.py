"""A stage at two depths -> the same at the model's own: everything in a trace is linear in the number of layers."""

from stages.tracing.report import Depth, Phase, StageTrace


def extrapolate(trace: StageTrace) -> Depth:
    """Lay a line through two depths, for each phase and each number by itself; which phase has the peak can change on the way."""
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
                seconds=max(line(phase.seconds, large.phases[name].seconds), 0.0),
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
