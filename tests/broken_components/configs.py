"""Configs whose facts break a rule."""

from __future__ import annotations

from typing import Any

from janus_plugins import AdapterFacts

from .spec import AdapterConfig


class NarrowConfig(AdapterConfig):
    def facts(self, source: Any, model: Any) -> AdapterFacts:
        return AdapterFacts("features", source.width, 7)


class UntypedConfig(AdapterConfig):
    def facts(self, source: Any, model: Any) -> Any:
        return {"accepts": "features"}
