"""Resolve a run file against the catalogue and check that its parts fit, from facts alone.

No weight exists yet and torch is not imported: a model that cannot work is refused in milliseconds,
with both places in the file, both numbers and the next step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from pydantic.errors import PydanticUserError

from janus_plugins.core.blame import advice, blamed, full_name
from janus_plugins.core.catalogue import Catalogue, CatalogueEntry, catalogue_for
from janus_plugins.core.errors import PluginError, RunFileError, WiringError
from janus_plugins.core.facts import FACTS, GenerationFacts, HeadFacts, LanguageModelFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.nodes import KeyPath
from janus_plugins.core.options import laid_over
from janus_plugins.core.plan import (
    DataPlan,
    EvaluationPlan,
    GenerationPlan,
    ModelPlan,
    Part,
    RunPlan,
    UnderstandingPlan,
    plain_options,
)
from janus_plugins.core.problems import option_worded
from janus_plugins.core.schema import BESIDE_SCORES, ModelBlock, Named, RunConfig, StageBlock, Use
from janus_plugins.core.specs import ComponentConfig
from janus_plugins.core.suggest import nearest
from janus_plugins.core.unread import unread, unread_in_stage

Locate = Callable[[KeyPath], str]
"""Answer where a path of the run file stands ("run.yaml:12"), or an empty string."""


def resolve(
    run: RunConfig,
    found: Catalogue | None = None,
    locate: Locate | None = None,
    *,
    trains: bool = True,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> RunPlan:
    """Resolve every component that a run names, and check the wiring.

    Args:
        run: a validated run file.
        found: the installed components (default: this process's, but for those that the run blocks).
        locate: where a path of the file stands, for messages.
        trains: False where a trained model is only used: its stages, and settings without effect, may be
            what would be refused today, it needs no callbacks and no data, and an evaluation task that
            cannot be had, or not its data, is kept as `missing` until it is asked for.
        options: by part's address, options that a checkpoint was made with: defaults of those that the run
            does not give, in the place of today's.

    Raises:
        RunFileError: a component's options do not validate.
        WiringError: parts that do not fit one another, with both addresses and both numbers.
        PluginError: a component that is not installed, or whose plugin is broken.
    """
    builder = _Builder(found or catalogue_for(run, locate), locate or (lambda path: ""), options or {})
    model = builder.model(run)
    data, absent = builder.data(run, lenient=not trains)
    evaluation, missing = builder.evaluation(run, absent, lenient=not trains)
    plan = RunPlan(run, model, data, evaluation, builder.callbacks(run) if trains else {}, missing)
    problems = [*_model_problems(plan), *_data_problems(plan), *_evaluation_problems(plan)]
    problems += _callback_problems(plan)
    problems += [*_held_out_problems(plan), *unread(plan)] if trains else ()
    for position, stage in enumerate(run.stages if trains else ()):
        problems += [f"stages[{position}] ({stage.name}): {text}" for text in _stage_problems(plan, stage)]
    if problems:
        told = [_located(text, locate) if locate else text for text in problems]
        raise WiringError("the parts of this run do not fit:\n  " + "\n  ".join(told))
    return plan


_STAGE = re.compile(r"stages\[(\d+)\] \([^)]*\): (\w+)")


def _located(problem: str, locate: Locate) -> str:
    """Put before a problem where the part, the entry or the stage that it begins with stands in the file."""
    stage = _STAGE.match(problem)
    path: KeyPath = tuple(problem.partition(": ")[0].split("."))
    if stage is not None:
        path = (
            "stages",
            int(stage[1]),
            *(key for key in stage.groups()[1:] if key in StageBlock.model_fields),
        )
    elif path[0] in ModelBlock.model_fields:
        path = ("model", *path)
    elif path[0] not in RunConfig.model_fields:
        return problem
    place = locate(path)
    return f"{place}: {problem}" if place else problem


def _check_facts(part: Part, facts: object) -> None:
    """Refuse what is not the kind's facts."""
    wanted = FACTS[part.spec.kind]
    if not isinstance(facts, wanted):
        raise PluginError(
            f"{full_name(part)}: its {part.spec.config.__name__}.facts() answers a {type(facts).__name__}, "
            f"not {wanted.__name__}; {advice(part)}"
        )


_CannotBeHad = PluginError | RunFileError
_CANNOT_BE_HAD = (PluginError, RunFileError)
"""A plugin that is not there, or whose options are others today."""


class _Builder:
    """Turn `use:` blocks into parts, in the order in which their facts depend on one another."""

    def __init__(self, found: Catalogue, locate: Locate, options: Mapping[str, Mapping[str, Any]]) -> None:
        self.found = found
        self.locate = locate
        self.options = options

    def part(self, address: str, kind: Kind, use: Use, path: KeyPath, *neighbours: Any) -> Part:
        return replace(self.named(address, kind, use, path, *neighbours), weights=use.weights)

    def named(
        self, address: str, kind: Kind, use: Named, path: KeyPath, *neighbours: Any, key: str = "use"
    ) -> Part:
        """Return the part that a block names under `key`, its options validated."""
        try:
            entry = self.found.get(kind, use.use)
        except PluginError as error:
            raise PluginError(f"{self._where((*path, key))}{address}: {error}") from error.__cause__
        try:
            part = Part(address, entry.spec, entry.owner, self._config(address, entry, use), None)
            with blamed(part, "facts()"):
                facts = part.config.facts(*neighbours)
        except ValidationError as error:
            raise RunFileError(self._explain(error, entry.spec.config, use.use, path)) from None
        except PydanticUserError as error:  # fields that pydantic cannot make anything of
            raise PluginError(f"{address}: the options of {entry.full_name} are broken: {error}") from error
        except RunFileError as error:
            raise type(error)(f"{self._where((*path, 'options'))}{address} ({use.use}): {error}") from error
        _check_facts(part, facts)
        return replace(part, facts=facts)

    def _config(self, address: str, entry: CatalogueEntry, use: Named) -> ComponentConfig:
        """Return a part's options, as they were where a checkpoint tells of other defaults than today's."""
        config = entry.spec.config.model_validate(use.options)
        today = plain_options(config) if address in self.options else {}
        then = laid_over(self.options.get(address, {}), today, use.options, config)
        if then == use.options:
            return config
        return entry.spec.config.model_validate(then, by_alias=True, by_name=True)

    def _where(self, path: KeyPath) -> str:
        place = self.locate(path)
        return f"{place}: " if place else ""

    def _explain(self, error: ValidationError, config: Any, use: str, path: KeyPath) -> str:
        lines = []
        for problem in error.errors():
            where = (*path, "options", *problem["loc"])
            message = option_worded(problem, use, config)
            lines.append(f"{self._where(where)}{'.'.join(map(str, where))}: {message}")
        return "\n".join(lines)

    def model(self, run: RunConfig) -> ModelPlan:
        block = run.model.language_model
        top = ("model", "language_model")
        language = self.part("language_model", Kind.LANGUAGE_MODEL, block, top)
        facts: LanguageModelFacts = language.facts
        head = self.part("language_model.text_head", Kind.HEAD, block.head, (*top, "head"), None, facts)
        generation = {name: self._generation(run, name, facts) for name in run.model.generation}
        understanding = {
            name: self._understanding(run, name, facts, generation) for name in run.model.understanding
        }
        return ModelPlan(language, head, understanding, generation)

    def _understanding(
        self, run: RunConfig, name: str, model: LanguageModelFacts, made: dict[str, GenerationPlan]
    ) -> UnderstandingPlan:
        block, top = run.model.understanding[name], ("model", "understanding", name)
        base, path = f"understanding.{name}", (*top, "encoder")
        shares = None
        if block.encoder.share is None:
            kind = Kind.UNDERSTANDING_ENCODER
            encoder = self.part(f"{base}.encoder", kind, block.encoder.component(), path)
        else:
            shares, encoder = self._shared(f"{base}.encoder", block.encoder.share, path, made)
        adapter = self.part(
            f"{base}.adapter", Kind.ADAPTER, block.adapter, (*top, "adapter"), encoder.facts, model
        )
        return UnderstandingPlan(encoder, adapter, shares)

    def _shared(
        self, address: str, share: str, path: tuple[str, ...], made: dict[str, GenerationPlan]
    ) -> tuple[str, Part]:
        """Return the modality of the generation encoder that `share` names, and its part, to be read from."""
        here = f"{self._where((*path, 'share'))}{address}"
        offered = {plan.encoder.address: modality for modality, plan in made.items()}
        if share not in offered:
            raise WiringError(
                f"{here}: share names {share!r}, but the model's generation encoders are "
                f"{sorted(offered)}.{nearest(share, offered)}"
            )
        encoder = made[offered[share]].encoder
        facts = encoder.config.feature_facts()
        if facts is None:
            raise WiringError(
                f"{here}: share names {share!r}, but {encoder.spec.name} offers no features to read; "
                "name an understanding encoder under 'use'"
            )
        return offered[share], replace(encoder, facts=facts)

    def _generation(self, run: RunConfig, name: str, model: LanguageModelFacts) -> GenerationPlan:
        block, top = run.model.generation[name], ("model", "generation", name)
        base = f"generation.{name}"
        encoder = self.part(f"{base}.encoder", Kind.GENERATION_ENCODER, block.encoder, (*top, "encoder"))
        adapter = self.part(
            f"{base}.adapter", Kind.ADAPTER, block.adapter, (*top, "adapter"), encoder.facts, model
        )
        head = self.part(f"{base}.head", Kind.HEAD, block.head, (*top, "head"), encoder.facts, model)
        return GenerationPlan(encoder, adapter, head, block.parallel)

    def data(self, run: RunConfig, lenient: bool) -> tuple[dict[str, DataPlan], dict[str, _CannotBeHad]]:
        """Return the data entries and, where that is allowed, why others cannot be had."""
        entries: dict[str, DataPlan] = {}
        absent: dict[str, _CannotBeHad] = {}
        for name, block in run.data.items():
            try:
                part = self.named(f"data.{name}", Kind.SOURCE, block, ("data", name))
            except _CANNOT_BE_HAD as error:
                if not lenient:
                    raise
                absent[name] = error
            else:
                entries[name] = DataPlan(block, part)
        return entries, absent

    def evaluation(
        self, run: RunConfig, absent: Mapping[str, _CannotBeHad], lenient: bool
    ) -> tuple[dict[str, EvaluationPlan], dict[str, _CannotBeHad]]:
        """Return the evaluation tasks and, where that is allowed, why others or their data cannot be had."""
        tests: dict[str, EvaluationPlan] = {}
        missing: dict[str, _CannotBeHad] = {}
        for name, block in run.evaluation.items():
            use, path = Named(use=block.task, options=block.options), ("evaluation", name)
            try:
                part = self.named(f"evaluation.{name}", Kind.EVALUATION_TASK, use, path, key="task")
            except _CANNOT_BE_HAD as error:
                if not lenient:
                    raise
                missing[name] = error
                continue
            test = EvaluationPlan(block, part)
            lacks = [one for one in (block.source, *test.facts.sources) if one in absent]
            if lacks:
                missing[name] = absent[lacks[0]]
            else:
                tests[name] = test
        return tests, missing

    def callbacks(self, run: RunConfig) -> dict[str, Part]:
        """Return the training callbacks by label, in the order of the file."""
        return {
            block.label: self.named(f"callbacks.{block.label}", Kind.CALLBACK, block, ("callbacks", position))
            for position, block in enumerate(run.callbacks)
        }


def _differ(one: str, value: object, other: str, expected: object, fix: str) -> list[str]:
    return [] if value == expected else [f"{one} is {value}, but {other} is {expected}; {fix}"]


def _model_problems(plan: RunPlan) -> list[str]:
    model, problems = plan.model, _text_problems(plan)
    for name, path in model.understanding.items():
        problems += _path_problems(path.encoder, path.adapter, name, "features", model.facts)
    for name, made in model.generation.items():
        problems += _path_problems(made.encoder, made.adapter, name, made.facts.form, model.facts)
        problems += _code_problems(made, model.facts)
        problems += _parallel_problems(plan, name)
    return problems + _token_problems(plan)


def _text_problems(plan: RunPlan) -> list[str]:
    head: HeadFacts = plan.model.text_head.facts
    problems = _head_problems(plan.model.text_head, "text", plan.model.facts)
    problems += _differ(
        "language_model.text_head: number of classes",
        head.size,
        "language_model: vocab_size",
        plan.model.facts.vocab_size,
        "make them equal",
    )
    block = plan.run.model.language_model.tokenizer
    if block.vocab_size and block.vocab_size > plan.model.facts.vocab_size:
        problems.append(
            f"language_model.tokenizer.vocab_size is {block.vocab_size}, but the language model embeds "
            f"{plan.model.facts.vocab_size} tokens; raise its vocab_size or lower the tokenizer's"
        )
    return problems


def _path_problems(
    encoder: Part, adapter: Part, name: str, accepts: str, model: LanguageModelFacts
) -> list[str]:
    problems = _differ(
        f"{encoder.address}: modality of {encoder.spec.name}",
        encoder.facts.modality,
        "the path's name",
        name,
        "move it to the path of its modality",
    )
    problems += _differ(
        f"{adapter.address}: what {adapter.spec.name} accepts",
        adapter.facts.accepts,
        f"the output of {encoder.address} ({encoder.spec.name})",
        accepts,
        "choose another adapter",
    )
    problems += _differ(
        f"{adapter.address}: input width",
        adapter.facts.in_width,
        f"{encoder.address}: width",
        encoder.facts.width,
        "change one of them",
    )
    return problems + _differ(
        f"{adapter.address}: output width",
        adapter.facts.out_width,
        "language_model: width",
        model.width,
        "change one of them",
    )


def _code_problems(made: GenerationPlan, model: LanguageModelFacts) -> list[str]:
    facts: GenerationFacts = made.facts
    problems = _head_problems(made.head, facts.form, model)
    size = facts.codebook_size if facts.form == "codes" else facts.width
    problems += _differ(
        f"{made.head.address}: size", made.head.facts.size, f"{made.encoder.address}: codes", size,
        "a head answers for exactly the encoder's codes",
    )  # fmt: skip
    problems += _codebook_problems(made)
    problems += _differ(
        f"{made.adapter.address}: rows of the code table",
        made.adapter.facts.codebook_size,
        f"{made.encoder.address}: codebook size",
        facts.codebook_size,
        "the table needs one row for each code",
    )
    count = 1
    for side in facts.grid:
        count *= side
    return problems + _differ(
        f"{made.encoder.address}: tokens", facts.tokens, "the size of its grid", count, "correct its facts"
    )


def _codebook_problems(made: GenerationPlan) -> list[str]:
    """Compare how many codes a slot has, to the encoder, to the adapter and to the head."""
    facts, here = made.facts, f"{made.encoder.address} ({made.encoder.spec.name}): codes of one slot"
    if facts.form == "latents":
        return _differ(here, facts.codebooks, "latents have", 1, "correct its facts")
    problems = []
    for part, several in ((made.adapter, "code-sum"), (made.head, "depth")):
        fix = f"several, such as {several}" if facts.codebooks > 1 else "one, such as code-mlp"
        problems += _differ(
            f"{part.address} ({part.spec.name}): codes of one slot", part.facts.codebooks, here,
            facts.codebooks, f"choose one that knows {fix}",
        )  # fmt: skip
    return problems


def _parallel_problems(plan: RunPlan, name: str) -> list[str]:
    made, language = plan.model.generation[name], plan.model.language_model
    if made.parallel is None or made.parallel.block == 1:
        return []
    here, block, tokens = f"generation.{name}.parallel", made.parallel.block, made.facts.tokens
    if tokens % block:
        fitting = ", ".join(str(size) for size in range(1, tokens + 1) if tokens % size == 0)
        return [
            f"{here}: block is {block}, but {made.encoder.address} makes {tokens} codes of an item, which "
            f"is no multiple of it; choose one of {fitting}"
        ]
    problems = []
    if made.parallel.sequential >= tokens // block:
        problems.append(
            f"{here}: sequential is {made.parallel.sequential}, but an item has {tokens // block} blocks of "
            f"{block}; leave at least one to be predicted at once"
        )
    if not plan.model.facts.bidirectional:
        problems.append(
            f"{here}: slots of a block must see one another, but language_model ({language.spec.name}) shows "
            "a slot only those before it (facts.bidirectional); choose another one, or remove 'parallel'"
        )
    return problems + _starts_problems(plan, name)


def _starts_problems(plan: RunPlan, name: str) -> list[str]:
    """Refuse stages that learn to predict blocks from start embeddings that stay random."""
    starts, head = f"generation.{name}.starts", f"generation.{name}.head"
    learnt = [prefix for stage in plan.run.stages for prefix in stage.learn]
    if not any(_under(head, prefix) for prefix in learnt) or any(_under(starts, one) for one in learnt):
        return []
    return [f"stages learn {head}, but none of them learns {starts}; add it beside the head under 'learn'"]


def _head_problems(head: Part, predicts: str, model: LanguageModelFacts) -> list[str]:
    problems = _differ(
        f"{head.address}: {head.spec.name} predicts",
        head.facts.predicts,
        "what is needed there",
        predicts,
        "choose another head",
    )
    return problems + _differ(
        f"{head.address}: input width",
        head.facts.in_width,
        "language_model: width",
        model.width,
        "change one of them",
    )


def _token_problems(plan: RunPlan) -> list[str]:
    owners: dict[str, str] = {}
    problems = []
    for name in plan.run.model.modalities():
        for role, token in plan.run.model.item_tokens(name).model_dump().items():
            here = f"tokens.{name}.{role}"
            if token in owners:
                problems.append(f"{here} and {owners[token]} are both {token!r}; each needs its own string")
            owners[token] = here
    unknown = set(plan.run.model.tokens) - set(plan.run.model.modalities())
    problems += [
        f"tokens.{name}: the model has no such modality.{nearest(name, plan.run.model.modalities())}"
        for name in sorted(unknown)
    ]
    return problems


def _drawn(plan: RunPlan) -> set[str]:
    """Name the data that a stage or an evaluation draws from; without stages, all."""
    if not plan.run.stages:
        return set(plan.data)
    names = {test.source for test in plan.run.evaluation.values()}
    for stage in plan.run.stages:
        names |= {
            name
            for name, data in plan.data.items()
            if stage.mix.get(data.block.task, 0) > 0 and (stage.sources is None or name in stage.sources)
        }
    return names


def _data_problems(plan: RunPlan) -> list[str]:
    problems, drawn = [], _drawn(plan)
    for name, data in plan.data.items():
        tasks = set(data.facts.tasks)
        if "interleaved" in tasks:
            # The papers' ratios have three columns; an interleaved set counts for the one it is given.
            tasks |= {"understanding", "generation", "text"}
        if data.block.task not in tasks:
            problems.append(
                f"data.{name}: {data.block.use} with these options yields {sorted(data.facts.tasks)}, "
                f"not task {data.block.task!r}; change one of them"
            )
        for kind in ("understanding", "generation") if name in drawn else ():
            have: Mapping[str, object] = getattr(plan.model, kind)
            for modality in sorted(getattr(data.facts, kind) - set(have)):
                problems.append(
                    f"data.{name}: its samples need model.{kind}.{modality}, and the model's {kind} paths "
                    f"are {sorted(have)}; add that path or change the source's modality"
                )
    for name, test in plan.run.evaluation.items():
        if name in plan.missing:
            continue
        if test.source not in plan.data:
            problems.append(
                f"evaluation.{name}: no data entry {test.source!r}.{nearest(test.source, plan.data)}"
            )
        elif plan.data[test.source].block.split != "test":
            problems.append(
                f"evaluation.{name}: data.{test.source} has split: train; use one with split: test"
            )
    return problems


def _held_out_problems(plan: RunPlan) -> list[str]:
    """Find test data that are train data: `split` says what an entry is for, its options what is read."""
    return [
        f"data.{name}: has split: test and reads the same samples as data.{other}, which has split: train: "
        f"the same source with the same options; give data.{name} options that read held-out samples"
        + (" (options.split)" if "split" in type(test.part.config).model_fields else "")
        for name, test in plan.data.items()
        for other, train in plan.data.items()
        if (test.block.split, train.block.split) == ("test", "train")
        and test.part.spec is train.part.spec
        and test.part.config == train.part.config
    ]


def _evaluation_problems(plan: RunPlan) -> list[str]:
    """Check what tasks need against the data; whether the source exists is known by now."""
    problems = [
        f"evaluation.{name}: evaluation.json has {name!r} beside the entries' scores; call this one otherwise"
        for name in plan.run.evaluation
        if name in BESIDE_SCORES
    ]
    for name, test in plan.evaluation.items():
        here = f"evaluation.{name}: {test.block.task}"
        source = plan.data.get(test.block.source)
        if source is not None and source.block.task not in test.facts.tasks:
            problems.append(
                f"{here} scores {sorted(test.facts.tasks)}, but data.{test.block.source} has task "
                f"{source.block.task!r}; choose another source or another task"
            )
        problems += [
            f"{here} reads data entry {other!r}, which there is not.{nearest(other, plan.data)}"
            for other in test.facts.sources
            if other not in plan.data
        ]
    return problems


def _callback_problems(plan: RunPlan) -> list[str]:
    names = [stage.name for stage in plan.run.stages]
    return [
        f"{part.address}: {part.spec.name} speaks of a stage {stage!r}, but the run's stages are "
        f"{names}.{nearest(stage, names)}"
        for part in plan.callbacks.values()
        for stage in part.facts.stages
        if stage not in names
    ]


def _stage_problems(plan: RunPlan, stage: StageBlock) -> list[str]:
    problems = [text for prefix in stage.learn for text in _learn_problems(plan, stage, "learn", prefix)]
    problems += [text for prefix in stage.lora or () for text in _learn_problems(plan, stage, "lora", prefix)]
    if stage.reconstruct is not None and stage.reconstruct not in plan.model.generation:
        problems.append(
            f"reconstruct: the model generates {sorted(plan.model.generation)}, not {stage.reconstruct!r}"
        )
    if stage.max_length > plan.model.facts.max_positions:
        problems.append(
            f"max_length is {stage.max_length}, but the language model has {plan.model.facts.max_positions} "
            "positions; lower one or raise the other"
        )
    problems += _length_problems(plan, stage)
    return [*problems, *_mix_problems(plan, stage), *unread_in_stage(stage)]


def _learn_problems(plan: RunPlan, stage: StageBlock, key: str, prefix: str) -> list[str]:
    addresses = plan.model.addresses()
    named = [address for address in addresses if _under(address, prefix) or _under(prefix, address)]
    if not named:
        return [f"{key}: {prefix!r} is no part of the model.{nearest(prefix, addresses)}"]
    reached = _reached(plan, stage)
    beyond = [address for address in named if address not in reached]
    if not beyond:
        return []
    narrower = [address for address in named if address in reached]
    advice = f"name {', '.join(narrower)} instead" if narrower else "leave it out"
    if stage.reconstruct is None:
        advice += ", or train encoders in a stage with 'reconstruct'"
    return [
        f"{key}: {prefix!r} holds {beyond[0]}, which no loss of this stage reaches: it would learn nothing "
        f"and decay; {advice}"
    ]


def _reached(plan: RunPlan, stage: StageBlock) -> set[str]:
    """Return the addresses that a stage's losses have gradients for.

    Codes have none: a generation encoder learns by its own loss, or where understanding shares it.
    """
    if stage.reconstruct is not None:
        return {f"generation.{stage.reconstruct}.encoder"}
    shared = {path.shares for path in plan.model.understanding.values()}
    unshared = {f"generation.{name}.encoder" for name in plan.model.generation if name not in shared}
    return set(plan.model.addresses()) - unshared


def _under(address: str, prefix: str) -> bool:
    return address == prefix or address.startswith(prefix + ".")


def _length_problems(plan: RunPlan, stage: StageBlock) -> list[str]:
    if stage.reconstruct is not None:
        return []
    longest: dict[str, int] = {}
    for name, path in plan.model.understanding.items():
        longest[f"understanding.{name}"] = path.tokens(path.facts.max_tokens)
    for name, made in plan.model.generation.items():
        longest[f"generation.{name}"] = made.slots
    return [
        f"max_length is {stage.max_length}, but one item of {address} takes {tokens} slots and 3 more "
        "around it; raise max_length"
        for address, tokens in longest.items()
        if tokens + 3 > stage.max_length
    ]


def _mix_problems(plan: RunPlan, stage: StageBlock) -> list[str]:
    problems, windows = [], stage.sources
    for name in windows or ():
        if name not in plan.data:
            problems.append(f"sources: no data entry {name!r}.{nearest(name, plan.data)}")
        elif plan.data[name].block.split != "train":
            problems.append(f"sources: data.{name} has split: test, which is never trained on")
    for task, ratio in stage.mix.items():
        if ratio <= 0:
            continue
        spans = [
            (windows[name].after, windows[name].until or stage.steps) if windows else (0, stage.steps)
            for name, data in plan.data.items()
            if data.block.task == task and data.block.split == "train" and (not windows or name in windows)
        ]
        gap = _first_gap(spans, stage.last_step)
        if gap is not None:
            problems.append(
                f"mix: task {task!r} has no source to draw from at step {gap}; add one under data"
            )
    return problems


def _first_gap(spans: list[tuple[int, int]], steps: int) -> int | None:
    reached = 0
    for start, end in sorted(spans):
        if start > reached:
            break
        reached = max(reached, end)
    return None if reached >= steps else reached
