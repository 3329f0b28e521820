"""What lmms-eval reads of us to list its models: light, as it imports the entry points of all at once."""

from __future__ import annotations

from typing import Any


def manifests() -> Any:
    """Return where lmms-eval finds the model that it is told as `--model janus_plugins`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="janus_plugins",
        chat_class_path="janus_plugins.evaluation.lmms_eval_model.JanusPlugins",
        aliases=("janus-plugins",),
    )
