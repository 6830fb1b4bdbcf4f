"""Parses a page like a browser: tags, attributes and texts; fails if a tag isn't closed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; fails if a tag isn't closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts, self.hints = [], [], [], [], []
        self.by_id = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if any(tag in ("style", "script") for tag, _ in self.open):
            return
        self.texts.append((tuple(tag for tag, _ in self.open), [attrs.get("class") or "" for _, attrs in self.open], data))

    def said(self, css_class):
        """The text inside of each element of a class, joined."""
        return "".join(data for _, classes, data in self.texts if any(css_class in names.split() for names in classes))

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(data for _, _, data in self.texts))
