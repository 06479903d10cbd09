"""The page of `selfflow report` in a real browser: what a person sees and does. Skipped where there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.browser import chromium
from tests.tools.test_report import add_preview, make_run, report


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.mark.timeout(900)
def test_a_person_looks_through_a_report(browser, tmp_path: Path):
    runs = [make_run(tmp_path / name, method=name) for name in ("self_flow", "flow_matching")]
    for step in (100, 200, 300):
        add_preview(runs[0], step)
    report(tmp_path / "page.html", *runs)
    fetched: list[str] = []
    problems: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.set_default_timeout(60_000)
    page.on("request", lambda request: fetched.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())

    page.locator("#c-image-loss .scatterlayer .trace").first.wait_for()
    lines = page.locator("#c-image-loss .scatterlayer .trace")
    assert lines.count() == 4  # of each run one line and its average
    page.get_by_label("flow_matching", exact=True).uncheck()
    page.wait_for_function("document.querySelectorAll('#c-image-loss .scatterlayer .trace').length === 2")

    samples = page.locator("#samples .stream").first
    samples.scroll_into_view_if_needed()
    assert samples.locator("output").inner_text() == "300"
    slider = samples.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    assert samples.locator("output").inner_text() == "100"
    assert samples.locator(".items:visible").count() == 1
    assert samples.locator(".items:visible").get_attribute("data-step") == "100"
    sound = page.locator("#samples audio:visible").first
    page.wait_for_function("element => element.readyState > 0", arg=sound.element_handle())
    assert sound.evaluate("element => element.duration") == pytest.approx(0.3, abs=0.05)

    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate(background) != dark
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out on a phone
    page.get_by_text(re.compile(r"^All \d+ settings$")).click()
    page.get_by_label("filter settings").fill("lr")
    assert page.locator("#all-settings tbody tr:visible").count() == 1
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []


def test_a_constant_learning_rate_is_a_line_above_zero(browser, tmp_path: Path):
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps({**row, "lr": 0.003}) + "\n" for row in rows))
    report(tmp_path / "page.html", run)
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto((tmp_path / "page.html").as_uri())
    plot = page.locator(".plot[id$='lr']").first
    plot.scroll_into_view_if_needed()
    plot.locator(".ytick").first.wait_for()
    ticks = [float(text) for text in plot.locator(".ytick").all_text_contents()]
    assert ticks[0] == 0
    assert len(set(ticks)) == len(ticks) > 2
