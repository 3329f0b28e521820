"""A plugin for tests: works, and shares its entry name with the others."""

from janus_plugins import CONTRACT_VERSION, AdapterFacts, ComponentConfig, ComponentSpec, Kind, hookimpl


class Config(ComponentConfig):
    factor: float = 1.0

    def facts(self, source, model):
        return AdapterFacts("features", source.width, model.width)


SPEC = ComponentSpec(
    kind=Kind.ADAPTER,
    name="test-good",
    config=Config,
    factory="janus_test_good:build",
    contract=CONTRACT_VERSION,
    summary="an adapter for tests",
)


@hookimpl
def janus_components():
    return [SPEC]


def build(config, facts):
    return (config, facts)
