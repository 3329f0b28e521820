"""What a frozen encoder's answers hang on, and whether those on the disk are still its own."""

from __future__ import annotations

import hashlib

from torch import nn

from janus_plugins.core.errors import DataError
from janus_plugins.core.plan import Part, RunPlan
from janus_plugins.core.schema import StageBlock
from janus_plugins.data.precomputed import digest_of, open_stores, options_of


def check_precomputed(plan: RunPlan, model: nn.Module, stage: StageBlock) -> None:
    """Refuse answers that a stage would read and that its encoders, as they are now, would not give.

    Raises:
        DataError: naming the folder and the next step.
    """
    keys: dict[str, str] = {}
    for (name, path, modality), store in open_stores(plan, stage).items():
        address = f"{path}.{modality}.encoder"
        if address not in keys:
            part = next(part for part in plan.model.parts() if part.address == address)
            keys[address] = encoder_key(part, model.get_submodule(address), plan.run.engine.precision)
        if store.encoder != keys[address]:
            raise DataError(
                f"{store.folder} is stale: {address} has other weights, options or another precision than "
                f"the encoder that it was made with (now {keys[address][:12]}, then {store.encoder[:12]}); "
                "run `janus-plugins precompute RUN.yaml --model TRAINED --out ANOTHER`, or remove "
                f"data.{name}.precomputed"
            )


def encoder_key(part: Part, module: nn.Module, precision: str) -> str:
    """Return a sha256 of all that an encoder's answers hang on: component, options, processor, weights."""
    owner = [part.owner.distribution, part.owner.version, str(part.spec.kind), part.spec.name]
    options = options_of(part)
    if precision == "bf16" and any(value.is_floating_point() for value in module.buffers()):
        precision += ", buffers in fp32"  # answers of before, whose buffers were rounded too, are others
    digest = hashlib.sha256(digest_of([owner, options, part.spec.processor, precision]).encode())
    for name, tensor in sorted(module.state_dict().items()):
        exact = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(exact.detach().cpu().contiguous().reshape(-1).numpy().tobytes())
    return digest.hexdigest()
