import numpy as np

from janus_melody.spec import LOWEST, PITCHES
from janus_plugins import BadSample

TICKS = 48  # of a sixteenth note


class Processor:
    suffix = ".mid"

    def __init__(self, config):
        self.notes = config.notes

    def __call__(self, value):
        """Read MIDI pitches, 0 for a rest; a shorter melody ends in rests."""
        pitches = np.asarray(value)
        known = (
            (pitches == 0) | ((pitches >= LOWEST) & (pitches < LOWEST + PITCHES))
            if pitches.dtype.kind in "iu"
            else False
        )
        if pitches.ndim != 1 or not 0 < len(pitches) <= self.notes or not np.all(known):
            raise BadSample(
                f"melody: must be 1 to {self.notes} MIDI pitches, 0 or {LOWEST} to {LOWEST + PITCHES - 1}"
            )
        codes = np.where(pitches == 0, 0, pitches - LOWEST + 1)
        return {"codes": np.pad(codes, (0, self.notes - len(codes))).astype(np.int64)}

    def num_tokens(self, arrays):
        return self.notes

    def dummy(self):
        return {"codes": np.zeros(self.notes, np.int64)}

    def examples(self):
        return [[60, 62, 64, 65], [72, 0, 71, 0, 69], [36, 95], [67] * self.notes]

    def restore(self, decoded):
        """Return MIDI pitches, 0 for a rest."""
        codes = np.asarray(decoded).astype(int)
        return np.where(codes == 0, 0, codes + LOWEST - 1).tolist()

    def write(self, artefact, path, metadata):
        """Write a standard MIDI file of one track, the metadata as text events."""
        texts = [f"{key}: {text}".encode() for key, text in metadata.items()]
        events = b"".join(b"\x00\xff\x01" + length(len(text)) + text for text in texts)
        wait = 0
        for pitch in artefact:
            if pitch:
                events += length(wait) + bytes([0x90, pitch, 80]) + length(TICKS) + bytes([0x80, pitch, 0])
            wait = 0 if pitch else wait + TICKS
        events += length(wait) + b"\xff\x2f\x00"
        header = b"MThd" + bytes([0, 0, 0, 6, 0, 0, 0, 1]) + (4 * TICKS).to_bytes(2, "big")
        with open(path, "wb") as file:
            file.write(header + b"MTrk" + len(events).to_bytes(4, "big") + events)


def length(number):
    """Return a variable-length number of the MIDI format: seven bits a byte, the highest first."""
    parts = [number & 127]
    while number := number >> 7:
        parts.insert(0, number & 127 | 128)
    return bytes(parts)
