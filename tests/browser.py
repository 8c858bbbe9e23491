"""A headless Chromium for the tests of pages. A visit fails on any console error, page error or dialog, and on any
request that leaves the test's own origin.

    from browser import chromium, visit        # `chromium` is a fixture

    def test_the_page(chromium):
        with visit(chromium, "http://127.0.0.1:8080", viewport={"width": 360, "height": 740}) as page:
            page.goto("http://127.0.0.1:8080/")
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

try:
    from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright
except ImportError:  # the tests that ask for the fixture are skipped
    sync_playwright = None  # type: ignore[assignment]
    Error = Exception  # type: ignore[assignment,misc]

PROGRAM = "/usr/bin/chromium"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
AXE = Path(__file__).resolve().parent.parent / ".venv/axe/node_modules/axe-core/axe.min.js"
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""What axe-core is asked for: WCAG 2.2 AA, and its own good practice on top."""


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """One browser a test module."""
    if sync_playwright is None:
        pytest.skip("playwright is not installed: pip install playwright")
    if not Path(PROGRAM).exists():
        pytest.skip(f"{PROGRAM} is not there: install Chromium to test the pages")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=PROGRAM, args=FLAGS)
        yield started
        started.close()


def watch(context: "BrowserContext", origin: str, allowed: tuple[str, ...], faults: list[str]) -> None:
    """Write down whatever no page of ours may do. `allowed` are patterns of messages that the test provokes."""

    def fault(text: str) -> None:
        if not any(re.search(pattern, text) for pattern in allowed):
            faults.append(text)

    def watched(page: "Page") -> None:
        page.on("pageerror", lambda error: fault(f"page error: {error}"))
        page.on("websocket", lambda socket: fault(f"web socket: {socket.url}"))

    def console(message: Any) -> None:
        if message.type == "error":
            fault(f"console: {message.text} ({message.location['url']})")

    def dialog(opened: Any) -> None:
        fault(f"dialog: {opened.type} {opened.message!r}")
        opened.dismiss()

    def request(sent: Any) -> None:
        if not sent.url.startswith((origin, "data:", "blob:")):
            fault(f"request: {sent.url[:200]}")

    context.on("page", watched)
    context.on("console", console)
    context.on("dialog", dialog)
    context.on("request", request)


@contextmanager
def visit(chromium: "Browser", origin: str, allowed: tuple[str, ...] = (), **options: Any) -> "Iterator[Page]":
    """A fresh page in a context of its own (`options` are playwright's: viewport, color_scheme, has_touch ...).

    `origin` is what every address must start with: a server's address, or the `file://` address of one file.
    """
    faults: list[str] = []
    context = chromium.new_context(**options)
    context.set_default_timeout(30_000)
    watch(context, origin, allowed, faults)
    try:
        yield context.new_page()
    finally:
        context.close()
    assert not faults, "\n".join(faults)


def violations(page: "Page") -> list[str]:
    """What axe-core finds wrong, a line each; skips, saying so, where axe-core is absent."""
    if not AXE.exists():
        pytest.skip("axe-core is not there: npm install --prefix .venv/axe axe-core@4.14.1")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "levels => axe.run(document, {runOnly: {type: 'tag', values: levels}, resultTypes: ['violations']})", LEVELS
    )
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]} ({node['failureSummary'][:300]})"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def overflow(page: "Page") -> int:
    """By how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
