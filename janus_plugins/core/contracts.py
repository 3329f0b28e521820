"""The contracts between the framework and its components.

Protocols, not base classes: a component is any object (for models: any `torch.nn.Module`) with
these methods. Shapes: N items, T tokens of one item, C width of a feature, code or latent,
Q codes of one token, M width of the language model, B rows, S slots of a row, P positions that a
head answers for.

Codes are [N, T], one a slot of the language model, unless an encoder's facts say `codebooks: Q` above
one: then they are [N, T, Q], each slot holding the Q codes of one frame of a residual quantizer.

Two rules hold for every model component:

- *A part runs through `forward`.* Under ZeRO-3 a parameter is present only while the module that
  owns it runs its own `forward`. A method such as `encode` may call submodules, but must not touch
  a bare parameter of its own; wrap such a parameter in a small module. Nor may how often a submodule
  is called depend on the data: ranks see different data.
- *An absent modality runs a dummy.* Where a batch lacks a modality the framework feeds the
  processor's `dummy()` item and multiplies the result by zero, so that every rank gathers the same
  parameters in the same order. A dummy must give finite values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from janus_plugins.core.moving import moved
from janus_plugins.core.samples import Sample

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    Arrays = dict[str, np.ndarray]
    Tensors = dict[str, Tensor]


@runtime_checkable
class Processor(Protocol):
    """Turn a raw item into arrays, in data workers. Must be picklable and free of global state.

    Constructed as `Processor(config)` from the component's options.
    """

    def __call__(self, value: object) -> Arrays:
        """Return named numpy arrays for one raw item, or raise `BadSample`.

        The framework stacks equal shapes to [N, ...]; where the first axis differs it pads with
        zeros and adds `<name>_lengths` [N].
        """
        ...

    def num_tokens(self, arrays: Arrays) -> int:
        """Answer how many tokens the encoder will make of these arrays (before the adapter)."""
        ...

    def dummy(self) -> Arrays:
        """Return a small valid item that stands in where a batch lacks the modality."""
        ...


class GenerationProcessor(Processor, Protocol):
    """Also turn what a generation encoder decodes back into something that can be kept."""

    suffix: str
    """File name ending of an artefact, e.g. ".png"."""

    def restore(self, decoded: np.ndarray) -> Any:
        """Return an artefact (for images a PIL image) from one decoded item [...]."""
        ...

    def write(self, artefact: Any, path: str, metadata: Mapping[str, str]) -> None:
        """Write an artefact to a file, with its metadata (prompt, seed) inside where it fits."""
        ...


class UnderstandingEncoder(Protocol):
    """Read items: the continuous path into the language model. An `nn.Module`."""

    def forward(self, items: Tensors) -> Tensor:
        """Return features [N, T, C] of collated items.

        For items of different lengths T is the longest; `Processor.num_tokens` says how many of
        each item's features count, and the rest is dropped.
        """
        ...

    def compile_blocks(self) -> None:
        """Let `torch.compile` fuse the blocks' training passes under `engine.compile`. Optional."""
        ...

    def load_weights(self, source: str) -> None:
        """Load published weights from a folder, a file or a hub id. Called once, when composing."""
        ...


class GenerationEncoder(Protocol):
    """Turn items into codes or latents and back. An `nn.Module`."""

    def encode(self, items: Tensors) -> Tensor:
        """Return codes [N, T] or [N, T, Q] (int64), or latents [N, T, C], of collated items."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return decoded items [N, ...] from codes [N, T] or [N, T, Q], or latents [N, T, C]."""
        ...

    def reconstruction_loss(self, items: Tensors) -> dict[str, Tensor]:
        """Return named scalar losses, "loss" being the one to minimise. Optional.

        Runs under a stage with `reconstruct: MODALITY`.
        """
        ...

    def set_accumulation(self, number: int) -> None:
        """Say how many batches make a step (`engine.accumulate`), of any module inside. Optional.

        For what moves by itself in training, as a codebook of running means: it should move once a step.
        `core.accumulation.CountsBatches` is a base that has it, and counts.
        """
        ...

    def compile_blocks(self) -> None:
        """Fuse encoding under `engine.compile`, where that pays. Optional."""
        ...

    def load_weights(self, source: str) -> None:
        """Load published weights from a folder, a file or a hub id."""
        ...


class FeaturesEncoder(GenerationEncoder, Protocol):
    """Serve both paths of a modality: a generation encoder that also yields features. Optional.

    A run file shares it with `understanding: {MODALITY: {encoder: {share: generation.MODALITY.encoder}}}`;
    its config then answers `feature_facts()`, and its processor prepares the items of both paths.
    """

    def features(self, items: Tensors) -> Tensor:
        """Return features [N, T, C] of collated items, gradients included where it learns."""
        ...


class Adapter(Protocol):
    """Bring an encoder's output to the language model's width. An `nn.Module`.

    An adapter in which features of an item meet (attention, a convolution) declares the argument
    `lengths`, by that name; one that treats every feature alike may leave it out, and is then called
    with `source` alone.
    """

    def forward(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return embeddings [N, T', M] of features or latents [N, T, C], or codes [N, T] or [N, T, Q].

        Args:
            source: what the encoder made. Behind an item's last feature may stand anything.
            lengths: how many features of each item count [N] (int64), where not all T of every item
                do. What stands behind them must not be seen: an item's embeddings do not depend on
                its batch mates. None on generation paths.
        """
        ...


class Draws(Protocol):
    """Random numbers of a batch of generations, one stream a row, so that no row sees its mates."""

    def uniform(self) -> Tensor:
        """Return the next number of each row in [0, 1): [B] float32."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Return the next standard normal numbers of each row: [B, *shape] float32."""
        ...


class Head(Protocol):
    """Answer for hidden states: a loss in training, a sample in generation. An `nn.Module`."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each position [P] (float32); of Q codes, one loss of them all.

        Args:
            hidden: hidden states [P, M].
            targets: token ids or codes [P], codes of several codebooks [P, Q], or latents [P, C].
        """
        ...

    def sample(
        self,
        hidden: Tensor,
        unconditional: Tensor | None,
        *,
        guidance: float,
        temperature: float,
        draws: Draws,
    ) -> Tensor:
        """Return the next ids [B], codes of several codebooks [B, Q], or latents [B, C].

        Args:
            hidden: last hidden state of each conditional row [B, M].
            unconditional: the same of the unconditional rows, or None without guidance.
            guidance: s in `u + s (c - u)`.
            temperature: 0 means greedy.
            draws: random numbers, one stream a row.
        """
        ...


class OpenHead(Head, Protocol):
    """Also tell what `sample` draws from, so that several codes may be guessed and checked. Optional."""

    def distribution(
        self, hidden: Tensor, unconditional: Tensor | None, *, guidance: float, temperature: float
    ) -> Tensor:
        """Return the shares [P, K] of every code, for hidden states [P, M]; see `sample`."""
        ...


@dataclass(frozen=True)
class Packed:
    """Say which slots of a packed batch may see one another: causally, within one segment.

    Attributes:
        groups: for each distinct segment length (and `reach`), the flat slots [n, length] (int64, into
            B * S) of the n segments that have it. Slots of no segment are padding.
        cu_seqlens: where segments start in the flat batch, for variable-length kernels [k + 1]
            (int32). Padding runs are segments of their own here.
        max_length: longest segment in `cu_seqlens`.
        reach: for each group, the last slot of its own segment that each slot sees [length] (int64), or
            None where that is itself; None where it is so in every group. Only language models whose
            facts say `bidirectional` are given anything else.
    """

    groups: tuple[Tensor, ...]
    cu_seqlens: Tensor
    max_length: int
    reach: tuple[Tensor | None, ...] | None = None

    def to(self, device: torch.device | str) -> Packed:
        """Return the same plan with its tensors on `device`."""
        groups = tuple(moved(group, device) for group in self.groups)
        reach = self.reach and tuple(None if each is None else moved(each, device) for each in self.reach)
        return Packed(groups, moved(self.cu_seqlens, device), self.max_length, reach)


@dataclass(frozen=True)
class Cached:
    """Say what a decoding step sees.

    Attributes:
        start: cache slots already filled; the step's S slots go to start .. start + S - 1.
        visible: bool [B, start + S], False on left padding; None when every slot counts. Language models
            that say `free_masks = True` may also be given [B, S, start + S]: what each slot sees, exactly.
        slot: where a step of one slot a row goes, as a tensor [1] (int64), in place of `start`: its value may
            then differ from call to call of one recorded graph. `start + 1` is how far the step may look,
            and `visible` (always given) is False beyond `slot`. Given only to language models that say
            `static_steps = True`.
        block: the step's last `block` slots see one another; 1 is causal. Only language models whose
            facts say `bidirectional` are given anything else.
        padded: with `slot`, whether `visible` may be False before it, too: where not, it need not be read.
    """

    start: int
    visible: Tensor | None = None
    slot: Tensor | None = None
    block: int = 1
    padded: bool = True


AttentionPlan = Packed | Cached


class LanguageModel(Protocol):
    """Run a causal transformer over embeddings. An `nn.Module`."""

    text_head: nn.Module
    """A `Head` over token ids that also offers `logits(hidden [P, M]) -> [P, V]`."""

    def attach_text_head(self, head: nn.Module) -> None:
        """Take the composed text head as `self.text_head`; tie its weight where the facts say so."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Return token embeddings [..., M] of ids [...]."""
        ...

    def forward(
        self, embeds: Tensor, positions: Tensor, attention: AttentionPlan, cache: Any = None
    ) -> Tensor:
        """Return hidden states after the final norm [B, S, M].

        Args:
            embeds: input embeddings [B, S, M].
            positions: position of every slot in its own sample [B, S] (int64).
            attention: which slots see which; `Packed` in training, `Cached` with a cache.
            cache: what `new_cache` made; written at slots `attention.start` onwards.
        """
        ...

    def new_cache(self, batch: int, length: int) -> Any:
        """Make a static key-value cache for `batch` rows of at most `length` slots.

        Where it offers `select(rows) -> cache` (copies of the named rows [B'], with repeats), a
        prompt's prefill is shared by all items that are made from it. Where it offers `copy_(other)`
        (take over the contents of a cache of the same shape), a step that was compiled for one batch
        serves the next. Where it offers `put(rows, other, start, length)` (write the first slots of
        another cache's rows to the named rows) and `shift(by)` (move all slots), rows that have ended
        give their place to prompts that wait. Where `select` and `copy_` are offered, of a shorter
        cache, too, and `longer(length)` (a longer copy), a language model may say `static_prompts = True`: on
        a device the passes of short prompts are then recorded, in which nothing may wait for the host.
        """
        ...

    def set_checkpointing(self, on: bool | Literal["selective"]) -> None:
        """Recompute the blocks' activations in the backward pass, or keep them.

        "selective" keeps what took long to compute and recomputes the rest; a language model that makes
        no such difference recomputes all.
        """
        ...

    def compile_blocks(self) -> None:
        """Let `torch.compile` fuse the blocks' training passes. Optional."""
        ...

    def load_weights(self, source: str) -> None:
        """Load published weights from a folder or a hub id."""
        ...


class Source(Protocol):
    """Yield samples by index. Random access makes shuffling and resuming exact."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`, the same one each time, or raise `BadSample`."""
        ...


class StreamingSource(Protocol):
    """Yield samples in order, where random access is not to be had."""

    def rows(self, state: Mapping[str, Any] | None) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Yield (row, state after it) for ever, from `state` or from the beginning.

        A row is picklable; a state is plain data from which `rows` goes on after that row.
        """
        ...

    def sample(self, row: Any, index: int) -> Sample:
        """Turn the row at position `index` into a sample, in a data worker."""
        ...


class TextSource(Protocol):
    """Offer the run's own text to a tokenizer that is trained on it. Optional for sources."""

    def texts(self) -> Iterable[str]:
        """Yield every text that samples of this source may contain."""
        ...


class Tokenizer(Protocol):
    """Turn text into ids. Special tokens are looked up by string, never by id."""

    def encode(self, text: str) -> list[int]:
        """Return ids of text, special-token strings in it becoming their single id. No BOS added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        ...

    def id_of(self, token: str) -> int:
        """Return the id of one special token's string, or raise `RunFileError`."""
        ...

    def __len__(self) -> int:
        """Return one more than the largest id."""
        ...

    def save(self, folder: str) -> None:
        """Write the tokenizer's files into a checkpoint folder."""
        ...


class TrainedModel(Protocol):
    """Be used by an evaluation task: what a composed or loaded model offers. See `inference/session.py`."""

    def ask(self, question: str | Sequence[str], **options: Any) -> Any:
        """Return the answer to a question, or a list of answers to several.

        Options: items (modality -> a list of values a question), max_new_tokens, temperature, top_p, seed.
        """
        ...

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Any:
        """Return generated items in the order of prompts, each with `prompt`, `artefact` and `codes`.

        Options: modality, items, num_per_prompt, guidance, temperature, seed, max_rows; with `interleaved`
        answers of text and items, each with `parts` (max_new_tokens, max_items).
        """
        ...

    def encode(self, modality: str, items: Sequence[object]) -> Tensor:
        """Return codes [N, T] or latents [N, T, C] of raw items."""
        ...

    def decode(self, modality: str, ids: Tensor) -> Any:
        """Return a list of artefacts of codes [N, T] or latents [N, T, C]."""
        ...

    def processor(self, modality: str) -> Any:
        """Return the `GenerationProcessor` of a modality that the model generates."""
        ...


class EvaluationTask(Protocol):
    """Score a trained model on held-out samples. Built as `factory(config, facts)`."""

    def __call__(
        self, model: TrainedModel, source: Source, others: Mapping[str, Source]
    ) -> Mapping[str, Any]:
        """Return plain data (JSON) about the model, in its own words but for two names.

        "score": a finite number, for what ships a share from 0 to 1. "ceilings" (optional): name -> the
        number that a perfect model would reach. The rest stands under "details" in evaluation.json.

        Args:
            model: the model, in eval mode; it must be left as it was.
            source: held-out samples, read by index.
            others: the further data entries that `EvaluationFacts.sources` names. A sample of these that
                cannot be read raises BadSample, for the task to pass over as training does.
        """
        ...


@dataclass
class TrainingRun:
    """Show callbacks where their run is, and take their requests. One object for the whole run.

    Attributes:
        out: the run's folder.
        rank: number of this process over all nodes; 0 is the main one, which prints and writes for all.
        world_size: number of processes.
        stage: name of the stage that is being trained.
        stage_step: optimiser steps done in it.
        stage_steps: optimiser steps that it is meant to take.
        step: optimiser steps done in the whole run.
        model: the model as this process holds it (under ZeRO-3 its parameters are empty outside their
            modules' `forward`), or None between stages. To be looked at, not changed.
    """

    out: Path
    rank: int = 0
    world_size: int = 1
    stage: str = ""
    stage_step: int = 0
    stage_steps: int = 0
    step: int = 0
    model: Any = None
    stage_end: str | None = None
    run_stop: str | None = None

    def end_stage(self, reason: str) -> None:
        """Ask that the stage ends after this step, as if it had taken all of them; the next one begins."""
        self.stage_end = self.stage_end or reason

    def stop(self, reason: str) -> None:
        """Ask that the run is saved and stopped after this step; `--resume` goes on from there."""
        self.run_stop = self.run_stop or reason


class Callback(Protocol):
    """Watch the training of a run, on every rank. Built as `factory(config, facts)`; no method is needed.

    A request counts when any rank makes it, and is heeded before the next step. What a callback draws from
    global random state is put back. Whatever one raises is reported with its plugin's name, and ends the run
    after saving.
    """

    def on_train_start(self, run: TrainingRun) -> None:
        """Begin, once a launch; what is resumed has its state and `run.step` by now."""
        ...

    def on_stage_start(self, run: TrainingRun) -> None:
        """See a stage begin, or go on from a checkpoint inside it: the model is ready to learn."""
        ...

    def on_step_end(self, run: TrainingRun, metrics: Mapping[str, Any]) -> None:
        """See a step's numbers: its line of metrics.jsonl, the same on every rank but for the times."""
        ...

    def on_checkpoint(self, run: TrainingRun, folder: Path) -> None:
        """See a checkpoint that was just published, complete: `step_N` or `stage_K`."""
        ...

    def on_stage_end(self, run: TrainingRun) -> None:
        """See a stage's last step behind it, before its end is saved."""
        ...

    def on_train_end(self, run: TrainingRun, error: BaseException | None) -> None:
        """Finish: once a launch, whatever happened. `error` is what ended the training, or None."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return plain data (JSON) to go on from; the main rank's is saved in every checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`; every rank is given the same, before `on_train_start`."""
        ...
