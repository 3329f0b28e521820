"""Ours against transformers' Janus with the same random weights, fp32: understanding, text, pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.models import mended
from janus_plugins.core.choice import guide
from janus_plugins.core.contracts import Cached
from janus_plugins.inference import paths
from janus_plugins.inference.decode import row_embeds
from janus_plugins.inference.prompts import question_prompt
from janus_plugins.inference.stream import pad_left
from janus_plugins.inference.words import TextPrompt, generate_text
from tests.conversion.made import CODES

QUESTIONS = ["What is in this picture?", "Is it a red cube on a table, or a cat?"]


def picture(seed: int, width: int = 40, height: int = 24) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def prompts(model, pictures: list[list[Image.Image]]) -> list[TextPrompt]:
    """Our own layout of one question each, with its pictures embedded."""
    part = model.plan.model.understanding["image"].encoder
    made = []
    for question, images in zip(QUESTIONS, pictures, strict=False):
        embedded = paths.embed_items(model, "image", paths.read_items(part, images)) if images else []
        made.append(question_prompt(model, question, [("image", each) for each in embedded], None, 0))
    return made


def ids_of(model, prompt: TextPrompt) -> list[int]:
    """The prompt's ids with the placeholder in the pictures' slots, as transformers takes them."""
    ids = list(prompt.ids)
    placeholder = model.tokenizer.id_of("<image_placeholder>")
    for start, values in prompt.items:
        ids[start : start + len(values)] = [placeholder] * len(values)
    return ids


def our_logits(model, rows: list[TextPrompt]) -> list[Tensor]:
    """Logits of every slot of every row [L, V], rows in one left-padded batch."""
    embeds = [row_embeds(model.language_model, row.ids, row.items, model.device) for row in rows]
    length = max(map(len, embeds))
    pads = torch.tensor([[length - len(row)] for row in embeds])
    slots = torch.arange(length)
    plan = Cached(0, slots >= pads if pads.any() else None)
    hidden = model.language_model(pad_left(embeds, length), (slots - pads).clamp_min(0), plan)
    logits = model.language_model.text_head.logits(hidden)
    return [each[length - len(row) :] for each, row in zip(logits, embeds, strict=True)]


def inputs_for(
    model, processor, rows: list[TextPrompt], pictures: list[list[Image.Image]]
) -> dict[str, Tensor]:
    ids = [ids_of(model, row) for row in rows]
    length = max(map(len, ids))
    pad = model.tokenizer.id_of(model.template.pad)
    padded = torch.tensor([[pad] * (length - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids])
    images = [image for row in pictures for image in row]
    inputs = {"input_ids": padded, "attention_mask": mask}
    if images:
        inputs["pixel_values"] = processor.image_processor(images, return_tensors="pt").pixel_values
    return inputs


@pytest.mark.parametrize(
    "pictures",
    [[[1]], [[1, 2]], [[1], [2, 3]], [[], [4]]],
    ids=["one picture", "two pictures", "batch with padding", "text beside a picture"],
)
def test_understanding_logits(model, theirs, processor, pictures):
    pictures = [[picture(seed) for seed in row] for row in pictures]
    rows = prompts(model, pictures)
    inputs = inputs_for(model, processor, rows, pictures)
    expected = theirs(**inputs).logits
    for ours, other in zip(our_logits(model, rows), expected, strict=True):
        assert other.std() > 0.5  # clearly different logits, not all near zero
        assert (ours - other[-len(ours) :]).abs().max() < 1e-4


def test_a_picture_is_seen(model):
    """The parity above would also hold for a model that ignores pictures."""
    one, other = (our_logits(model, prompts(model, [[picture(seed)]]))[0][-1] for seed in (1, 2))
    assert (one - other).abs().max() > 0.1


def test_greedy_text(model, theirs, processor):
    pictures = [[picture(1)], [picture(2), picture(3)]]
    rows = prompts(model, pictures)
    inputs = inputs_for(model, processor, rows, pictures)
    expected = theirs.generate(**inputs, do_sample=False, max_new_tokens=12)[
        :, inputs["input_ids"].shape[1] :
    ]
    eos = model.tokenizer.id_of(model.template.eos)
    ours = generate_text(model, rows, stop=eos, max_new_tokens=12)
    for answer, other in zip(ours, expected.tolist(), strict=True):
        assert answer == (other[: other.index(eos)] if eos in other else other)
        assert len(set(answer)) > 2


class Record(LogitsProcessor):
    """Keep what transformers' head answers before guidance [2 B, K]."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores.append(scores.clone())
        return scores


def test_image_codes_under_guidance(model, theirs, processor, monkeypatch):
    """Logits of every step to 1e-4, and the greedy codes, of a batch of prompts of different lengths."""
    texts = ["a photo of a cat", "A small red cube on a large blue table", "cat"]
    recorded: list[Tensor] = []
    head = model.generation["image"].head
    sample = head.sample

    def spy(hidden, unconditional, **options):
        recorded.append(guide(head.logits(hidden), head.logits(unconditional), options["guidance"]))
        return sample(hidden, unconditional, **options)

    monkeypatch.setattr(head, "sample", spy)
    codes = model.generate(texts, guidance=5.0, temperature=0, return_codes=True)
    messages = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    spelt = [processor.apply_chat_template(each, add_generation_prompt=True) for each in messages]
    inputs = processor(text=spelt, generation_mode="image", padding=True, return_tensors="pt")
    record = Record()
    expected = mended(theirs).generate(
        **inputs, generation_mode="image", do_sample=False, guidance_scale=5.0,
        logits_processor=LogitsProcessorList([record]),
    )  # fmt: skip
    assert codes.tolist() == expected.tolist()
    assert len(codes.unique()) > 3
    assert codes.max() < CODES
    assert len(recorded) == len(record.scores) == 16
    for ours, both in zip(recorded, record.scores, strict=True):
        conditional, unconditional = both.chunk(2)
        guided = unconditional + 5 * (conditional - unconditional)
        assert (conditional - unconditional).abs().max() > 1e-2
        assert (ours - guided).abs().max() < 1e-4


def test_vq_decoding(model, theirs):
    codes = torch.randint(CODES, (3, 16), generator=torch.Generator().manual_seed(0))
    ours = model.generation["image"].encoder.decode(codes)
    other = theirs.decode_image_tokens(codes).permute(0, 3, 1, 2)
    assert other.std() > 0.01
    assert (ours - other).abs().max() < 1e-5


def test_vq_encoding_follows_the_official_quantiser(model, theirs):
    """Official: pixels' vectors and codes at length 1. transformers normalises neither, and its ids differ."""
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = torch.nn.functional.interpolate(pixels, (16, 16))
    vq = model.generation["image"].encoder
    ours = vq.encode({"pixels": pixels})
    vectors = vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1).reshape(-1, 8)
    table = vq.quantize.embedding.weight
    unit, units = (each / each.norm(dim=1, keepdim=True) for each in (vectors, table))
    official = ((unit[:, None] - units[None]) ** 2).sum(-1).argmin(1).view(2, -1)
    raw = ((vectors[:, None] - table[None]) ** 2).sum(-1).argmin(1).view(2, -1)
    other = theirs.model.vqmodel.encode(pixels).image_tokens.view(2, -1)
    assert ours.tolist() == official.tolist()
    assert other.tolist() == raw.tolist()
    assert (ours != other).float().mean() > 0.3
