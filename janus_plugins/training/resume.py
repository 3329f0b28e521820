"""Where a run starts: at the very beginning, or from a checkpoint that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.schema import EngineBlock
from janus_plugins.training.checkpoint import Checkpoints, Found
from janus_plugins.training.ds_config import zero_stage
from janus_plugins.training.publish import read_manifest, sweep
from janus_plugins.training.recipe import Recipe


def run_identity(recipe: Recipe) -> dict[str, Any]:
    """Return what a resumed run must share, as plain data."""
    return {
        **recipe.identity,
        "seed": recipe.seed,
        "engine": {
            "precision": recipe.engine.precision,
            "accumulate": recipe.engine.accumulate,
            "zero_stage": zero_stage(recipe.engine),
            # DeepSpeed deals the state out to ranks in another order, and loads one for the other silently.
            "round_robin_gradients": bool(_zero(recipe.engine).get("round_robin_gradients")),
        },
        "stages": [stage.model_dump(mode="json") for stage in recipe.stages],
    }


def _zero(engine: EngineBlock) -> Mapping[str, Any]:
    block = engine.deepspeed.get("zero_optimization")
    return block if isinstance(block, Mapping) else {}


def start_from(
    recipe: Recipe,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
    chosen: list[int],
    only_stage: str | None,
    resume: bool,
) -> Found | None:
    """Find what to start from: a checkpoint, or None for the very beginning. Main rank only."""
    sweep(checkpoints.root)
    first = chosen[0]
    if not resume:
        anew = first == 0 or recipe.source is not None
        _refuse_overwriting(checkpoints, first, only_stage, anew)
        if anew:
            return None
    elif only_stage is not None:
        _refuse_going_back(checkpoints, first, only_stage)
        say(f"resuming stage {only_stage} alone")
    found = checkpoints.find(say, None if only_stage is None else first)
    _refuse_changes(found, run_identity(recipe), checkpoints.root, recipe.provenance)
    checkpoints.set_aside(found, say)
    if recipe.source is not None:
        say(f"note: {recipe.source} is left aside; the run goes on from a checkpoint of its own")
    for change in _other_versions(found.manifest.get("provenance", {}), recipe.provenance):
        say(f"note: {change}")
    say(f"going on from {checkpoints.root / found.name} (step {found.position.total})")
    return found


def _refuse_overwriting(checkpoints: Checkpoints, first: int, only_stage: str | None, anew: bool) -> None:
    """Refuse to start what is already there; one stage alone may start on the end of the one before."""
    names = [
        name
        for name in checkpoints.started()
        if anew or _stage_of(name, checkpoints, otherwise=first) >= first
    ]
    if names:
        raise CheckpointError(
            f"{checkpoints.root} already holds {', '.join(names[:4])}: go on with --resume, or choose "
            "another folder with --out"
        )
    if not anew and first - 1 not in checkpoints.stages():
        raise CheckpointError(
            f"stage {only_stage!r} starts from the end of the stage before it, but {checkpoints.root} has no "
            f"stage_{first - 1}; train that one first, or name a model to start from with --from"
        )


def _refuse_going_back(checkpoints: Checkpoints, first: int, only_stage: str) -> None:
    """Refuse to resume a stage that others were trained after: `model/` and the metrics are theirs."""
    names = [name for name in checkpoints.started() if _stage_of(name, checkpoints, otherwise=first) > first]
    if names:
        raise CheckpointError(
            f"stage {only_stage!r} is behind this run: {checkpoints.root} holds {', '.join(names[:4])} of "
            "later stages; leave out --stage to go on, or choose another folder with --out"
        )


def _stage_of(name: str, checkpoints: Checkpoints, otherwise: int) -> int:
    """Return the stage that a checkpoint belongs to; `otherwise` of one that cannot be read."""
    try:
        return int(read_manifest(checkpoints.root / name)["position"]["stage"])
    except (CheckpointError, KeyError, TypeError):
        return otherwise


def _refuse_changes(found: Found, own: dict[str, Any], root: Path, provenance: Mapping[str, Any]) -> None:
    """Refuse a run file that differs in what the checkpoint was trained with; later stages may change."""
    begun = found.position.stage + 1
    made_by = found.manifest.get("provenance", {})
    saved = {**found.manifest.get("identity", {}), "components": _components(made_by)}
    own = {**own, "components": _components(provenance)}
    for key in {"draws", "options"} - saved.keys():  # a run that was begun before this was recorded, as below
        own = {name: value for name, value in own.items() if name != key}
    if "round_robin_gradients" not in saved.get("engine", {}):
        own["engine"] = {key: own["engine"][key] for key in own["engine"] if key != "round_robin_gradients"}
    lines = _told(_until(saved, begun), _until(own, begun))
    if found.kind == "stage":  # how the next stage runs is free
        lines = [line for line in lines if not line.startswith("engine.")]
    if lines:
        listed = "\n  ".join(lines[:12])
        changed = "".join(f"\nnote: {change}" for change in _other_versions(made_by, provenance))
        raise CheckpointError(
            f"{root / found.name} belongs to another run:\n  {listed}{changed}\n"
            "undo this, or start anew with --out"
        )


def _told(saved: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Return where two identities differ; of options and components what holds counts, wherever it is said.

    A default may have changed with a plugin since. One that only one of the two knows is new, or gone.
    A component's bare name, and its name with the distribution's, mean the same where one plugin offers it.
    """
    then, now = saved.pop("options", {}), own.pop("options", {})
    made_by, makes = saved.pop("components", {}), own.pop("components", {})
    same = {address for address, component in made_by.items() if makes.get(address) == component}
    lines = [
        line
        for line in differences(saved, own)
        if not (_both_know(line, then, now) or _address(line, ".use") in same)
    ]
    told = {_address(line, ".use") for line in lines}
    others = differences(_shared(made_by, makes), _shared(makes, made_by))
    lines += [line for line in others if line.partition(": ")[0] not in told]
    return lines + differences(_shared(then, now), _shared(now, then), "options")


def _address(line: str, key: str) -> str:
    """Return the part's address in a difference of its `key`; of others, no part's."""
    where = line.partition(": ")[0]
    address = where.partition(key)[0] if key in where else ""
    return address.removeprefix("model.").replace("language_model.head", "language_model.text_head")


def _components(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return "distribution/name" of each part of the model and of its data, by address."""
    components = {}
    for address, made_by in provenance.get("parts", {}).items():
        distribution, _, component = made_by.partition("==")
        if not address.startswith(("evaluation.", "callbacks.")):
            components[address] = f"{distribution}/{component.rpartition('/')[2]}"
    return components


def _other_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which of the plugins that a checkpoint was made with are of another version now."""
    saved, own = (
        dict(made_by.partition(" ")[0].split("==") for made_by in one.get("parts", {}).values())
        for one in (then, now)
    )
    return [
        f"it was made with {name} {version}; {name} {own[name]} is installed"
        for name, version in sorted(saved.items())
        if own.get(name, version) != version
    ]


def _both_know(line: str, *known: Mapping[str, Any]) -> bool:
    """Answer whether a difference is of an option of a run file whose value is known on both sides."""
    rest = line.partition(": ")[0].partition(".options.")[2]
    name = rest.partition(".")[0].partition("[")[0]
    options = [one.get(_address(line, ".options.")) for one in known]
    return all(isinstance(one, Mapping) and name in one for one in options)


def _shared(one: Any, other: Any) -> Any:
    """Return plain data without the keys that the other does not have."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return one
    return {key: _shared(value, other[key]) for key, value in one.items() if key in other}


def _until(identity: Mapping[str, Any], begun: int) -> dict[str, Any]:
    """Return what an identity says of the first stages: their rows, and the data that they draw from."""
    kept = {**identity, "stages": identity.get("stages", [])[:begun]}
    if "draws" in identity:
        kept["draws"] = identity["draws"][:begun]
        drawn = {name for names in kept["draws"] for name in names}
        kept["data"] = {name: block for name, block in identity["data"].items() if name in drawn}
        for key in ("options", "components"):
            kept[key] = {
                address: told
                for address, told in identity.get(key, {}).items()
                if not address.startswith("data.") or address.removeprefix("data.") in drawn
            }
    return kept


def differences(saved: Any, own: Any, path: str = "") -> list[str]:
    """Return the dotted keys at which two plain structures differ, with both values."""
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        keys = [*saved, *(key for key in own if key not in saved)]
        return [
            line
            for key in keys
            for line in differences(saved.get(key), own.get(key), f"{path}.{key}" if path else str(key))
        ]
    if isinstance(saved, list) and isinstance(own, list) and len(saved) == len(own):
        pairs = enumerate(zip(saved, own, strict=True))
        return [line for index, (a, b) in pairs for line in differences(a, b, f"{path}[{index}]")]
    return [] if saved == own else [f"{path}: {saved!r} was saved, this run has {own!r}"]
