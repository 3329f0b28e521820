"""Units of voltage in the headers of EDF, BDF and GDF files, most of which MNE takes for volts.

And their ranges: of a channel whose range is a single number MNE gives the bare digits.
"""

from __future__ import annotations

import struct

from janus_plugins.core.errors import BadSample
from janus_plugins.core.files import RawFile

_EDF = {"V": 1.0, "mV": 1.0, "uV": 1.0, "UV": 1e-6, "uv": 1e-6, "nV": 1e-9}
"""What is left to multiply a channel of EDF with: MNE knows the first three, and takes the rest for volts."""
_GDF = {"V": 1.0, "mV": 1e-3, "uV": 1.0, "UV": 1e-6, "uv": 1e-6, "nV": 1e-9}
"""The same for GDF 1, where MNE knows microvolts alone."""
_GDF2 = {"V": 1.0, "mV": 1.0, "uV": 1.0, "nV": 1e-9}
_CODES = {0: "", 512: "", 4256: "V", 4274: "mV", 4275: "uV", 4276: "nV"}
"""Units of GDF 2 (ISO 11073-10101): 0 is unknown, 512 a number without unit."""
_MICRO_SIGNS = ("\u00b5", "\u03bc", "\x83\xca")


Ranges = tuple[list[float], ...]
"""Of each signal: lowest and highest voltage, lowest and highest digit."""


def factors(file: RawFile, names: list[str], picks: list[int]) -> list[float]:
    """Return what MNE's volts of channels are to be multiplied with, by the units in the file's header.

    Args:
        file: EDF, BDF or GDF.
        names: the recording's channels, as MNE gives them.
        picks: those that are read.

    Raises:
        BadSample: a channel is in no unit of voltage, or in none, or its range is a single number.
    """
    units, known, ranges = _header(file)
    found = []
    for pick in picks:
        unit = units[pick]
        if unit not in known:
            raise BadSample(
                f"{file.name}: channel {names[pick]} is in {unit or 'no unit'}; {', '.join(known)} are "
                "read. Correct the file's header, or give the signal as an array in microvolts"
            )
        least, most, first, last = (each[pick] for each in ranges)
        if least == most or first == last:
            raise BadSample(
                f"{file.name}: channel {names[pick]} keeps {least:g} to {most:g} {unit} in the digits "
                f"{first:g} to {last:g}, which tell no voltage. Correct the file's header, or give the "
                "signal as an array in microvolts"
            )
        found.append(known[unit])
    return found


def _header(file: RawFile) -> tuple[list[str], dict[str, float], Ranges]:
    """Return units, the factors of those that the format may name, and ranges of the signals in a header."""
    head = file.head(256)
    if not head.startswith(b"GDF "):
        head = file.head(256 * (int(head[252:]) + 1))[256:]
        count = len(head) // 256
        labels = _texts(head, count, 0, 16)
        kept = [place for place, label in enumerate(labels) if not label.endswith(" Annotations")]
        units = _texts(head, count, 96, 8)
        ranges = tuple(
            [_number(each) for each in _texts(head, count, 104 + 8 * field, 8)] for field in range(4)
        )
        return (
            [_micro(units[place], "u") for place in kept],
            _EDF,
            tuple([each[place] for place in kept] for each in ranges),
        )
    old = float(head[4:8]) < 1.9  # as MNE tells them apart
    count = int.from_bytes(head[252 : 256 if old else 254], "little")
    head = file.head(256 * (count + 1))[256:]
    ranges = tuple(
        list(map(float, struct.unpack_from(f"<{count}{kind}", head, (104 + 8 * field) * count)))
        for field, kind in enumerate("ddqq" if old else "dddd")
    )
    if old:
        return [_micro(unit, "U") for unit in _texts(head, count, 96, 8)], _GDF, ranges  # MNE knows uV alone
    codes = [int.from_bytes(head[102 * count + 2 * place :][:2], "little") for place in range(count)]
    return [_CODES.get(code, f"the unit of code {code}") for code in codes], _GDF2, ranges


def _number(text: str) -> float:
    """Return a number of a header of EDF; what is none is not a number, and MNE's to refuse."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _texts(head: bytes, count: int, before: int, size: int) -> list[str]:
    """Return one field of all signals: fields of `before` bytes a signal come first."""
    starts = range(before * count, (before + size) * count, size)
    return [head[start : start + size].decode("latin-1").partition("\0")[0].strip() for start in starts]


def _micro(unit: str, letter: str) -> str:
    """Return a unit with a letter for micro's sign."""
    for sign in _MICRO_SIGNS:
        unit = unit.replace(sign, letter)
    return unit
