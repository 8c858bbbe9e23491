"""The label page and the owner's page in a real browser: what a person sees and presses, and what is kept of it."""

import json
import re
import socket
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Error, chromium, overflow, violations, visit  # noqa: F401  (chromium is a fixture)
from hostile import HOSTILE
from labelling import serving

import preferent
from preferent import files
from preferent.files import write_jsonl

STATIC = Path(preferent.__file__).parent / "labeling/static"
DIFFERENCE = Path(preferent.__file__).parent / "evaluation/static/difference.js"
MODELS = ("UNMISTAKABLE-ONE", "UNMISTAKABLE-TWO")
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DEAD = r"ERR_CONNECTION_REFUSED|ERR_FAILED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_SOCKET_NOT_CONNECTED"
MARKDOWN = """# A title
Some **bold**, *slanted* and `coded` words, 2 * 3 * 4, snake_case_name and \\*stars\\*.

1. one
2. two
   - inner

> quoted

```python
print("<b>")
```

| left | right |
|------|------:|
| a    | b     |

[press](javascript:alert(1)) [site](https://example.com/a_b_c) ![cat](https://example.com/cat.png)
"""
HEBREW = "הים כחול ורחב"


def write_rows(path, rows):
    files.write_jsonl(path, [{"choice": 0, "model_0": MODELS[0], "model_1": MODELS[1]} | row for row in rows])
    return path


def numbered(count):
    return [
        {"id": str(i), "input_text": f"Prompt {i}", "candidate_0": f"zero {i}", "candidate_1": f"one {i}"}
        for i in range(count)
    ]


PEOPLE = ["ada", "ben", "cleo", "dan", "eve", "fay", "gus", "hal", "ida", "jan"]
"""One for each test that shares the team's server."""


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    rows = write_rows(folder / "rows.jsonl", numbered(12))
    with serving(folder / "labels", file=rows, seed=5, strengths=3, annotators=PEOPLE, overlap=len(PEOPLE)) as server:
        yield server


def free_port():
    """A port of its own for a server that is killed: nobody else takes it while it is down."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def enter(page, link):
    page.goto(link)
    page.wait_for_selector("#question:not([hidden])")


def done(page, count):
    """Wait until so many questions are shown as done."""
    page.wait_for_function("n => document.getElementById('count').textContent.startsWith(n + ' of ')", arg=count)


def texts(page):
    return page.evaluate(
        """() => ["prompt", "left-text", "right-text"].map((id) =>
             [...document.getElementById(id).querySelectorAll(".plain")].map((one) => one.textContent).join(""))"""
    )


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def look(page):
    """Longer than the moment after a question appears in which a click is taken for a double click."""
    page.wait_for_timeout(350)


# Files


@pytest.mark.parametrize("path", sorted([*STATIC.iterdir(), DIFFERENCE]), ids=lambda path: path.name)
def test_no_file_of_the_page_reads_a_text_as_markup_or_code(path):
    text = path.read_text(encoding="utf-8")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|setHTML"
        r"|\beval\b|new Function|\.style\b|style=|\bon[a-z]+=\"|<script(?! type=\"module\" src=\"/static/)|<style"
    )
    assert re.findall(forbidden, text) == []
    assert path.suffix != ".js" or max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) <= 400


# The whole way


@pytest.mark.acceptance
def test_two_hundred_pairs_by_keyboard_with_reloads_undos_and_kills(chromium, tmp_path):  # noqa: F811
    """Every answer is kept once, as it was meant, whatever happened; no response tells who wrote what."""
    sides = [{str(i): f"{side} {i}" for i in range(200)} for side in ("zero", "one")]
    for name, side in zip("ab", sides, strict=True):
        rows = [{"inputs": {"inputs_pretokenized": f"Prompt {i}"}, "prediction": side[str(i)]} for i in range(200)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    given = {"predictions": files, "models": MODELS, "seed": 7, "strengths": 3, "port": free_port()}
    with serving(tmp_path / "labels", **given) as server:
        with visit(chromium, server.address, (DEAD,), **DESKTOP) as page:
            meant = label_all(page, server)
        assert server.stop() == 0
    assert_kept(tmp_path / "labels", meant)


CHOICES = [
    ("1", "left"),
    ("ArrowRight", "right"),
    ("3", "tie"),
    ("4", "both_bad"),
    ("ArrowLeft", "left"),
    ("2", "right"),
]


def label_all(page, server):
    """What was meant: choice and what stood left, by prompt."""
    responses, meant, undos, shift, read = [], {}, {90: 3, 110: 20, 199: 2}, 0, 0
    page.on("response", lambda response: responses.append(response))
    enter(page, server.link())
    press(page, "p")
    number = 0
    while number < 200:
        prompt, left, _ = texts(page)
        key, choice = ("s", "skip") if number % 40 == 39 else CHOICES[(number + shift) % len(CHOICES)]
        clear = number % 5 if choice in ("left", "right") and number % 5 < 3 else None
        if clear is not None:
            press(page, "qwe"[clear])
        if number in (60, 140):  # the vote finds no server, and the server comes back
            server.kill()
        press(page, key)
        if number in (30, 170):  # the server dies with the vote on its way or just stored
            server.kill()
        if number in (30, 60, 140, 170):
            if number in (60, 140):
                page.wait_for_selector("#state[data-state=unsaved]")
                assert page.inner_text("#count").startswith(f"{number} of ")
            server.start()
            if number == 140:  # what was not sent is sent after a reload
                read += unread(responses)
                page.reload()
        meant[prompt] = (choice, left, None if clear is None else clear + 1)
        number += 1
        done(page, number)
        if number in (50, 120):
            read += unread(responses)
            page.reload()
            done(page, number)
        if number in undos:
            shift += 1  # what was taken back is answered otherwise
            number = take_back(page, number, undos.pop(number), meant)
        read += unread(responses)
    page.wait_for_selector("#end:not([hidden])")
    assert page.inner_text("#end-words") == "You answered all 200 questions."
    assert page.inner_text("#state") == "saved"
    assert not undos and read > 200
    return meant


def take_back(page, number, count, meant):
    """Undo so many answers: each comes back with its question, the last first. Where the count is then."""
    for _ in range(count):
        press(page, "u")
        number -= 1
        done(page, number)
        prompt, left, _ = texts(page)
        choice, was_left, strength = meant.pop(prompt)
        assert left == was_left
        assert (f"({['slightly', 'clearly', 'much'][strength - 1]})" if strength else ": ") in page.inner_text(
            "#notice"
        )
        chosen = page.locator("[data-choice].chosen").get_attribute("data-choice")
        assert chosen == choice
    return number


def unread(responses):
    """Read every response since the last time; none may name a model, a file or a folder.

    The browser forgets the body of a response that arrives while the page is loaded again.
    """
    read = 0
    while responses:
        response = responses.pop(0)
        if "/api/" in response.url or response.url.endswith("/"):
            try:
                body = response.text()
            except Error as error:
                assert "navigated away" in str(error)
                continue
            read += 1
            assert not re.search("UNMISTAKABLE|jsonl|tmp|model_", body), body
        assert "UNMISTAKABLE" not in json.dumps(response.all_headers())
    return read


def assert_kept(folder, meant):
    kept = {}
    rows = {name: list(map(json.loads, (folder / f"{name}.jsonl").open())) for name in ("preferences", "ties", "skips")}
    assert sum(map(len, rows.values())) == 200
    for name, found in rows.items():
        for row in found:
            choice = {"preferences": ("left", "right"), "ties": ("tie", "both_bad"), "skips": ("skip", "skip")}[name]
            at = row["choice"] if name == "preferences" else row["both_bad"]
            kept[row["input_text"]] = (choice[at], row["candidate_0"], row.get("strength"))
    assert kept == meant


# Seen and touched


def see(page, server, check):
    """Every screen that an annotator and the owner come to, checked one by one."""
    enter(page, server.link())
    check("question")
    press(page, "d")
    check("differences")
    press(page, "d", "?")
    page.wait_for_selector("dialog[open]")
    check("help")
    press(page, "Escape")
    for count in (1, 2):
        press(page, "e", "1")
        done(page, count)
    press(page, "u")
    done(page, 1)
    check("taken back")
    press(page, "1")
    done(page, 2)
    page.wait_for_selector("#end:not([hidden])")
    check("end")
    page.goto(server.link(""))
    page.wait_for_selector("#results:not([hidden])")
    page.click("#reveal")
    page.wait_for_selector("#rates .sentence")
    check("owner")
    page.goto(server.address + "/#wrong")
    page.wait_for_selector("#closed:not([hidden])")
    check("closed")


SMALL = """() => [...document.querySelectorAll("button, a, input, textarea")].filter((one) => one.checkVisibility())
    .map((one) => [one.id || one.textContent, one.getBoundingClientRect()])
    .filter(([, box]) => Math.min(box.width, box.height) < 24)
    .map(([name, box]) => `${name} ${box.width}x${box.height}`)"""


@pytest.mark.acceptance
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_screen_is_accessible_and_fits(chromium, tmp_path, device, scheme):  # noqa: F811
    talk = [{"role": role, "content": "word " * 300} for role in ("system", "user", "assistant", "user")]
    rows = [
        {"id": "0", "input_text": "Explain", "candidate_0": MARKDOWN, "candidate_1": ""},
        {"id": "1", "messages": talk, "candidate_0": HEBREW + " abc", "candidate_1": "long " * 400},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with (
        serving(tmp_path / "labels", file=file, seed=1, strengths=3 if scheme == "light" else 9) as server,
        visit(chromium, server.address, ("401",), color_scheme=scheme, **device) as page,
    ):

        def check(screen):
            assert violations(page) == [], screen
            for size in (device["viewport"], {"width": 320, "height": 256}):  # 1280 x 1024 at 400 %
                page.set_viewport_size(size)
                assert overflow(page) == 0, (screen, size)
                assert page.evaluate(SMALL) == [], (screen, size)
            page.set_viewport_size(device["viewport"])

        see(page, server, check)


@pytest.mark.acceptance
def test_a_phone_is_enough(chromium, team):  # noqa: F811
    with visit(chromium, team.address, **PHONE) as page:
        enter(page, team.link("ada"))
        assert (
            page.locator(".choices button").evaluate_all("all => Math.min(...all.map((one) => one.offsetHeight))") >= 44
        )
        for count, target in enumerate(["#right", "[data-choice=tie]", "#left", "[data-choice=skip]"], start=1):
            look(page)
            page.tap(target)
            done(page, count)
        page.tap("#undo")
        done(page, 3)
        page.tap("[data-strength='2']")
        look(page)
        page.tap("[data-choice=left]")
        done(page, 4)
        tops = page.evaluate("['left', 'right'].map((id) => document.getElementById(id).getBoundingClientRect().top)")
        assert tops[0] < tops[1]
        bar = page.locator(".verdict").bounding_box()
        assert bar["y"] + bar["height"] <= 740
    assert team.person("ada").get("/api/queue")["done"] == 4


@pytest.mark.acceptance
def test_a_click_on_the_answer_chooses_it_once(chromium, team):  # noqa: F811
    with visit(chromium, team.address, **DESKTOP) as page:
        enter(page, team.link("ben"))
        press(page, "p")
        look(page)
        _, left, _ = texts(page)
        page.click("#left-text")
        done(page, 1)
        look(page)
        page.hover("[data-choice=tie]")
        page.mouse.down(click_count=2)  # the second press of a double click
        page.mouse.up(click_count=2)
        look(page)
        assert page.inner_text("#count") == "1 of 12"
        box = page.locator("#right-text .plain").bounding_box()
        page.mouse.move(box["x"] + 2, box["y"] + 10)
        page.mouse.down()
        page.mouse.move(box["x"] + 40, box["y"] + 10, steps=4)
        page.mouse.up()  # text is being selected, not an answer given
        assert page.evaluate("getSelection().toString()")
        look(page)
        assert page.inner_text("#count") == "1 of 12"
        press(page, "u")
        done(page, 0)
        assert (texts(page)[1], page.inner_text("#notice")) == (
            left, "Undone. Your answer was: A is better. Answer again."
        )  # fmt: skip
        assert page.locator("#left .yours").is_visible()
        look(page)
        page.click("#right h2")
        done(page, 1)
        assert page.evaluate("document.activeElement.id") == "title"
        assert page.inner_text("#announcement") == "Saved. Question 2 of 12."


@pytest.mark.acceptance
def test_keys_keep_out_of_the_way_and_can_be_changed(chromium, team):  # noqa: F811
    with visit(chromium, team.address, **DESKTOP) as page:
        enter(page, team.link("cleo"))
        press(page, "n")
        page.keyboard.type("1234 suf?")
        press(page, "Escape", "Control+1", "Alt+2", "Meta+3", "9")
        page.keyboard.down("e")
        page.evaluate("dispatchEvent(new KeyboardEvent('keydown', {key: '2', repeat: true}))")
        assert page.locator("[data-strength='3']").get_attribute("aria-pressed") == "true"
        press(page, "?")
        press(page, "1", "2")  # nothing while the help is open
        page.click("#keys [data-action=left] button")
        press(page, "s")
        assert "s was the key for: Skip" in page.inner_text("#keys-notice")
        press(page, "Escape")
        assert page.inner_text("#count") == "0 of 12"
        press(page, "f")
        page.wait_for_selector("#flag:disabled")
        press(page, "1", "s")
        done(page, 1)
        page.reload()
        done(page, 1)
        press(page, "s")
        done(page, 2)
        press(page, "?")
        page.click("#keys-reset")
        page.uncheck("#keys-on")
        press(page, "Escape", "1")
        assert not page.locator("[data-choice=left] kbd").is_visible()
        assert page.inner_text("#count") == "2 of 12"
    last = team.person("cleo")
    last.post("/api/undo", {"key": "00000000-0000-4000-8000-000000000001"})
    first = last.post("/api/undo", {"key": "00000000-0000-4000-8000-000000000002"})
    assert first["item"]["flagged"]
    assert {name: first["previous"][name] for name in ("choice", "strength", "note")} == {
        "choice": "left", "strength": 3, "note": "1234 suf?",
    }  # fmt: skip


# What may go wrong


@pytest.mark.acceptance
def test_nothing_is_saved_before_the_server_says_so_and_a_lost_reply_loses_nothing(chromium, team):  # noqa: F811
    with visit(chromium, team.address, (DEAD,), **DESKTOP) as page:
        held, lost, way = [], [], {"do": "hold"}

        def voting(route):
            if way["do"] == "hold":
                held.append(route)
                return
            answer = route.fetch()
            if way["do"] == "lose":
                lost.append(route)
                route.abort()
            else:
                route.fulfill(response=answer)

        page.route("**/api/vote", voting)  # before the page is there: a route that comes later may miss a request
        enter(page, team.link("dan"))
        press(page, "p")
        before = texts(page)
        press(page, "1")
        page.wait_for_selector("#state[data-state=saving]")
        press(page, "2", "3", "u")  # nothing else is taken meanwhile
        assert (page.inner_text("#count"), texts(page)) == ("0 of 12", before)
        held.pop().continue_()
        done(page, 1)
        assert (page.inner_text("#state"), held) == ("saved", [])
        way["do"] = "lose"
        press(page, "2")
        page.wait_for_selector("#state[data-state=unsaved]")
        assert "kept in this browser" in page.inner_text("#trouble")
        way["do"] = "answer"
        page.evaluate("document.getElementById('retry').click()")  # it may be gone by now: the page tries by itself too
        done(page, 2)
        assert lost and page.inner_text("#state") == "saved"
        assert not page.locator("#notice").is_visible()  # the same key again: nothing was answered twice
        assert not page.locator("#trouble").is_visible()
        assert page.evaluate("Object.keys(localStorage).filter((name) => name.includes('outbox'))") == []
    assert team.person("dan").get("/api/queue")["done"] == 2


@pytest.mark.acceptance
def test_two_tabs_agree_on_what_was_answered(chromium, team):  # noqa: F811
    with visit(chromium, team.address, ("409",), **DESKTOP) as page:
        enter(page, team.link("eve"))
        other = page.context.new_page()
        enter(other, team.address)  # the cookie is enough
        press(page, "1")
        done(page, 1)
        press(other, "2")
        done(other, 1)
        assert "already answered in another tab" in other.inner_text("#notice")
        assert other.inner_text("#number") == "Question 2"
        press(other, "2")
        done(other, 2)
        assert not other.locator("#notice").is_visible()
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        done(page, 2)
        assert page.inner_text("#number") == "Question 3"
        press(page, "u")
        done(page, 1)
        assert page.locator("[data-choice].chosen").get_attribute("data-choice") == "right"


@pytest.mark.acceptance
def test_a_vote_that_another_tab_sent_is_waited_for_no_longer(chromium, team):  # noqa: F811
    with visit(chromium, team.address, (DEAD,), **DESKTOP) as page:
        dead = {"yes": True}
        page.route("**/api/vote", lambda route: route.abort() if dead["yes"] else route.continue_())
        enter(page, team.link("jan"))
        press(page, "1")
        page.wait_for_selector("#state[data-state=unsaved]")
        other = page.context.new_page()
        enter(other, team.address)  # the server is back for this tab: it sends what the first one kept
        done(other, 1)
        done(page, 1)
        assert page.inner_text("#number") == "Question 2"
        dead["yes"] = False
        press(page, "2")
        done(page, 2)
    assert team.person("jan").get("/api/queue")["done"] == 2


@pytest.mark.acceptance
def test_without_a_link_the_page_says_so_and_a_new_link_opens_it(chromium, team):  # noqa: F811
    with visit(chromium, team.address, ("401", "403"), **DESKTOP) as page:
        for address in ("/", "/#nonsense"):
            page.goto(team.address + address)
            page.wait_for_selector("#closed:not([hidden])")
            assert not page.locator("#question").is_visible()
        enter(page, team.link("fay"))  # only what is after # changes
        assert page.url == team.address + "/"
        page.goto(team.address + "/owner")
        page.wait_for_selector("#closed:not([hidden])")
        assert not page.locator("#results").is_visible()
        page.goto(team.link(""))
        page.wait_for_selector("#results:not([hidden])")
        page.goto(team.address + "/")
        page.wait_for_selector("#closed:not([hidden])")
        assert "owner's link" in page.inner_text("#closed-words")


# Texts


@pytest.mark.acceptance
def test_markdown_is_laid_out_and_leads_nowhere(chromium, team):  # noqa: F811
    with visit(chromium, team.address, **DESKTOP) as page:
        page.goto(team.address + "/static/style.css")
        shown = page.evaluate(
            """async (text) => {
                 const { markdown } = await import("/static/markdown.js");
                 const box = markdown(text);
                 const all = (css) => [...box.querySelectorAll(css)].map((one) => one.textContent);
                 const kinds = ["p.heading", "strong", "em", "p code", "ol > li", "ul > li", "blockquote", "pre", "th",
                   "td", ".link", "a, img, script, [href], [src]"];
                 return {...Object.fromEntries(kinds.map((css) => [css, all(css)])), text: box.textContent};
               }""",
            MARKDOWN,
        )
    assert shown["p.heading"] == ["A title"]
    assert (shown["strong"], shown["em"], shown["p code"]) == (["bold"], ["slanted"], ["coded"])
    assert (shown["ol > li"], shown["ul > li"]) == (["one", "twoinner"], ["inner"])
    assert (shown["blockquote"], shown["pre"]) == (["quoted"], ['print("<b>")'])
    assert (shown["th"], shown["td"]) == (["left", "right"], ["a", "b"])
    assert shown[".link"] == [
        "press (javascript:alert(1))", "site (https://example.com/a_b_c)", "[picture: cat] (https://example.com/cat.png)"
    ]  # fmt: skip
    assert shown["a, img, script, [href], [src]"] == []
    assert "2 * 3 * 4, snake_case_name and *stars*." in shown["text"]


@pytest.mark.acceptance
def test_differences_are_exact_small_and_quick_for_long_texts(chromium, team):  # noqa: F811
    code = """async ([before, after]) => (await import("/static/difference.js")).difference(before, after)
                .map((run) => [run.kind, run.text])"""
    with visit(chromium, team.address, **DESKTOP) as page:
        page.goto(team.address + "/static/style.css")

        def found(before, after):
            runs = page.evaluate(code, [before, after])
            assert "".join(text for kind, text in runs if kind != "added") == before
            assert "".join(text for kind, text in runs if kind != "removed") == after
            assert all(one[0] != other[0] for one, other in pairwise(runs))
            return runs

        assert found("the cat sat on the mat", "the dog sat on a mat") == [
            ["same", "the "], ["removed", "cat "], ["added", "dog "], ["same", "sat on "],
            ["removed", "the "], ["added", "a "], ["same", "mat"],
        ]  # fmt: skip
        assert found("", "") == []
        assert found("same", "same") == [["same", "same"]]
        assert found(" a\n b", "a b ") == [
            ["removed", " "], ["same", "a"], ["removed", "\n "], ["added", " "], ["same", "b"], ["added", " "]
        ]  # fmt: skip
        for before, after in pairwise(HOSTILE):
            found(before, after)
        words = [f"w{i * i % 7919}" for i in range(9000)]
        changed = [("new" if i % 90 == 7 else word) for i, word in enumerate(words)]
        assert sum(kind == "added" for kind, _ in found(" ".join(words), " ".join(changed))) == 100
        assert len(found("a b " * 12_500, "c d " * 12_500)) == 2


@pytest.mark.acceptance
def test_long_right_to_left_and_empty_texts(chromium, tmp_path):  # noqa: F811
    rows = [
        {"id": "0", "input_text": HEBREW, "candidate_0": f"**{HEBREW}**\n\nEnglish", "candidate_1": ""},
        {"id": "1", "input_text": "p " * 25_000, "candidate_0": "word " * 10_000, "candidate_1": "w" * 50_000},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with serving(tmp_path / "labels", file=file, seed=1) as server, visit(chromium, server.address, **DESKTOP) as page:
        enter(page, server.link())
        for count in (1, 2):
            right_to_left(page) if page.inner_text("#prompt") == HEBREW else very_long(page)
            press(page, "1")
            done(page, count)


def right_to_left(page):
    directions = "[...document.querySelectorAll('.markdown p')].map((one) => getComputedStyle(one).direction)"
    assert sorted(page.evaluate(directions)) == ["ltr", "rtl", "rtl"]
    assert page.locator(".absent").inner_text() == "Empty: there is no text"
    press(page, "p")
    gap = """() => {
        const [box, range] = [document.querySelector("#prompt .plain"), document.createRange()];
        range.selectNodeContents(box);
        return box.getBoundingClientRect().right - range.getBoundingClientRect().right;
    }"""
    assert page.evaluate(gap) < 2
    press(page, "d")
    assert page.locator("#question del, #question ins").count() == 1
    press(page, "d", "p")


def very_long(page):
    for keys in ((), ("p",), ("d",)):
        press(page, *keys)
        assert overflow(page) == 0
        bar = page.locator(".choices").bounding_box()
        assert bar["y"] + bar["height"] <= 800
        assert page.locator("#prompt").bounding_box()["height"] < 300
    press(page, "d", "p")


@pytest.mark.acceptance
def test_hostile_texts_are_shown_and_do_nothing(chromium, tmp_path):  # noqa: F811
    """As prompts, answers, notes, and names of people and models."""
    names = [text for text in HOSTILE if text.isprintable()]
    asked = [text.replace("\0", "") for text in HOSTILE]  # a text with U+0000 is not let into the data
    turned = asked[1:] + asked[:1], asked[2:] + asked[:2]
    rows = [
        {
            "id": str(i),
            "candidate_0": turned[0][i],
            "candidate_1": turned[1][i],
            "model_0": text,
            "model_1": turned[0][i],
        }
        | ({"messages": [{"role": "user", "content": text}]} if i % 2 else {"input_text": text})
        for i, text in enumerate(asked)
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with serving(tmp_path / "labels", file=file, seed=3, annotators=names, overlap=len(names)) as server:
        with visit(chromium, server.address, **DESKTOP) as page:
            enter(page, server.link())
            assert page.evaluate("document.getElementById('annotator').textContent") == names[0]
            seen = [answer_hostile(page, count) for count in range(60)]
            assert sorted(seen) == sorted((text, *sorted(pair)) for text, *pair in zip(asked, *turned, strict=True))
            page.goto(server.link(""))
            page.wait_for_selector("#results:not([hidden])")
            page.click("#reveal")
            page.wait_for_selector("#rates .sentence")
            shown = page.evaluate("[...document.querySelectorAll('#people th bdi')].map((one) => one.textContent)")
            assert sorted(shown) == sorted(names)
            models = page.evaluate("[...document.querySelectorAll('#rates bdi')].map((one) => one.textContent)")
            assert set(models) <= set(asked) and len(models) > 60
            assert page.evaluate("window.hostile") is None
        server.stop()


def answer_hostile(page, count):
    """Look at a question in every way, answer it with a note, and see the note again. Prompt and answers."""
    note = HOSTILE[count]
    made = "document.querySelectorAll('#question :is(a, img, script, iframe, svg, style, form, object, base)').length"
    for keys in (("d",), ("d", "p")):
        assert page.evaluate(made) == 0
        press(page, *keys)
    shown = texts(page)
    press(page, "d")
    assert texts(page)[1:] == shown[1:]
    press(page, "d", "p")
    page.fill("#note", note)
    kept = page.evaluate("document.getElementById('note').value.trim()")
    press(page, "Escape", "f")
    page.wait_for_selector("#flag:disabled")
    press(page, "1")
    done(page, count + 1)
    press(page, "u")
    done(page, count)
    assert page.input_value("#note") == kept
    press(page, "1")
    done(page, count + 1)
    assert page.evaluate("window.hostile") is None
    return (shown[0], *sorted(shown[1:]))


# The owner


@pytest.mark.acceptance
def test_the_owner_sees_the_answers_come_in(chromium, team):  # noqa: F811
    with visit(chromium, team.address, (DEAD,), **DESKTOP) as page:
        person = team.person("gus")
        queue = person.get("/api/queue")
        tries = ["lost"]  # the first way in is not answered: it is tried again
        page.route("**/api/session", lambda route: route.abort() if tries and tries.pop() else route.continue_())
        page.goto(team.link(""))
        page.wait_for_selector("#results:not([hidden])")
        assert (tries, "#" in page.url) == ([], False)
        row = page.locator("#people tr", has_text="gus")
        assert "0 of 12" in row.inner_text()
        for choice in ("left", "right", "right", "tie"):
            queue = person.vote(queue, choice, seconds=2.5)
        row.get_by_text("4 of 12").wait_for()
        assert "33 %" in row.inner_text()
        assert "25 %" in row.inner_text()
        assert "2.5 s" in row.inner_text()
        assert "UNMISTAKABLE" not in page.inner_text("main")
        page.click("#reveal")
        page.wait_for_selector("#rates .sentence")
        assert MODELS[0] in page.inner_text("#rates")
        page.click("#reveal")
        assert "UNMISTAKABLE" not in page.inner_text("main")
        with page.expect_download() as download:
            page.click("a[download='preferences.jsonl']")
        rows = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
        assert sum(row["annotator"] == "gus" for row in rows) == 3
        page.click("#write")
        page.get_by_text("Written: ").wait_for()
    assert (team.folder / "preferences.jsonl").exists()


def test_the_page_says_how_many_are_left_and_stops_when_it_is_enough(chromium, tmp_path):  # noqa: F811
    rows = write_rows(tmp_path / "rows.jsonl", numbered(60))
    with (
        serving(tmp_path / "labels", file=rows, seed=2, until_decided=True) as server,
        visit(chromium, server.address, **DESKTOP) as page,
    ):
        enter(page, server.link())
        press(page, "p")
        counts = []
        while page.is_visible("#question"):
            number = len(counts)
            count = page.inner_text("#count")
            assert re.fullmatch(rf"{number}, about \d+ left", count)
            counts.append(int(count.split()[2]))
            left = texts(page)[1]
            press(page, "1" if left.startswith("zero") else "2")
            page.wait_for_function("n => !document.getElementById('count').textContent.startsWith(n + ',')", arg=number)
        assert 5 < len(counts) < 40 and counts[0] > counts[-1] >= 1
        assert page.inner_text("#end-words") == f"Your {len(counts)} answers are enough; the other questions need none."
        assert page.inner_text("#count") == f"{len(counts)} of {len(counts)}"
        assert not violations(page)
        page.goto(f"{server.address}/owner")
        page.wait_for_selector("#results:not([hidden])")
        assert "left, about" in page.inner_text("#figures") and "wins" not in page.inner_text("#rates")
        page.click("#reveal")
        page.wait_for_function("() => document.getElementById('rates').textContent.includes('votes, enough')")
        assert not violations(page)


THUMBS = [("1", "up"), ("2", "down"), ("s", "skip"), ("ArrowLeft", "up"), ("ArrowRight", "down")]


def answer_thumbs(page, server):
    """Answer ten questions by keys, two of them anew, the server killed once; what was meant, by answer."""
    meant = {}

    def shown():
        return page.inner_text("#answer-text")

    for number in range(10):
        pressed, choice = THUMBS[number % len(THUMBS)]
        if number == 4:
            server.kill()
        meant[shown()] = choice
        press(page, pressed)
        if number == 4:
            page.wait_for_selector("#state[data-state=unsaved]")
            server.start()
        done(page, number + 1)
        if number == 6:
            press(page, "u")
            done(page, 6)
            assert page.inner_text("#notice") == "Undone. Your answer was: thumb down. Answer again."
            assert page.locator("[data-choice].chosen").get_attribute("data-choice") == "down"
            meant[shown()] = "up"
            press(page, "1")
            done(page, 7)
    return meant


@pytest.mark.acceptance
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_answer_is_asked_about_by_keys_and_no_model_is_named(chromium, tmp_path, scheme):  # noqa: F811
    rows = [{"input_text": f"p{i}", "output_text": f"a{i}", "model": MODELS[0]} for i in range(10)]
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, rows)
    with (
        serving(tmp_path / "labels", file=file, seed=2, thumbs=True, port=free_port()) as server,
        visit(chromium, server.address, (DEAD,), color_scheme=scheme, **DESKTOP) as page,
    ):
        enter(page, server.link())
        for size in (DESKTOP["viewport"], {"width": 390, "height": 844}, {"width": 320, "height": 256}):
            page.set_viewport_size(size)
            assert overflow(page) == 0 and page.evaluate(SMALL) == [] and violations(page) == []
        page.set_viewport_size(DESKTOP["viewport"])
        assert page.title() == "0/10 Is this answer good?" and "UNMISTAKABLE" not in page.content()
        press(page, "d", "3", "q", "?")  # keys of pairs do nothing
        page.wait_for_selector("dialog[open]")
        assert page.locator("#keys tbody tr").evaluate_all("rows => rows.map((row) => row.dataset.action)") == [
            *("up", "down", "skip", "undo", "flag", "note", "plain", "help")
        ]
        assert violations(page) == []
        press(page, "Escape")
        meant = answer_thumbs(page, server)
        assert page.inner_text("#end-words") == "You answered all 10 questions." and violations(page) == []
        page.goto(server.link(""))
        page.wait_for_selector("#results:not([hidden])")
        assert "UNMISTAKABLE" not in page.inner_text("main") and "Left share" not in page.inner_text("main")
        page.click("#reveal")
        page.wait_for_selector("#rates .sentence")
        assert page.inner_text("#rates").startswith(f"{MODELS[0]} got ") and violations(page) == []
        with page.expect_download() as download:
            page.click("a[download='thumbs.jsonl']")
        kept = {row["output_text"]: row["label"] for row in files.read_jsonl(Path(download.value.path()))}
        assert server.stop() == 0
    assert kept == {answer: choice == "up" for answer, choice in meant.items() if choice != "skip"}
