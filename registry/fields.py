"""Reading the fields of a JSON document one by one, each with its type and bounds, none left over."""

import re
from datetime import UTC, datetime

from registry.documents import Json
from registry.errors import FormatError

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


class Fields:
    """A document being read; every method takes one field away, `finish` insists that none is left."""

    def __init__(self, document: object, what: str) -> None:
        if not isinstance(document, dict):
            raise FormatError(f"{what}: expected a JSON object")
        self._left = dict(document)
        self.what = what

    def text(self, name: str, *, longest: int = 200, pattern: str | None = None) -> str:
        """A string of at most `longest` characters, without control or invisible characters."""
        return self._checked(name, self._take(name), longest, pattern)

    def texts(self, name: str, *, most: int = 64, longest: int = 200, pattern: str | None = None) -> tuple[str, ...]:
        """A list of at most `most` strings."""
        items = self.items(name, most=most)
        return tuple(self._checked(name, item, longest, pattern) for item in items)

    def items(self, name: str, *, most: int) -> list[object]:
        """A list of at most `most` values of any kind."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, f"a list of at most {most}")
        return value

    def integer(self, name: str, *, least: int = 0, most: int = 2**53) -> int:
        """A whole number between the bounds."""
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(name, f"a whole number from {least} to {most}")
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def time(self, name: str) -> str:
        """A time as `2026-11-22T21:55:00Z`."""
        value = self.text(name, longest=20)
        check_time(value, self.what)
        return value

    def mapping(self, name: str, *, most: int = 64, longest: int = 200) -> dict[str, str]:
        """An object of strings."""
        value = self._take(name)
        if not isinstance(value, dict) or len(value) > most:
            raise self._wrong(name, f"an object of at most {most} strings")
        result = {key: self._checked(name, item, longest, None) for key, item in value.items()}
        if any(len(key) > longest for key in result):
            raise self._wrong(name, f"names of at most {longest} characters")
        return result

    def nested(self, name: str) -> "Fields | None":
        """An object to be read in its turn, or None where null stands."""
        value = self._take(name)
        return None if value is None else Fields(value, f"{self.what}, {name}")

    def document(self, name: str) -> Json:
        """An object handed on unread."""
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def optional_text(self, name: str, *, longest: int = 200) -> str | None:
        """A string, or null."""
        if name in self._left and self._left[name] is None:
            del self._left[name]
            return None
        return self.text(name, longest=longest)

    def finish(self) -> None:
        """Insist that every field was read.

        Raises:
            FormatError: If one is left over; its meaning would be lost.
        """
        if self._left:
            raise FormatError(f"{self.what}: unknown field {sorted(self._left)[0]!r}")

    def _checked(self, name: str, value: object, longest: int, pattern: str | None) -> str:
        if not isinstance(value, str) or len(value) > longest:
            raise self._wrong(name, f"text of at most {longest} characters")
        if _CONTROL.search(value):
            raise self._wrong(name, "text without control or invisible characters")
        if pattern is not None and not re.fullmatch(pattern, value):
            raise self._wrong(name, f"text like {pattern}")
        return value

    def _take(self, name: str) -> object:
        if name not in self._left:
            raise FormatError(f"{self.what}: no field {name!r}")
        return self._left.pop(name)

    def _wrong(self, name: str, expected: str) -> FormatError:
        return FormatError(f"{self.what}: {name} is not {expected}")


def format_time(seconds: float) -> str:
    """Unix seconds as `2026-11-22T21:55:00Z`."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_time(text: str, what: str) -> float:
    """The Unix seconds of a time written by `format_time`.

    Raises:
        FormatError: If it is written in any other way.
    """
    try:
        seconds = datetime.fromisoformat(text).timestamp() if _TIME.fullmatch(text) else 0.0
    except ValueError as error:  # no such day
        raise FormatError(f"{what}: {text!r} is not a time like 2026-11-22T21:55:00Z") from error
    if format_time(seconds) != text:
        raise FormatError(f"{what}: {text!r} is not a time like 2026-11-22T21:55:00Z")
    return seconds
