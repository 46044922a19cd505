"""How raw samples of a window become a modality's tensor: names, options, shapes; `edge_sdk.features` computes them.

Part of the federation's spec: devices that make other tensors of the same sound cannot learn together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.core.model import SpecModel


class FeatureModel(SpecModel):
    """Base of features."""

    def misfit(self, shape: tuple[int, ...], rate_hz: float) -> str:
        """Returns what is wrong with a modality of this shape and rate that has this feature; "": nothing."""
        return ""

    def misfit_of_window(self, shape: tuple[int, ...], rate_hz: float, length_s: float) -> str:
        """Returns what is wrong with windows of this length; "": nothing."""
        return ""


class LogSpectrogram(FeatureModel):
    """Sound to a standardised log-magnitude spectrogram; the defaults are those of the MBA paper, appendix A.1."""

    name: Literal["log_spectrogram"] = "log_spectrogram"
    rate_hz: int = Field(default=16_000, ge=1)  # of the waveform that the sensor delivers
    seconds: float = Field(default=3.0, gt=0)  # what a shorter waveform is tiled to
    n_fft: int = Field(default=512, ge=2, multiple_of=2)
    hop: int = Field(default=159, ge=1)  # samples
    frames: int = Field(default=300, ge=1)  # the first so many of the transform
    pad: Literal["constant", "reflect", "none"] = "constant"  # around the waveform; none: no frame reaches beyond it
    floor: float = Field(default=1e-7, gt=0)  # added to the magnitude before the logarithm

    @model_validator(mode="after")
    def _enough(self) -> LogSpectrogram:
        if self.length < self.n_fft:
            raise ValueError(f"{self.seconds:g} s are {self.length} samples, fewer than n_fft = {self.n_fft}")
        there = (self.length + 2 * self.reach - self.n_fft) // self.hop + 1
        if self.frames > there:
            raise ValueError(f"{self.seconds:g} s have {there} frames, not {self.frames}: lower frames or hop")
        return self

    @property
    def length(self) -> int:
        """Samples of one waveform."""
        return round(self.rate_hz * self.seconds)

    @property
    def reach(self) -> int:
        """Samples that the first frame reaches before the waveform."""
        return 0 if self.pad == "none" else self.n_fft // 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the spectrogram: (1, frequencies, frames)."""
        return 1, self.n_fft // 2 + 1, self.frames

    def misfit(self, shape: tuple[int, ...], rate_hz: float) -> str:
        if shape != self.shape:
            return f"makes {self.shape}, but the shape is {shape}: correct the shape, or n_fft and frames"
        if rate_hz not in (0.0, float(self.rate_hz)):
            return f"takes {self.rate_hz} Hz, but the modality's rate_hz is {rate_hz:g}: leave that one out"
        return ""

    def misfit_of_window(self, shape: tuple[int, ...], rate_hz: float, length_s: float) -> str:
        if round(length_s * self.rate_hz) > self.length:
            return f"takes the first {self.seconds:g} s, but a window has {length_s:g} s: raise seconds"
        return ""


class Frames(FeatureModel):
    """Images of a window, uniform in time, sides cropped, one above the other; values stay 0 … 255."""

    name: Literal["frames"] = "frames"
    count: int = Field(default=3, ge=1)
    size: int = Field(default=224, ge=1)  # height and width of each, pixels

    def misfit(self, shape: tuple[int, ...], rate_hz: float) -> str:
        tall = (self.count * self.size, self.size)
        if len(shape) != 3 or shape[1:] != tall:
            return f"makes (channels, {tall[0]}, {tall[1]}), but the shape is {shape}: correct it, or count and size"
        return ""


class Inertial(FeatureModel):
    """A time series at another rate than its sensor's, without what that rate cannot hold."""

    name: Literal["inertial"] = "inertial"
    source_hz: float = Field(default=0.0, ge=0)  # the sensor's rate; 0: as its chunks say
    gravity: bool = False  # turn the axes until the window's mean acceleration points along +z

    def misfit(self, shape: tuple[int, ...], rate_hz: float) -> str:
        if len(shape) != 2 or rate_hz <= 0:
            return f"needs a shape (channels, length) and a rate_hz above 0, found {shape} and {rate_hz:g}"
        if self.gravity and shape[0] % 3:
            return f"turns vectors of 3 channels, acceleration first, but the shape is {shape}: set gravity = false"
        return ""

    def misfit_of_window(self, shape: tuple[int, ...], rate_hz: float, length_s: float) -> str:
        length = round(rate_hz * length_s)
        if shape[1] != length:
            return f"makes {length} samples of {length_s:g} s at {rate_hz:g} Hz, but the shape is {shape}"
        return ""


class Text(FeatureModel):
    """The lines of a window as tokens: row 0 their numbers, row 1 is 1 where there is a token and 0 behind the last."""

    name: Literal["text"] = "text"
    tokenizer: str = Field(min_length=1)  # folder with a tokenizer of transformers, or a name on the hub
    length: int = Field(default=256, ge=2)  # tokens; what is longer is cut

    def misfit(self, shape: tuple[int, ...], rate_hz: float) -> str:
        if shape != (2, self.length):
            return f"makes (2, {self.length}), but the shape is {shape}: correct the shape or length"
        return ""


Feature = Annotated[LogSpectrogram | Frames | Inertial | Text, Field(discriminator="name")]

__all__ = ["Feature", "FeatureModel", "Frames", "Inertial", "LogSpectrogram", "Text"]
