import numpy as np

from janus_plugins.core.samples import understanding_sample

ACTIVITIES = {"resting": (0.0, 0.0), "walking": (2.0, 0.5), "running": (4.0, 1.0), "shaking": (9.0, 1.0)}


class Motions:
    def __init__(self, config, facts):
        self.config = config

    def __len__(self):
        return self.config.size

    def __getitem__(self, index):
        draw = np.random.default_rng([index, self.config.split == "test"])
        name = list(ACTIVITIES)[index % len(ACTIVITIES)]
        pace, force = ACTIVITIES[name]
        seconds = np.arange(draw.integers(60, 121)) / 50  # 50 readings a second
        waves = np.sin(2 * np.pi * pace * draw.uniform(0.9, 1.1) * seconds[:, None] + draw.uniform(0, 6, 3))
        readings = force * waves + [0, 0, 1] + draw.normal(0, 0.1, (len(seconds), 3))
        return understanding_sample(
            "motion", readings, "What is the wearer doing?", name, f"motions[{index}]"
        )
