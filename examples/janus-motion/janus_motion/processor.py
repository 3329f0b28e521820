import os

import numpy as np

from janus_motion.spec import STRIDE
from janus_plugins import BadSample


class Processor:
    def __init__(self, config):
        self.longest = config.max_tokens * STRIDE

    def __call__(self, value):
        readings = np.load(value) if isinstance(value, str | os.PathLike) else np.asarray(value)
        fine = readings.dtype.kind == "f" and readings.ndim == 2 and readings.shape[1] == 3 and len(readings)
        if not fine or not np.isfinite(readings).all():
            raise BadSample(f"motion: must be finite floats [time, 3], not {readings.dtype} {readings.shape}")
        readings = readings[: self.longest].astype(np.float32)
        padded = np.pad(readings, ((0, -len(readings) % STRIDE), (0, 0)))
        return {"motion": padded.reshape(-1, 3 * STRIDE)}  # [tokens, 30]

    def num_tokens(self, arrays):
        return len(arrays["motion"])

    def dummy(self):
        return {"motion": np.zeros((1, 3 * STRIDE), np.float32)}

    def examples(self):
        draw = np.random.default_rng(0)
        return [draw.normal(size=(time, 3)) for time in (40, 7, 95, 200)]
