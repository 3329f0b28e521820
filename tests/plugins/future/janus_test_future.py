"""A plugin for tests: is written for a later version of the contracts."""

from janus_plugins import CONTRACT_VERSION, AdapterFacts, ComponentConfig, ComponentSpec, Kind, hookimpl


class Config(ComponentConfig):
    factor: float = 1.0

    def facts(self, source, model):
        return AdapterFacts("features", source.width, model.width)


SPEC = ComponentSpec(
    kind=Kind.ADAPTER,
    name="test-future",
    config=Config,
    factory="janus_test_future:build",
    contract=CONTRACT_VERSION + 1,
    summary="an adapter for tests",
)


@hookimpl
def janus_components():
    return [SPEC]


def build(config, facts):
    return (config, facts)
