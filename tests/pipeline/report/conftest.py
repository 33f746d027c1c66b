"""What the tests of the report share: a line of artifacts with its evaluation."""

import shutil
from types import SimpleNamespace

import pytest

from pipeline.report.page.build import build_page
from pipeline.report.page.evidence import gather
from pipeline.report.page.write import render
from pipeline.store.store import Store
from tests.pipeline.report.evaluations import FOOLED, publish_evaluation, publish_line, simulate


@pytest.fixture(scope="session")
def gain():
    """An evaluation in which PPO gains, and its answers."""
    return simulate(num_prompts=24, samples=4)


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


@pytest.fixture(scope="session")
def evaluated_store(publish, gain, tmp_path_factory):
    """A store that holds the line of the demo with its evaluation; copy it before changing it."""
    store = Store(tmp_path_factory.mktemp("evaluated") / "store")
    publish_evaluation(store, publish, *gain, publish_line(store, publish))
    return store.root


@pytest.fixture
def evaluated(store, evaluated_store):
    """The line of the demo with its evaluation, in the store."""
    shutil.copytree(evaluated_store, store.root, symlinks=True, dirs_exist_ok=True)
    return SimpleNamespace(line=[store.get(kind) for kind in ("sft", "rm", "ppo")], evaluation=store.get("evaluation"))
