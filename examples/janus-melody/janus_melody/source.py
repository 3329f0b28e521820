from itertools import product

from janus_plugins.core.samples import generation_sample

KEYS = ("c", "d flat", "d", "e flat", "e", "f", "g flat", "g", "a flat", "a", "b flat", "b")
MODES = {"major": (0, 2, 4, 5, 7, 9, 11, 12), "minor": (0, 2, 3, 5, 7, 8, 10, 12)}
OCTAVES = {"low": 48, "middle": 60, "high": 72}
SCALES = tuple(product(("rising", "falling"), OCTAVES, enumerate(KEYS), MODES))


class Scales:
    def __init__(self, config, facts):
        held_out = config.split == "test"
        self.scales = [scale for place, scale in enumerate(SCALES) if (place % 9 == 4) == held_out]

    def __len__(self):
        return len(self.scales)

    def __getitem__(self, index):
        direction, octave, (step, key), mode = self.scales[index]
        notes = [OCTAVES[octave] + step + offset for offset in MODES[mode]]
        prompt = f"a {direction} {octave} {key} {mode} scale"
        return generation_sample(
            prompt, "melody", notes if direction == "rising" else notes[::-1], f"scales[{index}]"
        )

    def texts(self):
        return (self[index].turns[0].parts[0] for index in range(len(self)))
