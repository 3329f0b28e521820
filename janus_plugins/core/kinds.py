"""The kinds of component that a plugin can offer."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Name what a component is for; the value is the spelling used in YAML and on the command line."""

    LANGUAGE_MODEL = "language_model"
    UNDERSTANDING_ENCODER = "understanding_encoder"
    GENERATION_ENCODER = "generation_encoder"
    ADAPTER = "adapter"
    HEAD = "head"
    SOURCE = "source"
    EVALUATION_TASK = "evaluation_task"
    CALLBACK = "callback"
