"""The page of `selfflow app` in a real browser: what a person sees, types and clicks. Skipped where there is none."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from configs.runs import load_run
from tests.browser import chromium
from tests.modalities.making import audio_bytes, image_bytes, tone
from tools.app.studio import Limits, Studio

PATIENCE = 60_000  # ms, of a busy machine


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def studio(tiny_run, tmp_path_factory) -> Studio:
    return Studio(load_run(tiny_run, device="cpu"), tmp_path_factory.mktemp("app") / "out", Limits(megabytes=0.2))


@pytest.fixture(scope="module")
def address(studio):
    pytest.importorskip("gradio", reason="gradio is not installed (extra app)")
    from tools.app.page import build, launch_options

    page = build(studio)
    _, address, _ = page.launch(prevent_thread_lock=True, **launch_options(studio))
    yield address
    page.close()


class Person:
    """One visitor with a browser of their own."""

    def __init__(self, browser, address: str, **settings):
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.fetched: list[str] = []
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(address)
        self.field("Prompts").wait_for()

    def field(self, label: str):
        """The one that is visible: each tab has its own."""
        return self.page.get_by_label(re.compile(rf"^\s*{label}")).locator("visible=true").first

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def generate(self) -> None:
        self.page.get_by_role("button", name="Generate").locator("visible=true").click()

    def request(self, text: str):
        return self.page.get_by_role("list", name="Requests").get_by_role("listitem").filter(has_text=text)

    def cards(self, text: str):
        return self.page.locator("figure").filter(has_text=text)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_person_generates_every_stream_and_a_reload_loses_nothing(browser, address, studio, tmp_path: Path):
    person = Person(browser, address, color_scheme="dark", viewport={"width": 390, "height": 844})
    page = person.page
    person.field("Prompts").fill("a red circle\na <b>blue</b> square")
    person.field("Seed").fill("5")
    person.field("Steps").fill("300")
    person.generate()
    running = person.request("a red circle")
    running.get_by_role("progressbar").wait_for()
    running.get_by_alt_text("preview").first.wait_for()
    page.reload()
    running.wait_for()  # the request goes on, and the form is as it was
    person.field("Prompts").wait_for()
    page.wait_for_function("document.querySelector('textarea').value.startsWith('a red circle')")
    assert person.field("Seed").input_value() == "5"
    running.get_by_text("done, 2 samples").wait_for()
    card = person.cards("a <b>blue</b> square")
    card.get_by_text("how it was made").click()
    assert card.get_by_role("row", name=re.compile("^steps")).inner_text().split() == ["steps", "300"]
    image = card.get_by_role("img")
    page.wait_for_function("image => image.complete && image.naturalWidth === 8", arg=image.element_handle())
    with page.expect_download() as download:
        card.get_by_role("link", name="image").click()
    assert Path(download.value.path()).read_bytes() == next((studio.out / "image").glob("0001*.png")).read_bytes()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out on a phone

    person.tab("audio")
    person.field("Prompts").fill("notes C E G")
    person.generate()
    sound = person.cards("notes C E G").locator("audio")
    sound.wait_for()
    page.wait_for_function("element => element.readyState > 0", arg=sound.element_handle())
    assert sound.evaluate("element => element.duration") == pytest.approx(0.3, abs=0.05)
    assert [url for url in person.fetched if not url.startswith((address, "data:", "blob:"))] == []
    person.context.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_given_is_uploaded_and_painted_and_bad_input_is_explained(browser, address, studio, tmp_path: Path):
    person = Person(browser, address)
    page = person.page
    alert = page.get_by_role("alert").locator("visible=true")
    person.generate()
    assert alert.inner_text() == "Prompts: say what is to be made"
    person.field("Prompts").fill("a dog")
    person.field("Steps").fill("5000")
    person.generate()
    alert.get_by_text("Steps: 5000 must be at most 1,000 here").wait_for()
    person.field("Steps").fill("3")

    pixels = np.random.default_rng(1).integers(0, 256, (240, 240, 3), dtype=np.uint8) // 128 * 255
    (tmp_path / "given.png").write_bytes(image_bytes(pixels))
    page.get_by_role("button", name="Give some of it").locator("visible=true").click()
    with page.expect_response(lambda response: "upload" in response.url):
        page.locator("input[type=file]").first.set_input_files(tmp_path / "given.png")
    page.wait_for_timeout(2000)
    person.generate()
    alert.get_by_text("Image: nothing is painted over it").wait_for()
    canvas = page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5, steps=8)
    page.mouse.up()
    page.wait_for_timeout(500)
    person.generate()
    person.request("a dog").get_by_text("done").first.wait_for()
    about = json.loads(next((studio.out / "image").glob("*a-dog.json")).read_text())
    assert about["parts"]["image"]["was"] == "kept in part"
    mask = np.asarray(Image.open(about["files"]["mask"].partition("=")[2]))
    assert 0 < (mask > 0).mean() < 0.9

    person.tab("audio")
    (tmp_path / "start.wav").write_bytes(audio_bytes(tone(0.1, 8000), 8000))
    person.field("Prompts").fill("a cat")
    page.get_by_role("button", name="Give some of it").locator("visible=true").click()
    with page.expect_response(lambda response: "upload" in response.url):
        page.locator("input[type=file]").last.set_input_files(tmp_path / "start.wav")
    page.wait_for_timeout(1500)
    person.generate()
    person.request("a cat").get_by_text("done").first.wait_for()
    about = json.loads(next((studio.out / "audio").glob("*a-cat.json")).read_text())
    assert about["parts"]["audio"]["was"] == "kept in part"
    person.context.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_people_share_the_queue_and_each_stops_their_own(browser, address, studio):
    first, second = Person(browser, address), Person(browser, address)
    first.field("Prompts").fill("the first one")
    first.field("Steps").fill("1000")
    first.field("Samples of each prompt").fill("32")
    first.generate()
    first.request("the first one").get_by_role("progressbar").wait_for()
    second.field("Prompts").fill("the second one")
    second.generate()
    second.request("the second one").get_by_text("waiting, 1 before it").wait_for()
    assert second.request("the first one").get_by_role("progressbar").is_visible()  # everyone sees the queue
    second.page.get_by_role("button", name="Stop my requests").click()
    second.request("the second one").get_by_text("stopped before it began").wait_for()
    assert first.request("the first one").get_by_role("progressbar").is_visible()
    first.page.get_by_role("button", name="Stop my requests").click()
    first.request("the first one").get_by_text("stopped; what was finished is there").wait_for()
    first.context.close()
    second.context.close()


def test_no_file_outside_the_output_folder_is_served(address, studio, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    inside = studio.out / "image" / "inside.txt"
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.write_text("mine")
    paths = [secret, studio.loaded.folder / "config.yaml", f"{studio.out}/../../secret.txt", Path(__file__)]
    for path in paths:
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}gradio_api/file={quote(str(path))}")
        assert error.value.code in (403, 404)
    assert urllib.request.urlopen(f"{address}gradio_api/file={quote(str(inside))}").read() == b"mine"
    big = urllib.request.Request(
        f"{address}gradio_api/upload",
        data=b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
        + b"0" * 400_000
        + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(big)
    assert error.value.code == 413
