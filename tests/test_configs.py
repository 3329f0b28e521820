"""Every shipped run file validates, and holds the numbers of the papers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml

from janus_plugins.core.catalogue import Catalogue, CatalogueEntry, catalogue
from janus_plugins.core.json_schema import run_schema
from janus_plugins.core.kinds import Kind
from janus_plugins.core.owner import Owner
from janus_plugins.core.runfile import dump_run, load_run, load_run_text
from janus_plugins.core.specs import ComponentConfig
from janus_plugins.door import plan
from janus_plugins.model.explain import explain

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_validates_and_survives_a_round_trip(path):
    run = plan(path).run
    assert load_run_text(dump_run(run), "again.yaml") == run


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fits_the_published_schema(path):
    """As it is written, over its base, and as a whole."""
    validator = jsonschema.Draft202012Validator(json.loads((CONFIGS / "run.schema.json").read_text()))
    validator.validate(yaml.safe_load(path.read_text()))
    validator.validate(yaml.safe_load(dump_run(load_run(path))))


def test_the_published_schema_is_current():
    written = json.loads((CONFIGS / "run.schema.json").read_text())
    own = [entry for entry in catalogue().entries() if entry.owner.distribution == "janus-plugins"]
    assert written == run_schema(Catalogue(own)), (
        "write it again: janus-plugins schema --out configs/run.schema.json"
    )


def test_the_schema_refuses_a_wrong_option():
    schema = json.loads((CONFIGS / "run.schema.json").read_text())
    data = yaml.safe_load(dump_run(load_run("digits")))
    data["model"]["understanding"]["image"]["encoder"]["options"]["img_sice"] = 3
    assert not jsonschema.Draft202012Validator(schema).is_valid(data)


def test_options_that_json_has_no_word_for_end_nobodys_schema(caplog):
    class Colour:
        pass

    class Odd(ComponentConfig, arbitrary_types_allowed=True):
        colour: Colour = Colour()
        width: int = 3

    class Broken(ComponentConfig):
        width: Nowhere = 3  # noqa: F821

    mlp = catalogue().get(Kind.ADAPTER, "mlp")
    others = [
        CatalogueEntry(replace(mlp.spec, name=name, config=config), Owner("acme", "1"))
        for name, config in (("odd", Odd), ("broken", Broken))
    ]
    schema = run_schema(Catalogue([*catalogue().entries(), *others]))
    validator = jsonschema.Draft202012Validator(schema)
    data = yaml.safe_load(dump_run(load_run("digits")))
    for use, options, fits in [
        ("odd", {"colour": "red", "width": 4}, True),
        ("odd", {"width": "wide"}, False),
        ("broken", {"anything": 1}, True),
        ("mlp", {"depht": 1}, False),
    ]:
        data["model"]["understanding"]["image"]["adapter"] = {"use": use, "options": options}
        assert validator.is_valid(data) == fits
    assert [record.getMessage()[:11] for record in caplog.records] == ["acme/broken"]


OVER = {
    "stages: {unified: {batch: 8, learn: {language_model: 0.0001}}}": True,
    "stages: {unified: {batches: 8}}": False,
    "model: {understanding: {image: {encoder: {options: {width: 8}}}, audio: null}}": True,
    "model: {understanding: {image: {encoder: {use: siglip, options: {img_size: 16}}}}}": True,
    "model: {understanding: {image: {encoder: {use: siglip, options: {img_sise: 16}}}}}": False,
    "model: {understanding: {image: {encoder: {share: generation.image.encoder}}}}": True,
    "model: {understanding: {image: {encode: {}}}}": False,
    "evaluation: {read: null}": True,
    "callbacks: [{options: {}}]": False,  # a list replaces another, so that it is whole
    "seed: one": False,
}


@pytest.mark.parametrize(("text", "fits"), OVER.items())
def test_the_schema_of_what_stands_over_a_base(text, fits):
    validator = jsonschema.Draft202012Validator(json.loads((CONFIGS / "run.schema.json").read_text()))
    assert validator.is_valid(yaml.safe_load(f"base: digits.yaml\n{text}\n")) == fits
    assert not validator.is_valid(yaml.safe_load(text))  # without a base it is no run file


def test_parameters_of_the_reference():
    explanation = explain(plan("janus_1.3b"))
    counts = {part.address: part.parameters for part in explanation.parts}
    assert counts == {
        "language_model": 1_652_656_128,
        "understanding.image.encoder": 303_688_704,
        "understanding.image.adapter": 6_295_552,
        "generation.image.encoder": 71_883_403,
        "generation.image.adapter": 4_214_784 + 131_072,
        "generation.image.head": 37_767_168,
    }
    trained = {stage.name: stage.total_trainable for stage in explanation.stages}
    everything_but_the_generation_encoder = sum(counts.values()) - 71_883_403
    assert trained["adapters"] == 48_277_504
    assert trained["unified"] == everything_but_the_generation_encoder - 303_688_704
    assert trained["finetune"] == everything_but_the_generation_encoder


def test_stage_one_may_learn_the_code_table():
    run = plan("janus_1.3b", ["stages.adapters.learn.generation.image.adapter.table=1e-3"])
    assert explain(run).stages[0].total_trainable == 48_277_504 + 131_072


def test_parameters_of_pro_7b():
    explanation = explain(plan("janus_pro_7b"))
    assert explanation.stages[0].total_trainable == 121_704_448
    # The published file also holds SigLIP's unused pooling head.
    assert explanation.total + 12_595_200 == explanation.published_total == 7_420_368_523


# steps, stop, batch, und : text : gen, schedule, warm-up, rate, weight decay
RECIPES = {
    "janus_1.3b": [
        (10_000, None, 256, (1, 0, 1), "cosine", 300, 1e-3, 0.0),
        (180_000, None, 512, (2, 3, 5), "constant", 5_000, 1e-4, 0.0),
        (24_000, None, 256, (7, 3, 10), "constant", 0, 2e-5, 0.1),
    ],
    "janus_pro_1b": [
        (20_000, None, 256, (1, 0, 3), "constant", 600, 1e-3, 0.0),
        (360_000, 270_000, 512, (2, 3, 5), "constant", 5_000, 1e-4, 0.0),
        (80_000, None, 128, (5, 1, 4), "constant", 0, 4e-5, 0.0),
    ],
    "janus_pro_7b": [
        (20_000, None, 256, (1, 0, 3), "constant", 600, 1e-3, 0.0),
        (360_000, 270_000, 512, (2, 3, 5), "constant", 5_000, 1e-4, 0.0),
        (40_000, None, 128, (5, 1, 4), "constant", 0, 4e-5, 0.0),
    ],
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_of_the_papers(name):
    stages = plan(name).run.stages
    for stage, expected in zip(stages, RECIPES[name], strict=True):
        ratio = tuple(stage.mix[task] for task in ("understanding", "text", "generation"))
        seen = (
            stage.steps, stage.stop_at, stage.batch, ratio, stage.schedule.type, stage.schedule.warmup,
            *set(stage.learn.values()), stage.optimizer.weight_decay,
        )  # fmt: skip
        assert seen == expected
        assert stage.optimizer.betas == (0.9, 0.95)
        assert stage.clip == 1.0
        assert stage.drop_prompt == 0.1
        assert stage.max_length == 4096
        assert not [prefix for prefix in stage.learn if prefix.startswith("generation.image.encoder")]
    assert [stage.first_sentence for stage in stages] == [0.0, 0.25, 0.0]
    assert [stage.loss_on for stage in stages] == ["text", "text", "answers"]


def test_stage_two_draws_imagenet_first_and_the_rest_later():
    windows = plan("janus_1.3b").run.stages[1].sources
    generation = {name: window for name, window in windows.items() if name.startswith(("imagenet", "draw_"))}
    assert (generation.pop("imagenet").until) == 120_000
    assert len(generation) == 9
    assert all(window.after == 120_000 and window.until is None for window in generation.values())
    pro = plan("janus_pro_1b").run.stages[1].sources
    assert "imagenet" not in pro
    real = sum(
        window.weight for name, window in pro.items() if name.startswith("draw_") and name != "draw_synthetic"
    )
    assert real == pro["draw_synthetic"].weight
