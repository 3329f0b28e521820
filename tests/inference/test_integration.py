"""The shipped components, composed from a run file, through every call of this room."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from janus_plugins.core.runfile import load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.inference import halves
from janus_plugins.inference.prompts import item_prompt
from janus_plugins.inference.sampling import row_seed
from janus_plugins.inference.session import save_generated
from janus_plugins.model.compose import compose_plan

from .naive import naive_codes

RUN = """
name: small
seed: 1
model:
  language_model:
    use: llama
    options: {vocab_size: 300, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 4,
              num_key_value_heads: 2, max_positions: 128, init_std: 0.3}
    tokenizer: {type: bytes}
    template: plain
  understanding:
    image:
      encoder: {use: siglip, options: {img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}}
      adapter: {use: mlp}
  generation:
    image:
      encoder:
        use: vq
        options: {image_size: 8, channels: 8, multipliers: [1, 2], num_res_blocks: 1, z_channels: 8,
                  codebook_size: 16, code_width: 4, norm_groups: 4}
      adapter: {use: code-mlp}
      head: {use: code-mlp}
"""


def small_model(run=RUN):
    """Compose the model, its choices clear."""
    composed = compose_plan(resolve(load_run_text(run, "small.yaml")))
    head = composed.generation["image"].head
    with torch.no_grad():
        for parameter in (*head.parameters(), composed.language_model.text_head.output.weight):
            parameter.mul_(10)
    return composed


WIDE = RUN.replace("hidden_size: 32, intermediate_size: 64", "hidden_size: 256, intermediate_size: 512")
"""Of layers large enough to be computed in other ways."""


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_items_can_be_found_and_counted(model):
    one, other = model.generate("a seven", num_per_prompt=2)
    assert one != other
    assert [one, other].index(other) == 1
    assert len({one, other, one}) == 2


def picture(level: int) -> Image.Image:
    generator = np.random.default_rng(level)
    return Image.fromarray(generator.integers(0, 256, (12, 9, 3), dtype=np.uint8))


@pytest.mark.parametrize(("guidance", "temperature"), [(5.0, 1.0), (2.0, 0.0), (1.0, 1.0)])
def test_images_equal_full_recomputation_with_the_real_parts(model, guidance, temperature):
    prompts = ["a seven", "a handwritten three, large"]
    made = model.generate(
        prompts, num_per_prompt=2, guidance=guidance, temperature=temperature, return_codes=True
    )
    seeds = [(text, row_seed(0, text, index)) for text in prompts for index in range(2)]
    with torch.no_grad():
        expected = [
            naive_codes(
                model, item_prompt(model, "image", text, []), seed, guidance=guidance, temperature=temperature
            )[0]
            for text, seed in seeds
        ]
    assert torch.equal(made, torch.stack(expected))
    assert len({tuple(row) for row in made.tolist()}) > 1


def test_real_answers_mind_no_mates(model):
    questions = ["which digit is this?", "and these two, are they alike?", "2 + 2?"]
    images = [[picture(0)], [picture(1), picture(2)], []]
    together = model.ask(questions, images=images, max_new_tokens=8)
    alone = [
        model.ask(one, images=shown, max_new_tokens=8) for one, shown in zip(questions, images, strict=True)
    ]
    assert together == alone
    assert len(set(together)) == 3
    assert model.ask(questions, images=images, max_new_tokens=8, max_rows=2) == together
    assert model.ask(questions[0], images=picture(5), max_new_tokens=8) != together[0]


def test_real_images_go_to_codes_and_files(model, tmp_path):
    codes = model.encode("image", [picture(0), picture(1)])
    assert codes.shape == (2, 16)
    assert model.decode("image", codes)[0].size == (8, 8)
    made = model.generate("a seven", num_per_prompt=3, seed=4)
    paths = save_generated(model, made, tmp_path)
    assert Image.open(paths[2]).text["prompt"] == "a seven"
    assert np.array_equal(np.asarray(Image.open(paths[2])), np.asarray(made[2].artefact))


def test_pictures_of_the_same_codes_are_equal_to_the_pixel_in_any_company(model):
    codes = torch.randint(0, 16, (60, 16), generator=torch.Generator().manual_seed(0))
    together = model.decode("image", codes)
    alone = [model.decode("image", one[None])[0] for one in codes]
    assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))


def test_half_precision_runs(model):
    half = compose_plan(model.plan, model.tokenizer).to(torch.bfloat16)
    made = half.generate(["a seven", "a three"], num_per_prompt=2)
    assert made[3].artefact.size == (8, 8)
    assert isinstance(half.ask("which?", images=[picture(0)], max_new_tokens=3), str)


def test_where_half_precision_is_slow_prompts_encoders_and_decoders_run_in_fp32(model, monkeypatch):
    half = compose_plan(model.plan, model.tokenizer).to(torch.bfloat16)
    codes = half.encode("image", [picture(0)])
    monkeypatch.setattr(halves, "is_slow", lambda dtype, device: dtype == torch.bfloat16)
    computed = []
    dispatch = halves._InFp32.__torch_dispatch__

    def noted(self, func, types, args=(), kwargs=None):
        computed.append(func.overloadpacket.__name__)
        return dispatch(self, func, types, args, kwargs)

    monkeypatch.setattr(halves._InFp32, "__torch_dispatch__", noted)

    def by(run):
        computed.clear()
        run()
        return {"convolution", "mm"} & set(computed)

    assert "convolution" in by(lambda: half.decode("image", codes))
    assert "convolution" in by(lambda: half.encode("image", [picture(0)]))
    assert by(lambda: half.generate("a seven or a three", return_codes=True)) == {"mm"}
    question = "which of the ten digits is it?"
    assert by(lambda: half.ask(question, images=[picture(0)], max_new_tokens=3)) == {"convolution", "mm"}
