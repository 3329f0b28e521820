"""The unified model: one language model, with an understanding and a generation path a modality.

Parameter names begin with their part's address, so that a stage's `learn` patterns, a checkpoint and
an error message all speak of the same thing. The model only gathers and scatters at slots that were
planned on the CPU; it knows no special ids, templates or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from janus_plugins.core.answered import check_numbers, codes_of, hidden_of
from janus_plugins.core.blame import blamed
from janus_plugins.core.catalogue import load_processor
from janus_plugins.core.plan import GenerationPlan, Part, RunPlan, UnderstandingPlan
from janus_plugins.core.schema import ItemTokens
from janus_plugins.inference import session
from janus_plugins.inference.checks import plain_numbers
from janus_plugins.inference.interleaved import interleave
from janus_plugins.inference.paths import generation_path
from janus_plugins.model.checked import embeds_of, features_of, losses_of, tokens_of
from janus_plugins.model.joint import takes_lengths
from janus_plugins.sequence.assemble import PRECOMPUTED
from janus_plugins.sequence.batch import Batch, ItemBatch
from janus_plugins.sequence.blocks import PLAIN, Blocks

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Tokenizer
    from janus_plugins.sequence.templates import Template


class Losses(NamedTuple):
    """Hold what a forward pass answers.

    Attributes:
        loss: the scalar to minimise: the sum over paths of `scale[path]` times the path's sum.
        sums: detached sums by label: "text.<task>", "generation.<modality>", "reconstruct.<name>".
        counts: how many positions (or items) each sum is over.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    counts: dict[str, Tensor]


class UnderstandingPath(nn.Module):
    """Bring items to embeddings: encoder, then adapter.

    Args:
        encoder, adapter: the components.
        plan: what they are held to; None for nothing.
    """

    def __init__(self, encoder: nn.Module, adapter: nn.Module, plan: UnderstandingPlan | None = None) -> None:
        super().__init__()
        self.encoder, self.adapter, self._plan = encoder, adapter, plan
        self._takes_lengths = takes_lengths(adapter)

    def forward(self, items: dict[str, Tensor], entering: Sequence[int]) -> Tensor:
        """Return embeddings [N, T', M] of collated items, or of features that were computed before.

        A frozen encoder keeps no graph.

        Args:
            items: see `sequence.batch.ItemBatch`.
            entering: how many features of each item count, length N.
        """
        features = items.get(PRECOMPUTED)
        if features is None:
            with nullcontext() if learns(self.encoder) else torch.no_grad():
                features = features_of(self._plan, self.encoder, items, entering)
        return embeds_of(self._plan, self.adapter, features, entering if self._takes_lengths else None)


class SharedUnderstandingPath(nn.Module):
    """Bring items to embeddings by the features of a generation encoder, then the adapter.

    The encoder is no child of this path: its weights stand in the model once, at the generation path.
    """

    def __init__(self, encoder: nn.Module, adapter: nn.Module, plan: UnderstandingPlan | None = None) -> None:
        super().__init__()
        self._plan = plan
        self._elsewhere = (encoder,)  # in a tuple, which torch does not search for modules
        self.adapter = adapter
        self._takes_lengths = takes_lengths(adapter)

    def forward(self, items: dict[str, Tensor], entering: Sequence[int]) -> Tensor:
        """Return embeddings [N, T', M] of collated items; a frozen encoder keeps no graph."""
        (encoder,) = self._elsewhere
        with nullcontext() if learns(encoder) else torch.no_grad():
            features = features_of(self._plan, encoder.features, items, entering)
        return embeds_of(self._plan, self.adapter, features, entering if self._takes_lengths else None)


class GenerationPath(nn.Module):
    """Bring items to codes and embeddings, and answer for the codes: encoder, adapter, head.

    Codes are embedded and predicted in the order of the line, which is the grid's own unless a run file asks
    for another; see `sequence.blocks`. The adapter, too, sees them in that order, in training as in use.

    Args:
        encoder, adapter, head: the components.
        blocks: how many codes are predicted at once.
        order: place in the grid of each code of the line [T]; None where that is its own.
        starts: table of the `blocks.size - 1` start embeddings; None where there are none.
        plan: what the components are held to; None for nothing.
    """

    def __init__(
        self,
        encoder: nn.Module,
        adapter: nn.Module,
        head: nn.Module,
        blocks: Blocks = PLAIN,
        order: Sequence[int] | None = None,
        starts: nn.Embedding | None = None,
        plan: GenerationPlan | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.adapter, self.head = encoder, adapter, head
        self.blocks, self.order = blocks, order
        self.starts = starts
        self.plan = plan

    def forward(self, items: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return codes [N, T] or [N, T, Q] (or latents [N, T, C]) and what fills the slots [N, slots, M].

        Codes that were computed before are taken as they are.
        """
        codes = items.get(PRECOMPUTED)
        if codes is None:
            with torch.no_grad():
                codes = codes_of(self.plan, self.encoder, items)
        if self.order is not None:
            codes = codes[:, torch.tensor(self.order, device=codes.device)]
        embeds = embeds_of(self.plan, self.adapter, codes)
        if self.starts is None:
            return codes, embeds
        starts = self.start_embeds(len(embeds)).to(embeds.dtype)
        first, others = embeds[:, : self.blocks.alone], embeds[:, self.blocks.alone :]
        return codes, torch.cat((first, starts, others), dim=1)

    def start_embeds(self, number: int) -> Tensor:
        """Return the start embeddings, once for each of `number` rows [N, size - 1, M]."""
        assert self.starts is not None
        table: Tensor = self.starts(torch.arange(self.blocks.size - 1, device=self.starts.weight.device))
        return table.expand(number, -1, -1)

    def to_grid(self, codes: Tensor) -> Tensor:
        """Return codes [N, T] (or latents [N, T, C]) of the line in the grid's own order."""
        if self.order is None:
            return codes
        return codes[:, torch.tensor(self.order, device=codes.device).argsort()]


def learns(module: nn.Module) -> bool:
    """Answer whether any parameter of `module` is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


class UnifiedModel(nn.Module):
    """Understand and generate with one language model. Made by `compose_plan`.

    Attributes:
        plan: the resolved run file that it was composed from.
        tokenizer: text to ids and back.
        template: the chat template.
    """

    def __init__(
        self,
        plan: RunPlan,
        tokenizer: Tokenizer,
        template: Template,
        language_model: nn.Module,
        understanding: Mapping[str, UnderstandingPath | SharedUnderstandingPath],
        generation: Mapping[str, GenerationPath],
    ) -> None:
        super().__init__()
        self.plan, self.tokenizer, self.template = plan, tokenizer, template
        self._processors: dict[str, Any] = {}
        self.language_model = language_model
        self.understanding = nn.ModuleDict(understanding)
        self.generation = nn.ModuleDict(generation)

    def forward(self, batch: Batch, scale: Mapping[str, float], reconstruct: str | None = None) -> Losses:
        """Return the loss of one packed micro-batch.

        Args:
            batch: see `sequence.batch.Batch`.
            scale: weight of each path's sum; the paths are the keys of `batch.targets()`.
            reconstruct: train this modality's generation encoder by its own loss instead.
        """
        if reconstruct is not None:
            return self._reconstruct(batch.generation[reconstruct], reconstruct, scale)
        embeds, codes = self._embed(batch)
        rows, slots = batch.ids.shape
        given = (embeds.view(rows, slots, -1), batch.positions, batch.packed)
        hidden = hidden_of(self.plan.model.language_model, self.language_model, *given)
        return self._losses(batch, hidden.reshape(rows * slots, -1), codes, scale)

    def _embed(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return embeddings [R * S, M] with every item in its slots, and the codes by modality."""
        embeds = tokens_of(self.plan.model.language_model, self.language_model, batch.ids.view(-1))
        codes: dict[str, Tensor] = {}
        for name, path in self.understanding.items():
            items = batch.understanding[name]
            embeds = _place(embeds, path(items.items, items.entering), items)
        for name, path in self.generation.items():
            items = batch.generation[name]
            codes[name], embedded = path(items.items)
            embeds = _place(embeds, embedded, items)
        return embeds, codes

    def _losses(
        self, batch: Batch, hidden: Tensor, codes: dict[str, Tensor], scale: Mapping[str, float]
    ) -> Losses:
        head: nn.Module = self.language_model.text_head  # type: ignore[assignment]
        part = self.plan.model.text_head
        losses = _answer(part, head, hidden, batch.text_at, batch.text_targets)
        total = losses.sum() * scale.get("text", 0.0)
        sums, counts = _by_task(batch, losses.detach())
        for name, path in self.generation.items():
            items, label = batch.generation[name], f"generation.{name}"
            at, targets = _predicted(items, codes[name], hidden.device)
            losses = _answer(self.plan.model.generation[name].head, path.head, hidden, at, targets)  # type: ignore[arg-type]
            total = total + losses.sum() * scale.get(label, 0.0)
            if at.numel():
                sums[label] = losses.detach().sum()
                counts[label] = total.new_full((), at.numel(), dtype=torch.float32)
        return Losses(total, sums, counts)

    def _reconstruct(self, items: ItemBatch, name: str, scale: Mapping[str, float]) -> Losses:
        part = self.plan.model.generation[name].encoder
        with blamed(part, "reconstruction_loss()"):
            parts = self.generation[name].encoder.reconstruction_loss(items.items)  # type: ignore[union-attr, operator]
        check_numbers(part, "reconstruction losses", parts["loss"])
        number = 0 if items.absent else len(items.lengths)
        total = parts["loss"] * (number * scale.get("reconstruct", 0.0))
        sums = {f"reconstruct.{key}": value.detach() * number for key, value in parts.items()}
        count = total.new_full((), number, dtype=torch.float32)
        return Losses(total, sums, dict.fromkeys(sums, count))

    def init_tables(self) -> None:
        """Copy each codebook into its adapter's code table, where the adapter asks for it.

        The paper's generation adapter reads "the codebook embeddings corresponding to each ID"; its
        released code keeps them in a table of their own.
        """
        for path in self.generation.values():
            take, give = getattr(path.adapter, "init_table", None), getattr(path.encoder, "codebook", None)
            if take is not None and give is not None:
                with torch.no_grad():
                    take(give())

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device

    def processor(self, modality: str) -> Any:
        """Return the processor of a modality's generation encoder, made once.

        Raises:
            RunFileError: the model does not generate that modality.
        """
        if modality not in self._processors:
            part = generation_path(self, modality).encoder
            self._processors[modality] = load_processor(part.spec)(part.config)
        return self._processors[modality]

    def item_tokens(self, modality: str) -> ItemTokens:
        """Return the special tokens around an item of `modality`."""
        return self.plan.run.model.item_tokens(modality)

    def generate(self, prompts: str | Sequence[str], *, interleaved: bool = False, **options: Any) -> Any:
        """Make items from prompts; see `inference.session.generate`.

        With `interleaved`, answer with text and items as the model decides; see
        `inference.interleaved.interleave`.
        """
        return (interleave if interleaved else session.generate)(self, prompts, **plain_numbers(options))

    def ask(self, question: str | Sequence[str], **options: Any) -> Any:
        """Answer questions about items. See `inference.session.ask`."""
        return session.ask(self, question, **plain_numbers(options))

    def encode(self, modality: str, items: Sequence[object]) -> Tensor:
        """Return the codes [N, T] or [N, T, Q] of raw items. See `inference.session.encode`."""
        return session.encode(self, modality, items)

    def decode(self, modality: str, ids: Tensor) -> Any:
        """Return the artefacts of codes [N, T] or [N, T, Q]. See `inference.session.decode`."""
        return session.decode(self, modality, ids)

    def save(self, folder: str) -> None:
        """Write a native folder: config.yaml, safetensors, tokenizer, provenance."""
        from janus_plugins.model.native import save_native

        save_native(self, folder)


def _place(embeds: Tensor, values: Tensor, items: ItemBatch) -> Tensor:
    """Put items' embeddings [N, T, M] into their slots of [R * S, M].

    An absent path's dummy is added times zero: its value and its gradients are exactly zero, and
    every rank still runs the same modules in the same order.
    """
    values = values.to(embeds.dtype)
    if items.absent:
        return embeds + values.sum() * 0
    if any(length != values.shape[1] for length in items.lengths):
        flat = torch.cat([value[:length] for value, length in zip(values, items.lengths, strict=True)])
    else:
        flat = values.reshape(-1, values.shape[-1])
    return embeds.index_copy(0, items.at, flat)


def _predicted(items: ItemBatch, codes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the slots that predict codes [P], and the codes [P] or [P, Q] (or latents [P, C])."""
    flat = codes.reshape(-1, *codes.shape[2:])
    if items.predict_at is None or items.targets is None or items.absent:
        return torch.empty(0, dtype=torch.long, device=device), flat[:0]
    return items.predict_at, flat[items.targets]


def _answer(part: Part, head: nn.Module, hidden: Tensor, at: Tensor, targets: Tensor) -> Tensor:
    """Return a head's losses at its positions only [P]; without positions, an exact zero.

    The zero still runs through the head, so that ranks whose batches differ stay in step.
    """
    if at.numel():
        return losses_of(part, head, hidden[at], targets)
    blank = torch.zeros(1, *targets.shape[1:], dtype=targets.dtype, device=hidden.device)
    return losses_of(part, head, hidden[:1], blank) * 0


def _by_task(batch: Batch, losses: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return sums and counts of text losses by the task of their sample."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    if not batch.text_at.numel():
        return sums, counts
    number = len(batch.tasks)
    # On a GPU `bincount` would wait for all that runs before it.
    summed, counted = (
        losses.new_zeros(number).index_add_(0, batch.text_tasks, each)
        for each in (losses, losses.new_ones(len(losses)))
    )
    for position, task in enumerate(batch.tasks):
        sums[f"text.{task}"], counts[f"text.{task}"] = summed[position], counted[position]
    return sums, counts
