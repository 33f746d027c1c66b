from data.schema import Comparison, Demonstration, Message, Prompt

ROW = {"instruction": "Translate.", "input": "Haus", "output": "house", "text": "Below is an instruction ..."}


def user(text):
    return (Message("user", text),)


def test_instruction_and_input_are_the_prompt_and_output_the_answer(read):
    bare = {"instruction": "Say hi.", "input": "", "output": "Hi."}
    dolly = {"instruction": "Translate.", "context": "Haus", "response": "house", "category": "closed_qa"}
    expected = [Demonstration(user("Translate.\nHaus"), "house"), Demonstration(user("Say hi."), "Hi.")]
    assert read("demonstrations", ROW, bare) == expected
    assert read("demonstrations", dolly) == expected[:1]
    assert read("prompts", ROW, bare) == [Prompt(record.prompt) for record in expected]


def test_system_prompt_and_history_come_first_and_each_answer_of_the_history_is_learnt(read):
    row = {**ROW, "system": "Be brief.", "history": [["Translate. Baum", "tree"]]}
    before = (Message("system", "Be brief."), *user("Translate. Baum"))
    assert read("demonstrations", row) == [
        Demonstration(before, "tree"),
        Demonstration((*before, Message("assistant", "tree"), *user("Translate.\nHaus")), "house"),
    ]


def test_pairs_are_comparisons_however_they_are_written(read):
    question = {"instruction": "Translate.", "input": "Haus"}
    rows = [
        {**question, "chosen": "house", "rejected": "mouse"},
        {**question, "output": ["house", "mouse"]},
        {**question, "output_1": "mouse", "output_2": "house", "preference": 2},
    ]
    for row in rows:
        assert read("comparisons", row) == [Comparison(user("Translate.\nHaus"), ("house", "mouse"), (1, 2))], row


def test_bad_rows_are_told_under_the_users_names(refused):
    assert refused("demonstrations", ROW, {**ROW, "output": ""}, {**ROW, "instruction": 3}, {**ROW, "history": [["a"]]}) == [
        "records.jsonl:2: output: found an empty text; needed text; fill it or remove the line",
        "records.jsonl:3: instruction: found 3 (a number); needed text; correct it",
        "records.jsonl:4: history[0]: found a list; needed a question and its answer; write both",
    ]
    pair = {"instruction": "a", "output_1": "b", "output_2": "c"}
    assert refused("comparisons", {**pair, "preference": 1}, {**pair, "preference": 3}) == [
        "records.jsonl:2: preference: found 3 (a number); needed 1 or 2, the better of output_1 and output_2; correct it"
    ]
