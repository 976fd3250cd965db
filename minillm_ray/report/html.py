"""HTML that is escaped by construction.

Invariant: text becomes markup only through `element`, which escapes every plain string. Prompts and responses come from
outside and may hold anything.
"""

import re
from collections.abc import Mapping
from html import escape


class Html(str):
    """Markup that is already escaped: `element` takes it as it is. Made here, and from the report's own templates."""

    __slots__ = ()


def element(tag: str, attributes: Mapping[str, str] | None = None, *children: str) -> Html:
    """<tag attributes>children</tag>: values and plain strings are escaped, Html is taken as it is."""
    opening = "".join(f' {name}="{escape(value)}"' for name, value in (attributes or {}).items())
    return Html(f"<{tag}{opening}>{join(*children)}</{tag}>")


def join(*children: str) -> Html:
    """One after the other, plain strings escaped."""
    return Html("".join(child if isinstance(child, Html) else escape(child, quote=False) for child in children))


def counted(number: int, noun: str) -> str:
    """1 step, 1,500 steps."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def fill(template: str, values: Mapping[str, Html]) -> Html:
    """`template` with every {{name}} replaced, in one pass, since a value may hold {{name}} itself.

    Raises KeyError for a name without a value.
    """
    return Html(re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], template))
