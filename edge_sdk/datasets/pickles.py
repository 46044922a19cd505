"""Pickles of numbers: numpy arrays, plain containers, strings and numbers; nothing else is looked up, let alone run."""

from __future__ import annotations

import codecs
import pickle
import re
import struct
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from io import BytesIO
from typing import Any, ClassVar

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array
from edge_sdk.datasets.archive import Folder, read_bytes

_CODE = re.compile(r"[biufSUO?]\d{0,6}")  # letter and bytes of the types that are read

# What unpickling damaged bytes raises, from the unpickler itself and from what is rebuilt.
_DAMAGED = (
    ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, ArithmeticError, MemoryError, RecursionError,
    struct.error,
)  # fmt: skip


class _Type:
    """Stands for a numpy dtype: a letter, a size and a byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of the type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order, parts = state[1], state[2:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts):
            raise pickle.UnpicklingError(f"an array of the type {state!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a numpy array while the pickle is read: numpy's own trusts what it is told, and crashes."""

    value: Array | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        self.fill(content, kind, shape, "F" if fortran else "C")

    def fill(self, content: Any, kind: Any, shape: Any, order: Any) -> None:
        """Takes the values: bytes, or a list where they are objects."""
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError(f"an array of the type {kind!r}")
        if kind.dtype.hasobject:
            values = np.empty(len(content), object)
            values[:] = content
        else:
            raw = content.encode("latin1") if isinstance(content, str) else content
            values = np.frombuffer(raw, kind.dtype).copy()
        self.value = values.reshape(shape, order=order)


def _rebuild(kind: Any, *_: Any) -> _Array:
    """What numpy pickles an array as, to be filled by its state."""
    if kind is not _Array:
        raise pickle.UnpicklingError(f"an array of the class {kind!r}")
    return _Array()


def _buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """What numpy pickles an array as by protocol 5."""
    array = _Array()
    array.fill(content, kind, shape, order)
    return array


def _scalar(kind: Any, content: Any = None) -> Any:
    """What numpy pickles one number as."""
    array = _Array()
    array.fill(content, kind, (), "C")
    return array.value[()] if array.value is not None else None


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """What Python 3 pickles bytes as for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return codecs.encode(str(text), "latin1")


_ARRAYS: dict[str, Callable[..., Any]] = {"_reconstruct": _rebuild, "scalar": _scalar}
_PLAIN = {"set": set, "frozenset": frozenset, "dict": dict, "list": list, "tuple": tuple, "int": int, "float": float}
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{(f"numpy.{core}.multiarray", name): way for core in ("core", "_core") for name, way in _ARRAYS.items()},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _buffer for core in ("core", "_core")},
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in _PLAIN.items()},
}


class _Unpickler(pickle._Unpickler):
    """Looks names up in a table of its own and never imports anything.

    Built on the one in Python: a few wrong bytes make the one in C take all memory, or crash.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None

    def load_bytearray8(self) -> None:
        """Takes as many bytes as there are; the original makes room first for as many as the file says."""
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(bytearray(self.read(min(size, sys.maxsize))))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class _Finish:
    """Puts arrays in place of what stood for them; what is there several times is looked at once."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}  # id → finished; everything stays alive as part of the whole

    def __call__(self, value: Any) -> Any:
        """Returns the value, finished; lists, dictionaries and arrays of objects are changed in place."""
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, tuple):
            self._done[id(value)] = finished = tuple(map(self, value))
            return finished
        if isinstance(value, _Array):
            if value.value is None:
                raise pickle.UnpicklingError("an array without values")
            self._done[id(value)] = value.value
            return self(value.value)
        self._done[id(value)] = value
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            for number, item in enumerate(value.flat):
                value.flat[number] = self(item)
        elif isinstance(value, dict):
            for key in value:
                value[key] = self(value[key])
        elif isinstance(value, list):
            value[:] = map(self, value)
        return value


def read_pickle(path: Folder) -> Any:
    """Returns the content of a pickle that holds nothing but arrays, plain containers, strings and numbers.

    Python 2's strings become text, byte by byte (latin1).

    Raises:
        DataError: the file is missing or damaged, or names anything else, which is then not loaded.
    """
    content = read_bytes(path)
    try:
        whole = _Unpickler(BytesIO(content), encoding="latin1").load()
        return _Finish()(whole)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: not a pickle of arrays and plain containers only ({error}); nothing of it was loaded"
        ) from error
    except _DAMAGED as error:
        raise DataError(f"{path}: not a readable pickle ({error}); download it again") from error


__all__ = ["read_pickle"]
