"""A stage, run from its spec as the pipeline would, that also says what its tensors held at their peak, and what the process did.

    python -P -m tests.bench.memory_worker STAGE SPEC.json     (or by torchrun)

leaves `memory-<rank>.json` beside the spec: logical (bytes of all live storages), resident (bytes of the process), begun (bytes before).
"""

import importlib
import json
import resource
import sys
import time
from pathlib import Path

from stages.process.context import StageContext
from stages.process.runtime import run_stage
from stages.tracing.live import Live


def measured(stage: str):
    """The stage's main, counted."""
    module = importlib.import_module({"ppo": "stages.ppo.stage"}.get(stage, f"stages.{stage}"))

    def main(context: StageContext):
        begun, started_s = peak_resident(), time.monotonic()
        live = Live()
        with live:
            result = module.main(context)
        figures = {"logical": live.peak, "resident": peak_resident(), "begun": begun, "seconds": time.monotonic() - started_s}
        (context.spec.events_path.parent / f"memory-{context.rank}.json").write_text(json.dumps(figures))
        return result

    return main


def peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    name = sys.argv.pop(1)
    assert Path(sys.argv[1]).is_file()
    run_stage(name, measured(name))
