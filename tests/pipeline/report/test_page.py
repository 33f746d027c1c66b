"""The page in a real browser: it speaks to nobody, shows every text as text, and can be read by all."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.report.page.build import build_page
from pipeline.report.page.comparison import compare_page
from pipeline.report.page.evidence import gather
from pipeline.report.page.write import render
from tests.pipeline.report.evaluations import publish_evaluation, publish_line

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.slow  # a browser takes four CPU seconds

HOSTILE = "</p></style></title><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> "
HOSTILE += "\x1b[31mred\x1b[0m \u202egpj.exe"
HEBREW = "שלום, איפה החבילה שלי?"
LONG = "x" * 100_000
HOSTILE_URL = "<link rel=stylesheet href=http://127.0.0.1:9/a.css><style>@import 'http://127.0.0.1:9/b.css';</style>"


@pytest.fixture
def visit(browser, tmp_path):
    """visit(html): the page in the browser, with all that it said and asked for."""
    contexts = []

    def visit(html, **options):
        path = tmp_path / f"{len(contexts)}.html"
        path.write_text(html, encoding="utf-8")
        contexts.append(browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options)))
        page = contexts[-1].new_page()
        heard, asked = [], []
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return SimpleNamespace(page=page, heard=heard, asked=asked, url=path.as_uri())

    yield visit
    for context in contexts:
        context.close()


def serious(page, **options):
    violations = axe.Axe().run(page, options=options).response["violations"]
    return [
        (found["id"], found["nodes"][0]["html"][:200], found["nodes"][0].get("failureSummary", "")[:300])
        for found in violations
        if found["impact"] in ("serious", "critical", "moderate")
    ]


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def test_the_page_says_nothing_to_the_console_loads_nothing_and_axe_finds_nothing(evaluated, report, visit):
    html = report(evaluated.evaluation.ref)
    assert "<script" not in html and " style=" not in html
    visited = visit(html)
    page = visited.page
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = fold.closest('figure') === null; })")
    assert serious(page) == []
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    assert serious(page, runOnly=["color-contrast"]) == []
    assert (visited.heard, visited.asked) == ([], [visited.url])
    assert page.locator("h1").inner_text() == "Evaluation evaluation@v1"
    assert page.locator(".verdict").first.inner_text().startswith("Good news")


@pytest.mark.parametrize("width", [360, 3840])
def test_the_page_fits_a_phone_and_a_large_screen(width, evaluated, report, visit):
    page = visit(report(evaluated.evaluation.ref), viewport={"width": width, "height": 900}).page
    assert overflow(page) <= 0
    pictures = [box for picture in page.locator("svg.chart").all() if (box := picture.bounding_box())]
    assert len(pictures) > 10
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in pictures)


def test_paper_leaves_out_what_cannot_be_opened_on_it(evaluated, report, visit):
    page = visit(report(evaluated.evaluation.ref)).page
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("details").first.is_visible()
    assert page.locator("svg.chart").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_hostile_texts_are_shown_as_text_wherever_they_come_from(store, publish, gain, report, visit):
    evaluation, rows = gain
    texts = [HOSTILE, HEBREW, LONG, HOSTILE_URL]
    rows = [row | {"prompt": texts[row["prompt_id"] % 4], "response": texts[(row["prompt_id"] + 1) % 4]} for row in rows]
    card = evaluation.reward_card.model_copy(
        update={"probes": tuple(p.model_copy(update={"name": HOSTILE, "description": HOSTILE_URL}) for p in evaluation.reward_card.probes)}
    )
    evaluation = evaluation.model_copy(
        update={"judge": HOSTILE, "missing": (HOSTILE, LONG), "reward_card": card, "judge_unit": HOSTILE_URL[:40]}
    )
    line = publish_line(store, publish, ppo_config={"stop_token": HOSTILE, "rollout": {"engine": LONG}}, counts={HOSTILE: 3, LONG: 2})
    ref = publish_evaluation(store, publish, evaluation, rows, line).ref
    visited = visit(report(ref), viewport={"width": 360, "height": 800})
    page = visited.page
    assert (visited.heard, visited.asked) == ([], [visited.url])
    assert page.title() == f"Evaluation {ref} · rlhf"
    assert page.locator("img, script, main style, main link").count() == 0
    shown = page.locator(".said").all_inner_texts()
    assert any("<script>document.title='owned'</script>" in text and "\\x1b[31mred" in text and "\\u202egpj" in text for text in shown)
    assert any(text == HEBREW for text in shown)
    assert (
        page.evaluate("getComputedStyle(Array.from(document.querySelectorAll('.said')).find(p => p.textContent.startsWith('ש'))).direction")
        == "rtl"
    )
    assert page.get_by_text("96,000 characters are left out").first.is_visible()
    assert overflow(page) <= 0
    assert page.evaluate("document.documentElement.scrollHeight") < 60_000


def test_the_page_of_two_refs_shows_what_changed_and_what_it_did(store, publish, evaluated, fooled, visit):
    free = publish_line(
        store, publish, ppo_config={"kl_coef": 0.0, "iterations": 60, "eval_samples": 200}, metric_rows=[{"step": 1, "objective/kl": 1.0}]
    )
    publish_evaluation(store, publish, *fooled, free)
    page = visit(render(compare_page(gather(store, evaluated.line[2]), gather(store, free[2])))).page
    assert page.locator(".verdict .news").all_inner_texts() == ["Good news · evaluation@v1", "Look into this · evaluation@v2"]
    assert re.search(r"ppo\s+setting\s+ppo.kl_coef\s+0.05\s+0.0", page.locator("#changes").inner_text())
    assert "KL, nats" in page.locator("#effects").inner_text()
    assert page.locator("#answers .case").first.locator(".who").all_inner_texts() == ["Prompt", "ppo@v1", "ppo@v2"]
    assert page.locator("#over-optimisation svg").count() == 2


def test_a_store_that_is_empty_but_for_a_failed_run_has_a_page_too(store, visit):
    (store.root / "runs" / f"sft-{'0' * 16}").mkdir(parents=True)
    evidence = replace(gather_failed(store), problems=())
    page = visit(render(build_page(evidence, store.root))).page
    assert "SFT did not end well" in page.locator(".verdict").inner_text()
    assert serious(page) == []


def gather_failed(store):
    from tests.pipeline.report.test_report import write_failed_run

    write_failed_run(store, "sft", "out of memory on cuda:0; lower sft.micro_batch_size")
    return gather(store, None)
