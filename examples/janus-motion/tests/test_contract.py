from janus_motion.spec import janus_components

from janus_plugins.testing import check_component


def test_contracts():
    for spec in janus_components():
        check_component(spec)
