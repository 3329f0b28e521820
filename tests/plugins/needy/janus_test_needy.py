"""A plugin for tests: needs a library that is not installed."""

from janus_plugins import CONTRACT_VERSION, AdapterFacts, ComponentConfig, ComponentSpec, Kind, hookimpl


class Config(ComponentConfig):
    factor: float = 1.0

    def facts(self, source, model):
        return AdapterFacts("features", source.width, model.width)


SPEC = ComponentSpec(
    kind=Kind.ADAPTER,
    name="test-needy",
    config=Config,
    factory="janus_test_needy:build",
    contract=CONTRACT_VERSION,
    summary="an adapter for tests",
    requires=("janus_test_absent_library",),
    extra="janus-test-needy[library]",
)


@hookimpl
def janus_components():
    return [SPEC]


def build(config, facts):
    return (config, facts)
