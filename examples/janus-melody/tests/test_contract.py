from janus_melody.processor import Processor
from janus_melody.spec import MelodyConfig, janus_components

from janus_plugins.testing import check_component


def test_contracts():
    for spec in janus_components():
        check_component(spec)


def test_a_midi_file(tmp_path):
    path = tmp_path / "made.mid"
    Processor(MelodyConfig()).write([60, 0, 64], str(path), {"prompt": "two notes"})
    data = path.read_bytes()
    assert data[:4] == b"MThd"
    assert int.from_bytes(data[18:22], "big") == len(data) - 22
    assert b"prompt: two notes" in data
    assert data.endswith(bytes([0x90, 64, 80, 48, 0x80, 64, 0, 0, 0xFF, 0x2F, 0]))
