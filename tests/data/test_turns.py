import pytest

from data.schema import Comparison, Demonstration, Message
from data.tokens import encode_records, encode_response
from data.turns import begins_with_prompt, drop_opening, find_end_token, find_openings

SIMPLE = "{% for m in messages %}[U]{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
THINK = SIMPLE.replace("{% endif %}", "<think>\n{% endif %}")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (SIMPLE, "</s>"),
        ("{% for m in messages %}[U]{{ m['content'] }} [P]\n{% endfor %}", "[P]"),
        # Always ready for the next answer: what comes behind an answer then begins one.
        ("{% for m in messages %}[U]{{ m['content'] }}{% endfor %}[A]", None),
        # Another token behind the last answer than behind those before it.
        (
            "{% for m in messages %}[U]{{ m['content'] }}{{ '</s>' if loop.last and m['role'] == 'assistant' else '[P]' }}{% endfor %}",
            "</s>",
        ),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", None),
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", None),
        ("{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0]['content'] }}", None),
        ("{% if messages | length > 2 %}{{ raise_exception('two') }}{% endif %}{{ messages[-1]['content'] }}</s>", None),
    ],
)
def test_the_end_token_is_what_stands_behind_an_answer(tokenizer_of, template, end):
    assert find_end_token(tokenizer_of(template)) == end


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("<think>\nhmm</think>x", "hmm</think>x"),
        ("<think>hmm</think>x", "hmm</think>x"),
        ("<think>\n\nhmm", "\nhmm"),
        ("[A]<think>\nhmm", "hmm"),
        ("x<think>\n", "x<think>\n"),
        ("\nx", "\nx"),
        ("<thinking>", "<thinking>"),
        ("", ""),
    ],
)
def test_an_answer_loses_what_the_prompt_has_written_already(tokenizer_of, answer, left):
    assert drop_opening(answer, find_openings(tokenizer_of(THINK))) == left


def test_a_role_is_an_opening_only_as_a_whole(tokenizer_of):
    openings = find_openings(tokenizer_of("{{ messages[0]['content'] }}</s>[A]assistant{{ '\n' }}"))
    assert openings == ("</s>[A]assistant\n", "[A]assistant\n", "assistant\n")
    assert drop_opening("assistants help", openings) == "assistants help" and drop_opening("assistant\nHello", openings) == "Hello"
    assert find_openings(tokenizer_of("{{ messages[0]['content'] }} assistant")) == ()
    assert find_openings(tokenizer_of("{{ messages[0]['content'] + '\n- ' }}")) == ()


def test_repeated_openings_are_counted_and_written_once(tokenizer_of):
    tokenizer = tokenizer_of(THINK)
    records = [Demonstration((Message("user", "a"),), text) for text in ("a", "<think>\na", "b", "<think>b")]
    assert [record.repeated for record in encode_records(tokenizer, records, (99, 9))] == [0, 1, 0, 1]
    assert encode_response(tokenizer, "<think>\na b") == encode_response(tokenizer, "a b")
    prompt = (Message("user", "a"),)
    (demonstration,) = encode_records(tokenizer, [Demonstration(prompt, "<think>\nb")], (99, 9))
    assert demonstration.responses == [encode_response(tokenizer, "b")]
    (comparison,) = encode_records(tokenizer, [Comparison(prompt, ("<think>\nb", "a"), (1, 2))], (99, 9))
    assert comparison.responses == [encode_response(tokenizer, "b"), encode_response(tokenizer, "a")]


def test_a_template_that_renders_an_answered_turn_otherwise_is_told(tokenizer_of):
    assert begins_with_prompt(
        tokenizer_of(
            "{% for m in messages %}{{ '[A]' if m['role'] == 'assistant' else '[U]' }}{{ m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %}[A]{% endif %}"
        )
    )
    assert not begins_with_prompt(tokenizer_of(THINK))
