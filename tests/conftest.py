"""Tests that ask for the native engine are skipped, with the reason, where it is not to be had.

Bytes in the names of tests are hexadecimal. And a real browser for pages.
"""

import functools
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from trapgate.engine.unicorn_engine import open_engine
from trapgate.errors import EngineError

# How long an example takes says how busy the machine is.
settings.register_profile("trapgate", deadline=None)
settings.load_profile("trapgate")

_SHOWN = 15
"""Bytes of a parameter that are shown in a test's name: an instruction."""


@functools.cache
def why_not_native() -> str:
    """Why this host has no native engine; empty if it has one."""
    try:
        open_engine(1 << 20, "native")
    except EngineError as reason:
        return str(reason)
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Who asks for it has the mark `native`, or a parameter of that value."""
    call = getattr(item, "callspec", None)
    values = [value for value in call.params.values() if isinstance(value, str)] if call else []
    asks = item.get_closest_marker("native") is not None or "native" in values
    if asks and why_not_native():
        pytest.skip(f"no native engine: {why_not_native()}")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes by their hexadecimal digits: code and file contents as they are would be unreadable."""
    if not isinstance(val, bytes):
        return None
    digits = val[:_SHOWN].hex(" ") or "nothing"
    return digits if len(val) <= _SHOWN else f"{digits} and {len(val) - _SHOWN} more"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium or no chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()
