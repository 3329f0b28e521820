"""The frame of a run file: everything but the components' own options.

One file is one run. The frame is validated first; each component's `options` are then validated by
the class that its plugin declares (`core/wiring.py`). Field texts become the published JSON Schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from janus_plugins.core.samples import Task

Ratio = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Chance = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

_LONGEST_NAME = 200


TWICE = "named_twice"
"""Type of the error on two entries of one name; its context tells the list and the second's position."""


def is_folder_name(name: str) -> bool:
    """Answer whether a name can be that of one folder, and not of a hidden one."""
    plain = name.isprintable() and not name.startswith(".") and name == name.strip()
    return plain and not {"/", "\\"} & {*name} and 1 <= len(name.encode(errors="replace")) <= _LONGEST_NAME


def _folder_name(name: str) -> str:
    if not is_folder_name(name):
        raise ValueError(
            "names a folder, so it has no '/' or '\\', no dot in front, no spaces around it, no control "
            f"characters, and 1 to {_LONGEST_NAME} bytes (got {name!r:.60})"
        )
    return name


class Strict(BaseModel):
    """Refuse unknown keys, NaN and infinity."""

    # Built at first use: listing plugins validates no run file.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Named(Strict):
    """Name a component that has no weights, and give its options."""

    use: str = Field(description="component name, or distribution/name where two plugins offer it")
    options: dict[str, Any] = Field(default_factory=dict, description="the component's own options")


class Use(Named):
    """Name a component and give its options."""

    weights: str | None = Field(
        default=None, description="published weights to start from: a folder, a file or a hub id"
    )


TOKENIZER_KEYS = {"path": "pretrained", "vocab_size": "trained", "level": "trained"}
"""Key of a tokenizer -> the only type that reads it."""


class TokenizerBlock(Strict):
    """Choose a tokenizer."""

    type: Literal["pretrained", "bytes", "trained"] = "pretrained"
    path: str | None = Field(default=None, description="pretrained: a folder, tokenizer.json or hub id")
    vocab_size: Count | None = Field(default=None, description="trained: the most entries it may have")
    level: Literal["word", "bpe"] = Field(default="bpe", description="trained: unit of the vocabulary")

    @model_validator(mode="after")
    def _complete(self) -> TokenizerBlock:
        needed = {"pretrained": "path", "trained": "vocab_size", "bytes": None}[self.type]
        if needed and getattr(self, needed) is None:
            raise ValueError(f"a tokenizer of type {self.type} needs {needed!r}")
        return self


class TemplateBlock(Strict):
    """Spell out a chat template. The named ones are in `sequence/templates.py`."""

    user: str = Field(description="the user's role tag")
    assistant: str = Field(description="the assistant's role tag")
    separator: str = Field(default="\n\n", description="ends a user's turn")
    system: str = Field(default="", description="system prompt of understanding and text")
    bos: str
    eos: str
    pad: str


TemplateName = Literal["deepseek-old", "deepseek", "plain"]
"""Chat templates by name: Janus-1.3B's, Janus-Pro's, and a short one; see `sequence/templates.py`."""


class LanguageModelBlock(Use):
    """Name the language model, its tokenizer and its chat template."""

    tokenizer: TokenizerBlock
    template: TemplateName | TemplateBlock = Field(
        default="plain", description="a named template, or one spelt out"
    )
    head: Use = Field(default_factory=lambda: Use(use="text"), description="head on text positions")


class EncoderUse(Strict):
    """Name an encoder and give its options, or share one that the model has already."""

    use: str | None = Field(
        default=None, description="component name, or distribution/name where two plugins offer it"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the component's own options")
    weights: str | None = Field(
        default=None, description="published weights to start from: a folder, a file or a hub id"
    )
    share: str | None = Field(
        default=None,
        description="instead of `use`: address of a generation encoder whose features are read, e.g. "
        "generation.image.encoder; its weights exist once",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> EncoderUse:
        if (self.use is None) == (self.share is None):
            raise ValueError("name a component under 'use', or another part's address under 'share'")
        if self.share is not None and (self.options or self.weights):
            raise ValueError("a shared encoder has its options and weights where it is built; remove them")
        return self

    def component(self) -> Use:
        """Return the component that is named under `use`."""
        assert self.use is not None
        return Use(use=self.use, options=self.options, weights=self.weights)


class UnderstandingBlock(Strict):
    """Compose the understanding path of one modality."""

    encoder: EncoderUse
    adapter: Use


class ParallelBlock(Strict):
    """Predict several codes of an item at once, in place of one after another."""

    block: Count = Field(description="codes that are predicted at once; divides the codes of an item")
    order: Literal["rows", "regions"] = Field(
        default="regions",
        description="rows: a block takes neighbours; regions: one code of each of `block` equal regions",
    )
    sequential: Annotated[int, Field(ge=0)] = Field(
        default=0, description="first blocks whose codes are still predicted one after another"
    )


class GenerationBlock(Strict):
    """Compose the generation path of one modality."""

    encoder: Use
    adapter: Use
    head: Use
    parallel: ParallelBlock | None = Field(
        default=None, description="predict codes in blocks (default: one after another)"
    )


class ItemTokens(Strict):
    """Spell the special tokens around an item; looked up by string in the tokenizer."""

    begin: str
    end: str
    placeholder: str


class ModelBlock(Strict):
    """Compose a model."""

    language_model: LanguageModelBlock
    understanding: dict[str, UnderstandingBlock] = Field(default_factory=dict)
    generation: dict[str, GenerationBlock] = Field(default_factory=dict)
    tokens: dict[str, ItemTokens] = Field(
        default_factory=dict,
        description="special tokens by modality (default: <begin_of_X>, <end_of_X>, <X_placeholder>)",
    )

    def modalities(self) -> tuple[str, ...]:
        """Name every modality of the model, sorted."""
        return tuple(sorted({*self.understanding, *self.generation}))

    def item_tokens(self, modality: str) -> ItemTokens:
        """Return the special tokens around an item of `modality`."""
        begin, end = f"<begin_of_{modality}>", f"<end_of_{modality}>"
        default = ItemTokens(begin=begin, end=end, placeholder=f"<{modality}_placeholder>")
        return self.tokens.get(modality, default)


class DataBlock(Named):
    """Name a data source and the task that its samples serve."""

    task: Task
    split: Literal["train", "test"] = Field(default="train", description="test sets are never trained on")
    precomputed: str | None = Field(
        default=None,
        description="folder of `janus-plugins precompute`, read instead of running frozen encoders",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_weights(cls, given: Any) -> Any:
        """Leave out the null `weights` that older trained models' run files spell out."""
        if isinstance(given, dict) and "weights" in given and given["weights"] is None:
            return {key: value for key, value in given.items() if key != "weights"}
        return given


class Window(Strict):
    """Say when, and how much, a stage draws from one source."""

    weight: Rate | None = Field(default=None, description="share within its task (default: its size)")
    after: Annotated[int, Field(ge=0)] = Field(default=0, description="first step that draws from it")
    until: Count | None = Field(default=None, description="first step that no longer draws from it")


class Optimizer(Strict):
    """Set AdamW, as in the papers' tables (eps is not stated there; 1e-8 is torch's default)."""

    betas: tuple[Chance, Chance] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Schedule(Strict):
    """Set how the learning rate moves after a linear warm-up."""

    type: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = Field(default=0, description="steps of linear warm-up from 0")
    floor: Chance = Field(default=0.0, description="share of the rate left at the last step")


class Lora(Strict):
    """Train low-rank updates of a part's linear layers instead of their weights (arXiv 2106.09685)."""

    rate: Rate = Field(description="peak learning rate")
    r: Count = Field(default=16, description="rank of an update")
    alpha: Rate | None = Field(default=None, description="updates are scaled by alpha / r (default: 2 r)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of an update's inputs that is dropped"
    )
    targets: tuple[str, ...] | None = Field(
        default=None, description="names that layers end in, e.g. q_proj (default: every linear layer)"
    )

    @property
    def scale(self) -> float:
        """Return what an update is multiplied by."""
        return (2.0 * self.r if self.alpha is None else self.alpha) / self.r


class StageBlock(Strict):
    """Set one stage of the recipe: a row of the paper's table. Its name means nothing to the code."""

    name: str
    learn: dict[str, Rate] = Field(
        default_factory=dict, description="part address (or a parameter prefix in it) -> learning rate"
    )
    lora: dict[str, Lora] | None = Field(
        default=None, description="part address (or a module in it) -> low-rank updates of its linear layers"
    )
    steps: Count
    stop_at: Count | None = Field(default=None, description="end early, keeping the schedule of `steps`")
    batch: Count = Field(description="samples of one optimiser step, over all ranks")
    mix: dict[Task, Ratio] = Field(default_factory=dict, description="task -> share of every step")
    sources: dict[str, Window] | None = Field(
        default=None, description="sources to draw from (default: every source whose task is in the mix)"
    )
    reconstruct: str | None = Field(
        default=None, description="train this modality's generation encoder by its own loss instead"
    )
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    clip: Rate | None = Field(default=1.0, description="largest norm of the gradient")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="decay of a running average of the weights that learn"
    )
    ema_export: bool | None = Field(
        default=None,
        description="true (as by default): the stage ends with the average; false: it is kept apart",
    )
    template: Literal["plain", "chat"] = Field(
        default="chat", description="plain: turns joined without role tags"
    )
    loss_on: Literal["text", "answers"] = Field(
        default="answers", description="text: prompts are learnt too; answers: prompts are masked"
    )
    loss_mean: Literal["token", "task"] = Field(
        default="token", description="mean over all positions, or over each head's and then the heads"
    )
    drop_prompt: Chance = Field(
        default=0.0,
        description="chance that a generation's prompt, or the text around learnt items, becomes pads",
    )
    drop_to: Literal["pads", "pad"] = Field(
        default="pads", description="a dropped prompt keeps its length, or becomes a single pad"
    )
    first_sentence: Chance = Field(
        default=0.0, description="chance that a generation's prompt is cut to its first sentence"
    )
    close_generated: bool = Field(
        default=False, description="end a generated item with its end token and EOS, and learn them"
    )
    learn_begin: bool = Field(
        default=False,
        description="learn the begin token of a generated item, so that the model makes items by itself",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(description="slots of one packed row")

    @model_validator(mode="after")
    def _consistent(self) -> StageBlock:
        if not self.learn and not self.lora:
            raise ValueError("a stage must learn something: name a part and a rate under 'learn' or 'lora'")
        if self.ema_export is not None and self.ema is None:
            raise ValueError("'ema_export' says what becomes of an average; give its decay under 'ema' too")
        if self.reconstruct is None and not any(self.mix.values()):
            raise ValueError("'mix' needs a task with a ratio above 0 (or set 'reconstruct')")
        if self.learn_begin and not self.close_generated:
            raise ValueError(
                "'learn_begin' needs 'close_generated: true': a model that begins items by itself must also "
                "learn how an answer ends after one"
            )
        if self.stop_at is not None and self.stop_at > self.steps:
            raise ValueError(f"stop_at {self.stop_at} is later than steps {self.steps}")
        return self

    @property
    def last_step(self) -> int:
        """Return the number of optimiser steps that are really taken."""
        return self.stop_at or self.steps


class EngineBlock(Strict):
    """Set how training runs, apart from what it computes."""

    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: Count = Field(default=1, description="micro-batches of one step on each rank")
    checkpointing: bool | Literal["selective"] = Field(
        default=False,
        description="recompute activations in the backward pass: all, or not attention and half the products",
    )
    compile: bool = Field(
        default=False,
        description="fuse the blocks of the language model and of encoders by torch.compile, and what other "
        "parts offer to fuse; rounding differs",
    )
    workers: Annotated[int, Field(ge=0)] = Field(default=0, description="data workers of each rank")
    threads: Count | None = Field(default=None, description="CPU threads of each rank")
    save_every: Count | None = Field(default=None, description="steps between checkpoints")
    keep: Count = Field(default=2, description="checkpoints kept for resuming")
    log_every: Count = 10
    sample_every: Count | None = Field(default=None, description="steps between sample images in the log")
    nonfinite_limit: Count = Field(default=5, description="bad steps in a row that stop the run")
    max_bad_samples: Chance = Field(
        default=0.01, description="share of unreadable samples that stops the run"
    )
    data_timeout: Rate = Field(default=300.0, description="seconds to wait for a data worker")
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="reaches DeepSpeed unchanged, but for what we must fill in"
    )


BESIDE_SCORES = ("ceilings", "details", "seconds_per_stage")
"""What evaluation.json holds beside the scores of entries by their names."""


class EvaluationBlock(Strict):
    """Name a test to run after training: a task on a held-out source."""

    task: str = Field(description="component name, or distribution/name where two plugins offer it")
    source: str = Field(description="name of a data entry with split: test")
    options: dict[str, Any] = Field(default_factory=dict, description="the task's own options")


class CallbackBlock(Named):
    """Name a callback that watches the training."""

    name: str | None = Field(
        default=None, description="keeps its state in checkpoints apart from others' (default: `use`)"
    )

    @property
    def label(self) -> str:
        """Return what tells it from the run's other callbacks."""
        return self.name or self.use


class PluginLists(Strict):
    """Choose among the installed plugins for this run alone, beside what the environment says."""

    allow: tuple[str, ...] | None = Field(
        default=None,
        description="the only plugins that are loaded: distribution or distribution:entry "
        "(janus-plugins holds the shipped components)",
    )
    block: tuple[str, ...] = Field(default=(), description="plugins that are not loaded, in that spelling")


class Published(Strict):
    """Hold what a recipe's source says of its own training; `explain` sets its estimate beside it."""

    source: str = Field(description="where it is said")
    days: Rate = Field(description="days that all stages took together")
    gpus: Count
    gpu: str = Field(description="what they were")
    tflops: Rate = Field(description="peak of one in 16 bits, dense, in 10^12 operations a second")


class RunConfig(Strict):
    """Describe one run: the model, its data, the stages that train it, and the engine."""

    name: Annotated[str, AfterValidator(_folder_name)] = Field(
        default="run", description="names the output folder: no '/' or '\\', no dot in front"
    )
    seed: int = 0
    model: ModelBlock
    data: dict[str, DataBlock] = Field(default_factory=dict)
    stages: tuple[StageBlock, ...] = ()
    engine: EngineBlock = Field(default_factory=EngineBlock)
    callbacks: tuple[CallbackBlock, ...] = ()
    evaluation: dict[str, EvaluationBlock] = Field(default_factory=dict)
    published: Published | None = Field(
        default=None, description="what the recipe's source says of its own training"
    )
    plugins: PluginLists = Field(default_factory=PluginLists)

    @model_validator(mode="after")
    def _named_once(self) -> RunConfig:
        for what, names in (
            ("stages", [stage.name for stage in self.stages]),
            ("callbacks", [callback.label for callback in self.callbacks]),
        ):
            for position, name in enumerate(names):
                if name in names[:position]:
                    told = {"what": what, "called": repr(name), "position": position}
                    message = "two {what} are called {called}; each needs its own name"
                    raise PydanticCustomError(TWICE, message, told)
        return self
