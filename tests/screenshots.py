"""Takes ``docs/serve-page.png`` and ``docs/serve-phone.png`` anew, of a real server and browser, on an idle machine.

python tests/screenshots.py [--pair emoji] [--out docs]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chromium import chromium

PATIENCE = 120.0
EARLIER = ("a red apple", "a pizza", "a smiling cat", "a full moon", "hot air balloon")
"""Drawn first, so that there is a history."""

LAST = "a green tree"
DESKTOP = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@contextmanager
def server(pair: str) -> Iterator[str]:
    """The address of a ``hybrid-serve`` of its own."""
    line = [sys.executable, "-m", "hybrid.serve.cli", "--pair", pair, "--port", "0"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        address = re.search(r"http://\S+", told)
        if address is None:
            raise RuntimeError(f"hybrid-serve did not start: {told.strip() or 'see above'}")
        yield address[0]
    finally:
        process.terminate()
        process.wait()


def until(told: Callable[[], Any], what: str) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + PATIENCE
    while not told():
        if time.monotonic() > end:
            raise TimeoutError(f"never came: {what}")
        time.sleep(0.05)


def show(browser: Any, address: str, metrics: dict[str, Any], scheme: str) -> None:
    """Open the page in a window of that size and colour scheme."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.get(address)
    until(lambda: element(browser, "status").text.startswith("Ready"), "the page")


def element(browser: Any, name: str) -> Any:
    return browser.find_element("id", name)


def draw(browser: Any, prompt: str, button: str = "draw") -> None:
    """Draw a prompt and wait for it."""
    box = element(browser, "prompt")
    box.clear()
    box.send_keys(prompt)
    browser.execute_script("document.getElementById('seed').value = 2")
    browser.execute_script(f"document.getElementById('{button}').click()")
    until(lambda: element(browser, "draw").text == "Cancel", "drawing")
    until(lambda: element(browser, "draw").text == "Draw", "the end of drawing")
    if element(browser, "problem").is_displayed():
        raise RuntimeError(element(browser, "problem").text)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="emoji")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(options.pair) as address,
        chromium(Path(folder), "--hide-scrollbars") as browser,
    ):
        show(browser, address, DESKTOP, "light")
        element(browser, "live").click()  # off: only what is asked for
        for prompt in EARLIER:
            draw(browser, prompt)
        draw(browser, LAST, "compare")
        element(browser, "overlay").click()
        browser.execute_script("document.activeElement.blur()")
        time.sleep(0.5)  # the overlay fades in
        browser.save_screenshot(str(options.out / "serve-page.png"))
        show(browser, address, PHONE, "dark")
        draw(browser, EARLIER[0])
        browser.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        browser.save_screenshot(str(options.out / "serve-phone.png"))


if __name__ == "__main__":
    main()
