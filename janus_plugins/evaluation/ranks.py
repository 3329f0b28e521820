"""Evaluation on the processes of a launcher: the main rank runs the tasks, and all ranks answer.

A task asks the model for lists: answers to questions, items, codes. The main rank deals each list out, takes
its own share and puts the answers together in their order; the others wait for shares until they are told
that it is over. So a task runs once, whatever it computes, and knows nothing of ranks; no answer depends on
which rank it comes from, as each has the seed of its prompt and its number.

What travels are raw items, texts, codes and artefacts, pickled between the processes of one run, over gloo
and in host memory. The weights are whole on every rank.
"""

from __future__ import annotations

import atexit
import os
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from janus_plugins.core.errors import JanusPluginsError
from janus_plugins.inference.checks import plain_numbers
from janus_plugins.inference.shares import share_of
from janus_plugins.training.world import World, close_world, refuse_half_launched, retold

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel

T = TypeVar("T")
Outcome = tuple[Any, BaseException | None]

PATIENCE = timedelta(days=30)
"""How long a rank waits for the others' work; that one of them has died is noticed at once."""

PIECE = 2**28
"""Most bytes of one message."""

_LISTENING = ("on_text", "on_made", "on_event")
"""Options of calls that are followed as they go on: these are not dealt out."""


class RankStoppedError(JanusPluginsError):
    """Report that the main rank has ended with an error, which it says itself."""


def open_ranks(device: str) -> tuple[World, str]:
    """Join the other processes of a launcher, where there are any.

    Args:
        device: what the user asked for; "cuda" means this process's own.

    Returns:
        Who we are, and the device to put the model on.

    Raises:
        RunFileError: a launcher set only some of its variables.
        JanusPluginsError: the ranks cannot talk to one another.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(0, 1, torch.device("cpu")), device
    refuse_half_launched()
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        if torch.cuda.device_count() > int(os.environ["LOCAL_RANK"]):
            torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
        atexit.register(close_world)
    return joined(torch.device("cpu")), device


def joined(device: torch.device) -> World:
    """Return the world of the process group that there is, with a group that talks in host memory.

    Raises:
        JanusPluginsError: the ranks cannot talk to one another in that way.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return World(0, 1, device)
    world = World(dist.get_rank(), dist.get_world_size(), device)
    try:
        group = dist.new_group(backend="gloo", timeout=timedelta(minutes=10))
    except RuntimeError as error:
        raise JanusPluginsError(
            f"ranks cannot talk over gloo, which evaluation needs: {error}; name the network interface that "
            "joins the nodes in GLOO_SOCKET_IFNAME, or run `janus-plugins evaluate` without a launcher"
        ) from error
    return replace(world, group=group)


def among_ranks(world: World, load: Callable[[], UnifiedModel], work: Callable[[Any], T]) -> T | None:
    """Load a model on every rank, and let `work` use them all through what it is given as a model.

    Args:
        world: who we are; see `joined`.
        load: opens the model, on each rank.
        work: run on the main rank alone.

    Returns:
        What `work` returned on the main rank, None on the others.

    Raises:
        JanusPluginsError: that of `load` on any rank, or of `work`, on all.
    """
    model = world.together(load)
    if world.size == 1:
        return work(model)
    if not world.is_main:
        _serve(model, world)
        return None
    try:
        result = work(SharedModel(model, world))
    except JanusPluginsError as error:
        _dismiss(world, error)
        raise
    _dismiss(world, None)
    return result


class SharedModel:
    """Be a model whose lists are answered by all ranks: implements `core.contracts.TrainedModel`.

    Calls for one answer, calls that are followed as they go on (`on_text`, `on_made`, `on_event`) and
    whatever else a model has are the main rank's own. Threads take turns.

    Attributes:
        processes: how many ranks share a call.
    """

    def __init__(self, model: UnifiedModel, world: World) -> None:
        self._model, self._world = model, world
        self.processes = world.size
        self._turn = threading.RLock()

    def ask(self, question: str | Sequence[str], **options: Any) -> Any:
        """Return the answer to a question, or a list of answers to several."""
        number = 0 if isinstance(question, str) else _length(question)
        return self._shared("ask", (question,), options, number, _part_of_prompts)

    def generate(self, prompts: str | Sequence[str], **options: Any) -> Any:
        """Return generated items, or with `interleaved` answers, in the order of prompts."""
        options = plain_numbers(options)
        each = options.get("num_per_prompt", 1)
        texts = 1 if isinstance(prompts, str) else _length(prompts)
        number = texts * each if isinstance(each, int) else 0
        return self._shared("generate", (prompts,), options, number, _part_of_prompts)

    def encode(self, modality: str, items: Sequence[object]) -> Tensor:
        """Return codes [N, T] or latents [N, T, C] of raw items."""
        return cast(Tensor, self._shared("encode", (modality, items), {}, _length(items), _part_of_rows))

    def decode(self, modality: str, ids: Tensor) -> Any:
        """Return a list of artefacts of codes [N, T] or latents [N, T, C]."""
        return self._shared("decode", (modality, ids), {}, _length(ids), _part_of_rows)

    def processor(self, modality: str) -> Any:
        """Return the `GenerationProcessor` of a modality that the model generates."""
        return self._model.processor(modality)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Run the model's forward pass, here alone."""
        return self._model(*given, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._model, name)

    def _shared(
        self, name: str, given: tuple[Any, ...], options: dict[str, Any], number: int, part: Any
    ) -> Any:
        """Call a method for `number` answers, of which every rank makes its share."""
        with self._turn:
            return self._in_turn(name, given, options, number, part)

    def _in_turn(
        self, name: str, given: tuple[Any, ...], options: dict[str, Any], number: int, part: Any
    ) -> Any:
        here: Callable[[], Any] = lambda: getattr(self._model, name)(*given, **options)  # noqa: E731
        if number < 2 or "only" in options or any(options.get(each) is not None for each in _LISTENING):
            return here()
        world = self._world
        calls = [
            part(given, options, share) if share else None
            for share in (share_of(rank, world.size, number) for rank in range(world.size))
        ]
        orders = [(name, *call) if call else None for call in calls]
        try:
            letters = [pickle.dumps(order) for order in orders[1:]]
        except Exception:  # items of a source that can be read in this process alone
            return here()
        for rank, letter in enumerate(letters, start=1):
            _send(world, letter, rank)
        outcomes = [_outcome(self._model, orders[0])]
        # All are taken before any is read, which may fail.
        letters = [_received(world, rank) for rank in range(1, world.size)]
        outcomes += [_opened(letter, rank) for rank, letter in enumerate(letters, start=1)]
        for _, error in outcomes:
            if error is not None:
                raise error
        answers = [answer for (answer, _), call in zip(outcomes, calls, strict=True) if call]
        if isinstance(answers[0], Tensor):
            return torch.cat(answers)
        return [one for answer in answers for one in answer]


def _part_of_prompts(
    given: tuple[Any, ...], options: Mapping[str, Any], share: range
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments for some of its answers, without the items of prompts that are not theirs."""
    (prompts,) = given
    options = {**options, "only": share}
    if isinstance(prompts, str):
        return given, options
    each = options.get("num_per_prompt", 1)
    theirs = {place // each for place in share}

    def left(values: Any) -> Any:
        if not isinstance(values, list | tuple) or len(values) != len(prompts):
            return values  # to be refused
        return [value if place in theirs else [] for place, value in enumerate(values)]

    if "images" in options:
        options["images"] = left(options["images"])
    if isinstance(options.get("items"), Mapping):
        options["items"] = {name: left(values) for name, values in options["items"].items()}
    return given, options


def _part_of_rows(
    given: tuple[Any, ...], options: Mapping[str, Any], share: range
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    modality, rows = given
    part = rows[share.start : share.stop]
    return (modality, part.cpu() if isinstance(part, Tensor) else part), dict(options)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple | Tensor) else 0


def _serve(model: UnifiedModel, world: World) -> None:
    """Answer the main rank's calls until it is over."""
    while True:
        letter = _received(world, 0)
        try:
            order, outcome = pickle.loads(letter), None
        except Exception as error:
            order, outcome = None, (None, error)
        if isinstance(order, _Over):
            if order.error is not None:
                raise order.error
            return
        _send(world, _letter(outcome or _outcome(model, order), world.rank), 0)


class _Over:
    """Tell a rank that nothing more is asked, and what error ended it, if any."""

    def __init__(self, error: JanusPluginsError | None) -> None:
        self.error = error


def _dismiss(world: World, error: JanusPluginsError | None) -> None:
    told = None
    if error is not None:
        told = RankStoppedError(f"rank 0: {error}")
        told.exit_code = error.exit_code
    for rank in range(1, world.size):
        _send(world, pickle.dumps(_Over(told)), rank)


def _outcome(model: UnifiedModel, order: tuple[str, tuple[Any, ...], dict[str, Any]] | None) -> Outcome:
    """Return a share's answers, or the error that it ended with."""
    if order is None:
        return None, None
    name, given, options = order
    try:
        return getattr(model, name)(*given, **options), None
    except Exception as error:
        return None, error


def _letter(outcome: Outcome, rank: int) -> bytes:
    """Pickle what became of a share; an error says its rank, and stays the one of ours that it is."""
    answer, error = outcome
    if error is None:
        try:
            return pickle.dumps((answer, None))
        except Exception as problem:
            error = problem
    told: BaseException = RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")
    if isinstance(error, JanusPluginsError):
        told = retold(error, rank)
    return pickle.dumps((None, told))


def _opened(letter: bytes, rank: int) -> Outcome:
    """Return what a rank has sent of its share."""
    try:
        outcome: Outcome = pickle.loads(letter)
    except Exception as error:
        told = f"rank {rank}: its answer cannot be read: {type(error).__name__}: {error}"
        return None, RuntimeError(told)
    return outcome


def _send(world: World, data: bytes, rank: int) -> None:
    _wait(dist.isend(torch.tensor([len(data)]), rank, world.group))
    for piece in _pieces(torch.frombuffer(bytearray(data), dtype=torch.uint8)):
        _wait(dist.isend(piece, rank, world.group))


def _received(world: World, rank: int) -> bytes:
    size = torch.zeros(1, dtype=torch.int64)
    _wait(dist.irecv(size, rank, world.group))
    data = torch.empty(int(size), dtype=torch.uint8)
    for piece in _pieces(data):
        _wait(dist.irecv(piece, rank, world.group))
    return data.numpy().tobytes()


def _pieces(data: Tensor) -> list[Tensor]:
    return [data[start : start + PIECE] for start in range(0, len(data), PIECE)]


def _wait(work: Any) -> None:
    work.wait(PATIENCE)
