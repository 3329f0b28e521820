"""Pictures and prompts: against transformers' processor where both define the same, else against the official rule."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import JanusImageProcessorPil
from transformers.image_utils import load_image

from janus_plugins.core.media import fit_pad
from janus_plugins.core.samples import Turn
from janus_plugins.encoders.siglip.processor import SiglipProcessor
from janus_plugins.encoders.siglip.spec import SiglipConfig
from janus_plugins.sequence.layout import plan_generation, plan_question, plan_turns
from janus_plugins.sequence.line import Spelling
from janus_plugins.sequence.templates import TEMPLATES
from janus_plugins.sequence.tokenizers import TextTokenizer
from tests.conversion.made import BOS, EOS, PAD, make_tokenizer

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)


def noise(width: int, height: int, bands: int = 3) -> np.ndarray:
    """Smooth colours with noise: pictures, not flat areas."""
    rng = np.random.default_rng(width * 1000 + height)
    ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    made = ramp + rng.integers(0, 16, (height, width, bands))
    return made.clip(0, 255).astype(np.uint8)


PICTURES = {
    "wide": Image.fromarray(noise(100, 37)),
    "tall": Image.fromarray(noise(37, 100)),
    "square": Image.fromarray(noise(64, 64)),
    "large": Image.fromarray(noise(768, 512)),
    "tiny": Image.fromarray(noise(4, 3)),
    "narrower than min_size": Image.fromarray(noise(200, 3)),
    "grey": Image.fromarray(noise(50, 40, 1)[:, :, 0]),
    "with alpha": Image.fromarray(noise(48, 32, 4)),
    "palette": Image.fromarray(noise(60, 45)).convert("P", palette=Image.Palette.ADAPTIVE),
}


@pytest.fixture(scope="module")
def ours() -> SiglipProcessor:
    return SiglipProcessor(SiglipConfig())


@pytest.fixture(scope="module")
def theirs() -> JanusImageProcessorPil:
    return JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_equal_transformers(ours, theirs, name):
    """Sizes at which the official rounding (down) and transformers' (to the nearest) agree."""
    picture = PICTURES[name]
    expected = theirs(picture.convert("RGB"), return_tensors="np").pixel_values[0]
    pixels = ours(picture)["pixels"]
    assert pixels.shape == expected.shape == (3, 384, 384)
    assert np.abs(pixels - expected).max() < 1e-6
    assert pixels.min() >= -1
    assert pixels.max() <= 1


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_that_are_not_normalised(name):
    """`do_normalize: false` leaves them in [0, 1]; the padding is the same grey."""
    picture = PICTURES[name]
    theirs = JanusImageProcessorPil(do_normalize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = theirs(picture.convert("RGB"), return_tensors="np").pixel_values[0]
    pixels = SiglipProcessor(SiglipConfig(normalize=False))(picture)["pixels"]
    assert np.abs(pixels - expected).max() < 1e-6
    assert pixels.min() >= 0


def test_exif_rotation(ours, theirs, tmp_path):
    """The official code does not apply it, nor does transformers to a picture; its `load_image` does."""
    path = tmp_path / "rotated.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(60, 30)).save(path, exif=exif)
    with Image.open(path) as opened:
        expected = theirs(opened.convert("RGB"), return_tensors="np").pixel_values[0]
    turned = theirs(load_image(str(path)), return_tensors="np").pixel_values[0]
    assert np.abs(ours(path)["pixels"] - expected).max() < 1e-6
    assert np.abs(SiglipProcessor(SiglipConfig(rotate=True))(path)["pixels"] - turned).max() < 1e-6
    assert np.abs(expected - turned).max() > 0.1


@pytest.mark.parametrize(
    ("size", "inner"), [((100, 38), (384, 145)), ((38, 100), (145, 384)), ((1000, 3), (384, 14))]
)
def test_the_official_rule_where_the_two_differ(size, inner):
    """`max(int(side / longest * 384), 14)`, pasted at the floor of half the rest, on 127."""
    picture = Image.fromarray(noise(*size))
    square = np.asarray(fit_pad(picture, 384))
    resized = np.asarray(picture.resize(inner, Image.Resampling.BICUBIC))
    left, top = (384 - inner[0]) // 2, (384 - inner[1]) // 2
    expected = np.full((384, 384, 3), 127, dtype=np.uint8)
    expected[top : top + inner[1], left : left + inner[0]] = resized
    assert (square == expected).all()


def spelling(template: str) -> Spelling:
    from janus_plugins.core.schema import ItemTokens

    around = ItemTokens(begin="<begin_of_image>", end="<end_of_image>", placeholder="<image_placeholder>")
    special = [BOS, EOS, PAD, around.begin, around.end, around.placeholder]
    made = make_tokenizer(roles=template == "deepseek")
    return Spelling(TextTokenizer(made, special), TEMPLATES[template], lambda _: around)


def official_ids(text: str, template: str, slots: int = 16) -> list[int]:
    """Encode a prompt written out by hand, BOS first; each placeholder becomes begin, slots, end."""
    backend = make_tokenizer(roles=template == "deepseek")
    ids = [backend.token_to_id(BOS), *backend.encode(text, add_special_tokens=False).ids]
    begin, end, placeholder = (
        backend.token_to_id(token) for token in ("<begin_of_image>", "<end_of_image>", "<image_placeholder>")
    )
    spread = [[begin, *[placeholder] * slots, end] if each == placeholder else [each] for each in ids]
    return [each for group in spread for each in group]


def with_placeholder(plan, chat: Spelling) -> list[int]:
    ids = plan.ids.copy()
    for span in plan.spans:
        ids[span.start : span.start + span.length] = chat.tokenizer.id_of("<image_placeholder>")
    return ids.tolist()


@pytest.mark.parametrize(
    ("template", "user", "assistant"),
    [("deepseek-old", "User", "Assistant"), ("deepseek", "<|User|>", "<|Assistant|>")],
)
class TestOfficialPrompts:
    """Prompts as `janus/utils/conversation.py` and the scripts beside it make them, written out by hand."""

    def test_understanding(self, template, user, assistant):
        chat = spelling(template)
        plan = plan_question("What is it?", [("image", 16)], chat)
        text = f"{SYSTEM}\n\n{user}: <image_placeholder>\nWhat is it?\n\n{assistant}:"
        assert with_placeholder(plan, chat) == official_ids(text, template)

    def test_an_empty_system_prompt(self, template, user, assistant):
        chat = spelling(template)
        plan = plan_question("What is it?", [("image", 16)], chat, system="")
        text = f"{user}: <image_placeholder>\nWhat is it?\n\n{assistant}:"
        assert with_placeholder(plan, chat) == official_ids(text, template)

    @pytest.mark.parametrize("empty", ["", " \n"])
    def test_an_empty_prompt(self, template, user, assistant, empty):
        """A role with nothing to say has neither a space nor the separator; a picture is something."""
        chat = spelling(template)
        plan = plan_question(empty, [], chat)
        assert plan.ids.tolist() == official_ids(f"{SYSTEM}\n\n{user}:{assistant}:", template)
        conditional, _, _ = plan_generation(empty, "image", chat)
        assert conditional[:-1].tolist() == official_ids(f"{user}:{assistant}:", template)
        plan = plan_question(empty, [("image", 16)], chat)
        text = f"{SYSTEM}\n\n{user}: <image_placeholder>\n\n{assistant}:"
        assert with_placeholder(plan, chat) == official_ids(text, template)

    @pytest.mark.parametrize("answer", [(), ("",), (" \n",)])
    def test_an_empty_answer(self, template, user, assistant, answer):
        chat = spelling(template)
        turns = [Turn("user", ("One?",)), Turn("assistant", answer), Turn("user", ("Two?",))]
        text = f"{user}: One?\n\n{assistant}:{user}: Two?\n\n{assistant}:"
        assert plan_turns(turns, [], chat, system="").ids.tolist() == official_ids(text, template)

    def test_generation_and_its_unconditional_row(self, template, user, assistant):
        """BOS, pads in the place of everything else, role tags included, and the begin token."""
        chat = spelling(template)
        conditional, unconditional, _ = plan_generation("a photo of a cat", "image", chat)
        text = f"{user}: a photo of a cat\n\n{assistant}:<begin_of_image>"
        backend = make_tokenizer(roles=template == "deepseek")
        expected = [backend.token_to_id(BOS), *backend.encode(text, add_special_tokens=False).ids]
        assert conditional.tolist() == expected
        pad, begin = backend.token_to_id(PAD), backend.token_to_id("<begin_of_image>")
        assert unconditional.tolist() == [expected[0], *[pad] * (len(expected) - 2), begin]


@pytest.mark.parametrize("number", [1, 2])
def test_ids_equal_transformers(model, processor, number):
    """The chat template, the processor and the tokenizer that we write give our own ids."""
    pictures = [Image.fromarray(noise(40, 24)) for _ in range(number)]
    content = [{"type": "image"}] * number + [{"type": "text", "text": " What is in this picture?  "}]
    spelt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    expected = processor(text=[spelt], images=pictures, return_tensors="np").input_ids[0].tolist()
    chat = Spelling(model.tokenizer, model.template, model.item_tokens)
    plan = plan_question(" What is in this picture?  ", [("image", 16)] * number, chat)
    assert with_placeholder(plan, chat) == expected


def test_the_chat_template_joins_turns_as_the_official_code(processor):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "One? "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
        {"role": "user", "content": "Three?"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == f"<|User|>: One?\n\n<|Assistant|>: Two.{EOS}<|User|>: Three?\n\n<|Assistant|>:"


def test_the_chat_template_ends_an_empty_turn_at_its_colon(processor):
    for content in ("", " \n", [{"type": "text", "text": ""}]):
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        assert text == "<|User|>:<|Assistant|>:"
    shown = [{"role": "user", "content": [{"type": "image"}]}]
    text = processor.apply_chat_template(shown, add_generation_prompt=True)
    assert text == "<|User|>: <image_placeholder>\n\n<|Assistant|>:"


@pytest.mark.parametrize("content", ["", " \n", [], [{"type": "text", "text": ""}]])
@pytest.mark.parametrize("last", [False, True])
def test_the_chat_template_ends_an_empty_answer_at_its_colon(processor, content, last):
    messages = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": content}]
    more = [] if last else [{"role": "user", "content": "Two?"}]
    text = processor.apply_chat_template([*messages, *more])
    assert text == "<|User|>: One?\n\n<|Assistant|>:" + ("" if last else "<|User|>: Two?\n\n")


def test_decoded_pixels_are_truncated(ours):
    """`(x + 1) / 2 * 255`, clipped to 0 and 255, then cut to whole numbers: 127.5 is 127, 254.9 is 254."""
    values = [-2.0, -1.0, -0.999, 0.0, 0.5, 0.999, 1.0, 3.0]
    decoded = np.array(values, dtype=np.float32)[None, None].repeat(3, axis=0)
    assert np.asarray(ours.restore(decoded))[0, :, 0].tolist() == [0, 0, 0, 127, 191, 254, 255, 255]
