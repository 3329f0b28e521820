from janus_dinov2.spec import janus_components

from janus_plugins.testing import check_component


def test_contract():
    for spec in janus_components():
        check_component(spec, options={"image_size": 28, "width": 64, "depth": 2})
