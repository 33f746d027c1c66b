"""The page in a real browser: by keyboard, by mouse, on a telephone; what models say is text."""

import pytest

from pipeline.ranking.assignment import shuffle_answers

pytestmark = pytest.mark.slow


@pytest.fixture
def open_page(browser):
    """open_page(link, width): a page whose console and requests are kept."""
    contexts = []

    def open_page(link, width=1280):
        context = browser.new_context(viewport={"width": width, "height": 800})
        contexts.append(context)
        page = context.new_page()
        page.heard, page.asked = [], []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("dialog", lambda dialog: page.heard.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(link)
        return page

    yield open_page
    for context in contexts:
        context.close()


def shown(page):
    return page.locator("main").get_attribute("data-item")


def send(page, act):
    """Do what sends a judgement, and wait for the next set; not sooner than a person could: what comes at once is taken for a slip."""
    before = page.locator("header p").inner_text()
    page.wait_for_timeout(350)
    act()
    page.wait_for_function("before => document.querySelector('header p')?.innerText !== before", arg=before)


def test_a_dozen_sets_by_keyboard_alone_three_strokes_an_answer_at_most(serve, open_page, read_journal):
    page = open_page(serve(12).links["ann"])
    strokes = 0
    while page.locator("main[data-item]").count():
        send(page, lambda: [page.keyboard.press(key) for key in ("2", "=", "3", "Enter")])
        strokes += 4
    lines = read_journal()
    assert len({line["item"] for line in lines}) == 12 and strokes / (3 * len(lines)) <= 3
    for line in lines:
        assert [line["ranks"][answer] for answer in line["order"]] == [3, 1, 1]
    assert sum(line.get("repeat", False) for line in lines) == 1
    assert page.heard == []
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in page.asked)


def test_by_mouse_by_dragging_and_on_a_telephone(serve, open_page, read_journal):
    links = serve(4).links
    page = open_page(links["ann"])
    page.locator(".put").nth(2).click()
    page.locator("#rest .chip").first.click()
    page.locator("#tie").click()
    page.locator(".put").nth(1).click()
    send(page, page.locator("#send").click)
    page.locator(".answer h3").nth(1).drag_to(page.locator("#levels .gap").first)
    page.locator("#rest .chip").first.drag_to(page.locator("#levels .gap").first)
    page.locator("#rest .chip").first.drag_to(page.locator("#levels [data-level='1']"))
    send(page, page.locator("#send").click)
    small = open_page(links["ben"], width=360)
    assert small.evaluate("document.documentElement.scrollWidth") <= 360
    small.locator(".put").first.click()
    small.locator("[name=flag]").first.check()
    small.locator("[name=grade]").nth(6).check()
    small.locator("#note").fill("short")
    send(small, small.locator("#send").click)
    first, second, third = read_journal()
    assert [first["ranks"][answer] for answer in first["order"]] == [2, 2, 1]
    assert [second["ranks"][answer] for answer in second["order"]] == [1, 2, 2]
    assert [third["ranks"][answer] for answer in third["order"]] == [1, 2, 2] and third["partial"]
    assert (third["grade"], third["note"], third["flags"]) == (7, "short", {"harmful": [third["order"][0]]})
    assert page.heard == small.heard == []


def test_a_reload_or_a_server_that_is_gone_loses_nothing(serve, open_page, read_journal):
    server = serve(4)
    page = open_page(server.links["ann"])
    item = shown(page)
    page.keyboard.press("3")
    page.locator("#note").fill("half done")
    page.reload()
    assert page.locator("#levels .chip").all_inner_texts() == ["3"] and page.locator("#note").input_value() == "half done"
    server.process.kill()
    server.process.wait()
    page.keyboard.press("Enter")
    page.locator("#problem", has_text="does not answer").wait_for()
    assert page.locator("#levels .chip").all_inner_texts() == ["3"]
    assert "open the link that `rlhf rank` prints" in page.locator("#problem").inner_text()  # the old one is no longer heard
    again = serve(4, "--port", server.port)
    page.goto(again.links["ann"])
    assert shown(page) == item and page.locator("#levels .chip").all_inner_texts() == ["3"]
    send(page, lambda: page.keyboard.press("Enter"))
    assert [(line["item"], line["note"]) for line in read_journal()] == [(item, "half done")]


def test_of_an_answer_that_was_lost_on_the_way_it_is_told_what_stands(serve, open_page, read_journal):
    page = open_page(serve(4).links["ann"])
    page.route("**/judge", lambda route: (route.fetch(), route.abort()))
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.locator("#problem", has_text="does not answer").wait_for()
    page.unroute("**/judge")
    page.keyboard.press("Backspace")
    page.keyboard.press("2")
    send(page, lambda: page.keyboard.press("Enter"))
    assert "before the connection broke: that stands. Undo brings it back." in page.locator("#problem").inner_text()
    send(page, lambda: page.keyboard.press("u"))
    assert page.locator("#levels .chip").all_inner_texts() == ["1"] and len(read_journal()) == 2


def test_two_tabs_and_two_people_say_nothing_twice(serve, open_page, read_journal):
    links = serve(4).links
    one, ben = open_page(links["ann"]), open_page(links["ben"])
    other = one.context.new_page()
    other.goto(links["ann"])
    assert shown(one) == shown(other) != shown(ben)
    for page, key in ((one, "1"), (other, "2"), (ben, "3")):
        page.keyboard.press(key)
        send(page, lambda page=page: page.keyboard.press("Enter"))
    assert (
        "judged the last set already, in another tab" in other.locator("#problem").inner_text()
        and one.locator("#problem").inner_text() == ""
    )
    lines = read_journal()
    assert len(lines) == 2 and {line["annotator"] for line in lines} == {"ann", "ben"}
    assert shown(one) == shown(other) or (one.reload() is not None and shown(one) == shown(other))


def test_in_one_browser_two_people_are_never_taken_for_one_another(serve, open_page, read_journal):
    links = serve(4, "--overlap", "1", "--seed", "3").links
    ann = open_page(links["ann"])
    ann.keyboard.press("1")
    ann.locator("#note").fill("ann's")
    ann.keyboard.press("Escape")
    ben = ann.context.new_page()
    ben.goto(links["ben"])  # the browser is ben's from now on
    while shown(ben) != shown(ann):
        send(ben, lambda: ben.keyboard.press("c"))
    assert ben.locator("#levels .chip").count() == 0 and ben.locator("#note").input_value() == ""
    said = len(read_journal())
    for key in ("Enter", "c", "u"):
        ann.keyboard.press(key)
        ann.locator("#problem", has_text="this tab ann's").wait_for()
        ann.evaluate("document.querySelector('#problem').textContent = ''")
    assert len(read_journal()) == said and {line["annotator"] for line in read_journal()} <= {"ben"}
    ann.goto(links["ann"])
    assert ann.locator("#note").input_value() == "ann's"
    send(ann, lambda: ann.keyboard.press("Enter"))
    assert (read_journal()[-1]["annotator"], read_journal()[-1]["note"]) == ("ann", "ann's")


def test_a_clumsy_hand_judges_nothing_unread_and_undo_brings_back_what_was_said(serve, open_page, read_journal):
    page = open_page(serve(6).links["ann"])
    item = shown(page)
    for key in ("3", "=", "1", "g", "5", "f", "2"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.matches('[name=flag][data-place=\"1\"]')")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    send(page, lambda: page.keyboard.press("Enter"))
    page.evaluate("for (const key of ['c', 'u', 'Enter']) document.dispatchEvent(new KeyboardEvent('keydown', { key, repeat: true }))")
    send(page, lambda: page.locator("#undo").click())
    assert shown(page) == item and page.locator("#levels li:not(.gap)").all_inner_texts() == ["1.\n1\n3\ntie", "3.\n2"]
    assert page.locator("[name=grade]:checked").get_attribute("value") == "5" and page.locator("[name=flag]:checked").count() == 1
    assert page.locator("[role=status]").inner_text() == "Ranked: 1 = 3, then 2; grade 5"  # read aloud
    page.locator("[name=grade]").nth(4).click()
    page.locator("#levels .chip").nth(2).click()
    assert page.locator("[role=status]").inner_text() == "Ranked: 1 = 3"
    page.locator(".answer .put:enabled").click()
    assert page.locator(".rank-now").all_inner_texts() == ["rank 1", "rank 3", "rank 1"]
    send(page, lambda: page.keyboard.press("Enter"))  # the button that was clicked has not kept the key
    page.wait_for_timeout(300)
    page.keyboard.press("s")
    page.keyboard.type("not mine")
    send(page, lambda: page.keyboard.press("Enter"))
    first, undone, again, skipped = read_journal()
    assert (first["grade"], first["flags"], undone["kind"]) == (5, {"harmful": [first["order"][1]]}, "undo")
    assert [again["ranks"][answer] for answer in again["order"]] == [1, 3, 1] and "grade" not in again and "partial" not in again
    assert (skipped["outcome"], skipped["reason"]) == ("skipped", "not mine")
    assert page.heard == []


def test_a_double_click_takes_back_one_and_caps_lock_takes_no_key_away(serve, open_page, read_journal):
    page = open_page(serve(3).links["ann"])
    for key in "CCC":
        send(page, lambda key=key: page.keyboard.press(key))
    heading, told = (page.locator(at).bounding_box() for at in ("main h2", "main p"))
    assert heading["x"] == told["x"] and page.locator("header p").inner_text() == "ann · 3 done, 0 left"
    send(page, lambda: page.locator("#undo").dblclick(delay=20))
    page.evaluate(
        "for (const key of ['u', 'u', 'Enter']) document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))"
    )
    page.locator("header p", has_text="1 done").wait_for()
    page.wait_for_timeout(500)
    assert [line["kind"] for line in read_journal()] == ["judgement"] * 3 + ["undo"] * 2
    page.keyboard.press("2")
    send(page, lambda: page.keyboard.press("U"))
    assert page.locator("header p").inner_text() == "ann · 0 done, 3 left" and page.heard == []


def test_each_answer_has_a_grade_by_keyboard_where_the_study_asks_for_them(serve, open_page, read_journal, tmp_path):
    (tmp_path / "recipe.yaml").write_text("base_model: demo\ndata: demo\nranking: {grade_each: true}\n")
    page = open_page(serve(2, "--recipe", str(tmp_path / "recipe.yaml")).links["ann"])
    assert page.locator("[name=grade]").count() == 0
    for key in ("g", "2", "6", "g", "1", "9", "g", "3", "1", "2"):
        page.keyboard.press(key)
    page.locator("select.grade").first.select_option("4")
    page.locator("h1").click()
    page.reload()
    assert [select.input_value() for select in page.locator("select.grade").all()] == ["4", "6", "1"]
    send(page, lambda: page.keyboard.press("Enter"))
    send(page, lambda: page.keyboard.press("u"))
    assert [select.input_value() for select in page.locator("select.grade").all()] == ["4", "6", "1"]
    (said,) = [line for line in read_journal() if line["kind"] == "judgement"]
    assert [said["grades"][answer] for answer in said["order"]] == [4, 6, 1] and page.heard == []


def test_what_is_unsent_survives_a_closed_tab_but_no_other_order_of_answers(serve, open_page):
    server = serve(1)
    page = open_page(server.links["ann"])
    page.keyboard.press("2")
    order, context = page.locator("main").get_attribute("data-order"), page.context
    page.close()
    server.process.kill()
    server.process.wait()
    again = serve(1)
    assert again.port == server.port
    page = context.new_page()
    page.goto(again.links["ann"])
    assert page.locator("#levels .chip").all_inner_texts() == ["2"]
    again.process.kill()
    again.process.wait()
    shown_by = {seed: shuffle_answers(seed, "ann", shown(page), 3, repeat=False) for seed in range(9)}
    seed = next(seed for seed in shown_by if ",".join(map(str, shown_by[seed])) != order)
    page.goto(serve(1, "--seed", str(seed)).links["ann"])
    assert page.locator("main").get_attribute("data-order") != order and page.locator("#levels .chip").count() == 0


def test_skip_needs_a_reason_cannot_say_none_and_undo_brings_it_back(serve, open_page, read_journal):
    page = open_page(serve(4).links["ann"])
    item = shown(page)
    page.keyboard.press("s")
    page.keyboard.type("not my field")
    send(page, page.locator("#skip").click)
    send(page, lambda: page.keyboard.press("c"))
    send(page, lambda: page.keyboard.press("u"))
    send(page, lambda: page.keyboard.press("u"))
    assert shown(page) == item
    assert [(line.get("outcome"), line.get("reason")) for line in read_journal()[:2]] == [("skipped", "not my field"), ("cannot say", None)]


def test_hostile_answers_are_text_and_nothing_is_hard_to_reach(serve, open_page):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(serve(3, "--flag", "<b>bad</b>").links["ann"])
    text = page.locator(".answers").inner_text()
    assert "<script>alert(1)</script>" in text and "<b>bad</b>" in text and page.locator("pre code").inner_text() == "x = 1\n"
    assert page.locator(".answers script, .answers img, .answers b").count() == 0
    assert "\\u202eRTL\\u202c \\x1b[31mred" in text and "\u202e" not in text
    assert page.locator(".unfold:visible").count() == 1 and page.evaluate("document.documentElement.scrollWidth") <= 1280
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.keyboard.press("1")
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.heard == []


def test_the_recipe_says_how_guidelines_flags_and_whether_a_part_may_be_ranked(serve, open_page, read_journal, tmp_path):
    (tmp_path / "guide.md").write_text(
        "# Be *kind*\n\n<script>alert(1)</script> [see](https://example.org) ![x](https://example.org/x.png)\n"
    )
    block = "ranking:\n  guidelines: guide.md\n  flags: [rude]\n  grade: false\n  partial: false\n"
    (tmp_path / "recipe.yaml").write_text("base_model: demo\ndata: demo\n" + block)
    page = open_page(serve(2, "--recipe", str(tmp_path / "recipe.yaml")).links["ann"])
    guide = page.locator(".guide")
    assert guide.locator("h1 em").inner_text() == "kind" and "<script>alert(1)</script>" in guide.inner_text()
    assert guide.locator("a").first.get_attribute("target") == "_blank" and guide.locator("img, script").count() == 0
    assert page.locator("[name=grade]").count() == 0 and page.locator(".answer").first.locator("[name=flag]").count() == 1
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    assert page.locator("#send").is_disabled() and read_journal() == []
    page.keyboard.press("2")
    page.keyboard.press("3")
    send(page, lambda: page.keyboard.press("Enter"))
    assert [read_journal()[0]["ranks"][answer] for answer in read_journal()[0]["order"]] == [1, 2, 3]
    assert page.heard == []
