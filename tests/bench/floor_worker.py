"""The rate of each matrix product per "go", in float32 and bfloat16, for the shapes that an update is made of."""

import json
import sys

import torch

from tests.bench.protocol import Bench, Figures, Instant

_MEASURED_S = 0.05
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure_rate(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, float]:
    """Measure a linear layer's floating point operations per second of wall clock and of CPU time."""
    x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    torch.nn.functional.linear(x, weight)
    start, calls, elapsed = Instant.now(), 0, {"wall_s": 0.0, "cpu_s": 0.0}
    while elapsed["wall_s"] < _MEASURED_S:
        torch.nn.functional.linear(x, weight)
        calls += 1
        elapsed = start.until(Instant.now())
    flops = 2.0 * rows * inputs * outputs * calls
    return {"per_wall_s": flops / elapsed["wall_s"], "per_cpu_s": flops / elapsed["cpu_s"]}


@torch.no_grad()
def main() -> None:
    """Serve until the bench closes the line."""
    bench = Bench()
    shapes = json.loads(sys.argv[1])["shapes"]

    def step() -> Figures:
        return {
            "rates": [
                {"shape": shape, "precision": name, **measure_rate(*shape, dtype)}
                for shape in shapes
                for name, dtype in _PRECISIONS.items()
            ]
        }

    bench.serve(step)


if __name__ == "__main__":
    main()
