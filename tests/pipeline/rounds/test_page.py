"""The page of rounds: chosen answers beside those left to chance, and in a real browser: light, dark, on a telephone."""

import pytest
from rich.console import Console

from pipeline.report.page.write import render
from pipeline.rounds.arms import Arms, tell_arms
from pipeline.rounds.page import build_rounds_page
from pipeline.rounds.table import RoundRow, print_arms, rounds_data
from stages.result import Interval
from stages.statistics.arms import Arm, Lesson
from stages.statistics.bootstrap import Estimate
from tests.pipeline.rounds.test_flaws import FLAWS


def share(value, spread=0.04):
    return Estimate(value, value - spread, value + spread, 900, 300)


def make_arms(gain, low, high, ref="rankings@v2"):
    lesson = Lesson(160, share(0.61), share(0.66), share(0.66 + gain), Estimate(gain, low, high, 200, 200))
    return Arms(ref, {"chosen": Arm(700, share(0.93), share(0.71)), "random": Arm(200, share(0.85), share(0.63))}, lesson)


def make_rows():
    """Three rounds, the last two of which chose."""
    lists = {f"rankings@v{number}": (0.7 - 0.03 * number, Interval(low=0.6 - 0.03 * number, high=0.8, n=50)) for number in (1, 2, 3)}
    rows = [RoundRow(0, 0, "sft@v1", 45.0, Interval(low=42.0, high=48.0, n=200), None, None)]
    for number, judge in ((1, 67.4), (2, 83.9), (3, 87.8)):
        gain = Estimate(1.8, 1.2, 2.4, 200, 200) if number > 1 else None
        in_all = Estimate(judge - 67.4, judge - 72.0, judge - 62.0, 200, 200) if number > 1 else None
        known = {name: each for name, each in lists.items() if int(name[-1]) <= number}
        arms = make_arms(0.05, 0.01, 0.09, f"rankings@v{number}") if number > 1 else None
        interval = Interval(low=judge - 2, high=judge + 2, n=200)
        policy, model, ref = (f"{kind}@v{number}" for kind in ("ppo", "rm", "rankings"))
        rows.append(RoundRow(number, 900, policy, judge, interval, gain, in_all, model, known, share(0.56), ref, 100, arms))
    return rows


def test_it_is_said_whether_choosing_pays_costs_or_cannot_be_told():
    pays, costs, open_ = (tell_arms(make_arms(*each)) for each in ((0.05, 0.01, 0.09), (-0.05, -0.09, -0.01), (0.02, -0.02, 0.06)))
    assert [each.news for each in (pays, costs, open_)] == ["good", "bad", "open"]
    plain = pays.sentence.replace("\u202f", " ").replace("\u00a0", " ")
    assert plain == (
        "rankings@v2: of pairs left to chance, a head has 71 % (67 % to 75 %) right after 160 chosen rankings, "
        "66 % (62 % to 70 %) after as many random ones: choosing pays, +5.0 (+1.0 to +9.0) points"
    )
    assert costs.sentence.endswith("choosing costs, -5.0 (-9.0 to -1.0) points; set sample.choose: random")
    assert open_.sentence.endswith("+2.0 (-2.0 to +6.0) points, which chance alone can be")
    few = tell_arms(Arms("rankings@v1", {"chosen": None, "random": None}, None))
    assert few.news == "open" and "too few are ranked to say whether choosing pays; needed 10 sets of each arm" in few.sentence


def test_both_arms_stand_on_the_page_in_the_table_and_in_json(capsys):
    rows = make_rows()
    page = render(build_rounds_page("mine", rows, [])).replace("\u202f", " ").replace("\u00a0", " ")
    assert "Does choosing pay?" in page and "no chosen ones are there" not in page
    assert '<th scope="row">rankings@v2</th><td>chosen</td><td>700</td><td>93 % (89 % to 97 %)</td><td>71 % (67 % to 75 %)</td>' in page
    print_arms(Console(width=200), rows)
    told = capsys.readouterr().out
    assert "rankings@v3  random" in told and told.count("choosing pays, +5.0 (+1.0 to +9.0) points") == 2
    plain = rounds_data(rows)
    assert plain[1]["arms"] is None and plain[2]["arms"]["lesson"]["gain"]["value"] == 0.05 and "choosing pays" in plain[3]["arms"]["told"]
    print_arms(Console(width=200), rows[:2])
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 360])
def test_in_a_browser_the_page_loads_nothing_fits_and_axe_finds_nothing(width, browser, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    path = tmp_path / "rounds.html"
    path.write_text(render(build_rounds_page("mine", make_rows(), FLAWS, ["one thing"])), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, asked, heard = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: heard.append(message.text))
    page.goto(path.as_uri())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] != "minor"] == []
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert (asked, heard) == ([path.as_uri()], [])
    context.close()
