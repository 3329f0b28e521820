"""A decoding step as one graph: embed what was picked last, run the language model, pick the next.

`torch.compile` fuses the step, its weights laid out once (CPU) or its kernels recorded and replayed
(CUDA graph), and nothing in it waits for the host: where the step stands is a tensor. What was compiled
serves every later call of the same shapes, as long as the weights stay as they were, and what hangs
on the modules. The eager twin is `decode.Loop`, which every model can run.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins.core.contracts import Cached, Draws
from janus_plugins.core.errors import RunFileError
from janus_plugins.inference.few_rows import few_rows
from janus_plugins.inference.linears import Way, hung_on, state_of
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.inference.stream import Stream

GRAIN = 64
"""Slots by which caches differ in length (`roomy`): prompts of about one length share what was compiled."""

BACKEND = "inductor"
"""What compiles a step. Tests name a quicker one."""

INDUCTOR: dict[str, Any] = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP",
    "size_asserts": False,
}
"""On a CPU: weights are constants, laid out once, and the products of a few rows are generated code."""

_INDUCTOR_IN_4_BITS: dict[str, Any] = {
    **INDUCTOR,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}
"""Not every CPU has generated code for these: where two ways are known the quicker one is taken, tacitly."""

LOOK = 16
"""Steps between looks at whether every row has ended: each look waits for the device."""

REACH = 256
"""A step on a GPU looks back over a multiple of this many slots; each takes a recording of its own."""


STEPS = 16
"""Steps of a path that are kept, each with its cache; one that was not used for longest goes for another."""


class SteppedDraws:
    """Give the numbers of one step, read from blocks that were drawn ahead: `core.contracts.Draws`.

    Args:
        uniforms: [B, steps, u].
        normals: [B, steps, n].
        turn: which step it is [1] (int64).
    """

    def __init__(self, uniforms: Tensor, normals: Tensor, turn: Tensor) -> None:
        self._uniforms = uniforms.index_select(1, turn)[:, 0]
        self._normals = normals.index_select(1, turn)[:, 0]
        self.given = [0, 0]

    def uniform(self) -> Tensor:
        """Return the next number of each row in [0, 1): [B] float32."""
        self.given[0] += 1
        return self._uniforms[:, self.given[0] - 1]

    def normal(self, *shape: int) -> Tensor:
        """Return the next standard normal numbers of each row: [B, *shape] float32."""
        first = self.given[1]
        self.given[1] += torch.Size(shape).numel()
        return self._normals[:, first : self.given[1]].view(-1, *shape)


class CountedDraws:
    """Pass numbers on, and count how many one step takes."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        self.uniforms, self.normals = 0, 0

    def uniform(self) -> Tensor:
        """Return the next number of each row in [0, 1): [B] float32."""
        self.uniforms += 1
        return self.draws.uniform()

    def normal(self, *shape: int) -> Tensor:
        """Return the next standard normal numbers of each row: [B, *shape] float32."""
        self.normals += torch.Size(shape).numel()
        return self.draws.normal(*shape)


@dataclass
class State:
    """Hold what a step reads and writes, in place.

    Attributes:
        slot: slot of the next input [1].
        turn: number of the next pick [1].
        last: what was picked last [N, ...].
        made: all that was picked [N, steps, ...].
        positions: of every slot [B, L].
        visible: which slots count [B, L] (bool); those after `slot` do not yet.
        uniforms: numbers of every pick [N, steps, u].
        normals: the same, normal ones [N, steps, n].
        cache: the language model's.
        padded: whether slots before `slot` may be hidden.
    """

    slot: Tensor
    turn: Tensor
    last: Tensor
    made: Tensor
    positions: Tensor
    visible: Tensor
    uniforms: Tensor
    normals: Tensor
    cache: Any
    padded: bool

    def tensors(self) -> list[Tensor]:
        """Return every tensor but the cache's."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def take(self, other: State) -> None:
        """Take over the values of another state of the same shapes."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)
        self.cache.copy_(other.cache)


@dataclass
class GraphStep:
    """Run one step over a `State`.

    Attributes:
        language_model: one whose `static_steps` is True.
        embed: what was picked last [N, ...] -> input embeddings [B, M].
        pick: hidden states [B, M] and the step's numbers -> the next pick [N, ...].
        linears: how linear layers compute.
        on_cpu: whether the weights are on a CPU.
        state: what the steps read and write.
        compiled: the step as a graph.
        recorded: by the slots that it looks back over, a step that is ready to be taken.
    """

    language_model: nn.Module
    embed: Callable[[Tensor], Tensor]
    pick: Callable[[Tensor, Draws], Tensor]
    linears: Way = "plain"
    on_cpu: bool = field(init=False)
    state: State | None = None
    compiled: Callable[..., None] | None = None
    recorded: dict[int, Callable[[], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.on_cpu = next(self.language_model.parameters()).device.type == "cpu"

    def run(
        self,
        stream: Stream,
        first: Tensor,
        draws: SeededDraws,
        counted: CountedDraws,
        steps: int,
        finished: Callable[[Tensor], bool] | None = None,
    ) -> Tensor:
        """Go on from a stream whose given slots have run, and whose first pick is made.

        Args:
            stream: made with a cache of `roomy` slots.
            first: the first pick [N, ...].
            draws: every row's numbers.
            counted: what the first pick took of them; every further one takes as many.
            steps: picks in all.
            finished: all picks so far -> whether to stop early; asked every `LOOK` steps.

        Returns:
            All picks [N, T, ...], T being at most `steps`.
        """
        if self.state is None:
            stream.lengthen()
        state = _state(stream, first, draws.ahead(steps, counted.uniforms, counted.normals), steps)
        given = stream.given
        if self.state is None:
            # An eager step first, in which a language model may make what its steps share. It is taken again,
            # so that a first call rounds as later ones do.
            stream.step(self.embed(first))
            self.state, self.recorded = state, {}
        else:
            self.state.take(state)
        for taken in range(1, steps):
            if finished is not None and taken % LOOK == 0 and finished(self.state.made[:, :taken]):
                return self.state.made[:, :taken].clone()
            self._replay(given + taken - 1)
        return self.state.made.clone()

    def _replay(self, filled: int) -> None:
        """Take the next step, `filled` slots of the cache being in use before it."""
        assert self.state is not None
        most = self.state.visible.shape[1] - 1
        reach = min(most, rounded(filled + 1, GRAIN if self.on_cpu else REACH))
        if reach in self.recorded and self._again(self.recorded[reach]):
            return
        slots = torch.arange(reach, device=self.state.slot.device)
        with self._compiling(slots, *self.state.visible.shape):
            self.compiled = self.compiled or self._compile()
            self.recorded[reach] = record(functools.partial(self.compiled, slots=slots), self.state)
            self.recorded[reach]()

    def _again(self, step: Callable[[], None]) -> bool:
        """Take a step that has run before; False if somebody made Dynamo forget it."""
        # The state is the very one that a first call checked; checking it anew takes 4 % of a small step.
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            try:
                step()
            except RuntimeError as error:
                if "skip_guard_eval_unsafe" not in str(error):
                    raise
                return False
        return True

    @contextmanager
    def _compiling(self, slots: Tensor, rows: int, length: int) -> Iterator[None]:
        """Set what a compiler must know for a first call that looks at `slots` of a cache [rows, length]."""
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        # What one model's sizes are says nothing of the next model's.
        with dynamo.patch(automatic_dynamic_shapes=False):
            # What is compiled serves every length: Dynamo gives up a function after a few of them.
            if length - 1 > GRAIN:
                torch._dynamo.mark_dynamic(slots, 0, min=GRAIN, max=length - 1)
            if not self.on_cpu:
                yield
                return
            # The options of `torch.compile` would not do: whether weights are constants Dynamo asks the
            # global configuration.
            options = _INDUCTOR_IN_4_BITS if self.linears == "int4" else INDUCTOR
            with inductor.patch(options), few_rows(rows), _generated_for(self):
                yield

    def _compile(self) -> Callable[..., None]:
        own = _own_code(self._step)
        weakref.finalize(self, _forget_code, own.__func__.__code__).atexit = False
        compiled = torch.compile(own, fullgraph=True, backend=BACKEND)

        def call(state: State, slots: Tensor) -> None:
            try:
                compiled(state, slots)  # type: ignore[no-untyped-call]
            except torch._dynamo.exc.TorchDynamoException as error:
                raise RunFileError(
                    f"a step of {type(self.language_model).__name__} cannot be compiled "
                    f"({str(error).splitlines()[0]}); leave `compile` out"
                ) from error

        return call

    def _step(self, state: State, slots: Tensor) -> None:
        reach = len(slots)
        visible = state.visible[:, :reach] & (slots <= state.slot)
        positions = state.positions.index_select(1, state.slot)
        embeds = self.embed(state.last)[:, None]
        plan = Cached(reach - 1, visible, state.slot, padded=state.padded)
        hidden = self.language_model(embeds, positions, plan, state.cache)
        self._picked(state, hidden[:, -1])

    def _picked(self, state: State, hidden: Tensor) -> None:
        picked = self.pick(hidden, SteppedDraws(state.uniforms, state.normals, state.turn))
        state.last.copy_(picked)
        state.made.index_copy_(1, state.turn, picked[:, None])
        state.slot.add_(1)
        state.turn.add_(1)


@contextmanager
def _generated_for(step: GraphStep) -> Iterator[None]:
    """Let the modules that Inductor generates meanwhile go with a step: it keeps them, and weights in them.

    It does not promise to keep them where they are looked for; where they are not found they stay.
    """
    from torch._inductor.codecache import PyCodeCache

    modules: list[types.ModuleType] = getattr(PyCodeCache, "modules", [])
    before = set(map(id, modules))
    try:
        yield
    finally:
        anybodys = set(map(id, getattr(PyCodeCache, "modules_no_attr", {}).values()))
        made = [one for one in modules if id(one) not in before | anybodys]
        weakref.finalize(step, _forget_modules, modules, made).atexit = False


def _forget_modules(modules: list[types.ModuleType], made: list[types.ModuleType]) -> None:
    for one in made:
        if one in modules:
            modules.remove(one)
        if sys.modules.get(one.__name__) is one:
            del sys.modules[one.__name__]


def _forget_code(code: types.CodeType) -> None:
    """Let Dynamo forget what it compiled of a code: it would keep both for good, each for the other."""
    dynamo = torch._C._dynamo.eval_frame
    entries: Callable[..., list[Any]] = getattr(dynamo, "_debug_get_cache_entry_list", lambda _: [])
    _forget_guards({id(entry.guard_manager) for entry in entries(code)})
    reset = getattr(dynamo, "reset_code", None)
    if reset is not None:
        reset(code)


def _forget_guards(managers: set[int]) -> None:
    """Let go of guards, by id: what they guard, such as a model's layers, would keep them while it lives."""
    waiting: Any = getattr(weakref.finalize, "_registry", ())
    for each in list(waiting):
        found = each.peek()
        method = getattr(found[1], "func", None) if found else None  # of a `functools.partial`
        if id(getattr(getattr(method, "__self__", None), "guard_manager", None)) in managers:
            each.detach()


def _state(stream: Stream, first: Tensor, numbers: tuple[Tensor, Tensor], steps: int) -> State:
    """Return the state after a first pick [N, ...]."""
    made = first.new_zeros(len(first), steps, *first.shape[1:])
    made[:, 0] = first
    positions, visible = stream.planned()
    return State(
        slot=torch.tensor([stream.given], device=first.device),
        turn=torch.ones(1, dtype=torch.int64, device=first.device),
        last=first.clone(),
        made=made,
        positions=positions,
        visible=visible,
        uniforms=numbers[0],
        normals=numbers[1],
        cache=stream.cache,
        padded=stream.padded,
    )


def record(call: Callable[[State], None], state: State) -> Callable[[], None]:
    """Return a call without arguments: on a GPU a recorded CUDA graph, elsewhere the call itself."""
    if state.slot.device.type != "cuda":
        return lambda: call(state)
    before = [tensor.clone() for tensor in state.tensors()]

    def undo() -> None:
        for tensor, value in zip(state.tensors(), before, strict=True):
            tensor.copy_(value)

    return recorded(functools.partial(call, state), state.slot.device, undo)


def recorded(
    call: Callable[[], None], device: torch.device, undo: Callable[[], None] = lambda: None
) -> Callable[[], None]:
    """Return the same call, on a GPU as a recorded CUDA graph; `undo` takes back what a call has written."""
    if device.type != "cuda":
        return call
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles, and lets libraries choose their kernels
                call()
                undo()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    return functools.partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, _read: Callable[[], None]) -> None:
    """Run what was recorded, which reads the memory of all that the recorded call holds."""
    graph.replay()


@dataclass
class Kept:
    """Hold what was recorded of a model, which serves later calls while its weights stay as they are.

    Attributes:
        weights: what they are like, and what hangs on the modules (`state_of`, `hung_on`).
        prompts: what runs prompts; None where it was not made or cannot be.
        steps: by what they were made for, the latest used last.
    """

    weights: Hashable
    prompts: Any = None
    steps: dict[Hashable, GraphStep] = field(default_factory=dict)

    def step(self, key: Hashable, make: Callable[[], GraphStep]) -> GraphStep:
        """Return the step that was made for `key`, or make it."""
        step = self.steps.pop(key, None) or make()
        self.steps[key] = step
        while len(self.steps) > STEPS:
            del self.steps[next(iter(self.steps))]
        return step


_KEPT: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Kept]] = weakref.WeakKeyDictionary()


def kept(owner: nn.Module, path: str, parts: list[nn.Module]) -> Kept:
    """Return what was recorded of a model's parts for a path; of other weights nothing was yet."""
    known = _KEPT.setdefault(owner, {})
    if path not in known or known[path].weights != _weights(parts):
        language_model: Any = owner.language_model
        language_model.new_cache(1, 1)  # after which its weights stay where they are
        known[path] = Kept(_weights(parts))
    return known[path]


def _weights(parts: list[nn.Module]) -> Hashable:
    state = state_of(tensor for part in parts for tensor in [*part.parameters(), *part.buffers()])
    return state, hung_on(module for part in parts for module in part.modules())


def _own_code(method: Any) -> Any:
    """Return a method with a copy of its code: Dynamo keeps what it compiled, and how often, by the code."""
    function = method.__func__
    copy = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return types.MethodType(copy, method.__self__)


def roomy(slots: int) -> int:
    """Return the length of a cache for so many slots.

    It is one more than a multiple of `GRAIN`: a step never looks back over all of it, so that one graph
    serves every length (one that may be all of it is another case to a compiler).
    """
    return rounded(slots, GRAIN) + 1


def rounded(value: int, grain: int) -> int:
    """Return the least multiple of `grain` that is not below a value."""
    return -(-value // grain) * grain


def check_static(language_model: nn.Module) -> None:
    """Refuse a language model whose step cannot be a graph."""
    if not getattr(language_model, "static_steps", False):
        raise RunFileError(
            f"{type(language_model).__name__} does not say static_steps = True (it needs a step's slot as a "
            "number, not as a tensor), so its steps cannot be compiled; leave `compile` out"
        )
