"""Chatting with policies, and scores of answers from outside, by real models."""

import io
import json
import os
import sys
from contextlib import closing

import pytest
from rich.console import Console

from pipeline.chat import Chat, exchange, obey, open_chat, save_chat
from pipeline.launch.dialogue import ask_all
from pipeline.report.chat import ChatView
from pipeline.store.importing import import_directory
from pipeline.store.store import Store
from stages.chat import converse
from stages.process.places import has_gpu
from tests.stages.family_models import save_base

ASKED = "Order: red mug. Status: sent. Day: Friday. Ada asks: where is my order?"


@pytest.fixture(scope="module")
def models(base_model_dir, tmp_path_factory):
    """A store with a policy and a reward model: the demo's base model, untrained."""
    from stages.blocks import HardwareSettings
    from stages.models.reward_model import init_reward_model
    from stages.models.save import save_model
    from stages.models.tokenizer import align_special_tokens, load_tokenizer

    directory = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(str(base_model_dir))
    model = init_reward_model(str(base_model_dir), HardwareSettings(precision="float32"), seed=1)
    align_special_tokens(model, tokenizer)
    save_model(model, tokenizer, directory / "rm", merge=False)
    store = Store(directory / "store")
    import_directory(store, base_model_dir, "sft")
    import_directory(store, directory / "rm" / "model", "rm")
    return store


@pytest.fixture
def ask(rlhf_here, models, warm, monkeypatch):
    """A function: standard input, arguments -> how the command ended."""

    def ask(text, *arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return rlhf_here(*arguments, "--store", models.root)

    return ask


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_a_file_of_answers_comes_back_in_order_with_a_score_each(ask, tmp_path):
    prompt = [{"role": "user", "content": ASKED}]
    rows = [
        {"prompt": ASKED, "response": "On its way.", "id": 7},
        {"prompt": ASKED, "response": "Lost, sorry.", "score": 0.25},
        {"prompt": prompt, "completion": "On its way."},
        {"messages": [*prompt, {"role": "assistant", "content": "On its way."}]},
        {"prompt": ASKED, "response": "On its way.", "finished": False},
        {"prompt": ASKED, "response": "many words " * 4000},
    ]
    result = ask("", "score", "rm", write_rows(tmp_path / "rows.jsonl", rows))
    scored = [json.loads(line) for line in result.stdout.splitlines()]
    assert [{name: value for name, value in row.items() if name not in ("score", "score_before")} for row in scored] == [
        {name: value for name, value in row.items() if name != "score"} for row in rows
    ]
    scores = [row["score"] for row in scored]
    assert scores[0] == pytest.approx(scores[2], abs=1e-5) == pytest.approx(scores[3], abs=1e-5)
    assert len({round(score, 5) for score in (scores[0], scores[1], scores[4])}) == 3  # another text; the same without its end
    assert scored[1]["score_before"] == 0.25
    assert scores[5] is None and result.returncode == 1
    assert "answer 6: no score: found" in result.stderr
    assert "5 answers, mean score" in result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.skipif(has_gpu(), reason="a GPU computes in place of the CPU")
def test_scores_of_a_model_made_in_bfloat16_are_those_of_float32_where_it_would_be_emulated_and_that_is_told(models, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")  # whatever this machine has, it is hidden
    asked = {"prompt": [{"role": "user", "content": ASKED}], "response": "On its way.", "finished": True}
    model = str(models.get("rm").opened_path)
    told, scored = ask_all("stages.score", [{"model": model, "precision": "bfloat16"}, asked])
    assert told["note"].startswith("computes in float32") and told["scores"] == []
    assert [scored] == list(ask_all("stages.score", [{"model": model, "precision": "float32"}, asked]))


def test_bad_rows_are_told_with_their_lines_before_a_model_is_opened(rlhf_here, models, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "response": "a"}\n{"prompt": "q"}\nnot json\n{"prompt": "q", "response": 3}\n')
    result = rlhf_here("score", "rm", path, "--store", models.root)
    assert result.returncode == 2 and result.stdout == ""
    assert [line.split(": ")[0].rpartition(":")[2] for line in result.stderr.splitlines()] == ["2", "3", "4"]
    begin = '{"prompt": "q", "response": "a", "more"'
    path.write_text(f'{begin}: {{"a": [NaN]}}}}\n{begin}: 1e999}}\n{begin}: "\\ud800"}}\n{begin}: null}}\n')
    result = rlhf_here("score", "rm", path, "--store", models.root)
    assert result.returncode == 2 and result.stdout == ""
    assert [line.split(": ")[:3] for line in result.stderr.splitlines()] == [
        [f"{path}:1", "more", "found NaN or Infinity, which JSON does not have; needed a finite number or null; correct it"],
        [f"{path}:2", "more", "found NaN or Infinity, which JSON does not have; needed a finite number or null; correct it"],
        [f"{path}:3", "more", "found half a surrogate pair; needed Unicode text; repair the export"],
    ]
    path.write_text("")
    assert "found no rows" in rlhf_here("score", "rm", path, "--store", models.root).stderr
    path.write_bytes(b"PAR1\n\xd8\n\xd8\n")
    told = rlhf_here("score", "rm", path, "--store", models.root).stderr
    assert told == f"{path}: found a Parquet file; needed JSON lines of prompt and response; write it so\n"
    assert rlhf_here("score", "rm", tmp_path / "nowhere", "--store", models.root).returncode == 4


@pytest.mark.slow
def test_what_a_chat_cannot_read_or_save_is_told_before_an_answer(rlhf_here, warm, models, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n")))
    told = rlhf_here("chat", "sft", "--save", tmp_path / "kept.jsonl", "--store", models.root)
    assert told.returncode == 2 and "standard input:1: found bytes that are no UTF-8" in told.stderr
    assert not (tmp_path / "kept.jsonl").exists()
    told = rlhf_here("chat", "sft", "--save", tmp_path / "nowhere" / "kept.jsonl", "--store", models.root)
    assert told.returncode == 5 and "nowhere/kept.jsonl: No such file or directory" in told.stderr


def test_scores_that_never_came_leave_the_file_that_they_should_have_gone_to(rlhf_here, models, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.score.score", stop)
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}])
    before = rows.read_text()
    assert rlhf_here("score", "rm", rows, "--out", rows, "--store", models.root).returncode != 0
    assert rows.read_text() == before


def test_what_cannot_score_or_answer_is_refused(rlhf_here, models, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "q", "response": "a"}])
    assert "sft@v1 is no reward model" in rlhf_here("score", "sft", path, "--store", models.root).stderr
    assert "rm@v1 is a reward model" in rlhf_here("chat", "rm", "--store", models.root).stderr
    assert rlhf_here("chat", "sft", "--rm", "sft", "--store", models.root).returncode == 2


@pytest.mark.slow
def test_in_a_pipe_each_line_is_a_message_and_each_answer_a_line(ask, tmp_path):
    saved = tmp_path / "talk.jsonl"
    text = f"{ASKED}\n/undo\n{'long words ' * 4000}\n/system Be brief.\n/nonsense\n\n//slash {ASKED}\n/quit\nnever read\n"
    result = ask(text, "chat", "sft", "--vs", "sft", "--rm", "rm", "--seed", "3", "--max-tokens", "8", "--save", saved)
    assert result.returncode == 1, result.stderr  # one is not answered, which is told; those after it are
    lines = result.stdout.splitlines()
    assert "standard input:3: not answered: the conversation has" in lines.pop(3)
    assert [line.split(" (score ")[0] for line in lines[:2]] == ["sft@v1", "sft@v1"]
    assert "8 tokens, not finished): " in lines[0] or "finished" not in lines[0]
    assert lines[2] == f"taken back: {ASKED}"
    assert lines[3].startswith("the system message is set")
    assert lines[4].startswith("no command /nonsense; there are /undo")
    assert len(lines) == 7
    first, second = (json.loads(line) for line in saved.read_text().splitlines())
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant"]
    assert first["messages"][1]["content"] == f"/slash {ASKED}"
    assert first["answers"] == second["answers"]  # one model twice: the same seed says the same
    assert isinstance(first["answers"][0]["score"], float)


@pytest.mark.slow
def test_as_json_each_exchange_is_an_object_and_the_likeliest_answer_needs_no_seed(ask):
    def answer(*options):
        result = ask(f"{ASKED}\n{'long words ' * 4000}\n", "chat", "sft", "--rm", "rm", "--json", "--max-tokens", "6", *options)
        assert result.returncode == 1
        answered, refused = map(json.loads, result.stdout.splitlines())
        assert (refused["answers"], refused["line"]) == ([], 2) and refused["problem"].startswith("the conversation has")
        return answered

    greedy = [answer("--temperature", "0", "--seed", seed) for seed in ("1", "2")]
    assert greedy[0]["prompt"] == ASKED
    for name in ("text", "tokens", "score"):
        assert greedy[0]["answers"][0][name] == greedy[1]["answers"][0][name]


@pytest.mark.slow
def test_a_model_that_answers_slower_than_others_is_told_before_it_answers(tmp_path):
    save_base("mamba", tmp_path / "recurrent")
    asked, heard = {"models": [str(tmp_path / "recurrent")] * 2, "precisions": ["float32"] * 2}, []
    converse(None, iter([asked | {"reward_model": None, "reward_precision": "float32"}]), lambda **said: heard.append(said))
    ((note,),) = (said["notes"] for said in heard if said["ready"])
    assert note.startswith("MambaForCausalLM does not run over our key-value cache")


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_conversation_that_leaves_no_room_is_told_and_the_chat_goes_on(models):
    chat = Chat([models.get("sft")], temperature=1.0, max_tokens=200, seed=1)
    told = []
    with open_chat(chat, None) as program:
        assert next(program.hear()) == {"ready": True}
        problem = exchange(chat, program, "long words " * 4000, lambda place, text: None, lambda place, answer: None)
        assert problem.startswith("the conversation has") and chat.turns == []

        def hear(place, text):
            if not told:
                program.interrupt()  # as Ctrl-C does, while it is said
            told.append(text)

        assert exchange(chat, program, ASKED, hear, lambda place, answer: None) is None
    ((message, (answer,)),) = chat.turns
    assert message == ASKED and answer["text"].startswith("".join(told))
    assert answer["tokens"] < 200 and not answer["finished"] and answer["score"] is None


def make_chat():
    class Model:
        ref, content_id = "sft@v1", "0" * 64

    answer = {"text": "yes", "score": None, "finished": True, "tokens": 2, "temperature": 1.0, "seed": 1}
    return Chat([Model()], 1.0, 8, 1, turns=[("one", [answer]), ("two", [answer])])


def test_commands_change_what_the_model_reads_next(tmp_path):
    chat = make_chat()
    assert [message["content"] for message in chat.messages(0, "three")] == ["one", "yes", "two", "yes", "three"]
    assert obey(chat, "/undo", str) == "taken back: two"
    assert obey(chat, "/system Be kind.", str) == "the system message is set; what was said stays"
    assert [message["content"] for message in chat.messages(0, "three")] == ["Be kind.", "one", "yes", "three"]
    assert obey(chat, "/temperature 0.5", str) == "temperature 0.5" and chat.temperature == 0.5
    for wrong in ("hot", "-1", "nan", ""):
        assert "needed a number" in obey(chat, f"/temperature {wrong}", str) and chat.temperature == 0.5
    assert obey(chat, "/help", str).startswith("/undo, /system TEXT")
    assert obey(chat, "/reset", str) == "begun anew" and obey(chat, "/undo", str) == "nothing to take back"
    assert save_chat(chat, tmp_path / "nothing") == "nothing was said yet; nothing is saved"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_says_never_steers_the_terminal(terminal):
    with closing(io.StringIO()) as output:
        view = ChatView(Console(file=output, force_terminal=terminal, color_system=None, width=80), ["ppo@v1"])
        view.begin()
        for piece in ("a\x1b", "]0;title\x07b\x1b[2J", "\u202ec\nline\r"):
            view.told(0, piece)
        whole = "a\x1b]0;title\x07b\x1b[2J\u202ec\nline\r and more [bold]"
        view.answered(0, {"text": whole, "score": 0.5, "tokens": 3, "finished": False})
        shown = output.getvalue()
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(shown)
    assert shown.endswith("and more [bold]\n  score 0.5, 3 tokens, not finished\n" if terminal else "and more [bold]\n")
    assert "(score 0.5, 3 tokens, not finished)" in shown or terminal
    assert os.linesep in shown
