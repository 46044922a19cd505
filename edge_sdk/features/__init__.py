"""Features: what a sensor delivers, turned into the tensor an encoder takes. numpy only; text needs transformers.

audio       waveform → spectrogram (1, 257, 300), whole or as a stream of overlapping windows
images      clip → 3 frames, sides cropped, 224 × 224, one above the other (3, 672, 224)
resampling  other rates: waveforms without seams, windows of a series, samples with times of their own
gravity     inertial axes turned until gravity points along +z
words       lines → token numbers and mask (2, 256)
"""

from __future__ import annotations

from edge_sdk.features.audio import PAPER, SpectrogramStream, spectrogram, tile
from edge_sdk.features.gravity import align_gravity
from edge_sdk.features.images import resize, side_crop, stack, stack_frames, uniform_indices
from edge_sdk.features.resampling import Resampler, decimate, resample_series
from edge_sdk.features.words import byte_tokens, from_byte_tokens, load_tokenizer, token_rows

__all__ = [
    "PAPER",
    "Resampler",
    "SpectrogramStream",
    "align_gravity",
    "byte_tokens",
    "decimate",
    "from_byte_tokens",
    "load_tokenizer",
    "resample_series",
    "resize",
    "side_crop",
    "spectrogram",
    "stack",
    "stack_frames",
    "tile",
    "token_rows",
    "uniform_indices",
]
