"""Log-mel spectrograms as Whisper and AST were trained with, by transformers' numpy code.

torchaudio is not used: where it does not fit torch, importing it breaks transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.sound import read_sound
from janus_plugins.encoders.audio.spec import SAMPLE_RATE

if TYPE_CHECKING:
    from janus_plugins.encoders.audio.spec import AudioConfig

_WINDOW, _HOP = 400, 160
_AST_MEAN, _AST_STD = -4.2677393, 4.5689974
"""Of AudioSet's log-mel values (AST's feature extractor)."""


class AudioProcessor:
    """Turn sound into {"mel": [frames, bins], "floor": [1]}: what was heard, and what silence looks like.

    The models were trained on spectrograms padded to their full length; the encoder pads with `floor`.
    """

    def __init__(self, config: AudioConfig) -> None:
        self.config = config

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return the spectrogram of a file, bytes or samples, or raise `BadSample`; see `read_sound`."""
        config = self.config
        sound = read_sound(value, SAMPLE_RATE, config.frames * _HOP / SAMPLE_RATE, config.too_long == "cut")
        if len(sound) < _WINDOW:
            raise BadSample(
                f"{len(sound)} samples of sound at {SAMPLE_RATE} Hz; at least {_WINDOW} are needed"
            )
        return _whisper(sound, config) if config.family == "whisper" else _ast(sound, config)

    def num_tokens(self, arrays: dict[str, np.ndarray]) -> int:
        """Answer how many features the encoder makes of a spectrogram."""
        return self.config.num_features(len(arrays["mel"]))

    def dummy(self) -> dict[str, np.ndarray]:
        """Return a few frames of silence."""
        frames = min(16, self.config.frames)
        mel = np.zeros((frames, self.config.sizes.mel_bins), np.float32)
        return {"mel": mel, "floor": np.zeros(1, np.float32)}

    def examples(self) -> list[object]:
        """Return made sounds of different lengths, for tests."""
        most = self.config.frames * _HOP
        times = [np.arange(round(most * share)) / SAMPLE_RATE for share in (1.0, 0.7, 0.45, 0.2)]
        return [
            (0.5 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)
            for pitch, time in zip((220, 880, 1760, 440), times, strict=True)
        ]


def _whisper(sound: np.ndarray, config: AudioConfig) -> dict[str, np.ndarray]:
    """Return Whisper's spectrogram (`WhisperFeatureExtractor`); frames that see only silence are left out."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    bank = mel_filter_bank(
        1 + _WINDOW // 2, config.sizes.mel_bins, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    padded = np.pad(sound, (0, config.frames * _HOP - len(sound)))
    window = window_function(_WINDOW, "hann")
    mel = spectrogram(padded, window, _WINDOW, _HOP, power=2.0, mel_filters=bank, log_mel="log10")[:, :-1].T
    lowest = max(float(mel.max()) - 8.0, -10.0)
    mel = (np.maximum(mel, lowest) + 4.0) / 4.0
    heard = min(-(-(len(sound) + _WINDOW // 2) // _HOP), config.frames)
    floor = np.array([(lowest + 4.0) / 4.0], np.float32)
    return {"mel": np.ascontiguousarray(mel[:heard], np.float32), "floor": floor}


def _ast(sound: np.ndarray, config: AudioConfig) -> dict[str, np.ndarray]:
    """Return AST's filter banks (`ASTFeatureExtractor` without torchaudio), normalised as for AudioSet."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    bank = mel_filter_bank(
        257, config.sizes.mel_bins, 20.0, SAMPLE_RATE / 2, SAMPLE_RATE,
        mel_scale="kaldi", triangularize_in_mel_space=True,
    )  # fmt: skip
    mel = spectrogram(
        sound, window_function(_WINDOW, "hann", periodic=False), _WINDOW, _HOP, fft_length=512, power=2.0,
        center=False, preemphasis=0.97, mel_filters=bank, log_mel="log", mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    ).T  # fmt: skip
    mel, floor = ((each - _AST_MEAN) / (2 * _AST_STD) for each in (mel[: config.frames], np.zeros(1)))
    return {"mel": np.ascontiguousarray(mel, np.float32), "floor": floor.astype(np.float32)}
