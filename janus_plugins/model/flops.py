"""Count floating-point operations: what one sample costs in each part, forwards and in training.

A multiplication and an addition count as two. Counted is what the model needs, not what a machine does:
activations that are computed again in the backward pass (checkpointing) are not counted twice, and causal
attention counts as full attention. This is the convention of model FLOPs utilisation (MFU; Chowdhery et al.
2022, PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from janus_plugins.core.catalogue import load_processor
from janus_plugins.core.plan import GenerationPlan, Part, RunPlan, UnderstandingPlan
from janus_plugins.core.schema import StageBlock
from janus_plugins.model.lora import under
from janus_plugins.model.memory import passing_bytes, saved_bytes
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.sequence.assemble import collate_items

TEXT_HEAD = "language_model.text_head"


@dataclass(frozen=True)
class Shape:
    """Say what a sample is made of.

    Attributes:
        text: tokens of text, learnt or not.
        learnt_text: how many of them the text head answers for.
        understanding: modality of the item that it shows, if it shows one.
        generation: modality of the item that it makes, if it makes one.
    """

    text: int
    learnt_text: int
    understanding: str | None = None
    generation: str | None = None


def num_matrix_parameters(module: nn.Module) -> int:
    """Count the parameters that every token is multiplied with: no tables, biases or norms."""
    looked_up = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    return sum(
        parameter.numel()
        for parameter in module.parameters()
        if parameter.ndim > 1 and id(parameter) not in looked_up
    )


def transformer_flops(matrices: int, width: int, num_layers: int, tokens: int) -> float:
    """Return the operations of one forward pass over one sample of `tokens` tokens.

    2 N T for N weights, and 4 L T^2 M for the scores and the weighted sums of L layers of width M. Source:
    Kaplan et al. 2020, arXiv 2001.08361, table 1; PaLM, appendix B.
    """
    return 2.0 * matrices * tokens + 4.0 * num_layers * tokens**2 * width


def measured_flops(run: Callable[[dict[str, Tensor]], object], items: dict[str, Tensor]) -> float:
    """Return the operations of `run(items)`, without gradients; on the meta device it costs nothing."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(items)
    return float(counter.get_total_flops())


class SampleFlops:
    """Answer what samples of a run's model cost.

    Encoders run on the meta device, so that any architecture is counted; one that cannot run there counts as
    2 N T and is named in `estimated`.

    Args:
        plan: the run.
        model: its model on the meta device.
    """

    def __init__(self, plan: RunPlan, model: UnifiedModel) -> None:
        self._plan, self._model = plan, model
        self.estimated: tuple[str, ...] = ()
        self._encoders: dict[str, float] = {}
        self._heads: dict[str, float] = {}
        self._bytes: dict[tuple[str, str, bool], float] = {}
        for name, path in plan.model.understanding.items():
            reads = _reads(path)
            self._encoders[f"understanding.{name}"] = self._encoder(
                path.encoder, reads, path.facts.max_tokens
            )
        for name, made in plan.model.generation.items():
            self._encoders[f"generation.{name}"] = self._encoder(made.encoder, "encode", made.facts.tokens)
            self._heads[name] = self._head(made)

    def tokens(self, shape: Shape) -> int:
        """Return the slots that a sample takes, its item's two special tokens included."""
        return shape.text + sum(count + 2 for count in self._items(shape))

    def forward(self, shape: Shape) -> dict[str, float]:
        """Return the operations of a sample's forward pass, by part address."""
        facts, body = self._plan.model.facts, num_matrix_parameters(self._model.language_model)
        text_head = num_matrix_parameters(self._part(TEXT_HEAD))
        costs = {
            "language_model": transformer_flops(
                body - text_head, facts.width, facts.num_layers, self.tokens(shape)
            ),
            TEXT_HEAD: 2.0 * text_head * shape.learnt_text,
        }
        if shape.understanding is not None:
            path = self._plan.model.understanding[shape.understanding]
            costs[path.encoder.address] = self._encoders[f"understanding.{shape.understanding}"]
            costs[path.adapter.address] = self._linear(path.adapter, path.facts.max_tokens)
        if shape.generation is not None:
            made = self._plan.model.generation[shape.generation]
            costs[made.encoder.address] = self._encoders[f"generation.{shape.generation}"]
            costs[made.adapter.address] = self._linear(made.adapter, made.facts.tokens)
            costs[made.head.address] = self._heads[shape.generation]
        return costs

    def training(self, shape: Shape, stage: StageBlock) -> float:
        """Return the operations of a sample's forward and backward pass in a stage.

        A part costs its forward pass once; again where a gradient passes through it to what it reads; and
        again for the share of its weights that learns. In attention both factors are activations, and its
        backward pass costs twice its forward pass also where the weights are frozen. Generation encoders run
        forwards alone.
        """
        if stage.reconstruct is not None:
            made = self._plan.model.generation[stage.reconstruct]
            return 3 * (self._encoders[f"generation.{stage.reconstruct}"] + self._decoder(made))
        costs = self.forward(shape)
        frozen = None if shape.generation is None else f"generation.{shape.generation}.encoder"
        learn = {address: address != frozen and self._learns(address, stage) for address in costs}
        total = 0.0
        for address, cost in costs.items():
            passes = learn[address] or any(learn[other] for other in _before(address, tuple(costs)))
            share = self._learnt_share(address, stage) if learn[address] else 0.0
            total += cost * (1 + passes + share)
            if address == "language_model" and passes:
                total += self._attention(shape) * (1 - share)
        return total

    def _attention(self, shape: Shape) -> float:
        facts = self._plan.model.facts
        return transformer_flops(0, facts.width, facts.num_layers, self.tokens(shape))

    def encoder_bytes(self, stage: StageBlock) -> float:
        """Return the bytes that encoders, and heads over latents, hold for one item.

        What learns keeps it for its backward pass; the rest holds it while the item passes.
        """
        model = self._plan.model
        if stage.reconstruct is not None:
            return self._held(model.generation[stage.reconstruct].encoder, "decode", True)
        kept, passing = 0.0, 0.0
        for path in model.understanding.values():
            learns = self._learns(path.encoder.address, stage)
            held = self._held(path.encoder, _reads(path), learns)
            kept, passing = (kept + held, passing) if learns else (kept, max(passing, held))
        for made in model.generation.values():
            passing = max(passing, self._held(made.encoder, "encode", False))
            if made.facts.form == "latents":
                kept += self._held(made.head, "loss", True)
        return kept + passing

    def _held(self, part: Part, method: str, learns: bool) -> float:
        """Return the bytes that a pass of an encoder holds for one item; "decode" is there and back."""
        asked = (part.address, method, learns)
        if asked not in self._bytes:
            self._bytes[asked] = self._measured_bytes(part, method, learns)
        return self._bytes[asked]

    def _measured_bytes(self, part: Part, method: str, learns: bool) -> float:
        module: Any = self._part(part.address)
        items = self._answers(part.address) if method == "loss" else self._dummy(part)[0]
        bf16 = self._plan.run.engine.precision == "bf16"

        def run() -> object:
            if method == "loss":
                return module.loss(**items)
            if method == "decode":
                return module.decode(module.encode(items))
            return getattr(module, method)(items)

        try:
            return (saved_bytes if learns else passing_bytes)(module, run, bf16)
        except Exception:  # as in `_measured`
            self.estimated = tuple(sorted({*self.estimated, part.address}))
            return 0.0

    def _learns(self, address: str, stage: StageBlock) -> bool:
        adapted = tuple(stage.lora or ())
        return any(
            names_learn(name, stage) or any(under(name, pattern) for pattern in adapted)
            for name, _ in self._parameters(address)
        )

    def _learnt_share(self, address: str, stage: StageBlock) -> float:
        """Return which share of a part's matrices learns."""
        part = self._part(address)
        whole = num_matrix_parameters(part)
        learnt = sum(
            parameter.numel()
            for name, parameter in self._parameters(address)
            if parameter.ndim > 1 and names_learn(name, stage)
        )
        tables = sum(
            child.weight.numel()
            for name, child in part.named_modules(prefix=address)
            if isinstance(child, nn.Embedding) and names_learn(f"{name}.weight", stage)
        )
        return (learnt - tables) / whole if whole else 0.0

    def _parameters(self, address: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield a part's parameters by their names in the model; the text head is a part of its own."""
        for name, parameter in self._part(address).named_parameters(prefix=address):
            if address == TEXT_HEAD or not name.startswith(TEXT_HEAD + "."):
                yield name, parameter

    def _part(self, address: str) -> nn.Module:
        return self._model.get_submodule(address)

    def _items(self, shape: Shape) -> Iterator[int]:
        """Yield the tokens of a sample's items, as the language model sees them."""
        if shape.understanding is not None:
            path = self._plan.model.understanding[shape.understanding]
            yield path.tokens(path.facts.max_tokens)
        if shape.generation is not None:
            yield self._plan.model.generation[shape.generation].slots

    def _linear(self, part: Part, tokens: int) -> float:
        return 2.0 * num_matrix_parameters(self._part(part.address)) * tokens

    def _encoder(self, part: Part, method: str, tokens: int) -> float:
        """Return the operations of encoding one item of `tokens` tokens."""
        items, short = self._dummy(part)
        run = getattr(self._part(part.address), method)
        return self._measured(part, run, items, short) * tokens / short

    @staticmethod
    def _dummy(part: Part) -> tuple[dict[str, Tensor], int]:
        """Return an item on the meta device and its tokens; of a varying modality it is a short one."""
        processor = load_processor(part.spec)(part.config)
        arrays = processor.dummy()
        items = {name: tensor.to("meta") for name, tensor in collate_items([arrays]).items()}
        return items, processor.num_tokens(arrays)

    def _head(self, made: GenerationPlan) -> float:
        """Return the operations of answering for one item; a head may pass its weights more than once."""
        if made.facts.form == "codes" and made.facts.codebooks == 1:
            return self._linear(made.head, made.facts.tokens)
        module = cast(Any, self._part(made.head.address))
        items = self._answers(made.head.address)
        return self._measured(made.head, lambda given: module.loss(**given), items, made.facts.tokens)

    def _answers(self, address: str) -> dict[str, Tensor]:
        """Return, on the meta device, what a head is given for one item."""
        model = self._plan.model
        facts = next(made.facts for made in model.generation.values() if made.head.address == address)
        kind = torch.long if facts.form == "codes" else torch.float32
        return {
            "hidden": torch.zeros(facts.tokens, model.facts.width, device="meta"),
            "targets": torch.zeros(facts.shape, dtype=kind, device="meta"),
        }

    def _decoder(self, made: GenerationPlan) -> float:
        """Return the operations of decoding one item."""
        facts, module = made.facts, cast(Any, self._part(made.encoder.address))
        dtype = torch.long if facts.form == "codes" else torch.float32
        items = {"codes": torch.zeros(1, *facts.shape, dtype=dtype, device="meta")}
        return self._measured(made.encoder, lambda given: module.decode(given["codes"]), items, facts.tokens)

    def _measured(
        self, part: Part, run: Callable[[dict[str, Tensor]], object], items: dict[str, Tensor], tokens: int
    ) -> float:
        """Return the operations of `run(items)`; where it cannot run, those of `tokens` tokens."""
        try:
            return measured_flops(run, items)
        except Exception:  # whatever a plugin does when there are no values
            self.estimated = tuple(sorted({*self.estimated, part.address}))
            return self._linear(part, tokens)


def names_learn(name: str, stage: StageBlock) -> bool:
    """Answer whether a stage trains the parameter of that name."""
    return any(under(name, prefix) for prefix in stage.learn)


def _reads(path: UnderstandingPlan) -> str:
    """Name the method by which an encoder is read: a shared one offers its features by another."""
    return "features" if path.shares else "forward"


def _before(address: str, addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Name the parts of a sample that `address` reads, directly or not."""
    order = (".encoder", ".adapter", "language_model")
    rank = next((number for number, end in enumerate(order) if address.endswith(end)), len(order))
    return tuple(other for other in addresses if other.endswith(order[:rank]))
