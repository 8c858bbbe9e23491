"""The report in a real browser: a reader can use it, no text in it does anything, and it stays one small file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import compared
import pytest
from browser import chromium, overflow, violations, visit
from hostile import HOSTILE

from preferent import files
from preferent.config.recipe import Recipe, dump, parse
from preferent.report import page
from preferent.report.page import render

__all__ = ["chromium"]
pytestmark = pytest.mark.acceptance

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
LOCAL = "http://localhost:8000/v1"


def recipe(**values: Any) -> Recipe:
    judges = [{"name": "gpt", "model": "qwen", "url": LOCAL}]
    return parse({"large_model_reference": "models/tiny", "compare": {"judges": judges}} | values)[0]


def written(root: Path, asked: Recipe) -> str:
    """The address of the report of a run."""
    files.write_atomic(root / "recipe.yaml", dump(asked))
    page.main(asked, {"run": root}, root)
    return (root / "report.html").as_uri()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The second round of a run, judged by everybody."""
    root = tmp_path_factory.mktemp("usual")
    earlier = root.parent / "earlier"
    compared.make(earlier, judges=("judge", "people"))
    tuned = ["I do not know."] * 12 + compared.sentences(48, 44, 5)
    compared.make(root, tuned=tuned, extra={"side.round-1": compared.sentences(60, 40, 6)})
    return written(root, recipe(continues=[str(earlier)]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(chromium, usual, scheme, viewport):
    with visit(chromium, usual.split("#")[0], viewport=viewport, color_scheme=scheme) as page:
        page.goto(usual)
        page.get_by_label("Show word differences").check()
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert violations(page) == []
        assert overflow(page) == 0


@pytest.fixture(scope="module")
def not_independent(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a run whose headline is the reward that was optimised."""
    root = tmp_path_factory.mktemp("not-independent")
    compared.make(root, headline="reward")
    return written(root, recipe())


def test_the_first_screen_says_how_often_by_whom_and_how_sure(chromium, usual, not_independent):
    judges = {usual: "independent judge", not_independent: "the optimised reward"}
    for address, judge in judges.items():
        for viewport in (DESKTOP, PHONE):
            with visit(chromium, address, viewport=viewport) as page:
                page.goto(address)
                headline = page.locator(".headline")
                assert headline.bounding_box()["y"] + headline.bounding_box()["height"] <= viewport["height"]
                text = headline.inner_text()
                assert "95 % interval" in text and f"Judged by: {judge}" in text


def test_word_differences_one_by_one_and_all(chromium, usual):
    """What both answers have, with what only one has, is that answer; the marks are elements, not colours alone."""
    with visit(chromium, usual, viewport=DESKTOP) as page:
        page.goto(usual)
        cards = page.locator("article")
        plain = [answer(cards.nth(1), side) for side in ("tuned", "base")]
        assert page.locator("ins, del").count() == 0
        cards.nth(1).get_by_role("button", name="Word differences").click()
        assert cards.nth(0).locator("ins, del").count() == 0
        assert cards.nth(1).locator("ins").count() > 0 and cards.nth(1).locator("del").count() > 0
        assert [answer(cards.nth(1), side) for side in ("tuned", "base")] == plain
        looks = "(one) => getComputedStyle(one).textDecorationLine"
        assert cards.nth(1).locator("ins").first.evaluate(looks) == "underline"
        assert cards.nth(1).locator("del").first.evaluate(looks) == "line-through"
        page.get_by_label("Show word differences").check()
        assert cards.count() == page.locator("article:has(ins):has(del)").count()
        page.get_by_label("Show word differences").uncheck()
        assert page.locator("ins, del").count() == 0


def test_what_the_tuned_model_says_most_is_marked(chromium, usual):
    with visit(chromium, usual, viewport=DESKTOP) as page:
        page.goto(usual)
        assert "The tuned model gives the same answer to 12 of 60 prompts" in page.locator(".doubts").inner_text()
        marked = page.locator(".answer", has_text="its most frequent answer")
        assert marked.count() == page.locator(".answer", has_text="I do not know.").count() > 0


def answer(card: Any, side: str) -> str:
    return card.locator(".answer", has=card.page.get_by_role("heading", name=side)).locator("p").text_content()


def test_groups_by_keyboard(chromium, usual):
    with visit(chromium, usual, viewport=DESKTOP) as page:
        page.goto(usual)
        buttons = page.get_by_role("group", name="Which examples").get_by_role("button")
        counts = [int(text.split("(")[1].rstrip(")")) for text in buttons.all_inner_texts()]
        assert sum(counts) == 60 and page.locator("article").count() == counts[0]
        buttons.nth(2).focus()
        page.keyboard.press("Enter")
        assert buttons.nth(2).get_attribute("aria-pressed") == "true"
        assert page.locator("article").count() == counts[2]
        for card in page.locator("article").all():
            said = card.locator(".verdicts").inner_text()
            assert "tuned preferred" in said and "base preferred" in said, "judge and people differ"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sixty_hostile_texts_everywhere(chromium, tmp_path, scheme):
    """Prompts, answers, explanations, notes, names of people and slices, an instruction, a model: all only shown."""
    root = tmp_path / "run"
    hostile_comparison(root, HOSTILE)
    address = written(root, recipe(instruction=HOSTILE[27], large_model_reference=HOSTILE[0]))
    with visit(chromium, address, viewport=PHONE if scheme == "dark" else DESKTOP, color_scheme=scheme) as page:
        page.goto(address)
        page.get_by_label("Show word differences").check()
        seen = set()
        for button in page.get_by_role("group", name="Which examples").get_by_role("button").all():
            button.click()
            seen |= {text for place in (".prompt", ".answer p") for text in page.locator(place).all_text_contents()}
            seen |= set(page.locator("blockquote").all_text_contents())
        page.mouse.move(200, 300)
        assert page.evaluate("window.hostile") is None
        assert page.locator("img, iframe, object, embed, form, base, link[rel=stylesheet]").count() == 0
        assert page.locator("script").count() == 2
        shown = {as_shown(text) for text in seen}
        assert [text for text in HOSTILE if as_shown(text) not in shown] == []
        assert violations(page) == []


def as_shown(text: str) -> str:
    """A text without what HTML's text cannot hold, and line ends of one kind."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def hostile_comparison(root: Path, texts: Sequence[str]) -> None:
    """A comparison in which every text is one of these, also in the places that `compare` fills with names."""
    words = {"explanations": texts, "notes": texts, "people": texts[1:4]}
    judges = ("judge", "reward", texts[4], "people")
    metrics = compared.make(root, prompts=texts, tuned=[*texts[1:], texts[0]], words=words, judges=judges)
    judge = metrics["judges"][texts[4]]
    judge["slices"] = [slice_of(judge, text) for text in texts]
    metrics["sides"] += [{"key": f"side.{number}", "name": text} for number, text in enumerate(texts)]
    metrics["duplicates"]["a"] = {"rows": 60, "share": 1.0, "most": texts[5], "count": 60}
    files.write_json(root / "comparison" / "metrics.json", metrics)
    files.write_json(root / "data" / "counts.json", {text: {text: 1} for text in texts})


def slice_of(judge: dict[str, Any], name: str) -> dict[str, Any]:
    return {"name": name, "p": 0.01, "p_holm": 0.02, "n": 9, "prompts": 9} | {
        key: judge[key] for key in ("win_rate", "interval")
    }


def test_five_hundred_pairs_stay_below_a_megabyte(tmp_path):
    """Posts of 300 words and answers of 60, three judges with reasons and three people; also where all are shown."""
    reasons = compared.sentences(50, 60, 8)
    prompts = compared.sentences(500, 300, 1)
    compared.make(tmp_path, prompts=prompts, length=60, words={"explanations": reasons, "notes": reasons[:9]})
    for pairs in (60, 500):
        page = render(recipe(report={"pairs": pairs}), tmp_path)
        assert len(page.encode()) <= 1_000_000
    assert "of the 500 that were requested, so that the page stays below a megabyte" in page
