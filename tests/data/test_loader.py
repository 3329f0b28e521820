"""The step loader: exactly once, resumable everywhere, the same over any workers and ranks."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from janus_plugins.core.errors import DataError, RunFileError
from janus_plugins.data import parcel, watch
from janus_plugins.data.loader import StepBatch, StepLoader
from janus_plugins.data.parcel import pack

from .toys import only_stage, toy_plan, toy_tokenizer

MIXED = {
    "words": {"task": "text", "size": 10},
    "shown": {"task": "understanding", "size": 9},
    "drawn": {"task": "generation", "size": 8},
    "streamed": {"task": "generation", "size": 7, "streaming": True},
}
MIX = {
    "mix": {"text": 1, "understanding": 1, "generation": 2},
    "sources": {"words": {}, "shown": {}, "drawn": {"weight": 1}, "streamed": {"weight": 1}},
    "steps": 6,
    "batch": 8,
}


def loader(
    sources: Mapping[str, Any], stage: Mapping[str, Any], engine: Mapping[str, Any] | None = None, **rest: Any
) -> StepLoader:
    plan = toy_plan(sources, stage, engine)
    return StepLoader(plan, toy_tokenizer(plan), only_stage(plan), **rest)


def same(one: StepBatch, other: StepBatch) -> bool:
    """Answer whether two steps are equal to the last number."""
    if (one.step, one.state, one.bad, len(one.micro)) != (
        other.step,
        other.state,
        other.bad,
        len(other.micro),
    ):
        return False
    return all(flat(a) == flat(b) for a, b in zip(one.micro, other.micro, strict=True))


def flat(value: Any) -> Any:
    """Turn a batch into plain lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: flat(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [flat(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: flat(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def texts(plan_loader: StepLoader, steps: list[StepBatch]) -> Counter[str]:
    """Count the text of every sample, read back from the packed batches."""
    tokenizer = plan_loader._dataset._preparer._spelling.tokenizer
    found: Counter[str] = Counter()
    for step in steps:
        for batch in step.micro:
            for group in batch.packed.groups:
                for slots in group:
                    ids = batch.ids.view(-1)[slots].tolist()
                    found[tokenizer.decode(ids)] += 1
    return found


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_every_sample_once_per_epoch(workers: int, world: int) -> None:
    stage = {"batch": 6, "steps": 5}  # 30 draws of 10 samples: three epochs
    seen: Counter[str] = Counter()
    for rank in range(world):
        one = loader({"words": {"task": "text"}}, stage, {"workers": workers}, rank=rank, world=world)
        seen += texts(one, list(one))
    assert seen == {f"text {index}": 3 for index in range(10)}


def test_epochs_have_their_own_order_and_never_mix() -> None:
    one = loader({"words": {"task": "text"}}, {"batch": 1, "steps": 30})
    order = [next(iter(texts(one, [step]))) for step in one]
    epochs = [order[start : start + 10] for start in (0, 10, 20)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_workers_change_nothing() -> None:
    expected = list(loader(MIXED, MIX))
    for workers in (1, 2):
        found = list(loader(MIXED, MIX, {"workers": workers}))
        assert [same(*pair) for pair in zip(found, expected, strict=True)] == [True] * 6


def test_ranks_share_each_step() -> None:
    whole, halves = loader(MIXED, MIX), [loader(MIXED, MIX, rank=rank, world=2) for rank in range(2)]
    for step, *parts in zip(whole, *halves, strict=True):
        assert texts(whole, [step]) == texts(whole, parts)
        assert [sum(sum(b.num_samples.values()) for b in part.micro) for part in parts] == [4, 4]
        assert all(part.state == step.state for part in parts)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_at_every_step(workers: int) -> None:
    expected = list(loader(MIXED, MIX))
    for position, step in enumerate(expected):
        state = json.loads(json.dumps(step.state))  # plain data, whatever the file format
        rest = list(loader(MIXED, MIX, {"workers": workers}, state=state))
        assert [same(*pair) for pair in zip(rest, expected[position + 1 :], strict=True)] == [True] * (
            5 - position
        )


def test_state_of_other_data_is_refused() -> None:
    state = next(iter(loader(MIXED, MIX))).state
    fewer = {**MIXED, "words": {"task": "text", "size": 9}}
    with pytest.raises(DataError, match=r"'words': 10.*'words': 9.*move the step_\* checkpoints away"):
        loader(fewer, MIX, state=state)


def test_a_stream_that_cannot_be_read_leaves_no_handler_of_signals() -> None:
    """torch's raises wherever the program is by then, when workers end."""
    before = signal.getsignal(signal.SIGCHLD)
    sources = {"streamed": {"task": "text", "size": 0, "streaming": True}}
    with pytest.raises(DataError, match=r"data.streamed cannot be read further: ZeroDivisionError"):
        list(loader(sources, {"mix": {"text": 1}}, {"workers": 2}))
    assert signal.getsignal(signal.SIGCHLD) == before


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(MIXED, MIX, {"workers": 1}))
    assert torch.equal(torch.get_rng_state(), before)


def test_test_sets_are_never_drawn_from() -> None:
    sources = {"words": {"task": "text"}, "held": {"task": "text", "size": 50, "split": "test"}}
    one = loader(sources, {"batch": 10, "steps": 2})
    assert texts(one, list(one)) == {f"text {index}": 2 for index in range(10)}
    with pytest.raises(RunFileError, match="'text' has no source to draw from at step 0"):
        loader({"held": {"task": "text", "split": "test"}}, {})


def test_windows_switch_sources() -> None:
    sources = {"early": {"task": "text"}, "late": {"task": "text"}}
    windows = {"early": {"until": 2}, "late": {"after": 2}}
    one = loader(sources, {"sources": windows, "steps": 4})
    drawn = [step.state["mix"]["drawn"] for step in one]
    assert drawn == [{"early": 6}, {"early": 12}, {"early": 12, "late": 6}, {"early": 12, "late": 12}]
    with pytest.raises(RunFileError, match="at step 2"):
        loader(sources, {"sources": {"early": {"until": 2}, "late": {"after": 3}}, "steps": 4})


def test_a_stream_that_shares_a_task_needs_a_weight() -> None:
    sources = {"words": {"task": "text"}, "streamed": {"task": "text", "streaming": True}}
    with pytest.raises(DataError, match=r"data\.streamed is read in order"):
        loader(sources, {})


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_samples_are_named_and_skipped(streaming: bool) -> None:
    sources = {"words": {"task": "text", "broken": (3, 7), "streaming": streaming}}
    one = loader(sources, {"batch": 10, "steps": 1})
    (step,) = one
    assert sorted(record.key for record in step.bad) == ["words[3]", "words[7]"]
    reasons = sorted(record.reason for record in step.bad)
    for index, reason in zip((3, 7), reasons, strict=True):
        assert re.fullmatch(rf"OSError: cannot read {index} at .*toys\.py:\d+", reason)
    assert sum(texts(one, [step]).values()) == 8


def test_a_step_of_bad_samples_alone_still_has_its_micro_batches() -> None:
    sources = {"words": {"task": "text", "size": 2, "broken": (0, 1)}}
    (step,) = loader(sources, {"batch": 2, "steps": 1}, {"accumulate": 2})
    assert [batch.ids.shape for batch in step.micro] == [(1, 1), (1, 1)]
    assert all(batch.understanding["wave"].absent and batch.targets()["text"] == 0 for batch in step.micro)
    assert step.tokens == 0


def test_rows_spread_over_micro_batches() -> None:
    for step in loader(MIXED, {**MIX, "max_length": 48}, {"accumulate": 3}):
        assert len(step.micro) == 3
        assert sum(sum(batch.num_samples.values()) for batch in step.micro) == 8
        assert all(batch.ids.shape[1] <= 48 for batch in step.micro)
        assert step.slots == sum(batch.ids.numel() for batch in step.micro) >= step.tokens > 0


def test_reconstruction_draws_items_alone() -> None:
    stage = {"mix": {}, "reconstruct": "wave", "batch": 4, "steps": 2}
    sources = {name: MIXED[name] for name in ("words", "shown", "drawn")}
    for step in loader(sources, stage, {"accumulate": 2}):
        assert step.state["mix"]["drawn"] == {"drawn": 4 * (step.step + 1)}
        for batch in step.micro:
            items = batch.generation["wave"]
            assert items.items["wave"].shape == (2, 4)
            assert not items.absent
            assert batch.understanding["wave"].absent
            assert batch.targets() == {"text": 0, "generation.wave": 0}
            assert batch.num_samples == {"reconstruct": 2}


@pytest.fixture
def _quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch look after its workers every 0.2 s instead of every 5."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def kill_a_worker() -> None:
    child = multiprocessing.active_children()[0]
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()


@pytest.mark.usefixtures("_quick_look")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_an_error(workers: int) -> None:
    one = loader({"words": {"task": "text"}}, {"steps": 100}, {"workers": workers})
    steps = iter(one)
    next(steps)
    kill_a_worker()
    started = time.monotonic()
    with pytest.raises(DataError, match="a data worker failed"):
        list(steps)
    assert time.monotonic() - started < 10  # far less than engine.data_timeout


@pytest.mark.usefixtures("_quick_look")
def test_a_worker_killed_with_the_lock_in_its_hands_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    iterators = []
    started = watch._started
    monkeypatch.setattr(watch, "_started", lambda one: iterators.append(started(one)) or iterators[0])
    one = loader({"words": {"task": "text"}}, {"steps": 100}, {"workers": 2})
    steps = iter(one)
    next(steps)
    (made,) = iterators
    made._workers_done_event._cond._lock.acquire()  # as if by the worker that dies now
    kill_a_worker()
    began = time.monotonic()
    with pytest.raises(DataError, match="a data worker failed"):
        list(steps)
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("_quick_look")
def test_a_hanging_worker_is_an_error() -> None:
    one = loader({"words": {"task": "text", "hangs": True}}, {}, {"workers": 1, "data_timeout": 1.0})
    with pytest.raises(DataError, match=r"no data came within engine\.data_timeout \(1 s\)"):
        next(iter(one))


@pytest.mark.usefixtures("_quick_look")
@pytest.mark.parametrize("ends", ["killed", "too late"])
def test_a_worker_that_ends_in_the_middle_of_a_message_is_an_error(ends: str) -> None:
    content = [
        torch.zeros(100_000, dtype=torch.uint8)
    ] * 100  # more than a pipe takes, sent through it all the same
    context = "fork"
    loader = DataLoader(
        content, batch_size=None, num_workers=2, collate_fn=pack, multiprocessing_context=context
    )
    steps = watch.prepared_steps(loader, 2, 100.0 if ends == "killed" else 2.0)
    next(steps)
    time.sleep(0.5)  # the pipe fills up
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL if ends == "killed" else signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(DataError, match="a data worker failed"):
        list(steps)
    assert time.monotonic() - started < 30


LEFT_ALONE = """
import multiprocessing, sys, time, torch
from torch.utils.data import DataLoader
from janus_plugins.data.parcel import pack
from janus_plugins.data.worker import start_worker

content = [torch.zeros(100_000, dtype=torch.uint8)] * 100  # more than a pipe takes, sent through it all the same
loader = DataLoader(content, batch_size=None, num_workers=2, collate_fn=pack, worker_init_fn=start_worker,
                    multiprocessing_context=sys.argv[1])
steps = iter(loader)
next(steps)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_process_that_is_killed(method: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", LEFT_ALONE, method], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:  # which the workers hold, too: its end is not waited for
        workers = [int(word) for word in parent.stdout.readline().split()]
        time.sleep(0.5)  # they fill the pipe
        parent.kill()
        parent.wait()
    until = time.monotonic() + 20
    try:
        while any(map(lives, workers)) and time.monotonic() < until:
            time.sleep(0.1)
        assert len(workers) == 2
        assert not any(map(lives, workers))
    finally:
        for worker in filter(lives, workers):
            os.kill(worker, signal.SIGKILL)


def lives(process: int) -> bool:
    """Answer whether a process runs; one that has ended may wait for its new parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def _little_room() -> Iterator[None]:
    """Let no file grow beyond a few kilobytes, those of shared memory included; pipes may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_little_room", "_quick_look")
def test_steps_come_where_shared_memory_is_too_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container has 64 MB of it, unless told otherwise."""
    said = tmp_path / "said"
    handler = logging.FileHandler(said)
    monkeypatch.setattr(parcel._log, "handlers", [handler])
    content = [torch.arange(100_000) + index for index in range(4)]
    loader = DataLoader(
        content, batch_size=None, num_workers=1, collate_fn=pack, multiprocessing_context="fork"
    )
    made = list(watch.prepared_steps(loader, 1, 20.0))
    handler.close()
    assert all(torch.equal(one, wanted) for one, wanted in zip(made, content, strict=True))
    assert said.read_text().count("no room in shared memory") == 1


@pytest.mark.parametrize("reason", [OSError(28, "No space left on device"), BlockingIOError(11, "fork")])
def test_workers_that_cannot_be_started_are_an_error(
    monkeypatch: pytest.MonkeyPatch, reason: OSError
) -> None:
    def refuse(_: Any) -> Any:
        raise reason

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    one = loader({"words": {"task": "text"}}, {}, {"workers": 1})
    with pytest.raises(DataError, match=r"data workers cannot be started: .*/dev/shm.*engine\.workers: 0"):
        next(iter(one))
