"""The semantic tokenizer: a VQ whose code vectors a causal ViT turns into features.

Source: Janus, appendix A. It does not state how the width of SigLIP is reached from that of the ViT (here:
a linear layer, used in training alone), nor the size of the pictures (an option).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.facts import GenerationFacts, UnderstandingFacts
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.vq.judges import Aside, Discriminator, Perceptual, Teacher
from janus_plugins.encoders.vq.model import Vq
from janus_plugins.encoders.vq.semantic_decoder import SemanticDecoder
from janus_plugins.encoders.vq.semantic_spec import SemanticReaderConfig, SemanticVqConfig

_NATIVE = "generation.image.encoder."
"""Where the tokenizer stands in the native checkpoint of the run that trained it."""
_DISPENSABLE = ("decoder", "post_quant_conv", "to_teacher", "discriminator")
"""Parts that a use of the tokenizer may leave out."""


class SemanticVq(Vq):
    """Turn pictures into codes and back, and into features; see `core.contracts.FeaturesEncoder`."""

    config: SemanticVqConfig

    def __init__(self, config: SemanticVqConfig) -> None:
        super().__init__(config)
        self.semantic = SemanticDecoder(config.semantic, config.code_width, config.side**2)
        self._teacher = self._perceptual = None
        if (teacher := config.teacher) is not None:
            self.to_teacher = nn.Linear(config.semantic.width, teacher.embed_dim)
            self._teacher = Aside(lambda: Teacher(teacher, config.side))
        if (source := config.perceptual_weights) is not None:
            self._perceptual = Aside(lambda: Perceptual(source))
        self.discriminator = (
            Discriminator(config.discriminator, config.in_channels) if config.discriminator else None
        )

    def features(self, items: dict[str, Tensor]) -> Tensor:
        """Return features of the codes [N, T, semantic.width], row-major."""
        features: Tensor = self.semantic(super().features(items))
        return features

    def reconstruction_loss(self, items: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a picture's way to codes, to pixels and to features.

        "loss" is the sum by the options' weights. Beside those of `vq`: "semantic" (1 - cosine to the
        teacher's features), "perceptual", "adversarial" and "discriminator", where the options have them.
        """
        pixels = self._cast(items["pixels"])
        passed, losses, used = self._quantised(pixels)
        made = self._pixels(passed)
        losses["reconstruction"] = self._pixel_loss(made.float(), pixels.float())
        if self._teacher is not None:
            losses["semantic"] = self._semantic_loss(passed, self._teacher(pixels)(pixels))
        if self._perceptual is not None:
            losses["perceptual"] = self._perceptual(pixels)(made, pixels)
        if self.discriminator is not None:
            losses.update(self.discriminator(made, pixels))
        return {"loss": self._weighted(losses), **losses, "codes_used": used}

    def load_weights(self, source: str) -> None:
        """Load weights from a file, a folder or a hub id; also from the run that trained the tokenizer.

        Raises:
            CheckpointError: nothing there, or keys or shapes that do not fit.
        """
        tensors = read_weights(source)
        if any(name.startswith(_NATIVE) for name in tensors):
            tensors = {
                name.removeprefix(_NATIVE): value
                for name, value in tensors.items()
                if name.startswith(_NATIVE)
            }
        own = self.state_dict().keys()
        unused = {
            name
            for name in tensors.keys() - own
            if name.partition(".")[0] in _DISPENSABLE or name == "quantize.unused_for"
        }
        load_exactly(self, tensors, source, drop=unused, optional=("quantize.unused_for",))

    def _semantic_loss(self, passed: Tensor, wanted: Tensor) -> Tensor:
        """Return 1 - the mean cosine of predicted and wanted features [N, T, width]. Source: BEiT v2."""
        predicted = self.to_teacher(self.semantic(self._cast(passed)))
        return 1 - functional.cosine_similarity(predicted.float(), wanted.float(), dim=-1).mean()


class SemanticReader(nn.Module):
    """Turn pictures into features of their codes, for understanding alone."""

    def __init__(self, config: SemanticReaderConfig) -> None:
        super().__init__()
        self.tokenizer = SemanticVq(config.model_copy(update={"teacher": None, "discriminator": None}))
        del self.tokenizer.decoder, self.tokenizer.post_quant_conv

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return features [N, T, semantic.width] of {"pixels": [N, C, S, S]}."""
        return self.tokenizer.features(items)

    def load_weights(self, source: str) -> None:
        """Load the weights of the whole tokenizer; see `SemanticVq.load_weights`."""
        self.tokenizer.load_weights(source)


def build(config: SemanticVqConfig, facts: GenerationFacts) -> SemanticVq:
    """Build the tokenizer with random weights."""
    return SemanticVq(config)


def build_reader(config: SemanticReaderConfig, facts: UnderstandingFacts) -> SemanticReader:
    """Build what reads pictures with random weights."""
    return SemanticReader(config)
