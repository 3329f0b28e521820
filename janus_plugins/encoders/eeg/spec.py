"""Declare `eeg`: windows of brain signals, by a LaBraM or an EEGNet."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec
from janus_plugins.encoders.eeg.electrodes import PLACES, TEN_TWENTY, plain

Count = Annotated[int, Field(ge=1)]
Frequency = Annotated[float, Field(gt=0)]


class EegConfig(ComponentConfig):
    """Set which channels are read, how, and the sizes of the model. The defaults are LaBraM-Base's.

    `labram` makes a feature of every channel of every window; `eegnet` a few of every window.
    Weights: LaBraM's own names (its published file, as safetensors), or this module's.
    """

    model: Literal["labram", "eegnet"] = "labram"
    channels: tuple[str, ...] = Field(default=TEN_TWENTY, min_length=1, description="electrodes, by name")
    missing: Literal["refuse", "zero"] = Field(
        default="refuse", description="what becomes of a recording that lacks a channel"
    )
    rate: Count = Field(default=200, description="samples a second that the model sees")
    window: Count = Field(default=200, description="samples of a window (LaBraM: one second)")
    max_windows: Count = Field(default=16, description="longest recording, in windows")
    too_long: Literal["refuse", "cut"] = "refuse"
    band: tuple[Frequency, Frequency] | None = Field(
        default=None, description="band-pass in Hz (LaBraM: [0.1, 75])"
    )
    notch: Frequency | None = Field(
        default=None,
        description="mains hum that is taken out of recordings, in Hz, before they are brought to `rate`",
    )
    scale: Frequency = Field(default=100.0, description="divides microvolts (LaBraM: 100)")
    width: Count = Field(default=200, description="of a feature; for labram a multiple of window / 8")
    depth: Count = 12
    num_heads: Count = 10
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    filters: Count = Field(default=8, description="eegnet: filters over time (F1)")

    @model_validator(mode="after")
    def _sizes_fit(self) -> EegConfig:
        names = [plain(name) for name in self.channels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"channels {', '.join(twice)} are given twice")
        if self.band is not None and not self.band[0] < self.band[1] < self.rate / 2:
            raise ValueError(f"band {self.band} must rise and end below half of rate {self.rate}")
        if self.model == "eegnet":
            if self.window < 32:
                raise ValueError(f"window {self.window} is less than the 32 samples of one feature of eegnet")
            return self
        steps = self.steps
        if self.width % steps or (self.width // steps) % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 x {steps}, the steps of a window")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        unknown = sorted(set(names) - set(PLACES))
        if unknown:
            raise ValueError(f"labram knows no place for channels {', '.join(unknown)}")
        return self

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        sizes = {"rate": 40, "window": 40, "max_windows": 4, "width": 40, "depth": 2, "num_heads": 2}
        return {"channels": ("FZ", "CZ", "O1"), **sizes}

    @property
    def steps(self) -> int:
        """Return what is left of a window's samples after LaBraM's first convolution (stride 8)."""
        return (self.window - 1) // 8 + 1

    @property
    def per_window(self) -> int:
        """Return the features of one window."""
        return len(self.channels) if self.model == "labram" else self.window // 32

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer as many features as the recording has windows."""
        most = self.per_window * self.max_windows
        return UnderstandingFacts(modality="eeg", width=self.width, tokens=None, max_tokens=most)


EEG = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="eeg",
    config=EegConfig,
    factory="janus_plugins.encoders.eeg.model:build",
    contract=1,
    processor="janus_plugins.encoders.eeg.processor:EegProcessor",
    summary="LaBraM or EEGNet over windows of brain signals: .edf, .bdf, .gdf, .fif, .npy, array -> features",
    requires=("timm", "mne", "scipy"),
    extra="janus-plugins[eeg]",
)
