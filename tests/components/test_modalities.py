"""Every further understanding encoder, through its spec: what all of them must keep."""

import json
import subprocess
import sys

import pytest

from janus_plugins.encoders.audio.spec import AUDIO
from janus_plugins.encoders.eeg.spec import EEG
from janus_plugins.encoders.internvit.spec import INTERNVIT
from janus_plugins.encoders.point_cloud.spec import POINT_CLOUD
from janus_plugins.encoders.siglip2.spec import SIGLIP2
from janus_plugins.encoders.tactile.image_spec import TACTILE
from janus_plugins.encoders.tactile.series_spec import TACTILE_SERIES
from janus_plugins.encoders.towers.eva_spec import EVA_CLIP
from janus_plugins.encoders.towers.open_clip_spec import OPEN_CLIP
from janus_plugins.encoders.towers.timm_spec import TIMM
from tests.components import keeps


def own(spec, **options):
    """A component with its tiny options, on items that it makes itself."""
    options = {**spec.config.tiny(), **options}
    return spec, options, keeps.Examples(spec, options)


CASES = {
    "timm": (TIMM, TIMM.config.tiny(), keeps.pictures),
    "timm convnet": (
        TIMM,
        {"name": "convnext_atto", "image_size": 64, "args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
        keeps.pictures,
    ),
    "timm tiles": (TIMM, {**TIMM.config.tiny(), "max_tiles": 2, "keep_prefix": True}, keeps.pictures),
    "eva-clip": (EVA_CLIP, EVA_CLIP.config.tiny(), keeps.pictures),
    "open-clip": (OPEN_CLIP, OPEN_CLIP.config.tiny(), keeps.pictures),
    "open-clip siglip": (
        OPEN_CLIP,
        {
            "name": "ViT-B-16-SigLIP",
            "image_size": 16,
            "width": 16,
            "layers": 1,
            "head_width": 8,
            "patch_size": 8,
        },
        keeps.pictures,
    ),
    "internvit": (INTERNVIT, INTERNVIT.config.tiny(), keeps.pictures),
    "internvit tiles": (INTERNVIT, {**INTERNVIT.config.tiny(), "max_tiles": 3, "size": "6b"}, keeps.pictures),
    "audio": own(AUDIO),
    "audio ast": own(AUDIO, name="ast-base", mel_bins=36, seconds=0.6),
    "tactile": own(TACTILE),
    "tactile six": own(TACTILE, background="stack", registers=1),
    "tactile-series": own(TACTILE_SERIES),
    "siglip2": (SIGLIP2, SIGLIP2.config.tiny(), keeps.pictures),
    "eeg": own(EEG),
    "eeg eegnet": own(EEG, model="eegnet", width=12),
    "point-cloud": own(POINT_CLOUD),
    "point-cloud colours": own(POINT_CLOUD, channels=6, norm="batch"),
}


@pytest.mark.parametrize("check", keeps.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES)
def test_keeps(case, check):
    spec, options, raw = CASES[case]
    check(spec, options, raw())


@pytest.mark.parametrize("case", CASES)
def test_a_saved_state_answers_the_same(case, tmp_path):
    spec, options, raw = CASES[case]
    keeps.a_saved_state_answers_the_same(spec, options, raw(), tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_the_meta_device_gives_the_same_shapes(case):
    spec, options, _ = CASES[case]
    keeps.the_meta_device_gives_the_same_shapes(spec, options)


def test_declaring_imports_no_torch_and_describes_itself():
    modules = sorted({spec.config.__module__ for spec, _, _ in CASES.values()})
    script = (
        "import importlib, json, sys\n"
        f"[importlib.import_module(name) for name in {modules!r}]\n"
        "print(json.dumps([name for name in ('torch', 'transformers', 'timm', 'mne') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    for spec, _, _ in CASES.values():
        assert spec.summary
        json.dumps(spec.config.model_json_schema())
