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
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from edge_sdk.core import messages
from edge_sdk.core.errors import WireFormatError
from edge_sdk.core.spec import IDENTIFIER

T = TypeVar("T")
Check = Callable[[Any, str], Any]  # (plain value, field path) → value of the annotated type

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


def to_plain(message: Any) -> dict[str, Any]:
    """Returns a dataclass as the map that travels, checked; fields that hold their default are left out."""
    plain = _plain(message)
    checker(type(message))(plain, type(message).__name__)
    return plain  # type: ignore[no-any-return]  # a dataclass becomes a map


def from_plain(cls: type[T], plain: Any) -> T:
    """Returns the dataclass that a decoded map describes; WireFormatError names the first field that is wrong."""
    return checker(cls)(plain, cls.__name__)  # type: ignore[no-any-return]  # the checker of cls returns a cls


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if dataclasses.is_dataclass(kind):
        plain = {}
        for name, default in _defaults(kind):
            item = _plain(getattr(value, name))
            if type(item) is not type(default) or item != default:
                plain[name] = item
        return plain
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


_ATOMS = frozenset({str, int, float, bytes, bool, type(None)})


@cache
def _defaults(cls: type) -> tuple[tuple[str, Any], ...]:
    """Returns name and default, as plain data, of every field; MISSING for those that must be given."""
    found: list[tuple[str, Any]] = []
    for f in dataclasses.fields(cls):
        factory = f.default_factory
        found.append((f.name, _plain(f.default if factory is dataclasses.MISSING else factory())))
    return tuple(found)


def _checker(cls: Any) -> Check:
    hints = get_type_hints(cls)
    fields = {f.name: _check_of(hints[f.name], cls.__name__, f.name) for f in dataclasses.fields(cls)}
    required = frozenset(name for name, default in _defaults(cls) if default is dataclasses.MISSING)

    def check(plain: Any, path: str) -> Any:
        if type(plain) is not dict:
            raise WireFormatError(f"{path}: expected a map, found {_kind(plain)}")
        for key in plain:
            if key not in fields:
                raise WireFormatError(f"{path}: unknown field {_shown(key)}; this program speaks protocol 1")
        if not required <= plain.keys():
            raise WireFormatError(f"{path}.{min(required - plain.keys())}: missing")
        return cls(**{name: fields[name](value, f"{path}.{name}") for name, value in plain.items()})

    return check


checker: Callable[[Any], Check] = cache(_checker)  # dataclass → its check


def _check_of(hint: Any, owner: str, name: str) -> Check:
    """Returns the check for one annotation."""
    if dataclasses.is_dataclass(hint):
        return checker(hint)
    simple: dict[Any, Callable[[str, str], Check]] = {str: _text, int: _integer, float: _number, bytes: _binary}
    if hint in simple:
        return simple[hint](owner, name)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and args[1:] == (type(None),):
        return _optional(_check_of(args[0], owner, name))
    if origin is tuple and args[1:] == (Ellipsis,):
        return _sequence(_check_of(args[0], owner, name))
    if origin is dict and args[0] is str:
        return _mapping(_free if args[1] is Any else _check_of(args[1], owner, name))
    raise TypeError(f"{owner}.{name}: the wire format has no {hint}")


def _text(owner: str, name: str) -> Check:
    qualified = f"{owner}.{name}"
    limit, choices = _TEXT.get(name, _MAX_TEXT), _CHOICES.get(qualified)
    pattern: re.Pattern[str] | None = None
    if name in _IDENTIFIERS:
        pattern = re.compile(IDENTIFIER.strip("^$"))
    elif name in _HEX_FIELDS | _HEX_OR_EMPTY:
        pattern = _HEX
    empty = name in _HEX_OR_EMPTY or qualified in _HEX_OR_EMPTY

    def check(plain: Any, path: str) -> str:
        if type(plain) is not str:
            raise WireFormatError(f"{path}: expected text, found {_kind(plain)}")
        if len(plain) > limit:
            raise WireFormatError(f"{path}: {len(plain)} characters, at most {limit} are allowed")
        if choices is not None and plain not in choices:
            raise WireFormatError(f"{path}: expected one of {', '.join(choices)}, found {_shown(plain)}")
        if pattern is not None and not (empty and not plain) and pattern.fullmatch(plain) is None:
            raise WireFormatError(f"{path}: expected {pattern.pattern}, found {_shown(plain)}")
        return plain

    return check


def _integer(owner: str, name: str) -> Check:
    top = 2**64 if name == "incarnation" else 2**63

    def check(plain: Any, path: str) -> int:
        if type(plain) is not int:
            raise WireFormatError(f"{path}: expected an integer, found {_kind(plain)}")
        if not 0 <= plain < top:
            raise WireFormatError(f"{path}: expected 0 to {top - 1}, found {plain}")
        return plain

    return check


def _number(owner: str, name: str) -> Check:
    def check(plain: Any, path: str) -> float:
        if type(plain) not in (int, float):
            raise WireFormatError(f"{path}: expected a number, found {_kind(plain)}")
        if not math.isfinite(plain):
            raise WireFormatError(f"{path}: expected a finite number, found {plain}")
        return float(plain)

    return check


def _binary(owner: str, name: str) -> Check:
    def check(plain: Any, path: str) -> bytes:
        if type(plain) is not bytes:
            raise WireFormatError(f"{path}: expected bytes, found {_kind(plain)}")
        return plain

    return check


def _optional(inner: Check) -> Check:
    return lambda plain, path: None if plain is None else inner(plain, path)


def _sequence(inner: Check) -> Check:
    def check(plain: Any, path: str) -> tuple[Any, ...]:
        if type(plain) is not list:
            raise WireFormatError(f"{path}: expected a list, found {_kind(plain)}")
        if len(plain) > MAX_ITEMS:
            raise WireFormatError(f"{path}: {len(plain)} entries, at most {MAX_ITEMS} are allowed")
        return tuple(inner(item, f"{path}[{i}]") for i, item in enumerate(plain))

    return check


def _mapping(inner: Check) -> Check:
    def check(plain: Any, path: str) -> dict[str, Any]:
        if type(plain) is not dict:
            raise WireFormatError(f"{path}: expected a map, found {_kind(plain)}")
        if len(plain) > MAX_KEYS:
            raise WireFormatError(f"{path}: {len(plain)} entries, at most {MAX_KEYS} are allowed")
        for key in plain:
            if type(key) is not str or len(key) > _MAX_TEXT:
                raise WireFormatError(f"{path}: expected keys of at most {_MAX_TEXT} characters, found {_shown(key)}")
        return {key: inner(item, f"{path}.{key}") for key, item in plain.items()}

    return check


def _free(plain: Any, path: str, depth: int = 0) -> Any:
    """Accepts what JSON can say, finite and not too deep."""
    if depth > MAX_DEPTH:
        raise WireFormatError(f"{path}: nested deeper than {MAX_DEPTH}")
    if type(plain) is list:
        return [_free(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(plain)]
    if type(plain) is dict:
        if any(type(key) is not str for key in plain):
            raise WireFormatError(f"{path}: expected text keys")
        return {key: _free(item, f"{path}.{key}", depth + 1) for key, item in plain.items()}
    if type(plain) is float and not math.isfinite(plain):
        raise WireFormatError(f"{path}: expected a finite number, found {plain}")
    if plain is None or type(plain) in (bool, int, float, str):
        return plain
    raise WireFormatError(f"{path}: expected plain data, found {_kind(plain)}")


def _kind(plain: Any) -> str:
    return "nothing" if plain is None else type(plain).__name__


def _shown(plain: Any) -> str:
    text = repr(plain)
    return text if len(text) <= 80 else text[:77] + "..."


assert messages.PROTOCOL == 1, "a new protocol version needs its own schema"

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "MAX_KEYS", "checker", "from_plain", "to_plain"]
