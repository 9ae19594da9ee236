"""What people declare, by options and in files: how each value is read, and what is refused.

A type of declaration is a dataclass that forbids other names; its annotations tell pydantic how to read each value.
Here are also the rules for keys and values of labels, by which their columns are as long. `files` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic import ValidationError as PydanticValidationError

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import FIRST_YEAR, LAST_YEAR
from capacity_assets.base.units import BYTES_PER_MB, LARGEST_MB, MB_PER_GB, meant

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
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    # PostgreSQL stores no such text.
    unfit = [name for name, value in given.items() if isinstance(value, str) and "\0" in value]
    if unfit:
        raise ValidationError(f"{' and '.join(unfit)} must not contain a NUL character.")
    adapter: TypeAdapter[T] = _adapter(kind)
    try:
        return adapter.validate_python(given)
    except PydanticValidationError as error:
        sentences = list(_sentences(kind, error))
    raise ValidationError(" ".join(sentences))


def _sentences(kind: type[T], error: PydanticValidationError) -> Iterator[str]:
    problems: dict[str, list[str]] = {}
    for one in error.errors():
        problems.setdefault(str(one["loc"][0]), []).append(one["type"])
    missing = [name for name, found in problems.items() if found == ["missing"]]
    if missing:
        yield f"{' and '.join(missing)} missing."
    names, _ = names_of(kind)
    for name, found in problems.items():
        if found == ["unexpected_keyword_argument"]:
            yield f"{name!r} is not one of {', '.join(names)}.{meant(name, names)}"
        elif found != ["missing"]:
            # A value that can have several types has one problem for each of them.
            natures = [NATURES.get(problem.partition("_")[0]) for problem in found]
            known = dict.fromkeys(nature for nature in natures if nature)
            yield f"{name} must be {' or '.join(known)}." if known else f"{name} is not valid."


def names_of(kind: type[Any]) -> tuple[list[str], list[str]]:
    """Return the names of all values of a type, and of the required ones."""
    schema = _adapter(kind).json_schema(mode="validation")
    return list(schema["properties"]), schema["required"]


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


class DeclaredItems(list[T]):
    """The things that a file declares, and where each one is."""

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
        raise ValidationError(f"{day} lies outside the years {FIRST_YEAR} to {LAST_YEAR}.")
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


def bytes_of_gb(written: object) -> int:
    """Convert a number of GiB, such as 500 or 1.5, to bytes; raises ValidationError if it is not a number."""
    try:
        number = Decimal(str(written).strip())
    except InvalidOperation:
        number = Decimal("nan")
    # A larger exponent would take long to compute, and is no size.
    if not number.is_finite() or number.adjusted() > LARGEST_EXPONENT:
        raise ValidationError(f"{written!r} is not a number of GiB; write 500 or 1.5.")
    return int(number * BYTES_PER_GB)


def mb_of_gb(written: object) -> int:
    """Convert a number of GiB to whole MiB, rounded down; raises ValidationError unless it is 0 to the largest size."""
    size_mb = bytes_of_gb(written) // BYTES_PER_MB
    if not 0 <= size_mb <= LARGEST_MB:
        raise ValidationError(f"{written!r} is not a number of GiB from 0 to {LARGEST_MB // MB_PER_GB:,}.")
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
    """Return the name of the fleet (None), or of what has a label: the value, with its key in brackets."""
    return "the fleet" if label is None else f"{label[1]} ({label[0]})"


def checked_label(key: str, value: str | None, keys: Sequence[str]) -> tuple[str, str | None]:
    """Return key and value as they are stored; raises ValidationError for a key not in `keys`, or an unfit value."""
    if key not in keys:
        raise ValidationError(
            f"{key!r} is not a label key; CAPACITY_LABEL_KEYS has {', '.join(keys)}.{meant(key, keys)}"
        )
    if value is None:
        return key, None
    value = value.strip()
    if not value or len(value) > LONGEST_VALUE or not value.isprintable():
        raise ValidationError(f"The value of {key} must have 1 to {LONGEST_VALUE} printable characters.")
    return key, value
