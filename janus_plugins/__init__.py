"""janus-plugins: unified multimodal autoregressive models, composed from plugins.

This is the author's and the user's door; importing it loads no torch. Names resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a checker of types does not run `__getattr__`
    from janus_plugins.core.contracts import TrainingRun as TrainingRun
    from janus_plugins.core.errors import BadSample as BadSample
    from janus_plugins.core.facts import (
        AdapterFacts as AdapterFacts,
        CallbackFacts as CallbackFacts,
        EvaluationFacts as EvaluationFacts,
        GenerationFacts as GenerationFacts,
        HeadFacts as HeadFacts,
        LanguageModelFacts as LanguageModelFacts,
        SourceFacts as SourceFacts,
        UnderstandingFacts as UnderstandingFacts,
    )
    from janus_plugins.core.hookspecs import hookimpl as hookimpl
    from janus_plugins.core.kinds import Kind as Kind
    from janus_plugins.core.media import ImageProcessor as ImageProcessor
    from janus_plugins.core.plugins import plugins as plugins
    from janus_plugins.core.samples import Item as Item, Sample as Sample, Turn as Turn
    from janus_plugins.core.specs import (
        CONTRACT_VERSION as CONTRACT_VERSION,
        ComponentConfig as ComponentConfig,
        ComponentSpec as ComponentSpec,
    )
    from janus_plugins.door import compose as compose, convert as convert, load as load

__version__ = "0.1.0"

_DOORS = {
    "hookimpl": "janus_plugins.core.hookspecs",
    "ComponentSpec": "janus_plugins.core.specs",
    "ComponentConfig": "janus_plugins.core.specs",
    "CONTRACT_VERSION": "janus_plugins.core.specs",
    "Kind": "janus_plugins.core.kinds",
    "UnderstandingFacts": "janus_plugins.core.facts",
    "GenerationFacts": "janus_plugins.core.facts",
    "AdapterFacts": "janus_plugins.core.facts",
    "HeadFacts": "janus_plugins.core.facts",
    "LanguageModelFacts": "janus_plugins.core.facts",
    "SourceFacts": "janus_plugins.core.facts",
    "EvaluationFacts": "janus_plugins.core.facts",
    "CallbackFacts": "janus_plugins.core.facts",
    "TrainingRun": "janus_plugins.core.contracts",
    "Sample": "janus_plugins.core.samples",
    "Turn": "janus_plugins.core.samples",
    "Item": "janus_plugins.core.samples",
    "BadSample": "janus_plugins.core.errors",
    "ImageProcessor": "janus_plugins.core.media",
    "plugins": "janus_plugins.core.plugins",
    "compose": "janus_plugins.door",
    "load": "janus_plugins.door",
    "convert": "janus_plugins.door",
}

__all__ = sorted([*_DOORS, "__version__"])


if not TYPE_CHECKING:  # where every name had it, a misspelt one would be Any

    def __getattr__(name):
        """Load a public name on first use."""
        if name not in _DOORS:
            raise AttributeError(f"module 'janus_plugins' has no attribute {name!r}")
        return getattr(import_module(_DOORS[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
