"""The rules of every kind, in the order in which they are checked.

Adding one is a function whose docstring says what is asked, a line here, and a heading of the same
name in docs/plugins/testing.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from janus_plugins.core.kinds import Kind
from janus_plugins.testing.rules import (
    built,
    callbacks,
    composed,
    declared,
    device,
    encoders,
    joints,
    language,
    processing,
    sources,
    tasks,
)
from janus_plugins.testing.rules.rule import Rule

_DECLARED = (Rule("listing", declared.listing), Rule("options", declared.options))
_BUILT = (Rule("builds", built.builds, first=True), Rule("meta", built.meta))
_PROCESSOR = (
    Rule("pickles", processing.pickles),
    Rule("arrays", processing.arrays),
    Rule("global-state", processing.global_state),
    Rule("refuses", processing.refuses),
)
_MODULE = (
    Rule("repeatable", built.repeatable),
    Rule("alone", built.alone),
    Rule("bf16", built.bf16),
    Rule("inputs", built.inputs),
    Rule("gradients", built.gradients),
    Rule("frozen", built.frozen),
    Rule("saved", built.saved),
)
_DUMMY = (Rule("dummy-arrays", processing.dummy_arrays), Rule("dummy", encoders.dummy))
_COMPOSED = (
    Rule("wiring", composed.wiring, first=True),
    Rule("absent", composed.absent),
    Rule("trains", composed.trains),
    Rule("device", device.device),
    Rule("ranks", composed.ranks),
)

RULES: Mapping[Kind, tuple[Rule, ...]] = {
    Kind.UNDERSTANDING_ENCODER: (
        *_DECLARED, *_BUILT, *_PROCESSOR,
        Rule("features", encoders.features),
        Rule("lengths", encoders.lengths),
        Rule("items-apart", encoders.items_apart),
        *_MODULE, *_DUMMY, *_COMPOSED,
    ),
    Kind.GENERATION_ENCODER: (
        *_DECLARED, *_BUILT, *_PROCESSOR,
        Rule("codes", encoders.codes),
        Rule("decodes", encoders.decodes),
        Rule("codebook", encoders.codebook),
        Rule("items-apart", encoders.items_apart),
        Rule("artefacts", encoders.artefacts),
        Rule("reconstructs", encoders.reconstructs),
        Rule("shared", encoders.shared),
        *_MODULE, *_DUMMY, *_COMPOSED,
    ),
    Kind.ADAPTER: (
        *_DECLARED, *_BUILT,
        Rule("embeddings", joints.embeddings),
        Rule("token-counts", joints.token_counts),
        Rule("mixed-lengths", joints.mixed_lengths),
        *_MODULE, *_COMPOSED,
    ),
    Kind.HEAD: (
        *_DECLARED, *_BUILT,
        Rule("losses", joints.losses),
        Rule("sample", joints.sample),
        Rule("logits", joints.logits),
        *_MODULE, *_COMPOSED,
    ),
    Kind.LANGUAGE_MODEL: (
        *_DECLARED, *_BUILT,
        Rule("hidden", language.hidden),
        Rule("packed", language.packed),
        Rule("blocks", language.blocks),
        Rule("cache", language.cache),
        Rule("padding", language.padding),
        Rule("checkpointing", language.checkpointing),
        Rule("text-head", language.text_head),
        *_MODULE, *_COMPOSED,
    ),
    Kind.SOURCE: (
        *_DECLARED,
        Rule("samples", sources.samples, first=True),
        Rule("same-samples", sources.same_samples),
        Rule("resumes", sources.resumes),
        Rule("texts", sources.texts),
        Rule("wiring", composed.wiring, first=True),
        Rule("trains-on", composed.trains_on),
    ),
    Kind.EVALUATION_TASK: (
        *_DECLARED,
        Rule("callable", tasks.callable_task, first=True),
        Rule("scores", tasks.scores, first=True),
        Rule("same-score", tasks.same_score),
        Rule("leaves-model", tasks.leaves_model),
    ),
    Kind.CALLBACK: (
        *_DECLARED,
        Rule("moments", callbacks.moments, first=True),
        Rule("whole-run", callbacks.whole_run, first=True),
        Rule("state", callbacks.state),
        Rule("goes-on", callbacks.goes_on),
        Rule("ranks-alike", callbacks.ranks_alike),
    ),
}  # fmt: skip
"""What is checked of each kind. A rule that is `first` ends the check where it fails."""

__all__ = ["RULES", "Rule"]
