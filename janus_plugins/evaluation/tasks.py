"""Evaluation tasks: a model and a held-out source in, figures between 0 and 1 out.

A task is a function; `TASKS` names them. Options come from the run file and are validated here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from janus_plugins.core.errors import DataError, PluginError, RunFileError
from janus_plugins.core.samples import Item, Sample
from janus_plugins.data.sources import open_source
from janus_plugins.evaluation.pitch import pitch_of

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source
    from janus_plugins.model.unified import UnifiedModel


class Options(BaseModel):
    """Refuse unknown options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Settings = TypeVar("Settings", bound=Options)


class ExactMatch(Options):
    """Set `exact-match`: the model's answer must be the sample's, but for case and outer spaces."""

    max_new_tokens: int = Field(default=16, ge=1)
    limit: int | None = Field(default=None, ge=1, description="score the first so many samples only")
    batch: int = Field(default=64, ge=1)


class ClassifiedGeneration(Options):
    """Set `classified-generation`: a classifier of real items must see in each what its prompt asked for."""

    train_source: str = Field(description="data entry whose real items train the classifier")
    num_per_prompt: int = Field(default=20, ge=1)
    guidance: float = Field(default=5.0, ge=0)
    temperature: float = Field(default=1.0, ge=0)
    seed: int = 0
    max_rows: int = Field(default=256, ge=2)


class PitchMatch(Options):
    """Set `pitch`: a made sound's pitch must be that of the real sounds of its caption."""

    within: float = Field(default=0.03, gt=0, lt=1, description="share by which a pitch may be off")
    num_per_prompt: int = Field(default=4, ge=1)
    guidance: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, ge=0)
    seed: int = 0
    max_rows: int = Field(default=256, ge=2)


def exact_match(model: UnifiedModel, source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Answer every sample of a source greedily; score the share that is answered exactly."""
    settings = _options(ExactMatch, options, source)
    samples = _samples(model, source)[: settings.limit]
    right = 0
    for start in range(0, len(samples), settings.batch):
        chunk = samples[start : start + settings.batch]
        questions, items, answers = zip(*map(_question, chunk), strict=True)
        said = model.ask(
            list(questions), items=_columns(items), max_new_tokens=settings.max_new_tokens, temperature=0.0
        )
        right += sum(_same(one, other) for one, other in zip(said, answers, strict=True))
    return {"score": right / len(samples), "samples": len(samples)}


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def _question(sample: Sample) -> tuple[str, list[Item], str]:
    """Split a sample into its question, the items it shows, and the expected answer."""
    asked = [part for turn in sample.turns if turn.role == "user" for part in turn.parts]
    answer = "".join(part for turn in sample.turns if turn.role == "assistant" for part in turn.parts)  # type: ignore[misc]
    items = [part for part in asked if isinstance(part, Item)]
    return "".join(part for part in asked if isinstance(part, str)), items, answer


def _columns(items: tuple[list[Item], ...]) -> dict[str, list[list[object]]] | None:
    """Turn a list of items a question into, by modality, a list of values a question."""
    names = sorted({item.modality for row in items for item in row})
    return {
        name: [[item.value for item in row if item.modality == name] for row in items] for name in names
    } or None


def classified_generation(model: UnifiedModel, source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Generate from every distinct prompt of a source; score with a classifier of real items.

    The classifier (an RBF support-vector machine) sees only the real items of `train_source`. Its
    accuracy on the real held-out items, and on their reconstructions through the generation encoder,
    are the ceilings beside the score.
    """
    settings = _options(ClassifiedGeneration, options, source)
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise PluginError(
            f"classified-generation needs scikit-learn ({error}): pip install 'janus-plugins[demo]'"
        ) from error
    train, test = _samples(model, settings.train_source), _samples(model, source)
    modality = _generated(test[0])[1].modality
    judge = SVC(C=10.0).fit(_pixels(model, modality, train), [_generated(one)[0] for one in train])
    real, labels = _pixels(model, modality, test), [_generated(one)[0] for one in test]
    codes = model.encode(modality, [_generated(one)[1].value for one in test])
    rebuilt = np.stack([_features(one) for one in model.decode(modality, codes)])
    prompts = sorted(set(labels))
    made = model.generate(
        prompts, modality=modality, num_per_prompt=settings.num_per_prompt, guidance=settings.guidance,
        temperature=settings.temperature, seed=settings.seed, max_rows=settings.max_rows,
    )  # fmt: skip
    seen = judge.predict(np.stack([_features(one.artefact) for one in made]))
    hits = [one.prompt == label for one, label in zip(made, seen, strict=True)]
    by_prompt = {
        prompt: float(np.mean([hit for one, hit in zip(made, hits, strict=True) if one.prompt == prompt]))
        for prompt in prompts
    }
    ceilings = {
        "real": float(judge.score(real, labels)),
        "reconstructed": float(judge.score(rebuilt, labels)),
    }
    return {"score": float(np.mean(hits)), "samples": len(hits), "ceilings": ceilings, "by_prompt": by_prompt}


def pitch(model: UnifiedModel, source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Generate sounds of every distinct caption of a source; score the share whose pitch is right.

    Right is the median pitch of the real sounds of the same caption, measured in the same way. The share of
    real sounds, and of their reconstructions through the generation encoder, that are right, are the
    ceilings beside the score. A sound without a pitch counts as wrong.
    """
    settings = _options(PitchMatch, options, source)
    samples = _samples(model, source)
    labels, items = zip(*(_generated(one) for one in samples), strict=True)
    modality, values = items[0].modality, [item.value for item in items]
    processor = model.processor(modality)
    real = [pitch_of(processor.restore(processor(value)["samples"])) for value in values]
    rebuilt = [pitch_of(one) for one in model.decode(modality, model.encode(modality, values))]
    wanted = {
        label: float(np.median([seen for seen, own in zip(real, labels, strict=True) if own == label]))
        for label in sorted(set(labels))
    }
    made = model.generate(
        list(wanted), modality=modality, num_per_prompt=settings.num_per_prompt, guidance=settings.guidance,
        temperature=settings.temperature, seed=settings.seed, max_rows=settings.max_rows,
    )  # fmt: skip

    def right(label: str, seen: float) -> bool:
        return bool(abs(seen / wanted[label] - 1) <= settings.within)

    hits = [right(one.prompt, pitch_of(one.artefact)) for one in made]
    by_prompt = {
        label: float(np.mean([hit for one, hit in zip(made, hits, strict=True) if one.prompt == label]))
        for label in wanted
    }
    ceilings = {
        "real_pitch": float(np.mean([right(*each) for each in zip(labels, real, strict=True)])),
        "reconstructed_pitch": float(np.mean([right(*each) for each in zip(labels, rebuilt, strict=True)])),
    }
    return {"score": float(np.mean(hits)), "samples": len(hits), "ceilings": ceilings, "by_prompt": by_prompt}


def _generated(sample: Sample) -> tuple[str, Item]:
    prompt = "".join(
        part for turn in sample.turns if turn.role == "user" for part in turn.parts if isinstance(part, str)
    )
    items = [part for turn in sample.turns for part in turn.parts if isinstance(part, Item) and part.learn]
    if len(items) != 1:
        raise DataError(f"{sample.key}: this task needs samples that generate one item each")
    return prompt, items[0]


def _pixels(model: UnifiedModel, modality: str, samples: list[Sample]) -> np.ndarray:
    """Return real items as the encoder's processor shows them, brought back to artefacts [N, F]."""
    processor = model.processor(modality)
    return np.stack(
        [_features(processor.restore(processor(_generated(one)[1].value)["pixels"])) for one in samples]
    )


def _features(artefact: Any) -> np.ndarray:
    return np.asarray(artefact.convert("L"), dtype=np.float32).reshape(-1) / 255


def _samples(model: UnifiedModel, name: str) -> list[Sample]:
    source: Source = open_source(model.plan.data[name].part)
    return [source[index] for index in range(len(source))]


def _options(kind: type[Settings], options: Mapping[str, Any], source: str) -> Settings:
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise RunFileError(f"evaluation on {source}: " + "; ".join(lines)) from None


Task = Callable[["UnifiedModel", str, Mapping[str, Any]], dict[str, Any]]

TASKS: dict[str, Task] = {
    "exact-match": exact_match,
    "classified-generation": classified_generation,
    "pitch": pitch,
}
