"""Transformers for text and images: layers of the transformers library, a projection to the federation's feature size.

The layers are what a configuration says: a table in the spec, a folder, or a name on the Hugging Face hub. With the
table a device needs no file at all. Code from the hub is never run and nothing is unpickled: values are safetensors.
What a modality that is not there holds (zeros, noise) runs through these layers too, so every input is brought into
their range first: a token number that the vocabulary lacks would be an error, a row without any token not a number.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_sdk.core.errors import ConfigError, PluginError
from edge_sdk.core.spec import ModalitySpec
from edge_sdk.features.words import by_hand
from edge_sdk.models.encoders import Standardise, dims
from edge_sdk.models.pretrained import Pretrained, put


class Transformer(Pretrained):
    """A body of transformers, without its pooler, and a projection of the first position's last state.

    Args:
        modality: what one window is.
        feature_dim: D.
        source: folder with `config.json` (and `model.safetensors`), or a name on the hub; "": random values.
        config: what `config.json` would say, `model_type` included; comes before the source's.
        pretrained: read the source's values for version 0; false: random ones.
    """

    def __init__(
        self,
        modality: ModalitySpec,
        feature_dim: int,
        *,
        source: str = "",
        config: Mapping[str, Any] | None = None,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self._name = modality.name
        self._source = source if pretrained else ""
        library = import_transformers(modality.name)
        self._auto = library.AutoModel
        settings = _settings(library, modality.name, source, dict(config or {}), self._adapted(modality))
        self._check(modality, settings)
        self.body: nn.Module = library.AutoModel.from_config(settings, attn_implementation="eager").float()
        if "pooler" in dict(self.body.named_children()):  # not read here: it would travel without ever learning
            self.body.pooler = None
        self.out = nn.Linear(settings.hidden_size, feature_dim)

    def _adapted(self, modality: ModalitySpec) -> dict[str, Any]:
        """Returns what of the configuration follows from the modality where no learned values speak against it."""
        return {}

    @abstractmethod
    def _check(self, modality: ModalitySpec, settings: Any) -> None:
        """Raises ConfigError if the modality does not fit the configuration."""

    def _projected(self, states: torch.Tensor) -> torch.Tensor:
        """(B, positions, hidden) -> (B, D)."""
        return torch.relu(self.out(states[:, 0]))

    def load_weights(self) -> None:
        if not self._source:
            return
        where = f"modality {self._name}: encoder_config.source: {self._source}"

        def read(*, local: bool) -> Any:
            return self._auto.from_pretrained(
                self._source,
                use_safetensors=True,
                local_files_only=local,
                trust_remote_code=False,
                output_loading_info=True,
            )

        loaded, info = _fetched(read, self._source, where, "set pretrained = false to begin with random values")
        missing = set(info["missing_keys"])  # the library has drawn these at random
        put(self.body, {name: t for name, t in loaded.state_dict().items() if name not in missing}, where)


class Bert(Transformer):
    """BERT, or another text encoder of transformers: (B, 2, length) -> (B, D).

    The window is what the feature `text` makes: token numbers, and below them 1 where there is a token, 0 where not.
    """

    def _check(self, modality: ModalitySpec, settings: Any) -> None:
        dims(modality, 2, "(2, length)")
        channels, length = modality.shape
        if channels != 2:
            raise ConfigError(
                f"modality {modality.name}: expected a shape (2, length), tokens and mask, found {modality.shape}"
            )
        if length > settings.max_position_embeddings:
            raise ConfigError(
                f"modality {modality.name}: windows of {length} tokens, but the encoder has "
                f"{settings.max_position_embeddings} positions; shorten the shape and feature.options.length"
            )
        self._last = int(settings.vocab_size) - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 2, length) -> (B, D)."""
        tokens = x[:, 0].round().clamp(0, self._last).long()  # (B, length)
        there = (x[:, 1] > 0.5).long()
        there = torch.cat([torch.ones_like(there[:, :1]), there[:, 1:]], dim=1)
        return self._projected(self.body(input_ids=tokens, attention_mask=there).last_hidden_state)


class Vit(Transformer):
    """Vision transformer: (B, C, H, W) -> (B, D)."""

    def __init__(self, modality: ModalitySpec, feature_dim: int, **options: Any) -> None:
        super().__init__(modality, feature_dim, **options)
        self.standardise = Standardise(modality)

    def _adapted(self, modality: ModalitySpec) -> dict[str, Any]:
        dims(modality, 3, "(channels, height, width)")
        if self._source:
            return {}
        return {"num_channels": modality.shape[0], "image_size": list(modality.shape[1:])}

    def _check(self, modality: ModalitySpec, settings: Any) -> None:
        size = settings.image_size if isinstance(settings.image_size, list | tuple) else [settings.image_size] * 2
        if modality.shape != (settings.num_channels, *size):
            raise ConfigError(
                f"modality {modality.name}: {self._source} takes images of {(settings.num_channels, *size)}, the shape "
                f"is {modality.shape}; change it, or set pretrained = false to begin with random values"
            )
        patch = settings.patch_size
        if any(n % patch for n in size):
            raise ConfigError(f"modality {modality.name}: {tuple(size)} pixels are no whole patches of {patch}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self._projected(self.body(pixel_values=self.standardise(x)).last_hidden_state)


def import_transformers(modality: str) -> Any:
    """Returns the library.

    Raises:
        PluginError: it is not installed; says how it would be.
    """
    try:
        import transformers
    except ImportError as error:
        raise PluginError(
            f"modality {modality}: its encoder needs transformers: pip install 'edge-sdk[text]'"
        ) from error
    return transformers


def _settings(library: Any, name: str, source: str, config: dict[str, Any], adapted: dict[str, Any]) -> Any:
    """Returns the configuration object."""
    if config:
        where = f"modality {name}: encoder_config.config"
        if "model_type" not in config:
            raise ConfigError(f"{where}: model_type is missing; it says which layers, as in config.json")
        try:
            return library.AutoConfig.for_model(**{**config, **adapted})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: transformers refuses it: {str(error)[:200]}") from error
    if not source:
        raise ConfigError(f"modality {name}: encoder_config needs a source (folder or name on the hub) or a config")

    def read(*, local: bool) -> Any:
        return library.AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)

    settings = _fetched(read, source, f"modality {name}: encoder_config.source", "give the layers as config instead")
    settings.update(adapted)
    return settings


def _fetched(read: Callable[..., Any], source: str, where: str, otherwise: str) -> Any:
    """Returns what `read` finds in a folder, else in the hub's cache, else on the hub."""
    folder = Path(source).is_dir()
    if not folder and (source.startswith(("/", ".", "~")) or source.count("/") > 1):
        raise ConfigError(f"{where}: there is no folder {source!r}; {otherwise}")
    with _quiet() as failures:
        try:
            return read(local=True)
        except failures as error:
            if folder:
                raise ConfigError(f"{where}: {source} holds no such model: {_line(error)}; {otherwise}") from error
        try:
            return read(local=False)
        except failures as error:
            raise ConfigError(
                f"{where}: {source!r} is no folder and cannot be had from the hub: {_line(error)}; {by_hand(source)}; "
                f"or {otherwise}"
            ) from error


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def _quiet() -> Iterator[tuple[type[Exception], ...]]:
    """Keeps the library's progress bars and remarks from the user's terminal; gives what it raises for a bad source."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield OSError, ValueError, RuntimeError, SafetensorError
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


__all__ = ["Bert", "Transformer", "Vit", "import_transformers"]
