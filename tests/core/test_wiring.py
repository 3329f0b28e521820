"""Wiring is refused from facts alone: both places, both numbers, and no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from janus_plugins.core.errors import JanusPluginsError, PluginError, RunFileError, WiringError
from janus_plugins.core.facts import SourceFacts, UnderstandingFacts
from janus_plugins.core.runfile import dump_run, load_run, load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.door import plan
from janus_plugins.encoders.siglip.spec import SiglipConfig
from tests.tiny import write_tiny

CASES = {
    "an option that is none": (
        [
            "model.understanding.image.encoder.options={img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_headz: 2}"
        ],
        RunFileError,
        ["num_headz", "Did you mean 'num_heads'", "--set"],
    ),
    "a template that is none": (
        ["model.language_model.template=plian"],
        RunFileError,
        ["--set", "'plian'", "Did you mean 'plain'"],
    ),
    "an evaluation by a name that stands beside scores": (
        ["evaluation.details={task: exact-match, source: read}"],
        WiringError,
        ["evaluation.details", "call this one otherwise"],
    ),
    "an adapter for features on the generation path": (
        ["model.generation.image.adapter.use=mlp"],
        WiringError,
        ["generation.image.adapter", "codes", "another adapter"],
    ),
    "an encoder on another modality's path": (
        ["model.understanding={audio: {encoder: {use: siglip}, adapter: {use: mlp}}}"],
        WiringError,
        ["understanding.audio.encoder", "is image", "is audio"],
    ),
    "the text head on the generation path": (
        ["model.generation.image.head={use: text}"],
        WiringError,
        ["generation.image.head", "text", "codes"],
    ),
    "a tokenizer that is too large": (
        ["model.language_model.tokenizer.vocab_size=65"],
        WiringError,
        ["65", "64", "vocab_size"],
    ),
    "rows that are longer than the positions": (
        ["stages.finetune.max_length=129"],
        WiringError,
        ["max_length is 129", "128 positions", "finetune"],
    ),
    "rows that cannot hold an item": (
        ["stages.finetune.max_length=12"],
        WiringError,
        ["max_length is 12", "16 slots"],
    ),
    "codes that are no multiple of the block": (
        ["model.generation.image.parallel={block: 5}", "stages.finetune.learn.generation=1e-3"],
        WiringError,
        ["generation.image.parallel", "block is 5", "16 codes", "1, 2, 4, 8, 16"],
    ),
    "no block left to be predicted at once": (
        [
            "model.generation.image.parallel={block: 8, sequential: 2}",
            "stages.finetune.learn.generation.image.starts=1e-3",
        ],
        WiringError,
        ["sequential is 2", "2 blocks of 8"],
    ),
    "start embeddings that nobody learns": (
        ["model.generation.image.parallel={block: 4}"],
        WiringError,
        ["learn generation.image.head", "none of them learns generation.image.starts"],
    ),
    "learning start embeddings that are not there": (
        ["stages.finetune.learn={generation.image.starts: 1e-3}"],
        WiringError,
        ["generation.image.starts", "no part of the model"],
    ),
    "rows that cannot hold an item and its start embeddings": (
        [
            "model.generation.image.parallel={block: 16}",
            "stages.finetune.learn.generation.image.starts=1e-3",
            "stages.finetune.max_length=24",
        ],
        WiringError,
        ["max_length is 24", "31 slots"],
    ),
    "learning a part that is not there": (
        ["stages.finetune.learn={language_modell: 1e-3}"],
        WiringError,
        ["language_modell", "language_model"],
    ),
    "learning an encoder of codes by their prediction": (
        ["stages.finetune.learn={generation.image: 1e-3}"],
        WiringError,
        [
            "'generation.image' holds generation.image.encoder, which no loss of this stage reaches",
            "name generation.image.adapter, generation.image.head instead, or train encoders",
        ],
    ),
    "learning what a reconstruction does not reach": (
        ["stages.tokenizer.learn={generation.image.encoder: 1e-3, language_model: 1e-3}"],
        WiringError,
        ["'language_model' holds language_model, which no loss of this stage reaches", "leave it out"],
    ),
    "updates of an encoder of codes": (
        ["stages.finetune.lora={generation: {rate: 1e-3, r: 2}}"],
        WiringError,
        ["lora: 'generation' holds generation.image.encoder"],
    ),
    "a task without a source": (
        ["stages.finetune.mix={interleaved: 1}"],
        WiringError,
        ["interleaved", "no source"],
    ),
    "a gap between two sources": (
        ["stages.finetune.sources={read: {}, sort: {}, draw: {after: 1}}"],
        WiringError,
        ["generation", "step 0"],
    ),
    "training on a test set": (
        ["stages.finetune.sources={read_test: {}}"],
        WiringError,
        ["read_test", "never trained on"],
    ),
    "a source that serves another task": (
        ["data.read.task=generation"],
        WiringError,
        ["data.read", "understanding", "generation"],
    ),
    "a source for a path that the model lacks": (
        ["model.understanding={}"],
        WiringError,
        ["data.read", "understanding.image"],
    ),
    "a test set that reads the training samples": (
        ["data.read_test.options={ask: understanding, size: 8}"],
        WiringError,
        [
            "data.read_test: has split: test and reads the same samples as data.read, which has split: train",
            "(options.split)",
        ],
    ),
    "evaluation on training data": (
        ["evaluation.understanding.source=read"],
        WiringError,
        ["evaluation.understanding", "split: train"],
    ),
    "tokens that are the same": (
        ["model.tokens={image: {begin: <i>, end: <i>, placeholder: <p>}}"],
        WiringError,
        ["tokens.image.end", "tokens.image.begin", "<i>"],
    ),
    "tokens of no modality": (
        ["model.tokens={imagee: {begin: <a>, end: <b>, placeholder: <c>}}"],
        WiringError,
        ["imagee", "image"],
    ),
    "reconstructing what is not generated": (
        ["stages.tokenizer.reconstruct=audio"],
        WiringError,
        ["audio", "image"],
    ),
    "a setting of another type of tokenizer": (
        ["model.language_model.tokenizer={type: bytes, vocab_size: 7, level: word}"],
        WiringError,
        [
            "tokenizer.vocab_size: a tokenizer of type bytes does not read it, one of type trained does",
            "tokenizer.level: a tokenizer",
        ],
    ),
    "a path of a tokenizer that is trained": (
        ["model.language_model.tokenizer.path=somewhere"],
        WiringError,
        ["--set model.language_model.tokenizer.path", "one of type pretrained does"],
    ),
    "answers for data that are held out": (
        ["data.read_test.precomputed=somewhere"],
        WiringError,
        ["data.read_test.precomputed: only training reads it, and data.read_test has split: test"],
    ),
    "samples' settings in a stage that reconstructs": (
        [
            f"stages.tokenizer.{setting}"
            for setting in (
                "template=plain",
                "loss_on=text",
                "loss_mean=task",
                "drop_prompt=0.1",
                "drop_to=pad",
                "first_sentence=0.5",
                "close_generated=true",
                "learn_begin=true",
            )
        ],
        WiringError,
        [
            f"stages[0] (tokenizer): {key}: is about samples in the language model, and this stage has "
            "reconstruct: image"
            for key in (
                "template",
                "loss_on",
                "loss_mean",
                "drop_prompt",
                "drop_to",
                "first_sentence",
                "close_generated",
                "learn_begin",
            )
        ],
    ),
    "a component that is not installed": (
        ["model.understanding.image.encoder.use=siglop"],
        PluginError,
        ["siglop", "siglip"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_is_refused(name, tmp_path):
    overrides, error, words = CASES[name]
    with pytest.raises(error) as caught:
        plan(write_tiny(tmp_path), overrides)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_blocks_need_a_language_model_that_says_bidirectional(tmp_path, monkeypatch):
    from dataclasses import replace

    from janus_plugins.language_models.spec import LlamaConfig

    answer = LlamaConfig.facts
    monkeypatch.setattr(LlamaConfig, "facts", lambda self: replace(answer(self), bidirectional=False))
    overrides = [
        "model.generation.image.parallel={block: 4}",
        "stages.finetune.learn.generation.image.starts=1e-3",
    ]
    with pytest.raises(WiringError, match=r"parallel: slots of a block .* language_model \(llama\)"):
        plan(write_tiny(tmp_path), overrides)
    assert plan(write_tiny(tmp_path), ["model.generation.image.parallel={block: 1}"]).model.starts() == {}


def test_a_trained_model_may_have_stages_that_would_be_refused(tmp_path):
    run = load_run(write_tiny(tmp_path), ["stages.finetune.learn={generation: 1e-3}"])
    with pytest.raises(WiringError, match="no loss of this stage reaches"):
        resolve(run)
    assert resolve(run, trains=False).model.parts()
    run = load_run(write_tiny(tmp_path), ["model.language_model.tokenizer.path=somewhere"])
    assert resolve(run, trains=False).model.parts()
    run = load_run(write_tiny(tmp_path), ["data.read_test.options={ask: understanding, size: 8}"])
    assert resolve(run, trains=False).model.parts()


def test_what_is_spelt_out_at_its_default_is_no_mistake(tmp_path):
    run = load_run(write_tiny(tmp_path), ["model.language_model.tokenizer={type: bytes}"])
    again = load_run_text(dump_run(run))
    assert again == run
    assert resolve(again).data["read"].part.weights is None


def test_an_options_error_names_its_line(tmp_path):
    path = write_tiny(tmp_path)
    path.write_text(path.read_text().replace("num_heads: 2, max", "num_headz: 2, max"))
    with pytest.raises(
        JanusPluginsError, match=r"tiny\.yaml:7.*num_headz.*Did you mean 'num_heads'"
    ) as caught:
        plan(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "model.understanding.image.encoder.options.depth=two",
            "encoder.options.depth: should be a valid integer, unable to parse string as an integer (got 'two')",
        ),
        (
            "data.read.options.ask=undrstanding",
            "data.read.options.ask: should be 'understanding' or 'generation' (got 'undrstanding'). "
            "Did you mean 'understanding'?",
        ),
        ("data.read={use: hf-dataset, task: text}", "data.read.options.columns: is needed, but not given"),
        (
            "data.read={use: hf-dataset, task: text, options: {path: x, columns: {question: a, anwser: b}}}",
            "data.read.options: columns: 'anwser' is not one of question, answer, prompt, text, conversations, "
            "image. Did you mean 'answer'?",
        ),
        (
            "data.read={use: hf-dataset, task: text, options: {path: x, columns: {video: '{b}'}}}",
            "image; if the items are 'video', add modality: video",
        ),
    ],
)
def test_an_option_that_does_not_validate_shows_what_was_given(override, said, tmp_path):
    with pytest.raises(RunFileError) as raised:
        plan(write_tiny(tmp_path), [override])
    assert str(raised.value).endswith(said)
    assert "Value error" not in str(raised.value)


def test_validating_imports_no_torch(tmp_path):
    path = write_tiny(tmp_path)
    code = (
        "import sys; from janus_plugins.door import plan; plan(sys.argv[1]); "
        "print([name for name in ('torch', 'transformers', 'timm', 'datasets', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_parts_carry_owner_and_facts(tmp_path):
    found = plan(write_tiny(tmp_path))
    encoder = found.model.understanding["image"].encoder
    assert (encoder.owner.distribution, encoder.facts.tokens, encoder.facts.width) == ("janus-plugins", 4, 16)
    assert found.model.addresses() == (
        "language_model",
        "language_model.text_head",
        "understanding.image.encoder",
        "understanding.image.adapter",
        "generation.image.encoder",
        "generation.image.adapter",
        "generation.image.head",
    )


def _raise(self):
    raise AttributeError("no 'width'")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (lambda self: None, ["SiglipConfig.facts() answers a NoneType, not UnderstandingFacts"]),
        (lambda self, other: None, ["facts() failed", "TypeError"]),
        (_raise, ["facts() failed", "AttributeError: no 'width'"]),
        (lambda self: UnderstandingFacts("image", 32, 0, 0), ["tokens is 0; it must be at least 1"]),
        (lambda self: UnderstandingFacts("image", 32, 4, 9), ["tokens is 4 and max_tokens 9"]),
    ],
)
def test_facts_that_are_none_name_their_component(facts, words, tmp_path, monkeypatch):
    monkeypatch.setattr(SiglipConfig, "facts", facts)
    with pytest.raises(PluginError) as caught:
        plan(write_tiny(tmp_path))
    for word in (
        "understanding.image.encoder: understanding_encoder/siglip of janus-plugins",
        *words,
        "check",
    ):
        assert word in str(caught.value), str(caught.value)


def test_a_sources_modalities_are_sets():
    with pytest.raises(TypeError, match="understanding is 'radar'; it must be a set of names"):
        SourceFacts(frozenset({"understanding"}), understanding="radar")


def test_what_does_not_fit_names_its_line(tmp_path):
    write_tiny(tmp_path)
    file = tmp_path / "over.yaml"
    file.write_text(
        f"base: {next(tmp_path.glob('*.yaml')).name}\nname: over\nmodel:\n  generation:\n    image:\n"
        "      adapter:\n        use: mlp\nstages:\n  finetune:\n    learn: {language_modell: 1e-3}\n"
        "    reconstruct: audio\ndata:\n  read:\n    task: generation\n"
    )
    with pytest.raises(WiringError) as caught:
        plan(file)
    told = str(caught.value)
    for text in (
        "over.yaml:6: generation.image.adapter: what mlp accepts is latents",
        "over.yaml:13: data.read: ",
        "over.yaml:10: stages[2] (finetune): learn: 'language_modell'",
        "over.yaml:11: stages[2] (finetune): reconstruct: the model generates",
    ):
        assert text in told, told
