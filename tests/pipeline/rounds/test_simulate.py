"""A program ranks on the page as people do: it reads what is shown, and what it says stands in the journal."""

import threading

import pytest

from data.answers import AnswerSet
from data.schema import Message
from pipeline.ranking.journal import Journal
from pipeline.ranking.server import RankingServer
from pipeline.ranking.settings import Settings
from pipeline.ranking.study import Study
from pipeline.rounds.simulate import Visitor

TEXTS = ("plain & <b>bold</b>", "code:\n```py\nx = 1 < 2\n```\nso", "  two\n\nparts ", "last")


@pytest.fixture
def study(tmp_path):
    sets = [AnswerSet((Message("system", "Be kind."), Message("user", f"<i>Question</i> {n}?")), TEXTS) for n in range(12)]
    return Study({each.id: each for each in sets}, Journal(tmp_path / "journal.jsonl"), Settings.model_validate({}))


@pytest.fixture
def link(study):
    server = RankingServer(study, ["ann"], 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server.links["ann"]
    server.stop()
    thread.join()


def test_it_reads_what_is_shown_and_its_levels_become_ranks(study, link):
    seen = []

    def rank(prompt, answers):
        seen.append((prompt.strip(), tuple("".join(answer.split()) for answer in answers)))
        order = sorted(range(4), key=lambda place: answers[place].strip())
        return [[order[0]], order[1:3], [order[3]]]

    visitor = Visitor(link)
    while visitor.rank_next(rank):
        pass
    visitor.close()
    judgements = list(study.journal.judgements.values())
    assert len(judgements) == len(seen) == 13 and len({each.item for each in judgements}) == 12  # one of them twice
    assert {prompt for prompt, _ in seen} == {f"<i>Question</i> {n}?" for n in range(12)}
    shown = {"".join(text.replace("```py", "").replace("```", "").split()) for text in TEXTS}
    assert all(set(answers) == shown for _, answers in seen)
    # By text: code, last, plain, two.
    assert all(each.ranks == (2, 1, 4, 2) for each in judgements)


def test_a_link_of_another_run_is_told(link):
    with pytest.raises(OSError, match="401 found a link of another run"):
        Visitor(link[:-3] + "abc")
