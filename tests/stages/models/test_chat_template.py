"""What is written into a template is read by transformers' own sandbox, and changes nothing else."""

import datetime

import pytest
from transformers import AutoTokenizer

from stages.models.chat_template import PINNED_DAY, bake, find_pinned_day
from stages.process.errors import StageError

VALUES = {
    "text": 'it\'s "quoted" {{ 1 }} {% raw %} \\n\nsecond line, ä 😀',
    "nothing": None,
    "flags": [True, False],
    "numbers": [1, -2.5, 1e-9],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"required": [], "properties": {"x": {"type": "string"}}}}}],
}


@pytest.fixture(scope="module")
def render(base_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(base_model_dir)

    def render(template, **options):
        return tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], chat_template=template, tokenize=False, **options)

    return render


def test_values_of_all_kinds_arrive_as_they_were_given(render):
    template = "{% for value in [text, nothing, flags, numbers, tools] %}{{ value | tojson }}|{% endfor %}"
    assert render(bake(template, VALUES)) == render(template, **VALUES)


@pytest.mark.parametrize("body", ["\n  {% if x %}a{% endif %}\n b", "  {%- if x %}a{% endif %}", "  \t{{ x }}\n\n", "{# note #}\n{{ x }}"])
def test_blanks_at_a_templates_start_stay_as_they_were(render, body):
    assert render(bake(body, {"x": 1})) == render(body, x=1)


@pytest.mark.parametrize("body", ["{{ x }}", "{{ strftime_now('%d') }} {{ x }}"])
def test_baking_again_changes_nothing_and_later_values_win(render, body):
    once = bake(body, {"x": 1})
    assert bake(once, {"x": 1}) == once == bake(once, {})
    assert render(bake(once, {"x": 2})) == render(once).replace("1", "2") if "strftime" not in body else True
    assert render(bake(once, {"x": "b"})).endswith("b")


def test_nothing_is_written_into_a_template_without_clock_and_values():
    assert bake("{{ messages }}", {}) == "{{ messages }}"


@pytest.mark.parametrize("layout", ["%Y-%m-%d", "%d %b %Y", "%A, %B %-d, %Y", "%H:%M", "%j of %y"])
def test_a_clock_writes_each_format_as_strftime_does(render, layout):
    template = "{% macro day() %}{{ strftime_now('" + layout + "') }}{% endmacro %}{% if strftime_now is defined %}{{ day() }}{% endif %}"
    day = datetime.date(2026, 3, 9)
    assert render(bake(template, {"date": "2026-03-09"})) == datetime.datetime.combine(day, datetime.time()).strftime(layout)
    assert find_pinned_day(bake(template, {"date": "2026-03-09"})) == "2026-03-09"
    assert find_pinned_day(bake(template, {})) == PINNED_DAY.isoformat() and find_pinned_day(template) is None


def test_parts_of_a_day_can_be_reckoned_with(render):
    assert render(bake("{{ strftime_now('%d') | int - 1 }}", {"date": "2026-03-09"})) == "8"


def test_a_date_is_given_to_a_template_that_reads_one(render):
    assert render(bake("{{ date }}", {"date": "9 March"})) == "9 March"
    with pytest.raises(StageError, match=r"template_args.date: the chat template reads no variable"):
        bake("{{ messages }}", {"date": "2026-03-09"})


def test_a_misspelt_variable_is_told_with_the_near_one():
    with pytest.raises(StageError, match=r"template_args.enable_thinkng: .*did you mean enable_thinking\?"):
        bake("{{ enable_thinking }}", {"enable_thinkng": False})
