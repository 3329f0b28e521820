"""The command line. Each verb is short; whatever is heavy is imported inside it.

Exit codes: 0 done; 2 usage or run file; 3 a plugin or its extra is missing; 4 a bad checkpoint; 5 stopped
on non-finite values; 129/130/143 stopped by a signal after saving; 1 anything else.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from janus_plugins.core.environment import switched_on
from janus_plugins.core.errors import JanusPluginsError, RunFileError
from janus_plugins.stdout import set_aside

app = typer.Typer(
    name="janus-plugins",
    help="Compose, train and use unified multimodal models made of plugins. --debug shows tracebacks.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

RunFile = Annotated[str, typer.Argument(metavar="RUN.yaml", help="a run file, or a shipped one's name")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="override a key; repeatable")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="folder of a trained model or of its run")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto")]
LinearsChoice = Annotated[str, typer.Option("--linears", help="packed, plain, int8 or int4 (on a CPU)")]


def main() -> None:
    """Run the command line; errors are a message without a traceback unless --debug is given."""
    debug = "--debug" in sys.argv or switched_on("JANUS_PLUGINS_DEBUG")
    sys.argv = [word for word in sys.argv if word != "--debug" and not word.startswith("--local_rank=")]
    try:
        app(standalone_mode=True)
    except JanusPluginsError as error:
        _fail(error, error.exit_code, debug)
    except KeyboardInterrupt as error:
        _fail(error, 130, debug, "interrupted")
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C, without a word
            _fail(end, 130, debug, "interrupted")
        raise
    except Exception as error:
        _fail_unforeseen(error, debug)


def _fail_unforeseen(error: Exception, debug: bool) -> None:
    from janus_plugins.core.peers import LOST, is_lost_peer

    said = f"{type(error).__name__}: {error}"
    if is_lost_peer(error):  # rank 0 may be the one that has ended
        _fail(error, 1, debug, f"{LOST}\n({said})", ranks=("0", "1"))
    hint = "this is a bug or a broken machine; run again with --debug for the traceback"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"{error.filename or 'what is written to'} is full; make room, or write elsewhere"
    _fail(error, 1, debug, f"{said}\n{hint}", own=True)


def _fail(
    error: BaseException,
    code: int,
    debug: bool,
    text: str | None = None,
    ranks: tuple[str, ...] = ("0",),
    own: bool = False,
) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    rank = os.environ.get("RANK", "0")
    own = own or getattr(error, "of_one_rank", False) or isinstance(error.__cause__, OSError)
    with suppress(OSError):  # the exit code can still be read
        if rank in ranks:  # every rank of a run raises the same
            typer.echo(f"error: {text or error}", err=True)
        elif own:  # but for what befalls one alone
            typer.echo(f"error on rank {rank}: {text or error}", err=True)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        import janus_plugins

        typer.echo(janus_plugins.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Compose, train and use unified multimodal models made of plugins. --debug shows tracebacks."""


@app.command("plugins")
def list_plugins(as_json: AsJson = False) -> None:
    """List what is installed: component, kind, distribution, version, status, load time."""
    from janus_plugins.core.plugins import plugins
    from janus_plugins.tables import plugins_as_data, print_plugins

    with set_aside():
        reports = plugins()
    if as_json:
        _json(plugins_as_data(reports))
    else:
        print_plugins(reports)


@app.command()
def validate(run: RunFile, overrides: Overrides = None) -> None:
    """Check a run file and the wiring of its parts, none of which is built."""
    from janus_plugins.sequence.templates import special_tokens
    from janus_plugins.sequence.tokenizers import check_tokenizer

    plan = _plan(run, overrides)
    model = plan.run.model
    check_tokenizer(model.language_model.tokenizer, special_tokens(model), plan.model.facts.vocab_size)
    parts = len(list(plan.model.parts()))
    typer.echo(f"{run}: ok ({parts} parts, {len(plan.data)} sources, {len(plan.run.stages)} stages)")


@app.command()
def explain(
    run: RunFile,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs to plan the training for")] = 128,
    memory: Annotated[float, typer.Option(min=1, help="GiB of each")] = 40,
    tflops: Annotated[float, typer.Option(min=1, help="peak of each in 16 bits (A100 312, H100 989)")] = 312,
    mfu: Annotated[float, typer.Option(min=0.001, max=1, help="share of the peak that is reached")] = 0.4,
    item_text: Annotated[int, typer.Option(min=1, help="tokens of text beside an item")] = 64,
    text: Annotated[int, typer.Option(min=1, help="tokens of a sample that is text alone")] = 1024,
    as_json: AsJson = False,
) -> None:
    """Print parts, shapes, parameters, tokens, memory and days of training; on the meta device."""
    from janus_plugins.model.explain import explain as explain_plan
    from janus_plugins.model.training_plan import Machines
    from janus_plugins.tables import print_explanation

    machines = Machines(gpus, memory, tflops, mfu, item_text, text)
    with set_aside():
        explanation = explain_plan(_plan(run, overrides), machines)
    if as_json:
        _json(explanation.as_dict())
    else:
        print_explanation(explanation)


@app.command()
def schema(out: Annotated[Path | None, typer.Option(help="write it there instead")] = None) -> None:
    """Print the JSON Schema of run files, with the options of the installed components."""
    from janus_plugins.core.json_schema import run_schema
    from janus_plugins.core.outputs import replaced, writing

    with set_aside():
        text = json.dumps(run_schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        as_it_is = out.exists() and not out.is_file()  # /dev/stdout
        with writing(out, "file"), nullcontext(out) if as_it_is else replaced(out.resolve()) as place:
            place.write_text(text, encoding="utf-8")


@app.command()
def train(
    run: RunFile,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(help="train this stage only")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint")] = False,
    out: Annotated[Path | None, typer.Option(help="output folder (default: runs/NAME)")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="MODEL", help="start from its weights, in any layout")
    ] = None,
    evaluate: Annotated[bool, typer.Option(help="evaluate when the last stage is done")] = True,
) -> None:
    """Train a run's stages, then evaluate and write a report."""
    plan = _plan(run, overrides)
    from janus_plugins.evaluation.runner import train_and_evaluate

    train_and_evaluate(plan, out or Path("runs") / plan.run.name, stage, resume, evaluate, source)


@app.command()
def precompute(
    run: RunFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder to write (default: runs/NAME/precomputed)")] = None,
    model: Annotated[
        Path | None, typer.Option(help="trained model whose encoders answer, in any layout")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="a data entry; repeatable (default: all)")] = None,
    path: Annotated[list[str] | None, typer.Option(help="e.g. generation.image; repeatable")] = None,
    batch: Annotated[int, typer.Option(min=1, help="items encoded at once")] = 16,
) -> None:
    """Write what frozen encoders answer for the train data once; name the folder under `precomputed`."""
    plan = _plan(run, overrides)
    from janus_plugins.door import load
    from janus_plugins.training.precompute import precompute_run

    folder = out or Path("runs") / plan.run.name / "precomputed"
    chosen: dict[str, Any] = {"names": data or (), "paths": path or (), "batch": batch}
    precompute_run(plan, folder, typer.echo, model=model, load=load, **chosen)


@app.command()
def generate(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(help="folder for the files")],
    prompt: Annotated[list[str] | None, typer.Option(help="what to make; repeatable")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help='a file with a prompt a line, or JSON lines with a "prompt"')
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="an image that prompts show, before the text or at its <image>; repeatable"),
    ] = None,
    item: Annotated[
        list[str] | None, typer.Option("--input", metavar="MODALITY=FILE", help="another item; repeatable")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="what is made (default: the only one, or image)")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="items, or answers, a prompt")] = 1,
    interleaved: Annotated[bool, typer.Option("--interleaved", help="answer with text and items")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of text of an interleaved answer")] = 512,
    max_items: Annotated[int, typer.Option(help="most items of an interleaved answer")] = 4,
    text_temperature: Annotated[float, typer.Option(help="of interleaved text; 0 is greedy")] = 0.0,
    guidance: Annotated[float, typer.Option(help="classifier-free guidance")] = 5.0,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 1.0,
    seed: int = 0,
    max_rows: Annotated[int | None, typer.Option(help="rows computed at once")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="one compiled graph a step")] = False,
    decoding: Annotated[str, typer.Option(help="steps, jacobi or zigzag")] = "steps",
    window: Annotated[int | None, typer.Option(help="codes of a run of the latter two")] = None,
    linears: LinearsChoice = "packed",
    device: Device = "auto",
) -> None:
    """Make items or answers from prompts and write each once it is made, prompt and seed inside.

    Ranks of a launcher make a share each.
    """
    from janus_plugins.core.outputs import make_folder, sweep_files
    from janus_plugins.evaluation.ranks import open_ranks
    from janus_plugins.inference.artefacts import AnswerFiles, prompt_numbers, save_generated
    from janus_plugins.inference.prompt_files import read_prompts
    from janus_plugins.inference.shares import parts_of, share_of

    _refuse_unread(context, interleaved)
    texts = [*(prompt or ()), *(read_prompts(prompts) if prompts else ())]
    if not texts:
        raise RunFileError("nothing to make: give --prompt TEXT, or --prompts FILE")
    given = _items(image or [], item or [])
    say = context.with_resource(set_aside())
    world, place = open_ranks(_device(device))
    loaded = world.together(lambda: _load(model, place))
    make_folder(out)
    sweep_files(out)
    texts = [text for text in texts for _ in range(num if interleaved else 1)]
    numbers = prompt_numbers(texts)
    share = share_of(world.rank, world.size, len(texts) * (1 if interleaved else num))
    items = {name: [paths] * len(texts) for name, paths in given.items()} or None
    common: dict[str, Any] = {
        "items": items, "guidance": guidance, "temperature": temperature, "seed": seed, "max_rows": max_rows,
        "linears": linears,
    }  # fmt: skip

    def keep(one: Any) -> None:
        say(str(save_generated(loaded, [one], out, numbers)[0]))

    if not interleaved:
        with world.apart():
            for part in parts_of(share, _AT_ONCE):
                loaded.generate(
                    texts, modality=modality, num_per_prompt=num, compile=compile, decoding=decoding,
                    window=window, only=part, on_made=keep, **common,
                )  # fmt: skip
        return
    files = AnswerFiles(loaded, out, texts, share)

    def keep_answer(answer: Any) -> None:
        for line in files.add(answer):
            say(line)

    with world.apart():
        if share:
            loaded.generate(
                texts, interleaved=True, max_new_tokens=max_new_tokens, max_items=max_items,
                text_temperature=text_temperature, only=share, on_made=keep_answer, **common,
            )  # fmt: skip
        for path in files.close():
            say(str(path))


@app.command()
def ask(
    model: Model,
    question: Annotated[str, typer.Option(help="the question")],
    image: Annotated[
        list[Path] | None, typer.Option(help="an image, before the question or at its <image>; repeatable")
    ] = None,
    item: Annotated[
        list[str] | None, typer.Option("--input", metavar="MODALITY=FILE", help="another item; repeatable")
    ] = None,
    max_new_tokens: int = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(help="draw from the likeliest tokens of this share; needs --temperature")
    ] = None,
    seed: int = 0,
    linears: LinearsChoice = "packed",
    device: Device = "auto",
) -> None:
    """Ask a question about images or other items; the answer goes to standard output as it comes."""
    items = _items(image or [], item or []) or None
    if top_p is not None and temperature == 0:
        raise RunFileError(
            "--top-p: at temperature 0 the likeliest token is always taken; give --temperature above 0, or "
            "leave it out"
        )
    with set_aside() as say:
        _load(model, device).ask(
            question, items=items, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            seed=seed, linears=linears, on_text=lambda piece: say(piece.text, nl=False),
        )  # fmt: skip
    typer.echo()


@app.command()
def evaluate(
    model: Model,
    task: Annotated[list[str] | None, typer.Argument(help="names under 'evaluation' (default: all)")] = None,
    out: Annotated[Path | None, typer.Option(help="write evaluation.json into this folder")] = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Run a model's evaluation tasks on its held-out sources, on all ranks of a launcher."""
    from janus_plugins.evaluation.ranks import among_ranks, open_ranks
    from janus_plugins.evaluation.runner import evaluate_model
    from janus_plugins.tables import print_evaluation

    with set_aside():
        world, place = open_ranks(_device(device))
        result = among_ranks(
            world, lambda: _load(model, place), lambda shared: evaluate_model(shared, tuple(task or ()), out)
        )
    if result is None:  # the main rank tells
        return
    if as_json:
        _json(result)
    else:
        print_evaluation(result)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="folder of a model, in any layout")],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="folder to write; it must not exist, or be empty")
    ],
    layout: Annotated[str, typer.Option(help="native, transformers or official")] = "native",
) -> None:
    """Write a model in another layout: native, transformers' Janus, or the official Janus one."""
    from janus_plugins.door import convert as convert_folder

    done = convert_folder(source, target, layout)
    size = f"{done.num_tensors} tensors, {done.num_bytes:,} bytes"
    extras = f", {len(done.extras)} extra tensors kept" if done.extras else ""
    typer.echo(f"{target}: {done.source_layout} -> {done.layout}, {size}{extras}")
    for note in done.notes:
        typer.echo(f"note: {note}")


@app.command()
def check(
    component: Annotated[
        str | None, typer.Argument(help="name, DISTRIBUTION/NAME or DISTRIBUTION/ (default: everything)")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="only this kind, e.g. adapter")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="an option; repeatable")
    ] = None,
    ranks: Annotated[bool, typer.Option("--ranks", help="also train on two ranks under ZeRO-3")] = False,
    as_json: AsJson = False,
) -> None:
    """Try installed components against their contracts. Exit code 1 where a rule fails."""
    from janus_plugins.core.catalogue import catalogue
    from janus_plugins.testing.command import check_entries, chosen

    reports = []
    with set_aside() as say:
        entries = chosen(catalogue(), component, kind)
        for report in check_entries(entries, options or (), ranks):
            reports.append(report)
            if not as_json:
                say(report.text(failures_only=len(entries) > 1))
    if as_json:
        _json([report.as_dict() for report in reports])
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the package and of its component")],
    kind: Annotated[str, typer.Option(help="what the component is for, e.g. understanding_encoder")],
    modality: Annotated[
        str, typer.Option(help="of an encoder: image, or any other name for recordings over time")
    ] = "image",
    out: Annotated[Path, typer.Option(help="folder in which to make the package's folder")] = Path(),
) -> None:
    """Write a plugin package that can be installed, tested and published as it is."""
    from janus_plugins.scaffold.write import next_steps, write_package

    typer.echo(next_steps(write_package(name, kind, out, modality)))


def _plan(run: str, overrides: list[str] | None) -> Any:
    from janus_plugins.door import plan

    return plan(run, overrides or ())


def _load(model: Path, device: str) -> Any:
    from janus_plugins.door import load

    return load(model, _device(device))


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


_AT_ONCE = 1024
"""Items that one call makes: they are in memory until it ends."""

_ITEMS_ALONE = ("modality", "compile", "decoding", "window")
_INTERLEAVED_ALONE = ("max_new_tokens", "max_items", "text_temperature")
"""Options of `generate` that one of its two ways reads, and the other does not."""


def _refuse_unread(context: typer.Context, interleaved: bool) -> None:
    """Refuse options of the way of generating that was not chosen."""
    for name in _ITEMS_ALONE if interleaved else _INTERLEAVED_ALONE:
        given = context.get_parameter_source(name)
        if given is None or given.name == "DEFAULT":
            continue
        option = f"--{name.replace('_', '-')}"
        if name == "modality":
            raise RunFileError(f"{option}: in an interleaved answer the model itself chooses; leave it out")
        if interleaved:
            raise RunFileError(f"{option}: an interleaved answer does not read it; leave it out")
        raise RunFileError(f"{option} is of interleaved answers; leave it out, or add --interleaved")


def _items(images: list[Path], others: list[str]) -> dict[str, list[Path]]:
    items: dict[str, list[Path]] = {"image": list(images)} if images else {}
    for text in others:
        modality, mark, path = text.partition("=")
        if not mark or not modality or not path:
            raise RunFileError(f"--input {text!r} must read MODALITY=FILE, e.g. audio=speech.wav")
        items.setdefault(modality, []).append(Path(path))
    return items


def _json(data: object) -> None:
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False))
