"""A plugin for tests: its hook is called janus_component."""

from janus_plugins import CONTRACT_VERSION, AdapterFacts, ComponentConfig, ComponentSpec, Kind, hookimpl


class Config(ComponentConfig):
    factor: float = 1.0

    def facts(self, source, model):
        return AdapterFacts("features", source.width, model.width)


SPEC = ComponentSpec(
    kind=Kind.ADAPTER,
    name="test-misspelt",
    config=Config,
    factory="janus_test_misspelt:build",
    contract=CONTRACT_VERSION,
    summary="an adapter for tests",
)


@hookimpl
def janus_component():
    return [SPEC]


def build(config, facts):
    return (config, facts)
