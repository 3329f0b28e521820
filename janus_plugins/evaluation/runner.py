"""Run a model's evaluation tasks, and what comes after training: evaluation, pictures, report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from janus_plugins.core.catalogue import load_factory
from janus_plugins.core.errors import BadSample, DataError, JanusPluginsError, PluginError, RunFileError
from janus_plugins.core.outputs import make_folder, replaced, writing
from janus_plugins.core.peers import is_lost_peer
from janus_plugins.core.suggest import nearest
from janus_plugins.data.sources import is_streaming, open_source, size_of

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source
    from janus_plugins.core.plan import EvaluationPlan, RunPlan
    from janus_plugins.core.samples import Sample
    from janus_plugins.evaluation.ranks import SharedModel
    from janus_plugins.model.unified import UnifiedModel
    from janus_plugins.training.plan_recipe import Start
    from janus_plugins.training.run import TrainResult


def evaluate_model(
    model: UnifiedModel | SharedModel,
    names: tuple[str, ...] = (),
    out: Path | None = None,
    *,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Run the evaluation entries of the model's run file.

    Args:
        model: a trained model, or one that several ranks share (`evaluation.ranks`).
        names: entries to run; all of them by default.
        out: folder for evaluation.json.
        seconds: seconds of each training stage, to be kept beside the scores.

    Returns:
        The score of each entry by its name; by their entries' names "ceilings" and "details"; and
        "seconds_per_stage".

    Raises:
        RunFileError: no such entry, or `out` cannot be written.
        PluginError: a task's plugin is missing, or the task raised or answered something else.
        DataError: a source cannot be opened, or is read in order.
    """
    blocks = model.plan.run.evaluation
    unknown = [name for name in names if name not in blocks]
    if unknown:
        raise RunFileError(
            f"no evaluation entry {unknown[0]!r}; the run has {sorted(blocks)}.{nearest(unknown[0], blocks)}"
        )
    if out is not None:
        make_folder(out)
    result: dict[str, Any] = {}
    ceilings: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {}
    for name in names or tuple(blocks):
        answer = _run_task(model, name)
        result[name] = answer.pop("score")
        if known := answer.pop("ceilings", None):
            ceilings[name] = known
        details[name] = answer
    result |= {"ceilings": ceilings, "details": details, "seconds_per_stage": dict(seconds or {})}
    if out is not None:
        with writing(out), replaced(out / "evaluation.json") as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _run_task(model: UnifiedModel | SharedModel, name: str) -> dict[str, Any]:
    """Run one evaluation task and return what it answered, as plain data with a "score"."""
    plan = model.plan
    if name in plan.missing:
        raise plan.missing[name]
    test = plan.evaluation[name]
    source = _held_out(plan, test.block.source)
    others = {other: _by_index(plan, other) for other in test.facts.sources}
    try:
        task = load_factory(test.part.spec)(test.part.config, test.facts)
        answer: dict[str, Any] = json.loads(json.dumps(dict(task(model, source, others)), allow_nan=False))
    except JanusPluginsError:
        raise
    except Exception as error:
        if is_lost_peer(error):
            raise
        raise PluginError(f"{_who(test)}: {type(error).__name__}: {error}") from error
    if isinstance(answer.get("score"), bool) or not isinstance(answer.get("score"), int | float):
        raise PluginError(f'{_who(test)}: answered no number under "score", but {answer!r:.200}')
    return answer


def _who(test: EvaluationPlan) -> str:
    owner = test.part.owner
    return (
        f"{test.part.address}: {test.part.spec.kind}/{test.part.spec.name} of {owner.distribution} "
        f"{owner.version}"
    )


class _Whole:
    """Be a source of which every sample must be there: a score of the others would be of another set."""

    def __init__(self, name: str, source: Any) -> None:
        self._name, self._source = name, source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        try:
            sample: Sample = self._source[index]
        except BadSample as error:
            raise DataError(
                f"data.{self._name}: sample {index} cannot be read: {error}; evaluation leaves none out: "
                "mend or remove it, and run `janus-plugins evaluate`"
            ) from error
        return sample

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also before there is a source, when a copy is made
            raise AttributeError(name)
        return getattr(self._source, name)


def _held_out(plan: RunPlan, name: str) -> Source:
    return cast("Source", _Whole(name, _by_index(plan, name)))


def _by_index(plan: RunPlan, name: str) -> Source:
    source = open_source(plan.data[name].part)
    if is_streaming(source):
        raise DataError(
            f"data.{name} is read in order; evaluation needs a source that is read by index (for hf-dataset: "
            "streaming: false)"
        )
    size_of(name, source)
    return cast("Source", source)


def start_with(source: Path, resume: bool) -> Start:
    """Return how a run begins with the model in a folder, looked at now and read when it is needed.

    Args:
        source: the folder, or that of a run.
        resume: whether the run goes on from a checkpoint of its own, for which the folder need not be there.

    Raises:
        CheckpointError: there is no model in the folder.
    """
    from janus_plugins.conversion.checkpoint import recognise
    from janus_plugins.door import load
    from janus_plugins.model.native import located
    from janus_plugins.model.start import take_weights
    from janus_plugins.sequence.tokenizers import load_tokenizer
    from janus_plugins.training.plan_recipe import Start

    native = not resume and recognise(located(source)) == "native"
    return Start(
        str(source),
        lambda model: take_weights(model, load(source), str(source)),
        load_tokenizer(located(source)) if native else None,
    )


def train_and_evaluate(
    plan: RunPlan, out: Path, stage: str | None, resume: bool, evaluate: bool, source: Path | None = None
) -> None:
    """Train, from the weights at `source` if given; after the last stage evaluate on all ranks and report."""
    from janus_plugins.evaluation.pictures import sampler
    from janus_plugins.training.report import write_report
    from janus_plugins.training.run import train

    start = None if source is None else start_with(source, resume)
    trained = train(plan, out, only_stage=stage, resume=resume, sampler=sampler(plan), start=start)
    if stage not in (None, plan.run.stages[-1].name):
        return
    told = _evaluated(trained, out) if evaluate and plan.run.evaluation else None
    if trained.is_main:
        print(f"report: {write_report(out, *(told or (None, {})))}")


def _evaluated(trained: TrainResult, out: Path) -> tuple[dict[str, Any], dict[str, Path]] | None:
    """Evaluate a run's model on all of its ranks; the main rank prints and returns scores and pictures."""
    from janus_plugins.door import load
    from janus_plugins.evaluation.pictures import picture_grids
    from janus_plugins.evaluation.ranks import among_ranks, joined
    from janus_plugins.tables import print_evaluation

    def work(model: Any) -> tuple[dict[str, Any], dict[str, Path]]:
        result = evaluate_model(model, out=out, seconds=trained.seconds)
        pictures = picture_grids(model, out)
        print_evaluation({key: value for key, value in result.items() if key != "details"})
        return result, pictures

    device = trained.device
    return among_ranks(joined(device), lambda: load(out / "model", str(device)), work)
