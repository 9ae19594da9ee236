"""Declarations by options and in files: how files and values are read, and what is refused.

A type of declaration is a dataclass that forbids other names; its annotations tell pydantic how to read each value. The
rules for keys and values of labels are also here; the lengths of their columns follow from them. One reader per format
(text, TOML, CSV, KEY=VALUE) serves all declarations. `atomic_write` replaces a file in one step. Large files of samples
are read by `history.sources`.
"""

from __future__ import annotations

import codecs
import csv
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal, InvalidOperation
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Protocol, TextIO, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic import ValidationError as PydanticValidationError

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import FIRST_YEAR, LAST_YEAR
from capacity_assets.base.units import BYTES_PER_MB, LARGEST_MB, MB_PER_GB, suggestion

T = TypeVar("T")
Entry = TypeVar("Entry")

NO_OTHER_NAMES = ConfigDict(extra="forbid")
BYTES_PER_GB = 1 << 30
LARGEST_EXPONENT = 30
LONGEST_DECLARER = 255
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}
# By the first part of pydantic's error type. Pydantic's own messages repeat the value, which may be a password.
NATURES = {
    "string": "text, in quotes",
    "int": "a whole number",
    "bool": "true or false",
    "sequence": "a list of texts",
    "dict": "a table of texts",
    "mapping": "a table of texts",
}


def declaration(kind: type[T], values: Mapping[str, object]) -> T:
    """Make one thing from its values by name; None and empty texts count as not given.

    Raises ValidationError: a required value is missing, a name is unknown, or a value is invalid.
    """
    filled = {name: value for name, value in values.items() if value is not None and value != ""}
    # PostgreSQL stores no such text.
    unfit = [name for name, value in filled.items() if isinstance(value, str) and "\0" in value]
    if unfit:
        raise ValidationError(f"{' and '.join(unfit)} must not contain a NUL character.")
    adapter: TypeAdapter[T] = _adapter(kind)
    try:
        return adapter.validate_python(filled)
    except PydanticValidationError as error:
        sentences = list(_sentences(kind, error))
    raise ValidationError(" ".join(sentences))


def _sentences(kind: type[T], error: PydanticValidationError) -> Iterator[str]:
    problems: dict[str, list[str]] = {}
    for detail in error.errors():
        problems.setdefault(str(detail["loc"][0]), []).append(detail["type"])
    missing = [name for name, kinds in problems.items() if kinds == ["missing"]]
    if missing:
        described = _adapter(kind).json_schema(mode="validation")["properties"].get(missing[0], {})
        example = next(iter(described.get("examples", ())), None)
        instead = f"; write a number such as {example}" if example and len(missing) == 1 else ""
        yield f"{' and '.join(missing)} missing{instead}."
    names, _ = names_of(kind)
    for name, kinds in problems.items():
        if kinds == ["unexpected_keyword_argument"]:
            yield f"{name!r} is not one of {', '.join(names)}.{suggestion(name, names)}"
        elif kinds != ["missing"]:
            # A value that can have several types has one problem for each of them.
            natures = [NATURES.get(problem.partition("_")[0]) for problem in kinds]
            known = dict.fromkeys(nature for nature in natures if nature)
            yield f"{name} must be {' or '.join(known)}." if known else f"{name} is not valid."


def names_of(kind: type[Any]) -> tuple[list[str], list[str]]:
    """Return the names of all values of a type, and of the required ones."""
    schema = _adapter(kind).json_schema(mode="validation")
    return list(schema["properties"]), schema.get("required", [])


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


class DeclaredItems(list[T]):
    """The declarations of a file, and the place of each."""

    def __init__(self, things: Iterable[T] = (), places: Iterable[str] = ()) -> None:
        super().__init__(things)
        self.places = list(places)


def read_each(entries: Iterable[tuple[str, Entry]], read: Callable[[Entry], T]) -> DeclaredItems[T]:
    """Read entries, each with its place in the file; raises ValidationError with the problems of all of them."""
    things: DeclaredItems[T] = DeclaredItems()
    problems = []
    for place, entry in entries:
        try:
            things.append(read(entry))
            things.places.append(place)
        except ValidationError as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise ValidationError("\n".join(problems))
    return things


def day_of(written: object) -> date:
    """Read a day; raises ValidationError if it is none, or outside the years that windows can have."""
    try:
        day = date.fromisoformat(str(written))
    except ValueError:
        raise ValidationError(f"{written!r} is not a day of the calendar; write YYYY-MM-DD.") from None
    if not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise ValidationError(f"{day} is outside the years {FIRST_YEAR} to {LAST_YEAR}.")
    return day


def is_web_address(written: str) -> bool:
    """Whether a text is the address of a web server: http or https, a host, a valid port if any, and no blank."""
    try:
        parts = urlsplit(written)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_whole = written.isprintable() and " " not in written
    return is_whole and has_port and parts.scheme in {"http", "https"} and bool(parts.hostname)


def number_of(written: object) -> Decimal:
    """Read a number; NaN if it is none."""
    try:
        return Decimal(str(written).strip())
    except InvalidOperation:
        return Decimal("nan")


def bytes_of_gb(written: object) -> int:
    """Convert a number of GiB, such as 500 or 1.5, to bytes; raises ValidationError if it is not a number."""
    number = number_of(written)
    # A larger exponent would take long to compute, and is no size.
    if not number.is_finite() or number.adjusted() > LARGEST_EXPONENT:
        raise ValidationError(f"{written!r} is not a number of GiB; write 500 or 1.5.")
    return int(number * BYTES_PER_GB)


def mb_of_gb(written: object) -> int:
    """Convert a number of GiB to whole MiB, rounded down; raises ValidationError unless it is 0 to the largest size."""
    return _mb_of_gb(written, least_mb=0)


def change_mb_of_gb(written: object) -> int:
    """Convert a change in GiB, which may be negative, like `mb_of_gb`."""
    return _mb_of_gb(written, least_mb=-LARGEST_MB)


def _mb_of_gb(written: object, *, least_mb: int) -> int:
    size_mb = bytes_of_gb(written) // BYTES_PER_MB
    if not least_mb <= size_mb <= LARGEST_MB:
        least, largest = least_mb // MB_PER_GB, LARGEST_MB // MB_PER_GB
        raise ValidationError(f"{written!r} is not a number of GiB from {least:,} to {largest:,}.")
    return size_mb


DatabaseName = Annotated[str | None, Field(default=None)]
"""A database of a server; None: the server as a whole."""
Day = Annotated[date, BeforeValidator(day_of)]


LONGEST_KEY = 63
LONGEST_VALUE = 100
# Names of built-in groups, such as (fleet), are in parentheses, which no key may have.
KEY = re.compile(r"[a-z][a-z0-9_]*")
LABEL = re.compile(rf"({KEY.pattern})=(.*)", re.DOTALL)
"""A label as `key=value`; the value may be empty."""
# There are groups by engine and server without any label; the others are columns of a file of labels.
NOT_KEYS = ("engine", "server", "database", "from")


def unfit_keys(keys: Sequence[str]) -> list[str]:
    """Return the keys that a label cannot have."""
    return [key for key in keys if not KEY.fullmatch(key) or len(key) > LONGEST_KEY or key in NOT_KEYS]


def fleet_or_label(label: tuple[str, str] | None) -> str:
    """Return the name of the fleet (None) or of a label: its value, with the key in brackets; without a value: none."""
    if label is None:
        return "the fleet"
    return f"{label[1]} ({label[0]})" if label[1] else f"no {label[0].replace('_', ' ')}"


def checked_label(key: str, value: str | None, keys: Sequence[str]) -> tuple[str, str | None]:
    """Return key and value as they are stored; raises ValidationError for a key not in `keys`, or an unfit value."""
    if key not in keys:
        raise ValidationError(
            f"{key!r} is not a label key; CAPACITY_LABEL_KEYS has {', '.join(keys)}.{suggestion(key, keys)}"
        )
    if value is None:
        return key, None
    value = value.strip()
    if not value or len(value) > LONGEST_VALUE or not value.isprintable():
        raise ValidationError(f"The value of {key} must have 1 to {LONGEST_VALUE} printable characters.")
    return key, value


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a new file in the folder of `path`, which replaces `path` when the block ends without an error.

    Any number of writers may do this at once: the last one to end wins, and a reader never sees half a file.

    Raises OSError: the folder cannot be written, or `path` is a folder, a device or the like; the existing file is
    kept.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(0, "it exists and is not an ordinary file")
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        # In a folder of its own, the file gets the permissions of any new file, or those of the one that it replaces.
        begun = Path(folder) / "file"
        yield begun
        if path.exists():
            shutil.copymode(path, begun)
        begun.replace(path)


# More than a file of 100,000 servers has.
LARGEST_BYTES = 64 << 20
LONGEST_LINE = 1 << 17
"""In characters: the longest field that Python's csv module reads."""
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""The first bytes of spreadsheet files: of current formats, and of those before 2007."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text_file(path: Path, largest_bytes: int = LARGEST_BYTES) -> str:
    """Return the text of a file in UTF-8; raises ValidationError without the text: it may be a password."""
    try:
        with path.open("rb") as file:
            content = file.read(largest_bytes + 1)
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > largest_bytes:
        raise ValidationError(f"{path} cannot be read: it is larger than {largest_bytes >> 20} MiB.")
    refuse_workbook(path, content)
    if content.startswith(UTF_16):
        raise ValidationError(f"{path} is in UTF-16, as some editors write it. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValidationError(f"{path} is not UTF-8 text. Save it as UTF-8.") from None
    before, nul, _ = text.partition("\0")
    if nul:
        line = before.count("\n") + 1
        raise ValidationError(f"{path}: line {line} contains a NUL character. Save the file as UTF-8 text.")
    return text


def refuse_workbook(path: Path, content: bytes | None = None) -> None:
    """Refuse the file of a spreadsheet program, by its first bytes; raises ValidationError and OSError."""
    if content is None:
        with path.open("rb") as file:
            content = file.read(len(WORKBOOKS[0]))
    if content.startswith(WORKBOOKS):
        raise ValidationError(
            f"{path} is the workbook of a spreadsheet program, or another archive. Save the sheet as CSV UTF-8."
        )


class LineTooLongError(ValueError):
    """A line is longer than LONGEST_LINE; the text does not repeat it."""

    def __init__(self) -> None:
        super().__init__(f"a line is longer than {LONGEST_LINE:,} characters")


def next_line(file: TextIO) -> str:
    """Return the next line, empty at the end; raises LineTooLongError, and UnicodeDecodeError."""
    line = file.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise LineTooLongError
    return line


def bounded_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; raises as `next_line`."""
    while line := next_line(file):
        yield line


class DeclaredItem(Protocol):
    """A declared thing that has a name."""

    @property
    def name(self) -> str:
        """The name, which no other thing of its kind has."""


Item = TypeVar("Item", bound=DeclaredItem)


def toml_document(path: Path) -> dict[str, Any]:
    """Read a file; raises as `read_text_file`."""
    try:
        return tomllib.loads(read_text_file(path))
    except tomllib.TOMLDecodeError as error:
        # The first part names what was expected and where; the rest may repeat the text.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None


def named_tables(path: Path, table: str, called: str, declared: Callable[[Mapping[str, Any]], Item]) -> list[Item]:
    """Read a file that contains only tables `[[table]]`; `called` is the noun for a table in messages.

    Raises ValidationError with all problems: of the file, values that `declared` refuses, and names used twice.
    """
    document = toml_document(path)
    entries = document.get(table)
    if (
        set(document) != {table}
        or not isinstance(entries, list)
        or not all(isinstance(entry, dict) for entry in entries)
    ):
        raise ValidationError(f"{path} must contain only tables [[{table}]], one per {called}.")
    things = read_each(((f"{called} {n}", values) for n, values in enumerate(entries, start=1)), declared)
    names = [thing.name for thing in things]
    twice = [f"two {called}s have the name {name!r}." for name in sorted(set(names)) if names.count(name) > 1]
    if twice:
        raise ValidationError("\n".join(twice))
    return things


def key_and_value(written: str, hint: str = "") -> tuple[str, str]:
    """Return key and value as they are written; the value may be empty.

    Raises ValidationError without `=`, with the `hint` in its text.
    """
    key, equals, value = written.partition("=")
    if not equals:
        example = f"team={written}" if written not in {"", "team"} else "team=payments"
        raise ValidationError(f"{written!r} is not a label; write key and value, such as {example}.{hint}")
    return key, value


def label_or_key(word: str) -> tuple[str, str | None]:
    """Return key and value of a label in a variable; the value is None (any value) if the word is only a key."""
    key, _, value = word.partition("=")
    return key, value or None


DELIMITERS = ",;\t"
"""Spreadsheets of many countries separate by semicolons."""


def items_of_file(path: Path, kind: type[T]) -> DeclaredItems[T]:
    """Return the things of one type that a CSV file declares, one per row; raises as `declarations`."""
    return declarations(path, *names_of(kind), lambda row: declaration(kind, row))


def declarations(
    path: Path, columns: Sequence[str], needed: Sequence[str], parse: Callable[[Mapping[str, str]], T]
) -> DeclaredItems[T]:
    """Return what `parse` makes of each row of a file; it raises ValidationError for a wrong row.

    A misspelt heading is refused. Otherwise a limit for one database would become one for the whole server.

    Raises ValidationError: as `csv_rows`; a column is unknown, missing or repeated; or rows are wrong, all reported
    together.
    """
    headings, rows = csv_rows(path)
    known = f"The columns are {', '.join(columns)}."
    missing = [name for name in needed if name not in headings]
    if missing:
        raise ValidationError(f"{path} has no column {', '.join(missing)}. {known}")
    unknown = [name for name in headings if name not in columns]
    if unknown:
        raise ValidationError(f"{path} has an unknown column {unknown[0]!r}.{suggestion(unknown[0], columns)} {known}")
    twice = next((name for name in headings if headings.count(name) > 1), None)
    if twice:
        raise ValidationError(f"{path} has the column {twice!r} twice.")
    return read_each(((f"line {line}", row) for line, row in rows), parse)


def refuse_lacking(row: Mapping[str, str], needed: Sequence[str]) -> None:
    """Refuse a row in which a required field is empty; raises ValidationError."""
    lacking = [name for name in needed if name not in row]
    if lacking:
        raise ValidationError(f"{' and '.join(lacking)} missing.")


def csv_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the headings, and each row by heading, with the number of its line; empty fields are left out.

    Raises ValidationError: as `read_text_file`; there is no row, or one with more fields than there are headings.
    """
    file = StringIO(read_text_file(path), newline="")
    try:
        first = next_line(file)
        if not first.strip():
            raise ValidationError(f"{path} is empty, or begins with an empty line.")
        file.seek(0)
        reader = csv.DictReader(bounded_lines(file), delimiter=max(DELIMITERS, key=first.count), strict=True)
        rows = []
        for row in reader:
            if None in row:
                raise ValidationError(f"{path}: line {reader.line_num} has more fields than there are headings.")
            rows.append((reader.line_num, {name: value for name, value in row.items() if value}))
    except LineTooLongError as error:
        raise ValidationError(f"{path} is not CSV: {error}.") from None
    except csv.Error as error:
        # The first part names what was expected and where; the rest may repeat the text.
        raise ValidationError(f"{path} cannot be read: {str(error).partition(':')[0]}.") from None
    if not rows:
        raise ValidationError(f"{path} has no line below its headings.")
    return list(reader.fieldnames or ()), rows
