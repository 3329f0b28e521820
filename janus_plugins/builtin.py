"""The shipped components, declared the way a third-party plugin declares its own."""

from __future__ import annotations

from janus_plugins.adapters.code_mlp.spec import CODE_MLP_ADAPTER
from janus_plugins.adapters.code_sum.spec import CODE_SUM
from janus_plugins.adapters.conv.spec import CONV
from janus_plugins.adapters.linear.spec import LINEAR
from janus_plugins.adapters.mlp.spec import MLP
from janus_plugins.adapters.perceiver.spec import PERCEIVER
from janus_plugins.adapters.pixel_shuffle.spec import PIXEL_SHUFFLE
from janus_plugins.callbacks.stop_on_plateau.spec import STOP_ON_PLATEAU
from janus_plugins.callbacks.time_limit.spec import TIME_LIMIT
from janus_plugins.core.hookspecs import hookimpl
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.encoders.audio.spec import AUDIO
from janus_plugins.encoders.codecs.dac_spec import DAC
from janus_plugins.encoders.codecs.encodec_spec import ENCODEC
from janus_plugins.encoders.codecs.mimi_spec import MIMI
from janus_plugins.encoders.codecs.rvq_spec import RVQ
from janus_plugins.encoders.eeg.spec import EEG
from janus_plugins.encoders.internvit.spec import INTERNVIT
from janus_plugins.encoders.movqgan.spec import MOVQGAN
from janus_plugins.encoders.point_cloud.spec import POINT_CLOUD
from janus_plugins.encoders.siglip.spec import SIGLIP
from janus_plugins.encoders.siglip2.spec import SIGLIP2
from janus_plugins.encoders.tactile.image_spec import TACTILE
from janus_plugins.encoders.tactile.series_spec import TACTILE_SERIES
from janus_plugins.encoders.towers.eva_spec import EVA_CLIP
from janus_plugins.encoders.towers.open_clip_spec import OPEN_CLIP
from janus_plugins.encoders.towers.timm_spec import TIMM
from janus_plugins.encoders.vae.spec import VAE
from janus_plugins.encoders.vq.semantic_spec import SEMANTIC_READER, SEMANTIC_VQ
from janus_plugins.encoders.vq.spec import VQ
from janus_plugins.heads.code_mlp.spec import CODE_MLP_HEAD
from janus_plugins.heads.depth.spec import DEPTH
from janus_plugins.heads.diffusion.spec import DIFFUSION
from janus_plugins.heads.text.spec import TEXT
from janus_plugins.language_models.spec import CAUSAL_LM, LLAMA
from janus_plugins.sources.digits.counting_spec import COUNTING
from janus_plugins.sources.digits.spec import DIGITS
from janus_plugins.sources.hf_dataset.spec import HF_DATASET
from janus_plugins.sources.sorting.spec import SORTING
from janus_plugins.sources.tones.spec import TONES
from janus_plugins.tasks.classified.answers_spec import CLASSIFIED_ANSWERS
from janus_plugins.tasks.classified.generation_spec import CLASSIFIED_GENERATION
from janus_plugins.tasks.exact_match.spec import EXACT_MATCH
from janus_plugins.tasks.pitch.spec import PITCH


@hookimpl
def janus_components() -> list[ComponentSpec]:
    """Return every component that ships with janus-plugins."""
    return [
        LLAMA,
        CAUSAL_LM,
        SIGLIP,
        SIGLIP2,
        TIMM,
        OPEN_CLIP,
        EVA_CLIP,
        INTERNVIT,
        AUDIO,
        TACTILE,
        TACTILE_SERIES,
        POINT_CLOUD,
        EEG,
        VQ,
        MOVQGAN,
        VAE,
        ENCODEC,
        DAC,
        MIMI,
        RVQ,
        SEMANTIC_VQ,
        SEMANTIC_READER,
        MLP,
        LINEAR,
        PIXEL_SHUFFLE,
        PERCEIVER,
        CONV,
        CODE_MLP_ADAPTER,
        CODE_SUM,
        TEXT,
        CODE_MLP_HEAD,
        DIFFUSION,
        DEPTH,
        HF_DATASET,
        DIGITS,
        COUNTING,
        SORTING,
        EXACT_MATCH,
        CLASSIFIED_GENERATION,
        CLASSIFIED_ANSWERS,
        PITCH,
        STOP_ON_PLATEAU,
        TIME_LIMIT,
        TONES,
    ]
