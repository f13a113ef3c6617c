"""Docstrings as Markdown, for mkdocstrings: roles, literal blocks and stars of shapes."""

from __future__ import annotations

import re
from typing import Any

import griffe


def as_markdown(text: str) -> str:
    """Roles such as ``:class:`X``` as code, ``word::`` as ``word:``, and ``*S`` outside of code as a plain star."""
    text = re.sub(r":(?:meth|class|func|mod|attr|data):(`+)~?", r"\1", text)
    text = re.sub(r"::$", ":\n", text, flags=re.M)
    parts = re.split(r"(`+[^`]*`+|^ {4,}\S.*$)", text, flags=re.M)
    escaped = [part if i % 2 and part.lstrip()[:1] == "`" else star(part) for i, part in enumerate(parts)]
    return "".join(escaped)


def star(text: str) -> str:
    return re.sub(r"(?<=[\s(\[,])\*(?=[A-Za-z])", r"\*", text)


class Markdown(griffe.Extension):
    """Rewrites each object's docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
