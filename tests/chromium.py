"""A real headless Chromium for what has to be seen: Debian's chromium and chromium-driver, driven by selenium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "needs Debian's chromium and chromium-driver"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,1000 "
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Any]:
    """A browser with a profile and downloads of its own; a fake microphone needs no permission.

    Args:
        folder: of its profile and downloads.
        flags: further ones.

    Raises:
        RuntimeError: Chromium or its driver is not installed.
    """
    from selenium import webdriver

    if PROGRAM is None or DRIVER is None:
        raise RuntimeError(MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAM
    for flag in (*FLAGS.split(), f"--user-data-dir={folder / 'profile'}", *flags):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
