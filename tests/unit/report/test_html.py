"""Whatever a prompt holds is shown, and nothing of it is markup."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_ray.report.html import Html, element, fill, join


class _Reader(HTMLParser):
    """What a browser makes of it: the tags, their attributes, the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = st.text(st.sampled_from("<>&\"'/=! abscript;x#{}-"), max_size=40)


@given(text=HOSTILE, value=HOSTILE)
def test_text_and_attributes_come_back_as_they_went_in(text: str, value: str) -> None:
    """Read by a parser, there is one element, with that attribute and that text."""
    reader = _Reader()
    reader.feed(element("b", {"title": value}, text))
    reader.close()
    assert reader.tags == [("b", [("title", value)])]
    assert reader.text == text


def test_html_is_not_escaped_twice() -> None:
    assert element("p", None, element("b", None, "a < b"), " & c") == "<p><b>a &lt; b</b> &amp; c</p>"
    assert join("<", Html("<br>")) == "&lt;<br>"


def test_a_value_that_looks_like_a_place_is_left_alone() -> None:
    """A prompt may hold {{script}}: the page's own script must not appear there."""
    assert fill("{{prompt}}|{{script}}", {"prompt": Html("{{script}}"), "script": Html("x")}) == "{{script}}|x"


def test_a_place_without_a_value_is_our_own_mistake() -> None:
    with pytest.raises(KeyError, match="prompt"):
        fill("{{prompt}}", {})
