import numpy as np
from janus_shapes.source import Shapes
from janus_shapes.spec import ShapesConfig, janus_components
from janus_shapes.surfaces import SURFACES

from janus_plugins.testing import check_component


def test_contracts():
    for spec in janus_components():
        check_component(spec)


def test_every_shape_has_as_many_points_as_it_is_asked_for():
    for surface in SURFACES.values():
        points = surface(np.random.default_rng(0), 500)
        assert points.shape == (500, 3)
        assert np.abs(points).max() < 1.2


def test_no_cloud_is_in_both_splits():
    train, test = (Shapes(ShapesConfig(split=split, size=300), None) for split in ("train", "test"))
    clouds = [
        source[index].turns[0].parts[0].value.tobytes() for source in (train, test) for index in range(300)
    ]
    assert len(set(clouds)) == 600
