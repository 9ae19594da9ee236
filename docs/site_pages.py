"""Writes the pages of the documentation site to build/pages: `make docs`. They are docs/ and the root's documents.

Links between them, which are relative to the repository, are rewritten to lead to the pages.
"""

import re
import shutil
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build" / "pages"
ROOT_DOCUMENTS = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
}
"""The documents of the root folder, and the pages that they become."""

_LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#)([^)#]+)((?:#[^)]*)?)\)")


def documents() -> dict[str, str]:
    """Map each document of the repository to its page."""
    pages = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "docs").rglob("*.md")}
    return ROOT_DOCUMENTS | {document: document.removeprefix("docs/") for document in pages}


def as_page(document: str, text: str, pages: dict[str, str]) -> str:
    """Return the text of a document with links that lead to pages; a link to any other file keeps its text only."""
    folder, page_folder = PurePosixPath(document).parent, PurePosixPath(pages[document]).parent

    def lead(link: re.Match[str]) -> str:
        label, target, anchor = link[1], normpath((folder / link[2]).as_posix()), link[3]
        is_image = target.startswith("docs/images/")
        page = target.removeprefix("docs/") if is_image else pages.get(target)
        return f"[{label}]({relpath(page, page_folder.as_posix())}{anchor})" if page else label

    return _LINK.sub(lead, text)


def main() -> None:
    """Write every page, and copy the pictures."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "images", PAGES / "images")
    pages = documents()
    for document, page in pages.items():
        written = PAGES / page
        written.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / document).read_text(encoding="utf-8")
        written.write_text(as_page(document, text, pages), encoding="utf-8")


if __name__ == "__main__":
    main()
