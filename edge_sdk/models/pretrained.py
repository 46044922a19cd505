"""Encoders that begin with values learned elsewhere, and the files those come from.

The values are read where version 0 of a federation is made, and nowhere else: everybody else builds the same layers and
gets their values from a published version. So a device needs no checkpoint. Files are never unpickled.
"""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from edge_sdk.core.errors import ConfigError, PluginError

# What torch's reader raises for bytes that are no checkpoint depends on the bytes.
_GARBAGE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)


class Pretrained(nn.Module):
    """Base of encoders that may begin with values learned elsewhere."""

    @abstractmethod
    def load_weights(self) -> None:
        """Puts the values in; does nothing where the configuration names none.

        Raises:
            ConfigError: they are not there, or do not fit the layers; names modality and key.
        """


def read_checkpoint(path: Path, where: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint file by name.

    Args:
        path: `.safetensors`, or what `torch.save` made of a state dict.
        where: modality and key, for errors.

    Raises:
        ConfigError: there is no such file, or it holds something else than named tensors.
    """
    if not path.is_file():
        raise ConfigError(f"{where}: there is no file {str(path)!r}; it is read where the first version is made")
    try:
        values = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except _GARBAGE as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{where}: {path} is no state dict saved by torch or safetensors: {reason}") from error
    if not isinstance(values, Mapping) or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise ConfigError(f"{where}: {path} must hold tensors by name, as `torch.save(model.state_dict(), …)` does")
    return dict(values)


def _torch(path: Path) -> object:
    values: object = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: no code of the file runs
    return values


def _safetensors(path: Path) -> object:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise PluginError(f"{path}: reading it needs safetensors: pip install 'edge-sdk[train]'") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def put(module: nn.Module, values: Mapping[str, torch.Tensor], where: str, *, own: tuple[str, ...] = ()) -> None:
    """Copies values into a module's tensors of the same names.

    Args:
        module: what they are for.
        values: by state dict name; names that the module does not have are left out.
        where: their origin, for errors.
        own: first parts of names that the module may have beyond `values`.

    Raises:
        ConfigError: a tensor is missing, or has another shape; nothing was changed then.
    """
    live = {name: t for name, t in module.state_dict(keep_vars=True).items() if name.partition(".")[0] not in own}
    # Checkpoints older than torch 0.4.1 do not count batches; the count has no part in what the layer computes.
    needed = {name: t for name, t in live.items() if name in values or not name.endswith("num_batches_tracked")}
    missing = sorted(needed.keys() - values.keys())
    if missing:
        raise ConfigError(f"{where} lacks {len(missing)} of {len(needed)} tensors, first {missing[0]!r}")
    for name, tensor in needed.items():
        if tensor.shape != values[name].shape:
            raise ConfigError(
                f"{where}: {name!r} has shape {tuple(values[name].shape)}, the encoder {tuple(tensor.shape)}"
            )
    with torch.no_grad():
        for name, tensor in needed.items():
            tensor.copy_(values[name])


__all__ = ["Pretrained", "put", "read_checkpoint"]
