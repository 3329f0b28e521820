"""Opening data sources, and telling apart those read by index and those read in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from janus_plugins.core.blame import advice, full_name
from janus_plugins.core.catalogue import load_factory
from janus_plugins.core.contracts import Source, StreamingSource
from janus_plugins.core.errors import BadSample, DataError, JanusPluginsError, PluginError
from janus_plugins.core.plan import Part
from janus_plugins.core.samples import Sample
from janus_plugins.core.suggest import unexpanded


def open_source(part: Part) -> Any:
    """Open a source: a `Source`, or a `StreamingSource` where it offers `rows`.

    Raises:
        DataError: naming the data entry and the cause.
    """
    try:
        source = load_factory(part.spec)(part.config, part.facts)
    except DataError as error:
        paths = [value for value in dict(part.config).values() if isinstance(value, str)]
        hint = next(filter(None, map(unexpanded, paths)), "")
        raise type(error)(f"{part.address}: {error}{hint}") from error
    except JanusPluginsError:
        raise
    except Exception as error:
        raise DataError(
            f"{part.address}: source {part.spec.name!r} cannot be opened: {type(error).__name__}: {error}"
        ) from error
    lacks = [name for name in ("__len__", "__getitem__") if not hasattr(source, name)]
    if lacks and not is_streaming(source):
        raise PluginError(
            f"{full_name(part)}: it opens a {type(source).__name__}, which has neither {' and '.join(lacks)} "
            f"nor `rows` to be read in order; {advice(part)}"
        )
    return source


def is_streaming(source: Source | StreamingSource) -> TypeGuard[StreamingSource]:
    """Answer whether a source is read in order."""
    return hasattr(source, "rows")


def size_of(name: str, source: Source | StreamingSource) -> int | None:
    """Return a source's number of samples, or None where it is read in order.

    Raises:
        DataError: the source is empty.
    """
    if is_streaming(source):
        return None
    size = len(source)  # type: ignore[arg-type]
    if size == 0:
        raise DataError(f"data.{name} has no samples; check its path, split and filters")
    return int(size)


def readable(source: Any, limit: int | None = None) -> Iterator[Sample]:
    """Yield the samples of a source that is read by index, without those that cannot be read.

    Args:
        source: the opened source; of one that is read in order nothing is yielded.
        limit: look at the first so many (default: at all).
    """
    number = 0 if is_streaming(source) else len(source)
    for index in range(number if limit is None else min(number, limit)):
        try:
            sample = source[index]
        except BadSample:
            continue
        except JanusPluginsError:
            raise
        except Exception:  # as in training, which counts and names it
            continue
        if isinstance(sample, Sample):
            yield sample
