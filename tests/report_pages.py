"""A page of the growth report, read as a browser would."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a test asks of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.steps: dict[str, int] = {}
        self.tags: list[str] = []
        self.links: list[str] = []
        self._step: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        self.tags.append(tag)
        self._step = known.get("data-step")
        self.links += [str(known[name]) for name in ("src", "href", "xlink:href") if known.get(name)]

    def handle_data(self, data: str) -> None:
        if self._step is not None:
            self.steps[self._step] = int(data.replace(",", ""))
            self._step = None
