"""Published weights: files to tensors, and tensors into a module with every key accounted for.

Safetensors, or pickles that hold tensors alone (`weights_only`). torch is imported inside.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.suggest import unexpanded

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_DESCRIPTION = "config.json"


def read_weights(source: str) -> dict[str, Tensor]:
    """Return the tensors of a file, a folder or a hub id, on the CPU.

    Raises:
        CheckpointError: there is nothing, or a file that is damaged or holds more than tensors.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = _download(source)
    tensors: dict[str, Tensor] = {}
    for file in [path] if path.is_file() else _files(path):
        tensors.update(_read_file(file))
    return tensors


def read_description(source: str) -> dict[str, Any]:
    """Return the `config.json` that lies beside the weights of a file, a folder or a hub id; {} without one.

    Raises:
        CheckpointError: it is there and cannot be read.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = _download(source)
    file = (path.parent if path.is_file() else path) / _DESCRIPTION
    if not file.is_file():
        return {}
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(described, dict):
        raise CheckpointError(f"{file} does not hold a mapping")
    return described


def load_exactly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    drop: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Copy tensors into a module's parameters and buffers of the same names.

    Args:
        module: what to fill.
        tensors: by name, e.g. of `read_weights`.
        source: where they are from, for messages.
        drop: names that published files hold and this module has no use for.
        optional: names of the module's that published files may lack.

    Raises:
        CheckpointError: names are missing or left over, or shapes differ.
    """
    given = {name: tensor for name, tensor in tensors.items() if name not in drop}
    own = module.state_dict()
    _refuse(
        source,
        module,
        own.keys() - given.keys() - set(optional),
        given.keys() - own.keys(),
        [
            (name, given[name].shape, own[name].shape)
            for name in own.keys() & given.keys()
            if given[name].shape != own[name].shape
        ],
    )
    module.load_state_dict(given, strict=False)


def load_pretrained(module: PreTrainedModel, source: str, *, drop: Collection[str] = ()) -> None:
    """Copy published weights into a model of transformers, whose names may not be those of its files.

    Args:
        module: what to fill; its config says its sizes.
        source: a folder or a hub id.
        drop: names that published files hold and this module has no use for.

    Raises:
        CheckpointError: there is nothing, names are missing or left over, or shapes differ.
    """
    dtype = next(module.parameters()).dtype
    made = read_pretrained(type(module), source, copy.deepcopy(module.config), drop=drop, dtype=dtype)
    module.load_state_dict(made.state_dict())


def read_pretrained(kind: Any, source: str, config: Any, *, drop: Collection[str] = (), **how: Any) -> Any:
    """Return a model of transformers with its published weights, every key accounted for.

    Args:
        kind: its class, or an auto class.
        source: a folder or a hub id.
        config: its sizes.
        drop: names that published files hold and this model has no use for.
        how: further arguments of `from_pretrained`.

    Raises:
        CheckpointError: there is nothing, names are missing or left over, or shapes differ.
    """
    local = Path(source).expanduser()
    if local.is_file():
        raise CheckpointError(f"{source} is a file; name the folder that holds it")
    try:
        model, report = kind.from_pretrained(
            str(local) if local.is_dir() else source,
            config=config,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **how,
        )
    except Exception as error:
        told = f"no weights of {kind.__name__} can be read from {source!r}: {error}"
        raise CheckpointError(f"{told}{unexpanded(source)}") from error
    missing, unexpected, reshaped = (
        report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched")
    )
    _refuse(source, model, missing, set(unexpected) - set(drop), reshaped, report.get("error_msgs") or ())
    return model


def _refuse(
    source: str,
    module: nn.Module,
    missing: Iterable[str],
    unexpected: Iterable[str],
    reshaped: Iterable[tuple[str, Iterable[int], Iterable[int]]],
    further: Iterable[Any] = (),
) -> None:
    """Raise where names are missing or left over, or tensors have other shapes than the module's."""
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", unexpected),
        *_listed(
            "of another shape",
            (f"{name} {tuple(given)} instead of {tuple(own)}" for name, given, own in reshaped),
        ),
        *map(str, further),
    ]
    if problems:
        raise CheckpointError(f"{source!r} does not fit {type(module).__name__}: {'; '.join(problems)}")


def _listed(label: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    if not ordered:
        return []
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return [f"{len(ordered)} {label} ({', '.join(ordered[:5])}{more})"]


def _files(folder: Path) -> list[Path]:
    """Return the weight files of a folder: what an index lists, else the first known name."""
    for name in _INDEXES:
        if (folder / name).is_file():
            return _indexed(folder / name)
    for name in _FILES:
        if (folder / name).is_file():
            return [folder / name]
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *_PICKLES))
    if len(found) == 1:
        return found
    problem = f"{len(found)} weight files, none called {_FILES[0]}" if found else "no weight file"
    raise CheckpointError(f"{folder} holds {problem}; name the file itself")


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of weights: {error}") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} names files outside its folder: {', '.join(outside)}")
    return [index.parent / name for name in names]


def _read_file(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in _PICKLES:
            raise CheckpointError(f"{path} is neither .safetensors nor {', '.join(_PICKLES)}")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    # Training scripts wrap the weights: LlamaGen in "model", Point-BERT in "base_model".
    for key in ("model", "state_dict", "base_model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(each, torch.Tensor) for each in loaded.values()):
        raise CheckpointError(f"{path} does not hold tensors by name")
    return loaded


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = [*_INDEXES, *_FILES, _DESCRIPTION, "*.safetensors"]
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # unknown id, no network, no access
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(
            f"there is no file or folder {source!r}, nor such a hub id ({reason}){unexpanded(source)}"
        ) from error
