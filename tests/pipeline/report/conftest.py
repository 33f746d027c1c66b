"""What the tests of the report share: a line of artifacts with its evaluation."""

from types import SimpleNamespace

import pytest

from pipeline.report.page.build import build_page
from pipeline.report.page.evidence import gather
from pipeline.report.page.write import render
from tests.pipeline.report.evaluations import publish_evaluation, publish_line, simulate


@pytest.fixture(scope="session")
def gain():
    """An evaluation in which PPO gains, and its answers."""
    return simulate(num_prompts=24, samples=4)


@pytest.fixture
def report(store, publish):
    """report(ref): the page of an artifact as HTML."""

    def report(ref):
        return render(build_page(gather(store, store.get(ref)), store.root))

    return report


@pytest.fixture
def evaluated(store, publish, gain):
    """The line of the demo with its evaluation, in the store."""
    line = publish_line(store, publish)
    return SimpleNamespace(line=line, evaluation=publish_evaluation(store, publish, *gain, line))
