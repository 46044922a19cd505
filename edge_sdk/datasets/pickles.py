"""Pickles of numbers: numpy arrays, plain containers, strings and numbers; nothing else is looked up, let alone run."""

from __future__ import annotations

import codecs
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.datasets.archive import Folder, read_bytes


def _rebuild(kind: Any, shape: Any, typecode: Any) -> Any:
    """What numpy pickles an empty array as, to be filled by its state."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of the class {kind!r}")
    return np.ndarray((0,), "b")


def _scalar(dtype: Any, content: Any = None) -> Any:
    """What numpy pickles one number as."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(content, bytes | str):
        raise pickle.UnpicklingError(f"a number of the type {dtype!r}")
    raw = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype)[0]


def _buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """What numpy pickles an array as by protocol 5."""
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """What Python 3 pickles bytes as for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return codecs.encode(str(text), "latin1")


_ARRAYS: dict[str, Callable[..., Any]] = {"_reconstruct": _rebuild, "scalar": _scalar}
_PLAIN = {"set": set, "frozenset": frozenset, "dict": dict, "list": list, "tuple": tuple, "int": int, "float": float}
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{(f"numpy.{core}.multiarray", name): way for core in ("core", "_core") for name, way in _ARRAYS.items()},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _buffer for core in ("core", "_core")},
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in _PLAIN.items()},
}


class _Unpickler(pickle.Unpickler):
    """Looks names up in a table of its own and never imports anything."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def read_pickle(path: Folder) -> Any:
    """Returns the content of a pickle that holds nothing but arrays, plain containers, strings and numbers.

    Python 2's strings become text, byte by byte (latin1).

    Raises:
        DataError: the file is missing or damaged, or names anything else, which is then not loaded.
    """
    content = read_bytes(path)
    try:
        return _Unpickler(BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: not a pickle of arrays and plain containers only ({error}); nothing of it was loaded"
        ) from error
    except (ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: not a readable pickle ({error}); download it again") from error


__all__ = ["read_pickle"]
