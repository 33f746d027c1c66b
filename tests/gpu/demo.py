"""The embedded demo on the GPU in both precisions, at once, held to the bands of tests/learning."""

import os
import subprocess
import sys
from collections.abc import Iterator

from tests.bench.protocol import ROOT
from tests.gpu.place import Figure, Place

_MODULE = "tests/learning/test_demo.py"


def measure(place: Place) -> Iterator[Figure]:
    """Run both; they share the GPU."""
    running = {}
    for precision in ("float32", "bfloat16"):
        settings = f"hardware.device=cuda hardware.processes=1 hardware.precision={precision}"
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", _MODULE]
        if place.pretend:  # its stages are processes of their own, which know nothing of a pretend GPU: the recipe is read, nothing runs
            command = [sys.executable, "-m", "pipeline.cli", "config", "demo", *(f"--set={each}" for each in settings.split())]
        environment = os.environ | {"RLHF_TEST_DEMO": settings}
        running[precision] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    for precision, process in running.items():
        output, _ = process.communicate()
        if process.returncode:
            print(output[-4000:], file=sys.stderr)
        what, holds = place.choose("its bands", "its recipe is read"), process.returncode == 0
        yield Figure(f"demo {precision}", what, float(holds), "", "1", holds)
