import numpy as np

from janus_eeg.signals import BANDS, REGIONS, STRENGTHS, background, blinks, mains, muscles, rhythm
from janus_eeg.spec import CHANNELS
from janus_plugins.core.samples import understanding_sample

QUESTION = "What does this recording show?"
ARTEFACTS = {
    "": (),
    ", with blinks": (blinks,),
    ", with muscles": (muscles,),
    ", with blinks and muscles": (blinks, muscles),
}
OLD = {"T7": "T3", "T8": "T4"}


class Brainwaves:
    def __init__(self, config, facts):
        self.config = config

    def __len__(self):
        return self.config.size

    def __getitem__(self, index):
        draw = np.random.default_rng([index, self.config.split == "test"])
        strength, band, region, artefacts = (
            draw.choice(list(each)) for each in (STRENGTHS, BANDS, REGIONS, ARTEFACTS)
        )
        rate, shortest, longest = self.config.rate, *self.config.seconds
        count = int(rate * draw.integers(shortest, longest + 1))
        signal = background(draw, rate, count) + rhythm(draw, rate, count, band, region, strength)
        signal += mains(draw, rate, count, self.config.hum) + sum(
            made(draw, rate, count) for made in ARTEFACTS[artefacts]
        )
        answer = f"{strength} {band} {region}{artefacts}"
        key = f"brainwaves[{self.config.split}, {index}]"
        return understanding_sample("eeg", recorded(signal, rate, draw), QUESTION, answer, key)

    def texts(self):
        for strength in STRENGTHS:
            for band in BANDS:
                for region in REGIONS:
                    for artefacts in ARTEFACTS:
                        yield f"{QUESTION} {strength} {band} {region}{artefacts}"


def recorded(signal, rate, draw):
    """Return what an amplifier writes: channels in its own order and naming, one of them the heart."""
    pulse = 200.0 * (np.arange(signal.shape[1]) % rate < rate // 25)
    signal, names = np.vstack([signal, pulse]), [*CHANNELS, "ECG"]
    if draw.random() < 0.5:
        names = [f"EEG {OLD.get(name, name).capitalize()}-REF" for name in names]
    order = draw.permutation(len(names))
    return {
        "array": signal[order].astype(np.float32),
        "sampling_rate": rate,
        "channels": [names[each] for each in order],
    }
