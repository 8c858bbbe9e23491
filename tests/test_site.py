"""The site of the documentation: every link leads somewhere, nothing is loaded from elsewhere, everybody can read it.

The site is built as `make docs` builds it and served on this machine.
"""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from browser import chromium, overflow, violations, visit

__all__ = ["chromium"]
pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 320, "height": 700}}
SAMPLES = ("", "recipe/", "cli/", "measured/", "how_to/llama_2/", "algorithms/ppo/", "lessons/5_you_are_the_human/")
"""The first page, the two widest tables, the longest page, a guide, one with formulas, and a notebook."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; a warning of mkdocs, as of a link or an anchor that is not there, is an error."""
    folder = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    """The address of the site on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_nothing_is_loaded_from_elsewhere_and_every_link_leads_somewhere(built):
    """What an element loads is in the site; so is what a link names, and the anchor in it."""
    for page in sorted(built.rglob("*.html")):
        text = page.read_text()
        for element, words in re.findall(r"<(\w+)\s([^>]*)>", text):
            for name, target in re.findall(r'\b(src|href)="([^"]*)"', words):
                if target.startswith("https://") and element == "a":
                    continue
                assert not re.match(r"(https?:)?//", target), (page, element, target)
                if not target.startswith(("data:", "mailto:")) and page.name != "404.html":
                    leads_somewhere(page, name, target)


def leads_somewhere(page: Path, name: str, target: str) -> None:
    place, _, anchor = urljoin(page.as_uri(), target).partition("#")
    found = Path(unquote(urlsplit(place).path))
    found = found / "index.html" if found.is_dir() else found
    assert found.is_file(), (page, name, target)
    if anchor and found.suffix == ".html":
        assert re.search(rf'\bid="?{re.escape(unquote(anchor))}["\s>]', found.read_text()), (page, target)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_everybody_can_read_it(chromium, address, scheme, window):
    """axe finds nothing, no page scrolls sideways, and no request leaves this machine (that is `visit`'s)."""
    with visit(chromium, address, viewport=WINDOWS[window], color_scheme=scheme) as page:
        for name in SAMPLES:
            page.goto(address + name)
            assert page.evaluate("document.body.dataset.mdColorScheme") == {"light": "default", "dark": "slate"}[scheme]
            assert violations(page) == [], name
            assert overflow(page) == 0, name


def test_the_navigation_is_one_row(chromium, address):
    with visit(chromium, address, viewport=WINDOWS["wide"]) as page:
        page.goto(address)
        tabs = page.locator(".md-tabs__link").all()
        assert [tab.inner_text().strip() for tab in tabs] == [
            *("Start", "Tutorials", "How-to", "Concepts", "Reference", "Evidence")
        ]
        assert len({tab.bounding_box()["y"] for tab in tabs}) == 1


def test_search_finds_a_field(chromium, address):
    with visit(chromium, address, viewport=WINDOWS["wide"]) as page:
        page.goto(address)
        page.locator("input.md-search__input").click()
        page.keyboard.type("missing_eos_score")
        page.locator(".md-search-result__item a").first.wait_for()
        assert page.locator(".md-search-result__item").count() >= 2
