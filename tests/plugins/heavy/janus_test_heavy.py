"""A plugin for tests: works, but imports torch when it is listed."""

import torch
from janus_plugins import CONTRACT_VERSION, AdapterFacts, ComponentConfig, ComponentSpec, Kind, hookimpl


class Config(ComponentConfig):
    factor: float = 1.0

    def facts(self, source, model):
        return AdapterFacts("features", source.width, model.width)


SPEC = ComponentSpec(
    kind=Kind.ADAPTER,
    name="test-heavy",
    config=Config,
    factory="janus_test_heavy:build",
    contract=CONTRACT_VERSION,
    summary="an adapter for tests",
)


@hookimpl
def janus_components():
    return [SPEC]


def build(config, facts):
    return torch.nn.Identity()
