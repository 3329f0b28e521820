"""The language model: a transformers body run on embeddings, with our own attention and cache.

Both `llama` and `causal-lm` are this module; they differ in where the configuration comes from.
What a body does with ids, masks and caches of its own is never used.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig as TransformersLlamaConfig

from janus_plugins.core.contracts import AttentionPlan, Cached, Packed
from janus_plugins.core.errors import PluginError, RunFileError
from janus_plugins.core.facts import LanguageModelFacts
from janus_plugins.language_models.attention import NAME, Attend, packed_attention
from janus_plugins.language_models.cache import CachedAttention, KeyValueCache
from janus_plugins.language_models.keeping import selective_contexts
from janus_plugins.language_models.longrope import each_by_its_length, outgrown
from janus_plugins.language_models.published import transformers_config
from janus_plugins.language_models.spec import CausalLmConfig, LlamaConfig
from janus_plugins.language_models.step import LlamaStep, can_step, join_weights
from janus_plugins.language_models.weights import load_published

_SCALED_LOGITS = {"logit_scale": 1.0, "logits_scaling": 1.0, "final_logit_softcapping": None}
"""Options of a configuration that change logits after the head, and the value that changes nothing."""


_LAYERS = {"full_attention", "attention", "sliding_attention"}
"""Kinds of layers that keep nothing but keys and values, and see nothing but what the plan shows them."""


class CausalLanguageModel(nn.Module):
    """Run a causal transformer over embeddings; see `core.contracts.LanguageModel`."""

    text_head: nn.Module
    free_masks = True

    def __init__(self, config: Any, facts: LanguageModelFacts, attention: str) -> None:
        super().__init__()
        self.config = config
        self.facts = facts
        self.attention = attention
        self.model = _body(config)
        original = each_by_its_length(self.model)
        self._short = original if original is not None and original < facts.max_positions else None
        self.static_steps = self._short is None

    def _apply(self, fn: Any, recurse: bool = True) -> CausalLanguageModel:
        """Keep the frequencies of rotary positions as precise as they are, whatever the weights become.

        Rounded to bf16 they are off by up to 0.4 %, and angles at slot 600 by up to 0.7 radians.
        """
        precise = [
            (module, name, buffer)
            for module in self.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, buffer in precise:
            moved = getattr(module, name)
            if moved.dtype != buffer.dtype:
                setattr(module, name, buffer.to(moved.device))
        return self

    def attach_text_head(self, head: nn.Module) -> None:
        """Take the head; where the facts say tied, its output layer gets the token embedding's weight.

        Raises:
            PluginError: the weights are tied, but the head has no `output_layer()` to tie.
        """
        if self.facts.tied:
            offered = getattr(head, "output_layer", None)
            if offered is None:
                raise PluginError(
                    f"the text head {type(head).__name__} has no output_layer() that could share the token "
                    "embedding's weight; set tie: false, or use the head 'text'"
                )
            offered().weight = self.model.get_input_embeddings().weight
        self.text_head = head

    def embed(self, ids: Tensor) -> Tensor:
        """Return token embeddings [..., M] of ids [...]."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        attention: AttentionPlan,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return hidden states after the final norm [B, S, M]; see `core.contracts.LanguageModel`."""
        embeds, slots = embeds.to(next(self.model.parameters()).dtype), embeds.shape[1]
        if self._short is not None and cache is not None and isinstance(attention, Cached):
            anew = outgrown(embeds, positions, attention, cache, self._short)
            embeds, positions, attention = anew or (embeds, positions, attention)
        attend = self._attend(embeds, attention, cache)
        step = self._step(embeds, cache)
        if step is not None and isinstance(attend, CachedAttention) and step.takes(embeds, attend):
            return step(embeds, positions, attend)
        output = self.model(
            inputs_embeds=embeds,
            position_ids=positions,
            use_cache=False,
            attend=attend,
        )
        return output.last_hidden_state[:, -slots:]  # type: ignore[no-any-return]

    def _step(self, embeds: Tensor, cache: KeyValueCache | None) -> LlamaStep | None:
        """Return the short way of a few slots, made once a cache that holds something, where there is one."""
        if cache is None or not cache.layers or self.training or torch.is_grad_enabled():
            return None
        if cache.step is None:
            cache.step = LlamaStep(self.model, cache) if can_step(self.model) else False
        return cache.step or None

    def _attend(self, embeds: Tensor, plan: AttentionPlan, cache: KeyValueCache | None) -> Attend:
        if isinstance(plan, Packed):
            return packed_attention(plan, embeds, self.attention)
        batch, slots, _ = embeds.shape
        # Without a cache a plan that starts at 0 still has an answer: one that is thrown away after.
        kept = KeyValueCache(batch, slots) if cache is None else cache
        return CachedAttention(plan, kept, (batch, slots), embeds.device)

    @property
    def static_prompts(self) -> bool:
        """Whether a prompt's pass can be recorded: nothing of it waits for the host."""
        return can_step(self.model)

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """Make a static key-value cache for `batch` rows of at most `length` slots."""
        # Before anybody notes where weights lie (`inference.graph.kept`).
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        if not (on_cpu or self.training) and can_step(self.model):
            join_weights(self.model)
        return KeyValueCache(batch, length)

    def set_checkpointing(self, on: bool | Literal["selective"]) -> None:
        """Recompute the blocks' activations in the backward pass, or keep them.

        "selective" keeps attention's outputs and every second product's, which take longest to compute.
        """
        # transformers renames these methods from 5.2x on, and warns of the old name.
        renamed = hasattr(self.model, "activation_checkpointing_enable")
        name = "activation_checkpointing" if renamed else "gradient_checkpointing"
        if on:
            chosen = {"context_fn": selective_contexts} if on == "selective" else {}
            getattr(self.model, f"{name}_enable")({"use_reentrant": False, **chosen})
        else:
            getattr(self.model, f"{name}_disable")()

    def compile_blocks(self) -> None:
        """Let `torch.compile` fuse each block but for its attention, whose sizes differ from pack to pack.

        Raises:
            RunFileError: the body keeps its blocks elsewhere than in `layers`.
        """
        blocks = getattr(self.model, "layers", None)
        if not isinstance(blocks, nn.ModuleList):
            raise RunFileError(
                f"engine.compile: {type(self.model).__name__} has no `layers` to compile; set it to false"
            )
        for block in blocks:
            block.compile(dynamic=True)

    def load_weights(self, source: str) -> None:
        """Load a causal language model of this size from a folder or hub id, its head included.

        Raises:
            CheckpointError: there is no such checkpoint, or keys or shapes do not fit.
        """
        load_published(self, source)


def _body(config: Any) -> Any:
    """Build the transformer without its head, in torch's default dtype, with our attention."""
    try:
        body = AutoModel.from_config(
            config, attn_implementation=NAME, dtype=torch.get_default_dtype(), trust_remote_code=False
        )
    except (KeyError, ValueError) as error:
        kind = type(config).__name__
        raise RunFileError(f"no language model can be built from a {kind}: {error}") from error
    _check_body(body)
    return body


def _check_body(body: Any) -> None:
    """Refuse a body that would not do what is asked of it."""
    takes = set(inspect.signature(body.forward).parameters)
    lacking = sorted({"inputs_embeds", "position_ids"} - takes)
    if not body._supports_attention_backend or lacking:
        why = f"takes no {' and no '.join(lacking)}" if lacking else "cannot be given other attention"
        raise RunFileError(f"{type(body).__name__} {why}; choose another language model")
    stateful = {"recurrent"} if getattr(body, "_is_stateful", False) else set()
    others = {*(getattr(body.config, "layer_types", None) or stateful)} - _LAYERS
    if others:
        raise RunFileError(
            f"{type(body).__name__} has layers that are no plain attention ({', '.join(sorted(others))}): "
            "they would carry over from sample to sample of a pack, and forget what came before in an "
            "answer; choose another language model"
        )
    for name, neutral in _SCALED_LOGITS.items():
        value = getattr(body.config, name, neutral)
        if value != neutral and value is not None:
            raise RunFileError(
                f"{type(body).__name__} changes its logits ({name}: {value}), which the text head does not; "
                "choose another language model"
            )


def build(config: LlamaConfig, facts: LanguageModelFacts) -> CausalLanguageModel:
    """Build a Llama from its sizes, or from the config.json in its folder, with random weights."""
    if config.folder is not None:
        return CausalLanguageModel(
            transformers_config(config.folder, config.described), facts, config.attention
        )
    sizes = TransformersLlamaConfig(
        vocab_size=facts.vocab_size,
        hidden_size=facts.width,
        intermediate_size=config.intermediate_size or 0,
        num_hidden_layers=facts.num_layers,
        num_attention_heads=facts.num_heads,
        num_key_value_heads=facts.num_key_value_heads,
        max_position_embeddings=facts.max_positions,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=facts.tied,
        initializer_range=config.init_std,
        bos_token_id=None,
        eos_token_id=None,
    )
    return CausalLanguageModel(sizes, facts, config.attention)


def build_causal(config: CausalLmConfig, facts: LanguageModelFacts) -> CausalLanguageModel:
    """Build the causal language model that a folder or hub id describes, with random weights."""
    described = transformers_config(config.folder, config.described)
    if type(described) not in AutoModelForCausalLM._model_mapping:
        raise RunFileError(f"{config.folder!r} is a {described.model_type}, not a causal language model")
    return CausalLanguageModel(described, facts, config.attention)
