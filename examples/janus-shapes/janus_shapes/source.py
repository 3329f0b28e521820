import numpy as np

from janus_plugins.core.samples import understanding_sample
from janus_shapes.surfaces import SURFACES

QUESTION = "Which shape is this?"


class Shapes:
    def __init__(self, config, facts):
        self.config = config

    def __len__(self):
        return self.config.size

    def __getitem__(self, index):
        draw = np.random.default_rng([index, self.config.split == "test"])
        name = list(SURFACES)[index % len(SURFACES)]
        cloud = self.seen(SURFACES[name](draw, int(self.config.num_points * draw.uniform(0.8, 1.2))), draw)
        return understanding_sample(
            "points", cloud, QUESTION, f"a {name}", f"shapes[{self.config.split}, {index}]"
        )

    def seen(self, points, draw):
        """Return the points [P, 3] of a surface as a scanner might: stretched, turned, partial, noisy."""
        config = self.config
        points = points * np.exp(draw.uniform(-1, 1, 3) * np.log(config.stretch))
        points = (
            points
            @ turned(draw.uniform(0, 2 * np.pi), 2)
            @ turned(np.radians(draw.uniform(0, config.tilt)), 0)
        )
        points = points @ turned(draw.uniform(0, 2 * np.pi), 2)
        depth = points @ _direction(draw)
        points = points[depth >= np.quantile(depth, draw.uniform(0, config.unseen))]
        points = points + draw.normal(0, config.noise, points.shape)
        stray = draw.random(len(points)) < config.outliers
        points[stray] = draw.uniform(-1.2, 1.2, (stray.sum(), 3))
        return (points * draw.uniform(0.1, 10) + draw.normal(0, 5, 3)).astype(np.float32)

    def texts(self):
        for name in SURFACES:
            yield f"{QUESTION} a {name}"


def turned(angle, axis):
    """Return the rotation by an angle about one of the axes."""
    one, other = [each for each in range(3) if each != axis]
    rotation = np.eye(3)
    rotation[[one, other], [one, other]] = np.cos(angle)
    rotation[one, other], rotation[other, one] = np.sin(angle), -np.sin(angle)
    return rotation


def _direction(draw):
    direction = draw.normal(size=3)
    return direction / np.linalg.norm(direction)
