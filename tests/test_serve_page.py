"""The page of ``hybrid-serve`` in a real headless Chromium, over a real server."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import DRIVER, MISSING, PROGRAM, chromium
from pairs import class_pair, text_pair
from serving import PATIENCE, HeldSpeech, Paced, listening

pytest.importorskip("selenium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None or DRIVER is None, reason=MISSING)]


@pytest.fixture(scope="module")
def paced() -> Paced:
    return Paced(class_pair())


@pytest.fixture(scope="module")
def address(paced: Paced) -> Iterator[str]:
    with listening(paced) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("chromium")
    with chromium(folder) as driver:
        driver.folder = folder
        yield driver


class Page:
    """What a person does and sees."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, hash: str = "") -> None:
        self.browser.get("about:blank")
        self.browser.get(f"{self.address}/{hash}")
        self.until(lambda: self["about"].text.startswith("tiny"))

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def until(self, seen: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, PATIENCE, poll_frequency=0.02).until(lambda _: seen())

    def until_done(self) -> None:
        self.until(lambda: self["draw"].text == "Draw" and self.status.startswith(("Done", "Hybrid")))

    @property
    def status(self) -> str:
        return str(self["status"].text)

    def type(self, text: str) -> None:
        self["prompt"].clear()
        self["prompt"].send_keys(text)

    def live(self, on: bool) -> None:
        if self["live"].is_selected() != on:
            self["live"].click()

    def alpha(self) -> float:
        """Share of the first picture that is there."""
        script = """const c = document.querySelector("canvas.pixels");
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            return d.filter((v, i) => i % 4 == 3 && v == 255).length / (d.length / 4);"""
        return float(self.browser.execute_script(script))

    def pixels(self) -> str:
        return str(self.browser.execute_script('return document.querySelector("canvas.pixels").toDataURL()'))


@pytest.fixture
def page(browser: Any, address: str, paced: Paced) -> Iterator[Page]:
    paced.pace = 0.0
    page = Page(browser, address)
    page.open()
    browser.execute_script("localStorage.clear()")
    page.open()
    page.live(False)
    yield page
    told = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    problems = [entry for entry in told if entry["source"] != "network"]  # refusals are tested by what is shown
    assert problems == []


def test_type_and_previews_arrive_row_by_row_and_pass_by_pass(page: Page, paced: Paced) -> None:
    paced.pace = 0.3
    page.type("bag\n")
    shares: list[float] = []
    while page["draw"].text == "Cancel" or not shares:
        if (share := page.alpha()) not in shares:
            shares.append(share)
    page.until_done()
    assert len(shares) >= 3 and shares == sorted(shares) and page.alpha() == 1
    assert len(page.all(".ticks i.prefix.on")) == 1 and len(page.all(".ticks i.fill.on")) == 4
    assert "4 + 4 passes" in page.all("figcaption")[0].text


def test_escape_and_the_button_cancel(page: Page, paced: Paced) -> None:
    paced.pace = 0.4
    for stop in (lambda: page["prompt"].send_keys("\ue00c"), lambda: page["draw"].click()):
        page.type("bag\n")
        page.until(lambda: page.all(".ticks i.on"))
        before = paced.steps
        stop()
        page.until(lambda: page.status == "Cancelled.")
        assert page["draw"].text == "Draw"
        page.until(
            lambda: page.browser.execute_async_script(
                "fetch('/health').then(r => r.json()).then(h => arguments[0](h.running === 0))"
            )
        )
        assert paced.steps - before < 5


def test_typing_draws_by_itself_and_new_letters_cancel(page: Page, paced: Paced) -> None:
    page.live(True)
    paced.pace = 0.1
    page.type("bag")
    page.until(lambda: page["draw"].text == "Cancel")
    page["prompt"].send_keys("x")
    assert page["draw"].text == "Draw"
    page.until(lambda: page["problem"].is_displayed())
    assert page["problem"].text.startswith("prompt 'bagx': not a class of tiny")
    page["prompt"].send_keys("\ue003")
    page.until_done()
    assert not page["problem"].is_displayed()


def test_compare_shows_three_with_times_and_one_overlay(page: Page) -> None:
    page.type("bag")
    page["compare"].click()
    page.until_done()
    captions = [caption.text for caption in page.all("figcaption")]
    assert [caption.split()[0] for caption in captions] == ["AR", "Hybrid", "Masked"]
    assert all(" s " in caption or " s\n" in caption for caption in captions) and "×" in captions[1]
    assert "as fast as AR" in page.status
    page["overlay"].click()
    assert page["legend"].is_displayed()
    colours = page.browser.execute_script("""return [...document.querySelectorAll("canvas.origin")].map((c) => {
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, seen = new Set();
        for (let i = 0; i < d.length; i += 4) seen.add(d.slice(i, i + 3).join());
        return seen.size; })""")
    assert colours == [1, 5, 4]


def test_a_link_draws_the_same_again_and_history_leads_back(page: Page) -> None:
    page.type("sneaker")
    page["seed"].clear()
    page["seed"].send_keys("7")
    page.browser.execute_script("document.querySelector('input[value=masked]').click()")
    page["steps"].send_keys("\ue012")
    page["draw"].click()
    page.until_done()
    first, link = page.pixels(), page.browser.current_url
    assert link.endswith("#p=sneaker&seed=7&method=masked&steps=3")
    page.type("bag\n")
    page.until(lambda: "p=bag" in page.browser.current_url)
    page.open(link.split("/")[-1])
    page.until_done()
    assert page.pixels() == first
    assert [entry.text for entry in page.all("#history span")] == ["sneaker", "bag"]
    page.all("#history a")[1].click()
    page.until(lambda: page["prompt"].get_attribute("value") == "bag")
    page.until_done()
    page.browser.back()
    page.until(lambda: page["prompt"].get_attribute("value") == "sneaker")


def test_a_link_in_other_words_takes_no_place_in_the_history(page: Page) -> None:
    page.open("#seed=7&p=bag&steps=3")
    page.until_done()
    assert page.browser.current_url.endswith("#p=bag&seed=7&method=hybrid&steps=3")
    page.browser.back()
    assert page.browser.current_url == "about:blank"


def test_going_back_draws_once(page: Page) -> None:
    for prompt in ("sneaker", "bag"):
        page.type(f"{prompt}\n")
        page.until(lambda prompt=prompt: f"p={prompt}" in page.browser.current_url)
    page.browser.execute_script("""window.asked = 0;
        const ask = window.fetch;
        window.fetch = (...all) => (window.asked++, ask(...all));""")
    page.browser.back()
    page.until(lambda: page.browser.execute_script("return asked"))
    page.until_done()
    assert page["prompt"].get_attribute("value") == "sneaker"
    assert page.browser.execute_script("return asked") == 1


def test_skipping_to_the_picture_keeps_its_link(page: Page) -> None:
    page.type("bag\n")
    page.until(lambda: "p=bag" in page.browser.current_url)
    link = page.browser.current_url
    page.browser.execute_script("document.getElementById('skip').click()")
    assert page.browser.switch_to.active_element.get_attribute("id") == "stage"
    page.browser.execute_script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page["copy"].click()
    page.until(lambda: page.status == "The link is copied.")
    assert page.browser.execute_script("return [location.href, copied]") == [link, link]


def test_a_brush_repaints_its_places_only(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.type("bag\n")
    page.until_done()
    before = page.pixels()
    page["brush"].click()
    mask = page.all("canvas.mask")[0]
    left, top = -mask.size["width"] // 2, -mask.size["height"] // 2
    ActionChains(page.browser).move_to_element_with_offset(mask, left + 20, top + 20).click_and_hold().move_by_offset(
        40, 0
    ).release().perform()
    page["seed"].clear()
    page["seed"].send_keys("99")
    page["draw"].click()
    page.until(lambda: "seed 99" in page.status)
    origin = page.browser.execute_script("""const c = document.querySelector("canvas.origin");
        const d = c.getContext("2d").getImageData(0, 0, 4, 4).data;
        return [...Array(16).keys()].filter((i) => d[4 * i + 3] > 0);""")
    assert origin and set(origin) <= {0, 1, 2, 4, 5, 6} and page.pixels() != before


def test_the_brush_works_by_keys(page: Page) -> None:
    page.type("bag\n")
    page.until_done()
    page["brush"].click()
    mask = page.all("canvas.mask")[0]
    mask.send_keys("\ue013 ")
    painted = page.browser.execute_script("""const d = document.querySelector("canvas.mask").getContext("2d")
        .getImageData(0, 0, 4, 4).data; return [...Array(16).keys()].filter((i) => d[4 * i + 3] > 0);""")
    assert painted == [6, 7, 10, 11]
    outline = page.all(".outline")[0]
    assert outline.is_displayed()
    cells = page.browser.execute_script(
        """const [of, to] = [arguments[0], arguments[1]].map((e) => e.getBoundingClientRect());
        return [to.left - of.left, to.top - of.top, to.width, to.height].map((length) => (4 * length) / of.width);""",
        mask,
        outline,
    )
    assert cells == pytest.approx([2, 1, 2, 2], abs=0.02)
    page["clear"].click()
    assert not outline.is_displayed()
    page["draw"].click()
    page.until_done()


def test_a_download_is_the_picture_with_its_settings(page: Page) -> None:
    from hybrid.picture_files import read_settings

    page.type("bag")
    page["seed"].clear()
    page["seed"].send_keys("5\n")
    page.until_done()
    page["download"].click()
    file: Path = page.browser.folder / "bag-5.png"
    page.until(file.is_file)
    assert (read_settings(file).prompt, read_settings(file).seed) == ("bag", 5)


def test_the_microphone_says_what_is_missing(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hybrid.speech", None)
    page["mic"].click()
    page.until(lambda: page["problem"].is_displayed())
    assert page["problem"].text.startswith("no speech recognition here; install it with")
    assert page["mic"].get_attribute("aria-pressed") == "false"


def test_the_microphone_is_heard_at_its_own_rate(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = HeldSpeech(monkeypatch)
    speech.go.release(1000)
    page["mic"].click()
    page.until(lambda: page["prompt"].get_attribute("value") == "Bag")  # while it is still listening
    page["mic"].click()
    page.until_done()
    rate = page.browser.execute_script("return new AudioContext().sampleRate")
    with wave.open(io.BytesIO(speech.heard[-1]), "rb") as said:
        assert (said.getframerate(), said.getnchannels(), said.getsampwidth()) == (rate, 1, 2)
        assert said.getnframes() > 0.8 * rate


def test_a_full_queue_does_not_end_listening(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    HeldSpeech(monkeypatch).go.release(1000)
    with monkeypatch.context() as patch:
        patch.setattr("hybrid.serve.hearing.WAITING", -1)
        page["mic"].click()
        page.until(lambda: 'transcriptions",status="429"' in httpx.get(f"{page.address}/metrics").text)
    page.until(lambda: page["prompt"].get_attribute("value") == "Bag")
    assert page["mic"].get_attribute("aria-pressed") == "true" and not page["problem"].is_displayed()
    page["mic"].click()
    page.until_done()


def test_a_microphone_that_cannot_be_heard_is_let_go(page: Page) -> None:
    page.browser.execute_script("""window.opened = [];
        const devices = navigator.mediaDevices, ask = devices.getUserMedia.bind(devices);
        devices.getUserMedia = async (wanted) => (opened.push(await ask(wanted)), opened[0]);
        AudioContext.prototype.createMediaStreamSource = function () {
            opened.push(this);
            throw new Error("another rate");
        };""")
    page["mic"].click()
    page.until(lambda: page["problem"].text == "another rate")
    states = page.browser.execute_script("return [opened[0].getTracks().map((t) => t.readyState), opened[1].state]")
    assert states == [["ended"], "closed"] and page["mic"].get_attribute("aria-pressed") == "false"


def test_a_second_click_before_the_permission_opens_no_second_microphone(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    HeldSpeech(monkeypatch).go.release(1000)
    page.browser.execute_script("""window.asked = [];
        const devices = navigator.mediaDevices, ask = devices.getUserMedia.bind(devices);
        devices.getUserMedia = (wanted) => new Promise((give) => asked.push(() => give(ask(wanted))));""")
    page["mic"].click()
    page["mic"].click()
    page.browser.execute_script("asked.forEach((allow) => allow())")
    page.until(lambda: page["mic"].get_attribute("aria-pressed") == "true")
    assert page.browser.execute_script("return asked.length") == 1
    page["mic"].click()
    page.until_done()


def spoken(text: str, file: Path) -> None:
    """A recording of flite's, with half a second of silence before it and much after."""
    subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", str(file)], check=True)
    with wave.open(str(file), "rb") as said:
        parameters, frames = said.getparams(), said.readframes(said.getnframes())
    second = bytes(parameters.framerate * parameters.sampwidth * parameters.nchannels)
    with wave.open(str(file), "wb") as longer:
        longer.setparams(parameters)
        longer.writeframes(second[: len(second) // 4 * 2] + frames + 20 * second)


def test_speech_into_the_microphone_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("moonshine_voice", reason="moonshine-voice is not installed")
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed")
    spoken("draw me a smiling cat", tmp_path / "said.wav")
    flag = f"--use-file-for-fake-audio-capture={tmp_path / 'said.wav'}%noloop"
    with listening(text_pair()) as address, chromium(tmp_path, flag) as driver:
        page = Page(driver, address)
        page.open()
        page["mic"].click()
        page.until(lambda: page["mic"].get_attribute("aria-pressed") == "true")
        page.until(lambda: "cat" in page["prompt"].get_attribute("value"))  # while it is still listening
        page["mic"].click()
        page.until_done()
        assert page["prompt"].get_attribute("value") == "a smiling cat"
        assert page["mic"].get_attribute("aria-pressed") == "false" and page.alpha() == 1


def test_every_control_has_a_name_and_nothing_comes_from_elsewhere(page: Page) -> None:
    nameless = page.browser.execute_script("""return [...document.querySelectorAll("button, input, a")]
        .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)""")
    assert nameless == []
    urls = page.browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert urls and all(url.startswith(page.address) for url in urls)


def test_the_tab_key_reaches_every_control(page: Page) -> None:
    page.type("bag\n")
    page.until_done()
    count = page.browser.execute_script("""const controls = [...document.querySelectorAll("button, input, a[href]")]
        .filter((e) => e.checkVisibility() && !e.disabled && (e.type !== "radio" || e.checked));
        controls.forEach((e, place) => (e.dataset.place = place));
        return controls.length;""")
    reached = set()
    for _ in range(2 * count):
        page.browser.switch_to.active_element.send_keys("\ue004")
        reached.add(page.browser.execute_script("return document.activeElement.dataset.place"))
    assert reached - {None} == {str(place) for place in range(count)}


def test_the_page_fits_a_phone(page: Page) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.type("bag")
        page.browser.execute_script("document.getElementById('compare').click()")
        page.until_done()
        assert page.browser.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_token_is_asked_for(browser: Any) -> None:
    with listening(class_pair(), token="sesame") as address:
        page = Page(browser, address)
        browser.get(address)
        page.until(lambda: page["login"].is_displayed())
        page["token"].send_keys("sesame\n")
        page.until(lambda: page["about"].text.startswith("tiny"))
    browser.get_log("browser")
