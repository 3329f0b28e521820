"""The typed batch: what crosses from the data room to the model.

Every position is planned on the CPU when the batch is made; the model only gathers and scatters
and never searches for special ids. Slots are flat indices into R * S.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from janus_plugins.core.moving import moved

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from janus_plugins.core.contracts import Packed


@dataclass(frozen=True)
class ItemBatch:
    """Hold the items of one path of one modality, and where their tokens lie.

    Attributes:
        items: collated processor output, [N, ...] each. Where the batch has no item of this
            modality it holds one dummy and `absent` is True.
        lengths: tokens of each item as the language model sees them (after the adapter); length N.
        at: flat slots that the items' embeddings fill, item by item [sum(lengths)].
        predict_at: generation only: slots whose hidden states predict codes [P].
        targets: generation only: which code each of them predicts, as an index into N * T [P], codes in
            the order of the line.
        absent: whether this is a dummy whose contribution must be exactly zero.
        entering: understanding only: features of each item that count before the adapter; length N.
    """

    items: dict[str, Tensor]
    lengths: tuple[int, ...]
    at: Tensor
    predict_at: Tensor | None = None
    targets: Tensor | None = None
    absent: bool = False
    entering: tuple[int, ...] = ()

    def to(self, device: torch.device | str) -> ItemBatch:
        """Return the same items with every tensor on `device`; the host does not wait for the copies."""
        return replace(
            self,
            items={name: moved(tensor, device) for name, tensor in self.items.items()},
            at=moved(self.at, device),
            predict_at=None if self.predict_at is None else moved(self.predict_at, device),
            targets=None if self.targets is None else moved(self.targets, device),
        )


@dataclass(frozen=True)
class Batch:
    """Hold one micro-batch of packed rows.

    Attributes:
        ids: token ids [R, S] (int64); slots of items and of padding hold the pad id.
        positions: position of each slot in its own sample [R, S] (int64); restarts at each sample.
        packed: which slots see which.
        text_at: flat slots whose hidden states predict a text token [P].
        text_targets: those tokens [P].
        text_tasks: index into `tasks` of the sample that each of them belongs to [P].
        understanding: modality -> items, one entry for every understanding path of the model.
        generation: modality -> items, one entry for every generation path of the model.
        tasks: the names that `text_tasks` indexes.
        num_samples: samples in this batch, by task; items alone are of the task "reconstruct".
        num_tokens: slots that belong to a sample.
    """

    ids: Tensor
    positions: Tensor
    packed: Packed
    text_at: Tensor
    text_targets: Tensor
    text_tasks: Tensor
    understanding: dict[str, ItemBatch]
    generation: dict[str, ItemBatch]
    tasks: tuple[str, ...]
    num_samples: dict[str, int] = field(default_factory=dict)
    num_tokens: int = 0

    def targets(self, reconstruct: str | None = None) -> dict[str, int]:
        """Count what each loss is a sum over.

        Args:
            reconstruct: modality whose encoder is trained by its own loss; the only key is then
                "reconstruct", counting items.

        Returns:
            Positions by path: "text" and "generation.<modality>".
        """
        if reconstruct is not None:
            items = self.generation[reconstruct]
            return {"reconstruct": 0 if items.absent else len(items.lengths)}
        counts = {"text": self.text_targets.numel()}
        for modality, items in self.generation.items():
            counts[f"generation.{modality}"] = 0 if items.targets is None else items.targets.numel()
        return counts

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch with every tensor on `device`; the host does not wait for the copies."""
        return replace(
            self,
            ids=moved(self.ids, device),
            positions=moved(self.positions, device),
            packed=self.packed.to(device),
            text_at=moved(self.text_at, device),
            text_targets=moved(self.text_targets, device),
            text_tasks=moved(self.text_tasks, device),
            understanding={name: items.to(device) for name, items in self.understanding.items()},
            generation={name: items.to(device) for name, items in self.generation.items()},
        )
