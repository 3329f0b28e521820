"""A task's calls are answered by all ranks, as one rank would answer them; what befalls one ends all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest
import torch

from janus_plugins import door
from janus_plugins.core.errors import BadSample, RunFileError
from janus_plugins.core.samples import question_sample
from janus_plugins.evaluation import ranks
from janus_plugins.evaluation.ranks import RankStoppedError, among_ranks
from janus_plugins.evaluation.runner import evaluate_model
from janus_plugins.inference.shares import share_of
from janus_plugins.tasks.exact_match.spec import ExactMatchConfig
from janus_plugins.tasks.exact_match.task import ExactMatch
from janus_plugins.training.world import World
from tests.inference.test_interleaved import OPTIONS, alike, eager, picture
from tests.tiny import write_tiny
from tests.training.test_ranks import launched

CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "number"), [(1, 5), (2, 5), (3, 3), (8, 3), (4, 401)])
def test_every_answer_is_one_ranks_and_shares_are_even(size: int, number: int) -> None:
    shares = [share_of(rank, size, number) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


Run = Callable[..., tuple[Any, list[BaseException | None]]]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ranks as threads that hand one another what would travel."""
    posts: dict[tuple[int, int], Queue[bytes]] = defaultdict(Queue)

    def send(world: World, data: bytes, rank: int) -> None:
        posts[world.rank, rank].put(data)

    monkeypatch.setattr(ranks, "_send", send)
    monkeypatch.setattr(ranks, "_received", lambda world, rank: posts[rank, world.rank].get(timeout=60))
    monkeypatch.setattr(World, "together", lambda self, work: work())

    def run(models: list[Any], work: Callable[[Any], Any]) -> tuple[Any, list[BaseException | None]]:
        ended: list[BaseException | None] = [None] * len(models)

        def serve(rank: int) -> None:
            try:
                assert among_ranks(World(rank, len(models), CPU), lambda: models[rank], work) is None
            except BaseException as error:
                ended[rank] = error

        threads = [Thread(target=serve, args=(rank,)) for rank in range(1, len(models))]
        for thread in threads:
            thread.start()
        result = None
        try:
            result = among_ranks(World(0, len(models), CPU), lambda: models[0], work)
        except BaseException as error:
            ended[0] = error
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a rank waits for ever"
        assert all(post.empty() for post in posts.values())
        return result, ended

    return run


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if hasattr(value, "codes"):
        return value.prompt, value.index, value.modality, value.codes.tolist()
    return [plain(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("size", [2, 5])
def test_answers_are_those_of_one_rank(together: Run, size: int) -> None:
    """Sampled ones, of prompts that come twice, with and without items; also by more ranks than answers."""
    model = eager()
    shown = {"items": {"image": [[picture(1)], [], [picture(2, 7), picture(1)]]}}
    sampled = {"temperature": 1.0, "seed": 4}
    prompts = ["go", "go", "on"]

    def work(model: Any) -> list[Any]:
        made = model.generate(prompts, modality="image", num_per_prompt=3, guidance=2.0, **shown, **sampled)
        codes = model.generate("go", modality="image", num_per_prompt=4, return_codes=True, **sampled)
        return [
            model.ask(prompts, max_new_tokens=6, **shown, **sampled),
            model.ask("go", max_new_tokens=6),
            made,
            codes,
            model.encode("image", [one.artefact for one in made]),
            len(model.decode("image", codes)),
            model.generate(prompts, interleaved=True, **OPTIONS),
            model.plan.run.name,
        ]

    *shared, answers, name = together([model] * size, work)[0]
    *alone, expected, _ = work(model)
    assert [plain(one) for one in shared] == [plain(one) for one in alone]
    assert [(one.prompt, one.index) for one in answers] == [("go", 0), ("go", 1), ("on", 0)]
    assert all(map(alike, answers, expected))
    assert name == model.plan.run.name


class Counting:
    """Stand for a model that answers how many questions it was asked at once."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.asked: list[int] = []
        self.fault = fault

    def ask(self, questions: list[str], only: Any = None, **options: Any) -> list[str]:
        mine = [questions[place] for place in only or range(len(questions))]
        self.asked.append(len(mine))
        if self.fault is not None:
            raise self.fault
        return [question.upper() for question in mine]


def test_exact_match_keeps_every_rank_as_busy_as_one(together: Run) -> None:
    models = [Counting(), Counting()]
    config = ExactMatchConfig(batch=3)
    samples: Any = [question_sample(f"q{place}", f"Q{place}", "k") for place in range(8)]
    task = ExactMatch(config, config.facts())
    told, ended = together(models, lambda model: task(model, samples, {}))
    assert told == {"score": 1.0, "samples": 8}
    assert ended == [None, None]
    assert [model.asked for model in models] == [[3, 1], [3, 1]]


@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_error_in_a_share_ends_all_ranks(together: Run, where: int) -> None:
    models = [Counting(BadSample("no picture") if rank == where else None) for rank in range(3)]
    _, ended = together(models, lambda model: model.ask(["a", "b", "c"]))
    said = "no picture" if where == 0 else f"rank {where}: no picture"
    assert (type(ended[0]), str(ended[0])) == (BadSample, said)
    assert [(type(each), str(each)) for each in ended[1:]] == [(RankStoppedError, f"rank 0: {said}")] * 2
    assert [model.asked for model in models] == [[1]] * 3


def test_an_error_of_the_task_ends_all_ranks_with_its_exit_code(together: Run) -> None:
    def work(model: Any) -> None:
        assert model.ask(["a", "b"]) == ["A", "B"]
        with pytest.raises(RuntimeError, match="rank 1: ValueError: too long"):
            model.ask(["a", "b", "c"], fault=True)
        raise RunFileError("no such entry")

    class Breaking(Counting):
        def ask(self, questions: list[str], only: Any = None, **options: Any) -> list[str]:
            if options and only and only[0]:
                raise ValueError("too long")
            return super().ask(questions, only)

    _, ended = together([Breaking(), Breaking()], work)
    assert [getattr(each, "exit_code", None) for each in ended] == [2, 2]


class OwnError(BadSample):
    """An error of a plugin that is made of other things than one text."""

    exit_code = 7

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")


def test_an_error_that_is_made_in_a_way_of_its_own_tells_what_it_says(together: Run) -> None:
    models = [Counting(), Counting(OwnError("a.png", "cut off"))]
    _, ended = together(models, lambda model: model.ask(["a", "b"]))
    assert isinstance(ended[0], BadSample)
    assert str(ended[0]) == "rank 1: a.png: cut off"
    assert [getattr(each, "exit_code", None) for each in ended] == [7, 7]


def unreadable() -> Any:
    raise ValueError("no such device")


class Unreadable:
    """An artefact that can be sent, but not read where it arrives."""

    def __reduce__(self) -> Any:
        return unreadable, ()


def test_an_answer_that_cannot_be_read_ends_all_ranks(together: Run) -> None:
    """Those of the ranks behind it are taken all the same: they would wait to be rid of them."""

    class Making(Counting):
        def ask(self, questions: list[str], only: Any = None, **options: Any) -> list[Any]:
            return [Unreadable() for _ in only]

    def work(model: Any) -> Any:
        with pytest.raises(
            RuntimeError, match="rank 1: its answer cannot be read: ValueError: no such device"
        ):
            model.ask(["a", "b", "c"])
        return model.ask(["a"], only=[0])

    told, ended = together([Counting(), Making(), Counting()], work)
    assert told == ["A"]
    assert ended == [None] * 3


def test_threads_of_a_task_take_turns(together: Run) -> None:
    def work(model: Any) -> list[Any]:
        def asked(letter: str) -> list[Any]:
            return [model.ask([f"{letter}{turn}{place}" for place in range(4)]) for turn in range(50)]

        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(asked, "abc"))

    told, _ = together([Counting(), Counting()], work)
    for letter, answers in zip("ABC", told, strict=True):
        assert answers == [[f"{letter}{turn}{place}" for place in range(4)] for turn in range(50)]


def test_what_cannot_travel_is_answered_by_the_main_rank(together: Run) -> None:
    models = [Counting(), Counting()]
    listening, local = {"on_text": print}, {"items": {"image": [lambda: 1, lambda: 2]}}
    for options in (listening, local):
        told, _ = together(models, lambda model, given=options: model.ask(["a", "b"], **given))  # type: ignore[misc]
        assert told == ["A", "B"]
    assert [model.asked for model in models] == [[2, 2], []]


SCRIPT = """
import os, signal, sys
from janus_plugins import cli
from janus_plugins.core.errors import BadSample
from janus_plugins.evaluation.ranks import among_ranks, open_ranks

class Model:
    def ask(self, questions, only, **options):
        if sys.argv[1:] == ["killed", os.environ["RANK"]]:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["RANK"] == "1" and sys.argv[1] == "error":
            raise BadSample("no picture")
        return [questions[place] * 100_000 for place in only]

def load():
    if os.environ["RANK"] == "1" and sys.argv[1] == "load":
        raise BadSample("no weights")
    return Model()

def app(standalone_mode):
    world, device = open_ranks("cpu")
    said = among_ranks(world, load, lambda model: model.ask(["a", "b", "c"]))
    if said:
        print([(one[0], len(one)) for one in said])

cli.app = app
cli.main()
"""


@pytest.mark.parametrize(
    ("what", "codes", "said"),
    [
        pytest.param("nothing", [0, 0], ("", ""), marks=pytest.mark.slow),
        ("error", [1, 1], ("error: rank 1: no picture\n", "")),
        pytest.param("load", [1, 1], ("error: rank 1: no weights\n", ""), marks=pytest.mark.slow),
        pytest.param("killed 1", [1, -9], ("error: another rank has ended", ""), marks=pytest.mark.slow),
        pytest.param("killed 0", [-9, 1], ("", "error: another rank has ended"), marks=pytest.mark.slow),
    ],
)
def test_two_processes(what: str, codes: list[int], said: tuple[str, str]) -> None:
    ended, told = on_two_ranks([sys.executable, "-c", SCRIPT, *what.split()])
    assert ended == codes, told
    for (_, stderr), wanted in zip(told, said, strict=True):
        assert stderr.startswith(wanted) if wanted else not stderr
    if what == "nothing":
        assert [out for out, _ in told] == ["[('a', 100000), ('b', 100000), ('c', 100000)]\n", ""]


def on_two_ranks(command: list[str]) -> tuple[list[int], list[tuple[str, str]]]:
    """Run a command on two ranks; return their exit codes, and what each printed and said of errors."""
    with launched(2) as variables:
        processes = [
            subprocess.Popen(command, env=each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for each in variables
        ]
        try:
            told = [process.communicate(timeout=200) for process in processes]
        finally:
            for process in processes:
                process.kill()
    return [process.returncode for process in processes], told


@pytest.mark.slow
def test_two_ranks_score_as_one_and_the_main_rank_alone_tells(tmp_path: Path) -> None:
    run_file = write_tiny(tmp_path)
    door.compose(run_file).save(str(tmp_path / "model"))
    folder, out = tmp_path / "model", tmp_path / "out"
    words = [sys.executable, "-m", "janus_plugins", "evaluate", str(folder), "--json", "--out", str(out)]
    _, told = on_two_ranks(words)
    assert told[1] == ("", "")
    alone = evaluate_model(door.load(folder))
    assert json.loads(told[0][0]) == json.loads((out / "evaluation.json").read_text()) == alone


@pytest.mark.slow
def test_a_run_is_evaluated_by_all_of_its_ranks(tmp_path: Path) -> None:
    run_file, out = write_tiny(tmp_path), tmp_path / "out"
    ended, told = on_two_ranks(
        [sys.executable, "-m", "janus_plugins", "train", str(run_file), "--out", str(out)]
    )
    assert ended == [0, 0], told
    assert told[1] == ("", "")
    assert "report: " in told[0][0]
    scores = json.loads((out / "evaluation.json").read_text())
    assert scores.pop("seconds_per_stage")
    assert (out / "samples.png").exists()
    alone = evaluate_model(door.load(out))
    assert scores == {name: value for name, value in alone.items() if name != "seconds_per_stage"}


@pytest.mark.slow
def test_two_ranks_generate_what_one_does(tmp_path: Path) -> None:
    run_file = write_tiny(tmp_path)
    door.compose(run_file).save(str(tmp_path / "model"))
    words = [sys.executable, "-m", "janus_plugins", "generate", str(tmp_path / "model"), "--num", "3"]
    words += ["--prompt", "a handwritten two", "--out"]
    ended, told = on_two_ranks([*words, str(tmp_path / "shared")])
    assert ended == [0, 0], told
    assert [len(out.split()) for out, _ in told] == [2, 1]
    subprocess.run([*words, str(tmp_path / "alone")], check=True)
    shared, alone = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("shared", "alone")
    )
    assert shared == alone
