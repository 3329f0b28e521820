"""Names of electrodes, and the order in which LaBraM's table of places holds them.

Source: LaBraM (ICLR 2024), `standard_1020` of its utils: the rows of the 10-10 system from the forehead
to the back, further names, then the bipolar pairs of the TUH recordings.
"""

from __future__ import annotations

import re

_ROWS = (
    "FP1 FPZ FP2",
    "AF9 AF7 AF5 AF3 AF1 AFZ AF2 AF4 AF6 AF8 AF10",
    "F9 F7 F5 F3 F1 FZ F2 F4 F6 F8 F10",
    "FT9 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 FT10",
    "T9 T7 C5 C3 C1 CZ C2 C4 C6 T8 T10",
    "TP9 TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 TP10",
    "P9 P7 P5 P3 P1 PZ P2 P4 P6 P8 P10",
    "PO9 PO7 PO5 PO3 PO1 POZ PO2 PO4 PO6 PO8 PO10",
    "O1 OZ O2 O9 CB1 CB2",
    "IZ O10 T3 T5 T4 T6 M1 M2 A1 A2",
    "CFC1 CFC2 CFC3 CFC4 CFC5 CFC6 CFC7 CFC8",
    "CCP1 CCP2 CCP3 CCP4 CCP5 CCP6 CCP7 CCP8",
    "T1 T2 FTT9H TTP7H TPP9H FTT10H TPP8H TPP10H",
    "FP1-F7 F7-T7 T7-P7 P7-O1 FP2-F8 F8-T8 T8-P8 P8-O2",
    "FP1-F3 F3-C3 C3-P3 P3-O1 FP2-F4 F4-C4 C4-P4 P4-O2",
)
PLACES: tuple[str, ...] = tuple(" ".join(_ROWS).split())[:128]
"""The 128 names that LaBraM's table has a row for."""

_TEN_TWENTY = "FP1 FP2 F7 F3 FZ F4 F8 T7 C3 CZ C4 T8 P7 P3 PZ P4 P8 O1 O2"
TEN_TWENTY: tuple[str, ...] = tuple(_TEN_TWENTY.split())
"""The nineteen electrodes of the 10-20 system."""

_FRAME = re.compile(r"(?:EEG[ _-]*)?(.+?)(?:-(?:REF|LE|AR|AVG))?\.*")
_OLD = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
"""The older names of four electrodes; tried where the newer ones are not there."""


def plain(name: str) -> str:
    """Return a channel's bare name: "EEG Fp1-REF" and "Fp1." are FP1."""
    match = _FRAME.fullmatch(name.strip().upper())
    return match[1] if match else name.strip().upper()


def chosen(wanted: tuple[str, ...], there: list[str]) -> list[int | None]:
    """Return where each wanted channel stands among those of a recording, or None where it is not."""
    places: dict[str, int] = {}
    for place, name in enumerate(there):
        places.setdefault(plain(name), place)
    newer = {_OLD[name]: place for name, place in places.items() if name in _OLD}
    return [places.get(plain(name), newer.get(plain(name))) for name in wanted]
