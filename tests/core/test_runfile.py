"""Run files: bases, overrides, and refusals that say file, line, path and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.runfile import (
    dump_run,
    load_run,
    load_run_text,
    locator,
    resolve_path,
    shipped_runs,
)

RUN = """\
name: small
model:
  language_model:
    use: llama
    options: {hidden_size: 32, num_layers: 2}
    tokenizer: {type: bytes}
  understanding:
    image:
      encoder: {use: siglip, options: {depth: 1}, weights: somewhere}
      adapter: {use: mlp}
data:
  read: {use: digits, task: understanding}
stages:
  - name: adapters
    learn: {understanding.image.adapter: 1e-3}
    steps: 10
    batch: 4
    mix: {understanding: 1}
    max_length: 64
  - name: unified
    learn:
      language_model: 1e-4
      understanding.image.adapter: 1e-4
    steps: 20
    batch: 4
    mix: {understanding: 1}
    max_length: 64
engine: {precision: fp32}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with run.yaml in it."""
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


def refusal(text: str, *overrides: str) -> list[str]:
    """Load what is refused; return the lines of the message."""
    with pytest.raises(RunFileError) as raised:
        load_run_text(text, "run.yaml", overrides)
    assert type(raised.value) is RunFileError
    assert raised.value.exit_code == 2
    return str(raised.value).split("\n")


def test_a_run_file_is_loaded() -> None:
    run = load_run_text(RUN)
    assert [stage.name for stage in run.stages] == ["adapters", "unified"]
    assert run.stages[0].learn == {"understanding.image.adapter": 1e-3}
    assert run.model.understanding["image"].encoder.options == {"depth": 1}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: small", "nmae: small", "run.yaml:1: nmae: unknown key. Did you mean 'name'?"),
        (
            "    steps: 10",
            "    stesp: 10",
            "run.yaml:16: stages.adapters.stesp: unknown key. Did you mean 'steps'?",
        ),
        (
            "adapter: {use: mlp}",
            "adapter: {use: mlp, hidden: 3}",
            "run.yaml:10: model.understanding.image.adapter.hidden: unknown key. "
            "A component's own settings go under 'options'.",
        ),
        (
            "read: {use: digits, task: understanding}",
            "read: {use: digits, task: understanding, weights: somewhere}",
            "run.yaml:12: data.read.weights: unknown key. A component's own settings go under 'options'.",
        ),
        ("    batch: 4\n", "", "run.yaml:14: stages.adapters.batch: is needed, but not given"),
        (
            "steps: 10",
            "steps: 0",
            "run.yaml:16: stages.adapters.steps: should be greater than or equal to 1 (got 0)",
        ),
        (
            "steps: 10",
            "steps: many",
            "run.yaml:16: stages.adapters.steps: should be a valid integer, "
            "unable to parse string as an integer (got 'many')",
        ),
        ("steps: 10", "steps: true", "run.yaml:16: stages.adapters.steps: should be a number (got true)"),
        (
            "precision: fp32",
            "precision: bf61",
            "run.yaml:28: engine.precision: should be 'fp32' or 'bf16' (got 'bf61'). Did you mean 'bf16'?",
        ),
        (
            "mix: {understanding: 1}\n    max_length: 64\n  -",
            "mix: {understandin: 1}\n    max_length: 64\n  -",
            "run.yaml:18: stages.adapters.mix.understandin: should be 'text', 'understanding', 'generation' "
            "or 'interleaved' (got 'understandin'). Did you mean 'understanding'?",
        ),
        (
            "name: unified",
            "name: adapters",
            "run.yaml:20: stages.adapters: two stages are called 'adapters'; each needs its own name",
        ),
        (
            "tokenizer: {type: bytes}",
            "tokenizer: {type: trained}",
            "run.yaml:6: model.language_model.tokenizer: a tokenizer of type trained needs 'vocab_size'",
        ),
        (
            "tokenizer: {type: bytes}",
            "tokenizer: {type: bytes}\n    template: [plain]",
            "run.yaml:7: model.language_model.template: should be 'deepseek-old', 'deepseek' or 'plain'",
        ),
        (
            "tokenizer: {type: bytes}",
            "tokenizer: {type: bytes}\n    template: {user: U, assistant: A, bos: b, eos: e, pda: p}",
            "run.yaml:7: model.language_model.template.pda: unknown key. Did you mean 'pad'?",
        ),
        (
            "{use: mlp}",
            "mlp",
            "run.yaml:10: model.understanding.image.adapter: should be a mapping: {use: mlp} (got 'mlp')",
        ),
        (
            "tokenizer: {type: bytes}",
            "tokenizer: bytes",
            "run.yaml:6: model.language_model.tokenizer: should be a mapping (got 'bytes')",
        ),
        ("name: small", "name: ''", "run.yaml:1: name: names a folder, so it has no '/' or"),
        *[
            ("name: small", f"name: {name}", f"control characters, and 1 to 200 bytes (got {shown})")
            for name, shown in (
                ("../../x", "'../../x'"),
                ("a/b", "'a/b'"),
                ("a\\b", r"'a\\b'"),
                (".hidden", "'.hidden'"),
                ('"a\\nb"', r"'a\nb'"),
                ('" a"', "' a'"),
            )
        ],
        (
            "options: {depth: 1}",
            "options: {path: ${DATA}/x}",
            "environment variables are not expanded: write what ${DATA} stands for",
        ),
        ("name: small", "name: .nan", "run.yaml:1:7: .nan is not a finite number of at most 64 bits"),
        (
            "{depth: 1}",
            "{depth: 1, depth: 2}",
            "run.yaml:9:50: key 'depth' is given twice, first on line 9; keep one",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_nearest_word(old: str, new: str, expected: str) -> None:
    assert old in RUN
    assert any(
        line.endswith(expected) or line.startswith(expected) for line in refusal(RUN.replace(old, new, 1))
    )


def test_every_mistake_is_reported_at_once_and_none_twice() -> None:
    text = RUN.replace("batch: 4", "batch: -4").replace("name: small", "seeed: 1")
    lines = refusal(text)
    assert [line.split(": ")[0] for line in lines] == ["run.yaml:17", "run.yaml:25", "run.yaml:1"]


def test_a_flood_of_mistakes_is_cut_short() -> None:
    lines = refusal(RUN + "".join(f"k{number}: 1\n" for number in range(50)))
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more"


@pytest.mark.parametrize(
    "use",
    [
        "os:system",
        "janus_plugins.encoders.siglip.model:build",
        "os.path",
        "../mlp",
        "Mlp",
        "a/b/c",
        "ml p",
        "''",
    ],
)
def test_a_run_file_names_components_and_never_code(use: str) -> None:
    (line,) = refusal(RUN.replace("{use: mlp}", f"{{use: {use}}}"))
    assert line.startswith("run.yaml:10: model.understanding.image.adapter.use: ")
    assert ("looks like an import path" in line) == (":" in use or "." in use)


def test_a_component_may_be_named_with_its_distribution() -> None:
    run = load_run_text(RUN.replace("{use: mlp}", "{use: Acme.Parts_x/mlp-2}"))
    assert run.model.understanding["image"].adapter.use == "Acme.Parts_x/mlp-2"


def test_a_base_is_overridden_key_by_key(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "over.yaml").write_text(
        "base: ../run.yaml\n"
        "name: wide\n"
        "model:\n"
        "  language_model: {options: {hidden_size: 64}}\n"
        "stages:\n"
        "  unified: {steps: 40, learn: {understanding.image.adapter: null}}\n"
    )
    (folder / "top.yaml").write_text("base: sub/over.yaml\nseed: 7\nstages: {unified: {batch: 8}}\n")
    run = load_run(folder / "top.yaml")
    assert (run.name, run.seed) == ("wide", 7)
    assert run.model.language_model.options == {"hidden_size": 64, "num_layers": 2}
    adapters, unified = run.stages
    assert adapters == load_run(folder / "run.yaml").stages[0]
    assert (unified.steps, unified.batch, unified.learn) == (40, 8, {"language_model": 1e-4})


def test_a_list_of_stages_replaces_all_and_null_removes_one(folder: Path) -> None:
    one = "{name: only, learn: {language_model: 1}, steps: 1, batch: 1, mix: {text: 1}, max_length: 8}"
    (folder / "list.yaml").write_text(f"base: run.yaml\nstages: [{one}]\n")
    assert [stage.name for stage in load_run(folder / "list.yaml").stages] == ["only"]
    (folder / "gone.yaml").write_text("base: run.yaml\nstages: {adapters: null}\n")
    assert [stage.name for stage in load_run(folder / "gone.yaml").stages] == ["unified"]


def test_null_removes_where_absence_is_allowed_and_is_a_value_where_that_is_allowed(folder: Path) -> None:
    (folder / "over.yaml").write_text(
        "base: run.yaml\n"
        "model: {understanding: {image: null}}\n"
        "engine: null\n"
        "stages:\n"
        "  unified: {clip: null, schedule: null}\n"
    )
    run = load_run(folder / "over.yaml")
    assert run.model.understanding == {}
    assert run.engine == load_run_text(RUN.replace("engine: {precision: fp32}\n", "")).engine
    assert run.stages[1].clip is None
    assert run.stages[1].schedule == run.stages[0].schedule
    (folder / "over.yaml").write_text("base: run.yaml\nmodel: null\n")
    with pytest.raises(RunFileError, match=r"over.yaml:2: model: should be a mapping \(got nothing\)"):
        load_run(folder / "over.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {raed: null}", "has no data.raed to remove. Did you mean 'read'?"),
        ("data: {x: null}", "has no data.x to remove. It has: read"),
        (
            "model: {understanding: {imgae: null}}",
            "no model.understanding.imgae to remove. Did you mean 'image'?",
        ),
        ("model: {generation: {image: null}}", "no model.generation.image to remove. It has: none"),
        ("evaluation: {nope: null}", "no evaluation.nope to remove. It has: none"),
        (
            "stages: {unified: {learn: {langage_model: null}}}",
            "no stages.unified.learn.langage_model to remove. Did you mean 'language_model'?",
        ),
        ("stages: {unified: {sources: {read: null}}}", "no stages.unified.sources.read to remove."),
    ],
)
def test_null_removes_nothing_that_the_base_has_not(folder: Path, text: str, said: str) -> None:
    (folder / "over.yaml").write_text(f"base: run.yaml\n{text}\n")
    with pytest.raises(RunFileError) as raised:
        load_run(folder / "over.yaml")
    assert str(raised.value).startswith(f"{folder / 'over.yaml'}:2: {folder / 'run.yaml'} has no ")
    assert said in str(raised.value)


def test_what_one_file_removes_the_next_cannot_remove_again(folder: Path) -> None:
    (folder / "mid.yaml").write_text("base: run.yaml\ndata: {read: null}\nstages: []\n")
    (folder / "over.yaml").write_text("base: mid.yaml\ndata: {read: null}\n")
    with pytest.raises(
        RunFileError, match=r"over.yaml:2: .*mid.yaml has no data.read to remove. It has: none"
    ):
        load_run(folder / "over.yaml")


def test_an_entry_without_content_is_refused_where_there_is_no_base() -> None:
    (line,) = refusal(RUN.replace("{use: digits, task: understanding}", ""))
    assert line == "run.yaml:12: data.read: is empty; remove the line"


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("mix: {understanding:1, text: 1}", "mix.understanding:1: is empty; write 'understanding: 1', with a space"),
        ("mix: {understanding: , text: 1}", "mix.understanding: is empty; remove the line"),
        ("mix: {text: 1}\n    sources: {read:2, x: {}}", "sources.read:2: is empty; write 'read: 2', with a space"),
    ],
)  # fmt: skip
def test_an_entry_of_a_stage_without_a_value_is_refused_not_dropped(new: str, said: str) -> None:
    """YAML takes `{a:1, b: 2}` for a key "a:1" without a value: the stage was trained without it."""
    (line,) = refusal(RUN.replace("mix: {understanding: 1}", new))
    assert line.endswith(f": stages.0.{said}")


def test_another_type_of_tokenizer_does_not_inherit_what_the_first_one_reads(folder: Path) -> None:
    trained = RUN.replace(
        "tokenizer: {type: bytes}", "tokenizer: {type: trained, vocab_size: 99, level: word}"
    )
    (folder / "trained.yaml").write_text(trained)
    (folder / "over.yaml").write_text(
        "base: trained.yaml\nmodel: {language_model: {tokenizer: {type: pretrained, path: here}}}\n"
    )
    tokenizer = load_run(folder / "over.yaml").model.language_model.tokenizer
    assert (tokenizer.type, tokenizer.path, tokenizer.vocab_size, tokenizer.level) == (
        "pretrained",
        "here",
        None,
        "bpe",
    )
    over = ["model.language_model.tokenizer.type=bytes"]
    assert load_run(folder / "trained.yaml", over).model.language_model.tokenizer.vocab_size is None
    over = ["model.language_model.tokenizer.vocab_size=7"]
    tokenizer = load_run(folder / "trained.yaml", over).model.language_model.tokenizer
    assert (tokenizer.type, tokenizer.vocab_size, tokenizer.level) == ("trained", 7, "word")


def test_an_empty_item_of_a_list_is_refused(folder: Path) -> None:
    one = "{name: only, learn: {language_model: 1}, steps: 1, batch: 1, mix: {text: 1}, max_length: 8}"
    (folder / "over.yaml").write_text(f"base: run.yaml\nstages:\n- {one}\n-\n")
    with pytest.raises(RunFileError, match=r"over.yaml:4: stages\[1\]: is empty; remove the line"):
        load_run(folder / "over.yaml")
    (folder / "over.yaml").write_text("base: run.yaml\ncallbacks:\n- {use: time-limit}\n- null\n")
    with pytest.raises(RunFileError, match=r"over.yaml:4: callbacks\[1\]: is empty; remove the line"):
        load_run(folder / "over.yaml")


def test_another_component_does_not_inherit_options_or_weights(folder: Path) -> None:
    (folder / "over.yaml").write_text(
        "base: run.yaml\nmodel: {understanding: {image: {encoder: {use: clip, options: {size: 3}}}}}\n"
    )
    encoder = load_run(folder / "over.yaml").model.understanding["image"].encoder
    assert (encoder.use, encoder.options, encoder.weights) == ("clip", {"size": 3}, None)
    (folder / "over.yaml").write_text(
        "base: run.yaml\nmodel: {understanding: {image: {encoder: {use: siglip, options: {size: 3}}}}}\n"
    )
    encoder = load_run(folder / "over.yaml").model.understanding["image"].encoder
    assert (encoder.options, encoder.weights) == ({"depth": 1, "size": 3}, "somewhere")
    (folder / "judged.yaml").write_text(
        "base: run.yaml\nevaluation: {read: {task: judge, source: read, options: {within: 3}}}\n"
    )
    for task, options in (("match", {}), ("judge", {"within": 3})):
        (folder / "over.yaml").write_text(f"base: judged.yaml\nevaluation: {{read: {{task: {task}}}}}\n")
        judged = load_run(folder / "over.yaml").evaluation["read"]
        assert (judged.task, judged.source, judged.options) == (task, "read", options)
    over = ["evaluation.read.task=match"]
    assert load_run(folder / "judged.yaml", over).evaluation["read"].options == {}


@pytest.mark.parametrize("base", [".", "..", "/"])
def test_a_base_that_is_a_folder_is_refused(folder: Path, base: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "over.yaml").write_text(f"base: {base}\n")
    with pytest.raises(RunFileError, match=r"over\.yaml:1: base: there is no file"):
        load_run(folder / "inner" / "over.yaml")


@pytest.mark.parametrize(
    ("before", "after"), [("siglip", "janus-plugins/siglip"), ("janus-plugins/siglip", "siglip")]
)
def test_our_component_is_the_same_under_its_full_name(folder: Path, before: str, after: str) -> None:
    over = [f"model.understanding.image.encoder.use={name}" for name in (before, after)]
    encoder = load_run(folder / "run.yaml", over).model.understanding["image"].encoder
    assert (encoder.use, encoder.options, encoder.weights) == (after, {"depth": 1}, "somewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: none.yaml\n", "over.yaml:1: base: there is no file"),
        ("base: digts\n", "no shipped run of that name. Did you mean 'digits'?"),
        ("base: digts.yaml\n", "no shipped run of that name. Did you mean 'digits'?"),
        ("base: runn.yaml\n", "no shipped run of that name. Did you mean 'run.yaml'?"),
        ("base: ../x/runn\n", "no shipped run of that name"),
        ("base: $HOME/run.yaml\n", "not expanded: write what $HOME stands for"),
        ("name: x\nbase: [a, b]\n", "over.yaml:2: base: should be the path of a run file"),
        (
            "base: over.yaml\n",
            "over.yaml:1: base: the files name one another in a circle: over.yaml -> over.yaml",
        ),
        ("base: ring.yaml\n", "in a circle: over.yaml -> ring.yaml -> over.yaml"),
        (
            "base: run.yaml\nstages:\n  unifed: {steps: 3}\n",
            "over.yaml:3: stages.unifed: ",
        ),
        ("base: run.yaml\nstages:\n  unifed: {steps: 3}\n", "no such stage. Did you mean 'unified'?"),
        (
            "base: run.yaml\nstages:\n  unified:\n    steps: 0\n",
            "over.yaml:4: stages.unified.steps: should be",
        ),
        (
            "base: run.yaml\nname: x\nstages: {unified: {batch: x}}\n",
            "over.yaml:3: stages.unified.batch: should be",
        ),
        ("base: bad.yaml\n", "bad.yaml:16: stages.adapters.steps: should be"),
        ("stages: {a: {steps: 1}}\n", "over.yaml:1: stages: a mapping overrides the stages of a base file"),
    ],
)
def test_mistakes_in_a_chain_name_the_file_that_made_them(folder: Path, text: str, said: str) -> None:
    (folder / "over.yaml").write_text(text)
    (folder / "ring.yaml").write_text("base: over.yaml\n")
    (folder / "bad.yaml").write_text(RUN.replace("steps: 10", "steps: 0"))
    with pytest.raises(RunFileError) as raised:
        load_run(folder / "over.yaml")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("stages.unified.steps=7", lambda run: run.stages[1].steps == 7),
        ("stages.1.steps=7", lambda run: run.stages[1].steps == 7),
        (
            "stages.adapters.learn.understanding.image.adapter=1e-2",
            lambda run: run.stages[0].learn == {"understanding.image.adapter": 1e-2},
        ),
        (
            "stages.adapters.learn.'understanding.image.adapter'=1e-2",
            lambda run: run.stages[0].learn == {"understanding.image.adapter": 1e-2},
        ),
        (
            "stages.adapters.learn.understanding.image.encoder=1e-5",
            lambda run: run.stages[0].learn.get("understanding.image.encoder") == 1e-5,
        ),
        ("stages.unified.learn.language_model=null", lambda run: "language_model" not in run.stages[1].learn),
        (
            "stages.unified.optimizer.betas=[0.8, 0.9]",
            lambda run: run.stages[1].optimizer.betas == (0.8, 0.9),
        ),
        ("stages.unified.optimizer.eps=1e-6", lambda run: run.stages[1].optimizer.eps == 1e-6),
        ("stages.adapters=null", lambda run: len(run.stages) == 1),
        ("engine.precision=bf16", lambda run: run.engine.precision == "bf16"),
        (
            "engine.deepspeed.zero_optimization.stage=2",
            lambda run: run.engine.deepspeed == {"zero_optimization": {"stage": 2}},
        ),
        (
            "model.language_model.options.rope.theta=5",
            lambda run: run.model.language_model.options.get("rope") == {"theta": 5},
        ),
        ("model.language_model.weights=a=b.c", lambda run: run.model.language_model.weights == "a=b.c"),
        (
            "model.understanding.image.encoder.use=clip",
            lambda run: run.model.understanding["image"].encoder.options == {},
        ),
        ("model.understanding={}", lambda run: run.model.understanding == {}),
        ('name="1e-4"', lambda run: run.name == "1e-4"),
        (
            "data.more={use: digits, task: text}",
            lambda run: "more" in run.data and run.data["more"].task == "text",
        ),
    ],
)
def test_an_override_sets_one_value(override: str, read) -> None:
    changed = load_run_text(RUN, overrides=[override])
    assert read(changed)
    assert not read(load_run_text(RUN))


def test_overrides_apply_in_order() -> None:
    assert load_run_text(RUN, overrides=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.unified.stesp=1", "there is no key 'stesp'. Did you mean 'steps'?"),
        ("stages.unifed.steps=1", "there is no element 'unifed' among 2. Did you mean 'unified'?"),
        ("stages.2.steps=1", "there is no element '2' among 2."),
        ("engin.precision=bf16", "there is no key 'engin'. Did you mean 'engine'?"),
        ("model.understanding.imge.adapter.use=mlp", "the run has no 'imge' there. Did you mean 'image'?"),
        ("name.first=x", "nothing can stand at 'first' there"),
        ("stages.unified.steps=0", "stages.unified.steps: should be greater than or equal to 1 (got 0)"),
        ("seed=.nan", ".nan is not a finite number"),
        ("seed=!!python/object/apply:os.system [ls]", "tags are not allowed"),
        ("seed=[1", "expected ',' or ']'"),
        ("model.understanding.image.adapter.use=os:system", "looks like an import path"),
        ("data.raed=null", "the run has no data.raed to remove. Did you mean 'read'?"),
        (
            "model.understanding.imgae=null",
            "the run has no model.understanding.imgae to remove. Did you mean",
        ),
        ("stages.unified.learn.langage_model=null", "to remove. Did you mean 'language_model'?"),
        ("stages.unified.sources.read=null", "the run has no stages.unified.sources.read to remove."),
        ("evaluation.nope=null", "the run has no evaluation.nope to remove."),
        (
            "stages.unified.mix={understanding:1, text: 1}",
            "stages.1.mix.understanding:1: is empty; write 'understanding: 1', with a space",
        ),
        ("data={read: null}", "data.read: is empty; remove the line"),
        ("steps", "write path=value"),
        ("=1", "write path=value"),
        ("stages..steps=1", "write path=value"),
    ],
)
def test_a_bad_override_is_refused_by_name(override: str, said: str) -> None:
    (line,) = refusal(RUN, override)
    assert line.startswith(f"--set {override}: ")
    assert said in line


def test_a_run_remembers_where_its_values_were_given() -> None:
    run = load_run_text(RUN, "some/run.yaml", ["model.language_model.options.num_layers=3"])
    where = locator(run)
    assert where(("model", "language_model", "options", "hidden_size")) == "some/run.yaml:5"
    assert where(("model", "language_model", "options", "num_layers")).startswith(
        "--set model.language_model"
    )
    assert where(("stages", 1, "learn", "nothing")) == "some/run.yaml:21"
    assert locator(run.model_copy())(("name",)) == ""


@pytest.mark.parametrize("name", shipped_runs())
def test_every_shipped_run_loads_and_survives_a_round_trip(name: str) -> None:
    run = load_run(name)
    assert load_run_text(dump_run(run), "config.yaml") == run


def test_the_null_weights_of_data_in_older_files_are_passed_over() -> None:
    given = "read: {use: digits, task: understanding}"
    assert load_run_text(RUN.replace(given, given[:-1] + ", weights: null}")) == load_run_text(RUN)


def test_awkward_values_survive_a_round_trip() -> None:
    text = RUN.replace(
        "{depth: 1}", "{a: '1e-4', b: 'on', c: null, d: 1e-12, e: '012', f: \"x\\ny\", g: [[]]}"
    )
    text = text.replace("max_length: 64\nengine", "max_length: 64\n    clip: null\nengine")
    run = load_run_text(text)
    again = load_run_text(dump_run(run))
    assert again == run
    assert again.stages[1].clip is None
    assert again.model.understanding["image"].encoder.options["c"] is None


def test_a_shipped_run_is_found_by_name_unless_a_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_path("digits") == resolve_path("digits.yaml") == shipped_runs()["digits"]
    (tmp_path / "over.yaml").write_text("base: digits\nname: other\n")
    assert load_run("over.yaml").name == "other"
    (tmp_path / "digits").write_text(RUN)
    assert load_run("digits").name == "small"
    with pytest.raises(RunFileError, match=r"digts: there is no such file.*Did you mean 'digits'\?"):
        resolve_path("digts")
