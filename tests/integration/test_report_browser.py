"""The report in a real browser: every figure drawn, no complaint, nothing fetched, legible on a phone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted.browser import Page, find_chromium
from scripted.recorded_run import RecordedRun

from minillm_ray.report import write_report

OpenPage = Callable[..., Page]
PHONE, DESKTOP = 390, 1280
BOXES = "[...document.querySelectorAll('svg')].map((svg) => {const b = svg.getBoundingClientRect(); return %s;})"
FIRST = "document.querySelector('figure')"
HOVER = f"""(() => {{
  const box = {FIRST}.querySelector('svg').getBoundingClientRect();
  const place = {{clientX: box.left + box.width * %s, clientY: box.top + 20}};
  {FIRST}.querySelector('svg').dispatchEvent(new PointerEvent('%s', place));
}})()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recorded = RecordedRun(folder)
    recorded.write(steps=60)
    return write_report(folder, recorded.clock)


@pytest.fixture
def open_page(report: Path) -> Iterator[OpenPage]:
    """Opens the report; skips where there is no browser."""
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium or Chrome on the PATH")
    pages: list[Page] = []

    def open_(*, width: int = DESKTOP, dark: bool = False, scripts: bool = True) -> Page:
        page = Page(program, width=width, dark=dark, scripts=scripts)
        pages.append(page)
        page.__enter__()
        page.open(report)
        return page

    yield open_
    for page in pages:
        page.__exit__()


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_is_drawn_without_a_complaint_or_a_request(width: int, dark: bool, open_page: OpenPage) -> None:
    """From disk: the file itself is all that is loaded, and the page is no wider than the screen."""
    page = open_page(width=width, dark=dark)
    page.ask("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    boxes = page.ask(BOXES % "[b.width, b.height, svg.querySelectorAll('.line').length]")
    assert len(boxes) >= 15
    assert all(box_width > 250 and height > 100 and lines for box_width, height, lines in boxes)
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.complaints == []
    assert [request for request in page.requests if request != "about:blank"] == [page.ask("location.href")]


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_follows_the_system_and_the_button_turns_it_over(dark: bool, open_page: OpenPage) -> None:
    """There and back."""
    page = open_page(dark=dark)
    brightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"
    assert (page.ask(brightness) < 128) is dark
    for expected in (not dark, dark):
        page.ask("document.getElementById('theme').click()")
        assert (page.ask(brightness) < 128) is expected
    assert page.complaints == []


def test_the_numbers_follow_the_pointer_and_return(open_page: OpenPage) -> None:
    """The left end of the first figure is step 1, where the divergence is highest."""
    page = open_page()
    shown = f"Number({FIRST}.querySelector('output').textContent)"
    last = page.ask(shown)
    page.ask(HOVER % (0.05, "pointermove"))
    assert page.ask(shown) > last
    assert page.ask(f"{FIRST}.querySelector('.at').textContent") == "1"
    page.ask(HOVER % (0.05, "pointerleave"))
    assert page.ask(shown) == last
    assert page.complaints == []


def test_each_curve_of_a_figure_has_its_own_number(open_page: OpenPage) -> None:
    """The loss by term at step 1: all three are others than at the end, and the total is the largest."""
    page = open_page()
    loss = "document.querySelectorAll('figure')[1]"
    shown = f"[...{loss}.querySelectorAll('output')].map((output) => Number(output.textContent))"
    last = page.ask(shown)
    page.ask((HOVER % (0.05, "pointermove")).replace(FIRST, loss))
    first = page.ask(shown)
    assert all(early > late for early, late in zip(first, last, strict=True))
    assert len(first) == 3
    assert max(first) == first[0]


def test_a_token_that_is_tapped_tells_its_numbers(open_page: OpenPage) -> None:
    """A finger has no hover."""
    page = open_page(width=PHONE)
    page.ask("document.querySelector('.response b').click()")
    assert "log p" in page.ask("document.getElementById('readout').textContent")
    assert page.ask("document.getElementById('readout').getBoundingClientRect().height") > 0
    page.ask("document.querySelector('h1').click()")
    assert page.ask("document.getElementById('readout').getBoundingClientRect().height") == 0


def test_without_scripts_the_figures_and_their_numbers_are_there(open_page: OpenPage) -> None:
    """What the script adds is the read-outs and the button, which is hidden without it."""
    page = open_page(scripts=False)
    page.send("DOM.enable")
    root = page.send("DOM.getDocument")["root"]["nodeId"]

    def area_of(selector: str) -> float:
        node = page.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        quads = page.send("DOM.getContentQuads", nodeId=node)["quads"]
        return max((abs((quad[4] - quad[0]) * (quad[5] - quad[1])) for quad in quads), default=0.0)

    assert area_of("figure svg") > 10_000
    assert area_of("figure output") > 0
    assert area_of("#theme") == 0
