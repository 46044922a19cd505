"""Checks plain msgpack data against the annotations of a dataclass, and turns one into the other.

The schema is fixed: every field without a default must be there, no other key may, and every value has the annotated
type within the bounds below. Both directions check, so a sender hears of its own mistake. Errors name the field.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from edge_sdk.core import messages
from edge_sdk.core.errors import WireFormatError
from edge_sdk.core.spec import IDENTIFIER

T = TypeVar("T")
Convert = Callable[[Any], Any]  # raises _WrongError; knows nothing of where the value stands, which only errors need

MAX_ITEMS = 1024  # entries of a list
MAX_KEYS = 64  # entries of a map with free keys
MAX_DEPTH = 8  # of free-form data
_MAX_TEXT = 256  # characters, unless named here
_TEXT = {"spec": 96 * 1024, "detail": 1024, "notes": 1024}
_HEX = re.compile(r"[0-9a-f]{32}")
_HEX_FIELDS = {"lineage", "digest", "object_digest"}
_HEX_OR_EMPTY = {"spec_digest", "Fetch.digest", "VersionId.digest"}  # "": not known, or never published
_IDENTIFIERS = {"device"}
_CHOICES = {
    "Task.kind": ("train", "query", "stop"),
    "Status.state": ("online", "offline", "paused"),
    "Fetch.want": ("task", "model", "update"),
    "Reply.kind": ("accepted", "rejected", "missing", "unknown", "no_task"),
    "Head.state": ("running", "paused", "finished"),
    "UpdateHeader.kind": ("delta", "full"),
}


class _WrongError(Exception):
    """A value that its annotation does not allow.

    Args:
        text: what was expected, and found.
        where: the path to it, from the value that is being looked at.
    """

    def __init__(self, text: str, where: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.where = where

    def inside(self, step: str) -> _WrongError:
        """Returns the same, seen from what holds the value."""
        return _WrongError(self.text, step + self.where)


@dataclass(frozen=True, slots=True)
class _Schema:
    """Both directions of one annotation."""

    read: Convert  # plain value → value of the annotated type
    write: Convert  # value of the annotated type → plain value


def to_plain(message: Any) -> dict[str, Any]:
    """Returns a dataclass as the map that travels, checked; fields that hold their default are left out."""
    return _named(type(message), _of_dataclass(type(message)).write, message)  # type: ignore[no-any-return]  # a map


def from_plain(cls: type[T], plain: Any) -> T:
    """Returns the dataclass that a decoded map describes; WireFormatError names the first field that is wrong."""
    return _named(cls, _of_dataclass(cls).read, plain)  # type: ignore[no-any-return]  # what reads a cls returns one


def _named(cls: type, convert: Convert, value: Any) -> Any:
    try:
        return convert(value)
    except _WrongError as wrong:
        raise WireFormatError(f"{cls.__name__}{wrong.where}: {wrong.text}") from None


def _make(cls: Any) -> _Schema:
    hints = get_type_hints(cls)
    schemas = {f.name: _of(hints[f.name], cls.__name__, f.name) for f in dataclasses.fields(cls)}
    reads = {name: schema.read for name, schema in schemas.items()}
    defaults = {f.name: _default(f) for f in dataclasses.fields(cls)}
    required = frozenset(name for name, default in defaults.items() if default is dataclasses.MISSING)
    writes = [(name, defaults[name], schema.write) for name, schema in schemas.items()]

    def read(plain: Any) -> Any:
        if type(plain) is not dict:
            raise _WrongError(f"expected a map, found {_kind(plain)}")
        found = {}
        for name, value in plain.items():
            convert = reads.get(name)
            if convert is None:
                raise _WrongError(f"unknown field {_shown(name)}; this program speaks protocol 1")
            try:
                found[name] = convert(value)
            except _WrongError as wrong:
                raise wrong.inside(f".{name}") from None
        if not required <= plain.keys():
            raise _WrongError("missing", f".{min(required - plain.keys())}")
        return cls(**found)

    def write(message: Any) -> dict[str, Any]:
        if type(message) is not cls:
            raise _WrongError(f"expected a {cls.__name__}, found {_kind(message)}")
        plain = {}
        for name, default, convert in writes:
            value = getattr(message, name)
            if value is default or (type(value) is type(default) and value == default):
                continue
            try:
                plain[name] = convert(value)
            except _WrongError as wrong:
                raise wrong.inside(f".{name}") from None
        return plain

    return _Schema(read, write)


_of_dataclass: Callable[[Any], _Schema] = cache(_make)


def _default(f: dataclasses.Field[Any]) -> Any:
    """Returns the default of a field; MISSING if it must be given."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _of(hint: Any, owner: str, name: str) -> _Schema:
    """Returns both directions of one annotation."""
    if dataclasses.is_dataclass(hint):
        return _of_dataclass(hint)
    atoms: dict[Any, Callable[[str, str], Convert]] = {str: _text, int: _integer, float: _number, bytes: _binary}
    if hint in atoms:
        check = atoms[hint](owner, name)
        return _Schema((lambda plain: float(check(plain))) if hint is float else check, check)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and args[1:] == (type(None),):
        inner = _of(args[0], owner, name)
        return _Schema(_optional(inner.read), _optional(inner.write))
    if origin is tuple and args[1:] == (Ellipsis,):
        inner = _of(args[0], owner, name)
        return _Schema(_sequence(inner.read, (list,), tuple), _sequence(inner.write, (tuple, list), list))
    if origin is dict and args[0] is str:
        inner = _Schema(_free, _free) if args[1] is Any else _of(args[1], owner, name)
        return _Schema(_mapping(inner.read), _mapping(inner.write))
    raise TypeError(f"{owner}.{name}: the wire format has no {hint}")


def _text(owner: str, name: str) -> Convert:
    qualified = f"{owner}.{name}"
    limit, choices = _TEXT.get(name, _MAX_TEXT), _CHOICES.get(qualified)
    pattern: re.Pattern[str] | None = None
    if name in _IDENTIFIERS:
        pattern = re.compile(IDENTIFIER.strip("^$"))
    elif name in _HEX_FIELDS | _HEX_OR_EMPTY:
        pattern = _HEX
    empty = name in _HEX_OR_EMPTY or qualified in _HEX_OR_EMPTY

    def check(plain: Any) -> str:
        if type(plain) is not str:
            raise _WrongError(f"expected text, found {_kind(plain)}")
        if len(plain) > limit:
            raise _WrongError(f"{len(plain)} characters, at most {limit} are allowed")
        if choices is not None and plain not in choices:
            raise _WrongError(f"expected one of {', '.join(choices)}, found {_shown(plain)}")
        if pattern is not None and not (empty and not plain) and pattern.fullmatch(plain) is None:
            raise _WrongError(f"expected {pattern.pattern}, found {_shown(plain)}")
        return plain

    return check


def _integer(owner: str, name: str) -> Convert:
    top = 2**64 if name == "incarnation" else 2**63

    def check(plain: Any) -> int:
        if type(plain) is not int:
            raise _WrongError(f"expected an integer, found {_kind(plain)}")
        if not 0 <= plain < top:
            raise _WrongError(f"expected 0 to {top - 1}, found {plain}")
        return plain

    return check


def _number(owner: str, name: str) -> Convert:
    def check(plain: Any) -> float:
        if type(plain) not in (int, float):
            raise _WrongError(f"expected a number, found {_kind(plain)}")
        if not math.isfinite(plain):
            raise _WrongError(f"expected a finite number, found {plain}")
        return plain  # type: ignore[no-any-return]  # a whole number travels as one

    return check


def _binary(owner: str, name: str) -> Convert:
    def check(plain: Any) -> bytes:
        if type(plain) is not bytes:
            raise _WrongError(f"expected bytes, found {_kind(plain)}")
        return plain

    return check


def _optional(inner: Convert) -> Convert:
    return lambda value: None if value is None else inner(value)


def _sequence(inner: Convert, kinds: tuple[type, ...], made: Callable[[list[Any]], Any]) -> Convert:
    def convert(values: Any) -> Any:
        if type(values) not in kinds:
            raise _WrongError(f"expected a list, found {_kind(values)}")
        if len(values) > MAX_ITEMS:
            raise _WrongError(f"{len(values)} entries, at most {MAX_ITEMS} are allowed")
        found: list[Any] = []
        try:
            for value in values:
                found.append(inner(value))  # noqa: PERF401  its length is the place of the one that is wrong
        except _WrongError as wrong:
            raise wrong.inside(f"[{len(found)}]") from None
        return made(found)

    return convert


def _mapping(inner: Convert) -> Convert:
    def convert(values: Any) -> dict[str, Any]:
        if type(values) is not dict:
            raise _WrongError(f"expected a map, found {_kind(values)}")
        if len(values) > MAX_KEYS:
            raise _WrongError(f"{len(values)} entries, at most {MAX_KEYS} are allowed")
        found = {}
        for key, value in values.items():
            if type(key) is not str or len(key) > _MAX_TEXT:
                raise _WrongError(f"expected keys of at most {_MAX_TEXT} characters, found {_shown(key)}")
            try:
                found[key] = inner(value)
            except _WrongError as wrong:
                raise wrong.inside(f".{key}") from None
        return found

    return convert


def _free(value: Any, path: str = "", depth: int = 0) -> Any:
    """Accepts what JSON can say, finite and not too deep."""
    if depth > MAX_DEPTH:
        raise _WrongError(f"nested deeper than {MAX_DEPTH}", path)
    if type(value) in (list, tuple):
        return [_free(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    if type(value) is dict:
        if any(type(key) is not str for key in value):
            raise _WrongError("expected text keys", path)
        return {key: _free(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
    if type(value) is float and not math.isfinite(value):
        raise _WrongError(f"expected a finite number, found {value}", path)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise _WrongError(f"expected plain data, found {_kind(value)}", path)


def _kind(plain: Any) -> str:
    return "nothing" if plain is None else type(plain).__name__


def _shown(plain: Any) -> str:
    text = repr(plain)
    return text if len(text) <= 80 else text[:77] + "..."


assert messages.PROTOCOL == 1, "a new protocol version needs its own schema"

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "MAX_KEYS", "from_plain", "to_plain"]
