"""Whole iterations of PPO, on one process and on two, are those of loops in float64 that were written from the papers alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

DRIVER = Path(__file__).with_name("whole_iterations_driver.py")
ROOT = DRIVER.parents[3]


@pytest.fixture(scope="module", params=[1, 2])
def deviations(request, tmp_path_factory, warm_start):
    """{case: {figure or weights: largest deviation over three iterations}}."""
    output = tmp_path_factory.mktemp("iterations") / "deviations.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(request.param)]
    found = subprocess.run([*launcher, str(DRIVER), str(output)], cwd=ROOT, env=warm_start(), capture_output=True, text=True, timeout=400)
    assert found.returncode == 0, found.stderr[-3000:]
    return torch.load(output)


@pytest.mark.slow
def test_weights_of_policy_critic_and_average_are_those_of_the_loops(deviations):
    assert "ema" in deviations["everything"]
    for case, found in deviations.items():
        assert found["unfinished"] > 0 and found["longest"] == 8, case  # so that some were cut
        for name in ("policy", "critic", "ema"):
            assert found.get(name, 0.0) < 1e-5, (case, name)  # Adam takes steps of 3e-3


@pytest.mark.slow
def test_every_figure_is_that_of_the_loops(deviations):
    for case, found in deviations.items():
        figures = {name: value for name, value in found.items() if name not in ("policy", "critic", "ema", "longest", "unfinished")}
        assert len(figures) == (26 if case == "adapter" else 25), sorted(figures)
        assert max(figures.values()) < 2e-5, (case, max(figures, key=figures.get))
