"""Specs of the evaluation tasks and callbacks of this folder; imports no torch, as listing asks."""

from __future__ import annotations

from janus_plugins import (
    CONTRACT_VERSION,
    CallbackFacts,
    ComponentConfig,
    ComponentSpec,
    EvaluationFacts,
    Kind,
)


class TaskConfig(ComponentConfig):
    def facts(self) -> EvaluationFacts:
        return EvaluationFacts(tasks=frozenset({"text", "generation"}), sources=("reference",))


class CallbackConfig(ComponentConfig):
    def facts(self) -> CallbackFacts:
        return CallbackFacts()


def task_spec(name: str) -> ComponentSpec:
    return _spec(Kind.EVALUATION_TASK, TaskConfig, f"tasks:{name}")


def callback_spec(name: str) -> ComponentSpec:
    return _spec(Kind.CALLBACK, CallbackConfig, f"callbacks:{name}")


def _spec(kind: Kind, config: type[ComponentConfig], factory: str) -> ComponentSpec:
    target = f"{__package__}.{factory}"
    return ComponentSpec(kind=kind, name="tried", config=config, factory=target, contract=CONTRACT_VERSION)
