"""What the tests of the report share: its page, and an evaluation of a PPO that fooled its reward model."""

import pytest

from pipeline.report.page.build import build_page
from pipeline.report.page.evidence import gather
from pipeline.report.page.write import render
from tests.pipeline.report.evaluations import FOOLED, simulate


@pytest.fixture(scope="session")
def fooled():
    """One in which PPO fooled the reward model, and its answers."""
    return simulate(num_prompts=24, samples=4, policies=FOOLED)


@pytest.fixture
def report(store, publish):
    """report(ref): the page of an artifact as HTML."""

    def report(ref):
        return render(build_page(gather(store, store.get(ref)), store.root))

    return report
