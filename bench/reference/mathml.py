"""Formulas as MathML: from LaTeX for the site, and a hook of mkdocs.yml for docs/.

Browsers draw MathML by themselves: no script, no font and no network are needed.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any
from unicodedata import category

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

TAGS = """
    math mrow mi mo mn mtext mspace msub msup msubsup mover munder munderover mfrac msqrt mroot
    mtable mtr mtd mstyle mpadded mphantom"""
ATTRIBUTES = """
    xmlns display displaystyle scriptlevel mathvariant fence separator stretchy form accent
    movablelimits largeop symmetric minsize maxsize lspace rspace width height depth linebreak
    linethickness columnalign columnspacing rowspacing"""
FENCE = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def wrap_lines(formula: str) -> str:
    """Return a method's `formula` as one LaTeX environment, which GitHub draws too."""
    return f"\\begin{{align*}}\n{formula}\n\\end{{align*}}"


def convert(latex: str) -> str:
    """Return LaTeX as a `<math display="block">` element, "" if it cannot be converted.

    The element holds MathML and text only, whatever the LaTeX says: pages embed it as it is.
    """
    from xml.etree.ElementTree import tostring

    from latex2mathml.converter import convert_to_element

    try:
        element = convert_to_element(latex, display="block")
    # The converter raises whatever a malformed text makes it stumble over.
    except Exception:
        return ""
    for node in element.iter():
        # The converter writes symbols as entities: here they become characters.
        node.text = html.unescape(node.text or "")
        if not is_harmless(node):
            return ""
    return tostring(element, encoding="unicode")


def is_harmless(node: Element) -> bool:
    """Return whether an element is MathML without links and styles, its text printable.

    A backslash in it is a command that the converter does not know.
    """
    text = f"{node.text or ''}{node.tail or ''}"
    readable = "\\" not in text and not any(category(char).startswith("C") for char in text)
    return node.tag in TAGS.split() and {*node.attrib} <= {*ATTRIBUTES.split()} and readable


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the `math` blocks of a page by MathML: mkdocs calls it for each page."""
    return FENCE.sub(lambda fence: f'<div class="math">{convert(fence[1])}</div>', markdown)
