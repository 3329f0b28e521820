"""The native checkpoint: a folder with config.yaml, safetensors, tokenizer, provenance, checksums.

No pickle is read or written. Every file's sha256 is recorded in manifest.json, since safetensors has no
checksum of its own: a flipped bit is refused, not loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import janus_plugins
from janus_plugins.core.blame import full_name
from janus_plugins.core.catalogue import catalogue_for
from janus_plugins.core.errors import CheckpointError, PluginError, RunFileError
from janus_plugins.core.options import unlike
from janus_plugins.core.outputs import left_by_the_dead, partial_of
from janus_plugins.core.owner import Owner
from janus_plugins.core.plan import Part, RunPlan, plain_options
from janus_plugins.core.requirements import installed_version
from janus_plugins.core.runfile import dump_run, load_run, locator
from janus_plugins.core.schema import ModelBlock
from janus_plugins.core.wiring import resolve
from janus_plugins.model.empty import Filler, compose_empty
from janus_plugins.model.steady import settle, steadily
from janus_plugins.model.tensor_file import KEPT_DTYPES, TensorFile, write_tensors
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.sequence.tokenizers import load_tokenizer

FORMAT = 1
SHARD_BYTES = 4_500_000_000
_log = logging.getLogger(__name__)


def save_native(model: UnifiedModel, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write `model` to `folder`, at once or not at all.

    Args:
        model: the model.
        folder: replaced if it is a native checkpoint already, of which files that are none of the
            checkpoint's stay; refused if it holds anything else.
        state: weights to write in the place of the model's own (gathered under ZeRO-3).

    Raises:
        CheckpointError: the folder holds something else, or the disk is full.
    """
    target = new_folder(folder)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; choose another folder")
    if target.exists() and any(target.iterdir()) and not is_native(target):
        raise CheckpointError(f"{target} is not empty and no native checkpoint; choose another folder")
    partial = partial_of(target)
    try:
        for old in left_by_the_dead(target, "old"):
            _put_back(old, target)
        partial.mkdir(parents=True)
        _write(model, partial, state if state is not None else model.state_dict())
        _swap(partial, target)
    except OSError as error:
        raise CheckpointError(
            f"{target}: writing the model failed: {error}; free space and save again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: UnifiedModel, folder: Path, state: Mapping[str, Tensor]) -> None:
    write_texts(model, folder)
    save_tensors(state, folder)
    write_manifest(folder)


def write_texts(model: UnifiedModel, folder: Path) -> None:
    """Write config.yaml, the tokenizer and the provenance of a native checkpoint."""
    (folder / "config.yaml").write_text(dump_run(model.plan.run), encoding="utf-8")
    model.tokenizer.save(str(folder))
    (folder / "provenance.json").write_text(json.dumps(provenance(model), indent=1), encoding="utf-8")


def write_manifest(folder: Path, extras: Sequence[str] = ()) -> None:
    """Record every file of a native checkpoint with its sha256; to be called last.

    Args:
        folder: the checkpoint.
        extras: files that are no part of the model, kept for layouts that it came from.
    """
    files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "sha256": files, **({"extras": list(extras)} if extras else {})}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _swap(partial: Path, target: Path) -> None:
    """Put a whole folder in the place of another; where that is broken off the other one comes back."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        if old.exists():
            _put_back(old, target)


def _put_back(old: Path, target: Path) -> None:
    """Give a checkpoint that was moved away its name again, or what a user put there to the new one."""
    if is_native(target):
        _keep_others(old, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(target)


def _keep_others(old: Path, target: Path) -> None:
    """Move what a user put into a checkpoint, which its manifest does not name, into the next one."""
    try:
        written = json.loads((old / "manifest.json").read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError, OSError):
        written = {}
    for path in old.iterdir():
        if path.name not in {*written, "manifest.json"} and not (target / path.name).exists():
            path.rename(target / path.name)


def new_folder(folder: str | Path) -> Path:
    """Return where a folder is to be written, symbolic links followed.

    Raises:
        CheckpointError: it is the current directory or holds it, which would be left in nothing.
    """
    target = Path(folder).resolve()
    if Path.cwd().is_relative_to(target):
        raise CheckpointError(f"{folder} is where this program runs; name a folder below it")
    return target


def provenance(model: UnifiedModel) -> dict[str, Any]:
    """Return who made each part, by address: distribution, version, component, and all its options.

    A run file says the options that differ from the defaults of the day; those may change. The versions of
    the libraries below are there, too.
    """
    parts = {
        part.address: {
            "component": f"{part.spec.kind}/{part.spec.name}",
            "distribution": part.owner.distribution,
            "version": part.owner.version,
            "options": plain_options(part.config),
        }
        for part in model.plan.model.parts()
    }
    return {
        "janus-plugins": janus_plugins.__version__,
        "torch": torch.__version__,
        "parts": parts,
        "libraries": {name: here for name in _LIBRARIES if (here := installed_version(name))},
    }


_LIBRARIES = ("transformers", "timm", "open-clip-torch", "diffusers")
"""Whose modules parts are made of; another version may call them otherwise."""


def save_tensors(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors as model.safetensors, or as shards with an index; a shared tensor only once.

    Raises:
        CheckpointError: a tensor is of a dtype that safetensors has no spelling for.
        OSError: the disk is full.
    """
    for key, tensor in state.items():
        if tensor.dtype not in KEPT_DTYPES.values():
            raise CheckpointError(f"{key} is of {tensor.dtype}, which safetensors does not keep; convert it")
    shards, shared = _shards(state)
    for number, shard in enumerate(shards, start=1):
        name = (
            "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        write_tensors(_apart(shard), folder / name, {"format": "pt", "shared": json.dumps(shared)})


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU; of two that lie over one another the later one is copied."""
    spans: dict[int, list[tuple[int, int]]] = {}
    apart = {}
    for key, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        first = plain.data_ptr()
        others = spans.setdefault(plain.untyped_storage().data_ptr(), [])
        over = any(first < end and begin < first + plain.nbytes for begin, end in others)
        apart[key] = plain.clone() if over else plain
        others.append((first, first + plain.nbytes))
    return apart


def _shards(state: Mapping[str, Tensor]) -> tuple[list[dict[str, Tensor]], dict[str, str]]:
    shards: list[dict[str, Tensor]] = [{}]
    shared: dict[str, str] = {}
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    size = 0
    for key, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            shared[key] = seen[place]
            continue
        seen[place] = key
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards, shared


def load_native(folder: str | Path, device: torch.device | str = "cpu") -> UnifiedModel:
    """Load a native checkpoint; of one that a run replaces meanwhile, the new one.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors do not fit the config.
        PluginError: a part's plugin is not installed; the message says what to install.
    """
    source = Path(folder)
    model = steadily(source, lambda: _read(source))
    _refuse_uncomputed(model)
    return model.to(device).eval()


def _read(folder: Path) -> UnifiedModel:
    verify_manifest(folder)
    model = compose_empty(read_plan(folder), load_tokenizer(str(folder)))
    with versions_told(folder, model.plan):
        load_tensors(model, folder)
    return model


def _refuse_uncomputed(model: UnifiedModel) -> None:
    """Refuse a buffer that a part computes of its weights when it is built, where it has none yet."""
    for name, value in model.named_buffers():
        if value.is_meta:
            part = next(one for one in model.plan.model.parts() if name.startswith(one.address + "."))
            raise PluginError(
                f"{full_name(part)}: its buffer {name} is computed of weights when it is built, and not "
                "kept with them; make it a persistent one (register_buffer without persistent=False)"
            )


def read_plan(folder: Path) -> RunPlan:
    """Resolve a native checkpoint's config, with the very plugins and options that it was made with.

    Raises:
        PluginError, RunFileError: one is not installed, or its options are others today; the
            message says what to install.
    """
    made_by = _made_by(folder)
    options = {address: part.get("options", {}) for address, part in made_by["parts"].items()}
    run = load_run(folder / "config.yaml")
    locate = locator(run)
    try:
        found = catalogue_for(run, locate).preferring(_owners(run.model, made_by["parts"]))
        plan = resolve(run, found, locate, trains=False, options=options)
    except (PluginError, RunFileError) as error:
        raise type(error)(f"{folder}: {error}\n{_install_hint(made_by)}") from error
    for part in plan.model.parts():
        for change in _unlike(part, made_by["parts"].get(part.address, {})):
            _log.warning(
                "%s: %s was made with %s; it may compute something else", folder, part.address, change
            )
    return plan


def _made_by(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _unlike(part: Part, made_by: Mapping[str, Any]) -> Iterator[str]:
    """Say how a part differs, where no error does, from what made it: its owner, options gone or others."""
    owner, today = part.owner, plain_options(part.config)
    made = f"{made_by.get('distribution')} {made_by.get('version')}"
    here = f"{owner.distribution} {owner.version}"
    if made_by and made_by["distribution"] != owner.distribution:
        yield f"{made_by['component']} of {made}, which cannot be had here: that of {here} is used"
    if today or not type(part.config).model_fields:  # else its options are no plain data
        for option, does in unlike(made_by.get("options", {}), today):
            yield f"the option {option} of {made}, which {here} {does}"


@contextmanager
def versions_told(folder: Path, plan: RunPlan) -> Iterator[None]:
    """Add to what a checkpoint's weights raise which plugins and libraries were others when it was made."""
    try:
        yield
    except CheckpointError as error:
        changed, made_by = set(), _made_by(folder)
        for name, then in made_by.get("libraries", {}).items():
            if (here := installed_version(name)) != then:
                changed.add(
                    f"it was made with {name}=={then}, whose modules may have other names than those of "
                    f"{here or 'none'}; next: pip install {name}=={then}"
                )
        for address, made in made_by["parts"].items():
            part = next((one for one in plan.model.parts() if one.address == address), None)
            if part and part.owner != Owner(made["distribution"], made["version"]):
                owner, wanted = part.owner, f"{made['distribution']}=={made['version']}"
                changed.add(
                    f"{address} was made with {wanted}, here it is of {owner.distribution}=={owner.version}; "
                    f"next: pip install {wanted}"
                )
        if not changed:
            raise
        raise type(error)("\n".join([str(error), *sorted(changed)])) from error


def _owners(block: ModelBlock, parts: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return whose each component is that the run file calls by its bare name, by kind and name."""
    owners = {}
    for address, part in parts.items():
        use: Any = block
        for key in address.replace(".text_head", ".head").split("."):
            use = use[key] if isinstance(use, dict) else getattr(use, key)
        kind, _, name = part["component"].partition("/")
        if use.use == name:
            owners[kind, name] = part["distribution"]
    return owners


def _install_hint(made_by: Mapping[str, Any]) -> str:
    wanted = {f"{part['distribution']}=={part['version']}" for part in made_by["parts"].values()}
    wanted -= {f"janus-plugins=={made_by['janus-plugins']}"}
    return f"this model was made with: pip install {' '.join(sorted(wanted))}" if wanted else ""


def verify_manifest(folder: Path) -> None:
    """Check every file of a native checkpoint against its sha256.

    Raises:
        CheckpointError: naming the file that is missing, damaged or not recorded.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["sha256"]
        version = manifest["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no native checkpoint: it has no manifest.json") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder}/manifest.json is damaged: {error}") from error
    if version != FORMAT:
        raise CheckpointError(f"{folder} has checkpoint format {version}; this version reads {FORMAT}")
    for name, digest in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing; copy the whole folder again")
        if _digest(path) != digest:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the recorded one; copy it again")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_tensors(model: nn.Module, folder: Path, *, partly: bool = False) -> None:
    """Load every tensor of a folder's safetensors into `model`, each key accounted for.

    An empty parameter (on the meta device) becomes the tensor, in its own dtype, and so does a buffer of a
    model of such; others are overwritten.

    Args:
        model: the model.
        folder: the folder.
        partly: whether the folder may leave some of the model as it is.

    Raises:
        CheckpointError: naming missing, unknown and wrongly shaped keys.
    """
    state, filler = model.state_dict(), Filler(model)
    empty = any(value.is_meta for value in state.values())
    missing, problems = set(state), []
    for key, tensor in _tensors(folder):
        if key not in state:
            problems.append(f"unknown tensor {key}")
        elif state[key].shape != tensor.shape:
            problems.append(f"{key} has shape {list(tensor.shape)}, the model needs {list(state[key].shape)}")
        elif state[key].is_meta or (empty and state[key].dtype != tensor.dtype):
            filler.put(key, tensor)
        else:
            state[key].copy_(tensor)
        missing.discard(key)
    problems += [f"missing tensor {key}" for key in sorted(missing) if not partly]
    if problems:
        raise CheckpointError(f"{folder} does not fit its model:\n  " + "\n  ".join(problems[:20]))


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder} has no model.safetensors, nor shards of one")
    for path in files:
        file = TensorFile(path)
        yield from ((key, file.get(key)) for key in sorted(file.entries))
        shared: dict[str, str] = json.loads(file.metadata.get("shared", "{}"))
        yield from ((key, file.get(other)) for key, other in shared.items() if other in file.entries)


_LOOKS = 3
"""How often a model is looked for: while it is, it may be put in another one's place."""

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's tensors; model_before.safetensors is a user's own copy."""
    return sorted(path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name))


def is_native(folder: Path) -> bool:
    """Answer whether a folder is a native checkpoint, by its content."""
    return (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file()


def located(folder: Path) -> Path:
    """Return the folder that holds a model: the given one, or the `model/` of a run's folder.

    Raises:
        CheckpointError: another one was being put in its place when the writer died.
    """
    inner = folder / "model"
    for _ in range(_LOOKS):
        settle(folder)
        settle(inner)
        for place in (folder, inner):
            if is_native(place):
                return place
    return folder


__all__ = [
    "is_native",
    "load_native",
    "located",
    "new_folder",
    "provenance",
    "read_plan",
    "save_native",
    "save_tensors",
    "verify_manifest",
    "versions_told",
    "weight_files",
    "write_manifest",
    "write_texts",
]
