"""What a user asks of a model: make items, answer questions, encode, decode.

Checks what was given, lays it out by the model's template, and gives every row its own seed, so that
no answer depends on its batch mates. The model is in evaluation mode meanwhile, and without gradients.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from janus_plugins.core.errors import RunFileError
from janus_plugins.inference import checks, paths
from janus_plugins.inference.ahead import Decoding
from janus_plugins.inference.artefacts import Generated, save_generated
from janus_plugins.inference.decode import generate_items
from janus_plugins.inference.events import Spoken, TextPiece
from janus_plugins.inference.linears import Linears
from janus_plugins.inference.prompts import item_prompt, question_prompt
from janus_plugins.inference.sampling import row_seed
from janus_plugins.inference.words import generate_text

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel

__all__ = ["Generated", "ask", "decode", "encode", "generate", "save_generated"]


def generate(
    model: UnifiedModel,
    prompts: str | Sequence[str],
    *,
    modality: str | None = None,
    images: object = None,
    items: Mapping[str, object] | None = None,
    num_per_prompt: int = 1,
    guidance: float = 5.0,
    temperature: float = 1.0,
    seed: int = 0,
    max_rows: int | None = None,
    linears: Linears = "packed",
    compile: bool = False,
    decoding: Decoding = "steps",
    window: int | None = None,
    return_codes: bool = False,
    only: Sequence[int] | None = None,
    on_made: Callable[[Generated], None] | None = None,
) -> list[Generated] | Tensor:
    """Make items from prompts.

    Item `index` of a prompt is a function of the model, the settings, the prompt and `(seed, index)`:
    not of the other prompts, and not of how many are made. A prompt given twice goes on counting.

    Args:
        model: the unified model.
        prompts: one prompt or several.
        modality: one of the model's generation paths (default: the only one, or "image" of several).
        images: images that the prompt shows, in order (paths, PIL images, arrays), before its text or where
            that marks each with `<image>`; for several prompts one list a prompt. A single image may stand
            without its list.
        items: the same for any modality: modality -> items.
        num_per_prompt: items of each prompt.
        guidance: s of classifier-free guidance, `u + s (c - u)`; 1 is without.
        temperature: 0 means greedy.
        seed: of the whole call.
        max_rows: most rows of the language model at once, of which an item takes two under guidance
            (default: by the memory of the cache).
        linears: how linear layers compute: "packed" (on a CPU the fastest way for the same numbers to
            rounding: few rows by products in C, where they can be compiled, more by a second copy of the
            weights), "plain" (as torch does), "int8" or "int4" (other results, for few rows at once; the
            copies are kept while the weights stay).
        compile: run each step as one graph, compiled at the first call (half a minute to minutes) and kept
            for later ones of the same sizes; "packed" and "plain" are then alike on a CPU, and on a GPU
            "packed" multiplies heads by kernels of its own. Rounding differs. On a CPU whose products are in
            C a Llama gains nothing by it.
        decoding: "steps" makes one code a run of the language model. "jacobi" guesses several and checks
            them in one run, one item at a time, with the same distribution. "zigzag" makes rows of a picture
            side by side, which changes results.
        window: codes that a run may decide (jacobi, default 16), or by which a row stays behind the one
            above it (zigzag, default half a row).
        return_codes: return codes, and decode nothing.
        only: places in the list of all items; those alone are made and returned, the same as in the whole
            call, which several processes can share so (default: all).
        on_made: called with every item, in order, as soon as those that ran together with it are made.

    Returns:
        A flat list: `num_per_prompt` items of the first prompt, then of the second ... With
        `return_codes` their codes alone, [N, T] or of Q codebooks [N, T, Q] (int64), or latents [N, T, C],
        on the CPU.

    Raises:
        RunFileError: an argument out of range, an unknown modality, or a prompt that is too long.
        BadSample: an item that cannot be read, or other marks than items.
    """
    texts = checks.texts_of(prompts, "prompt")
    checks.check_not_negative(guidance=guidance, temperature=temperature)
    checks.check_counts(num_per_prompt=num_per_prompt, max_rows=max_rows, window=window)
    checks.check_seed(seed)
    checks.check_linears(linears)
    checks.check_decoding(decoding, window)
    if return_codes and on_made is not None:
        raise RunFileError(
            "return_codes decodes nothing, so there is no item to call on_made with; leave one out"
        )
    modality = paths.made_modality(model, modality)
    given = checks.items_by_question(images, items, len(texts), isinstance(prompts, str), "prompt")
    numbers: list[list[int]] = [[] for _ in texts]
    places = checks.chosen(only, len(texts) * num_per_prompt)
    counted = checks.numbered(texts, num_per_prompt)
    for place in places:
        prompt, nth = divmod(place, num_per_prompt)
        numbers[prompt].append(counted[prompt][nth])
    left = [place for place, indices in enumerate(numbers) if indices]
    texts, numbers = [texts[place] for place in left], [numbers[place] for place in left]
    given = [given[place] for place in left]
    flat = iter([(text, index) for text, indices in zip(texts, numbers, strict=True) for index in indices])
    made: list[Generated] = []

    def take(batch: Tensor) -> None:
        for codes, artefact in zip(batch, paths.decode_items(model, modality, batch), strict=True):
            text, index = next(flat)
            made.append(Generated(text, seed, index, artefact, codes, modality, guidance, temperature))
            if on_made is not None:
                on_made(made[-1])

    checks.check_marked(texts, given, paths.marks(model), items)
    with evaluating(model):
        rows = [
            item_prompt(model, modality, text, [row_seed(seed, text, index) for index in indices], shown)
            for text, indices, shown in zip(texts, numbers, paths.embed_given(model, given), strict=True)
        ]
        codes = generate_items(
            model,
            modality,
            rows,
            guidance=guidance,
            temperature=temperature,
            max_rows=max_rows,
            linears=linears,
            compile=compile,
            decoding=decoding,
            window=window,
            on_batch=None if return_codes else take,
        )
    return codes if return_codes else made


def ask(
    model: UnifiedModel,
    question: str | Sequence[str],
    *,
    images: object = None,
    items: Mapping[str, object] | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float | None = None,
    seed: int = 0,
    system: str | None = None,
    max_rows: int | None = None,
    linears: Linears = "packed",
    compile: bool = False,
    only: Sequence[int] | None = None,
    on_text: Callable[[TextPiece], None] | None = None,
) -> str | list[str]:
    """Answer a question, or several in one batch.

    Args:
        model: the unified model.
        question: one question or several.
        images: the question's images, in order (paths, PIL images, arrays), before its text or where that
            marks each with `<image>`; for several questions one list a question. A single image may stand
            without its list.
        items: the same for any modality: modality -> items.
        max_new_tokens: most tokens of an answer.
        temperature: 0 means greedy.
        top_p: sample from the likeliest tokens that hold this share of the probability; at a temperature
            above 0.
        seed: of the whole call; a row's own seed depends on it and on the question alone.
        system: system prompt (default: the template's; "" for none).
        max_rows: most questions at once (default: by the memory of the cache).
        linears: how linear layers compute on a CPU; see `generate`.
        compile: run each step as one compiled graph; see `generate`.
        only: places in the list of questions; those alone are answered (default: all).
        on_text: called with every new piece of an answer; an answer is its pieces put together.

    Returns:
        The answer without surrounding white space; a list of them where questions were a list.

    Raises:
        RunFileError: an argument out of range, an unknown modality, or a question that is too long.
        BadSample: an item that cannot be read, or other marks than items.
    """
    texts = checks.texts_of(question, "question")
    checks.check_not_negative(temperature=temperature)
    checks.check_counts(max_new_tokens=max_new_tokens, max_rows=max_rows)
    checks.check_seed(seed)
    checks.check_system(system)
    checks.check_top_p(top_p, temperature=temperature)
    checks.check_linears(linears)
    given = checks.items_by_question(images, items, len(texts), single=isinstance(question, str))
    places = checks.chosen(only, len(texts))
    texts, given = [texts[place] for place in places], [given[place] for place in places]
    checks.check_marked(texts, given, paths.marks(model), items)
    with evaluating(model):
        rows = [
            question_prompt(model, text, shown, system, row_seed(seed, text, 0))
            for text, shown in zip(texts, paths.embed_given(model, given), strict=True)
        ]
        spoken = [Spoken(model.tokenizer.decode) for _ in rows]

        def say(row: int, piece: str) -> None:
            if piece and on_text is not None:
                on_text(TextPiece(places[row], piece))

        answers = generate_text(
            model,
            rows,
            stop=model.tokenizer.id_of(model.template.eos),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            max_rows=max_rows,
            linears=linears,
            compile=compile,
            watch=None if on_text is None else lambda row, ids: say(row, spoken[row].more(ids)),
        )
    for row, ids in enumerate(answers):
        say(row, spoken[row].rest(ids))
    said = [one.text for one in spoken]
    return said[0] if isinstance(question, str) else said


def encode(model: UnifiedModel, modality: str, items: Sequence[object]) -> Tensor:
    """Return what the generation encoder makes of raw items, on the CPU.

    Codes [N, T] or, of Q codebooks, [N, T, Q] (int64); latents [N, T, C].

    Raises:
        RunFileError: an unknown modality, or no items.
        BadSample: an item that cannot be read, or other marks than items.
    """
    part = paths.generation_path(model, modality).encoder
    if not isinstance(items, (list, tuple)) or not items:
        raise RunFileError("encode takes a list of at least one item")
    arrays = paths.read_items(part, items)
    with evaluating(model):
        return paths.encode_items(model, modality, arrays)


def decode(model: UnifiedModel, modality: str, ids: Tensor) -> list[Any]:
    """Return artefacts (for images: PIL images) of codes [N, T] or [N, T, Q], or latents [N, T, C].

    Raises:
        RunFileError: an unknown modality, another shape, or a code outside the codebook.
    """
    facts = paths.generation_path(model, modality).facts
    codes = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, device="cpu")
    if codes.shape[1:] != facts.shape or not len(codes):
        shape = ", ".join(map(str, ("N", *facts.shape)))
        raise RunFileError(f"{modality}: decode takes [{shape}], got {list(codes.shape)}")
    if facts.codebook_size is not None:
        _check_codes(codes, facts.codebook_size, modality)
        codes = codes.long()  # small whole numbers would pick by mask
    with evaluating(model):
        return paths.decode_items(model, modality, codes)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation mode without gradients, and back to what each was.

    Threads that share a model take turns; a thread may call the model again from within.
    """
    with _turn(model):
        training = [module for module in model.modules() if module.training]
        if training:  # telling every module again takes milliseconds
            model.eval()
        try:
            # What is recorded outlives the call; tensors of inference mode could not be written to after it.
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


_TURNS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_GUARD = threading.Lock()


def _forget_turns() -> None:
    """Let nobody hold a turn: in a forked process there is no thread that could end the call it was in."""
    global _GUARD
    _GUARD = threading.Lock()
    _TURNS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turns)


def _turn(model: nn.Module) -> threading.RLock:
    """Return the lock of a model, of which decoding exchanges parts and keeps compiled steps."""
    with _GUARD:
        return _TURNS.setdefault(model, threading.RLock())


def _check_codes(codes: Tensor, size: int, modality: str) -> None:
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise RunFileError(f"{modality}: decode takes whole numbers, got {codes.dtype}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= size:
        raise RunFileError(f"{modality}: codes run from 0 to {size - 1}, but these from {low} to {high}")
