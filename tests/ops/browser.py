"""A real browser for tests of pages: headless Chromium, driven by Selenium, that reaches only what the test names."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = (
    "--headless",
    "--no-sandbox",  # it does not start as root otherwise
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--lang=en-GB",
)


class Browser:
    """One window of Chromium; `driver` is Selenium's."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load a page."""
        self.driver.get(url)

    def text(self, selector: str = "body") -> str:
        """What a person reads in an element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector).text

    def wait_for_text(self, text: str, selector: str = "body", timeout_s: float = 20) -> None:
        """Until an element shows `text`; fails with what it shows."""
        try:
            WebDriverWait(self.driver, timeout_s, 0.1).until(lambda _: text in self.text(selector))
        except Exception as error:
            raise AssertionError(f"no {text!r} in {selector}: {self.text(selector)}") from error

    def run(self, script: str) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(script)  # type: ignore[no-untyped-call]

    def set_size(self, width: int, height: int, is_dark: bool = False) -> None:
        """The window's inside in CSS pixels, and the colours that the viewer prefers."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        value = "dark" if is_dark else "light"
        self._cdp("Emulation.setScrollbarsHidden", hidden=True)
        self._cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def messages(self) -> list[str]:
        """What the console shows since the last call: errors and warnings of the page too."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The URLs of what the page has asked for since the last call."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path) -> None:
        """The window as a PNG, with few colours where Pillow is installed: a page has few, and the file is small."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.driver.get_screenshot_as_png())
        try:
            from PIL import Image
        except ImportError:
            return
        with Image.open(path) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)

    def _cdp(self, command: str, **parameters: Any) -> None:
        self.driver.execute_cdp_cmd(command, parameters)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser with a profile of its own. Skips the test where Chromium is missing, except in CI."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        message = "no browser: apt-get install chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(chromedriver))
        try:
            yield Browser(driver)
        finally:
            driver.quit()


def screenshot(url: str, path: Path, wait_for: str = "", width: int = 1200, height: int = 900) -> None:
    """Keep a page's picture, once it shows `wait_for`."""
    with open_browser() as browser:
        browser.set_size(width, height)
        browser.open(url)
        browser.wait_for_text(wait_for)
        browser.screenshot(path)
