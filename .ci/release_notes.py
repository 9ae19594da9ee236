"""Print the section of a version in CHANGELOG.md as the notes of its release: release_notes.py VERSION URL.

URL is that of the repository; links to files lead to the tag of the version there. Ends with a message if the version
is not that of pyproject.toml, has no section, or is not the newest one.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notes(changelog: str, version: str, url: str) -> str:
    """Return the section, without its heading.

    Raises:
        ValueError: the newest section is that of another version; the message says which.
    """
    _, newest, *_ = re.split(r"^## ", changelog, flags=re.MULTILINE)
    heading, _, section = newest.partition("\n")
    if not re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", heading):
        raise ValueError(f"The newest section of CHANGELOG.md is {heading!r}, and not '{version} - DAY'.")
    return re.sub(r"\]\((?!https?:|#|mailto:)", f"]({url}/blob/v{version}/", section).strip() + "\n"


def main() -> int:
    """Print the notes."""
    version, url = sys.argv[1:]
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if built != version:
        sys.exit(f"pyproject.toml has version {built}, and not {version}.")
    try:
        print(notes((ROOT / "CHANGELOG.md").read_text(), version, url), end="")
    except ValueError as error:
        sys.exit(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
