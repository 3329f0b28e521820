"""EEG: channels by name, rates, windows, files read safely, LaBraM's layout of weights."""

import io
import struct

import mne
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from janus_plugins.core.errors import BadSample
from janus_plugins.encoders.eeg.electrodes import PLACES, chosen, plain
from janus_plugins.encoders.eeg.labram import PaddedGroupNorm
from janus_plugins.encoders.eeg.processor import EegProcessor, _filters
from janus_plugins.encoders.eeg.spec import EEG, EegConfig
from janus_plugins.sequence.assemble import collate_items
from tests.components.keeps import made

TINY = EegConfig.tiny()
NAMES = ["EEG Fz-REF", "Cz.", "EOG", "O1"]


def processor(**options):
    return EegProcessor(EegConfig(**{**TINY, **options}))


def rhythm(rate=40, seconds=3.0, channels=4):
    """Microvolts [C, S]: each channel its own pitch and a little noise."""
    times = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(1).normal(size=(channels, len(times)))
    return np.stack([30 * np.sin(2 * np.pi * (2 + place) * times) for place in range(channels)]) + noise


@pytest.fixture(scope="module")
def fif(tmp_path_factory):
    path = tmp_path_factory.mktemp("eeg") / "a_raw.fif"
    info = mne.create_info(NAMES, 40.0, ["eeg", "eeg", "eog", "eeg"])
    mne.io.RawArray(rhythm() * 1e-6, info, verbose="error").save(path, fmt="double", verbose="error")
    return path


def edf(
    channels=4,
    records=3,
    rate=40,
    stated=None,
    cut=None,
    unit="uV",
    volts=(-100, 100),
    digits=(-32768, 32767),
):
    """A small EDF: one record a second, 16 bits over +-100 microvolts."""
    names = [NAMES[place % 4] for place in range(channels)]
    columns = (
        [f"{name:16}" for name in names], [" " * 80] * channels, [f"{unit:8}"] * channels, [f"{volts[0]:<8}"] * channels,
        [f"{volts[1]:<8}"] * channels, [f"{digits[0]:<8}"] * channels, [f"{digits[1]:<8}"] * channels, [" " * 80] * channels,
        [f"{rate:<8}"] * channels, [" " * 32] * channels,
    )  # fmt: skip
    head = f"{'0':8}{'X X X X':80}{'Startdate X X X X':80}01.01.2000.00.00{256 * (channels + 1):<8}{'':44}{records:<8}{1:<8}{stated or channels:<4}"
    head = head.replace("01.01.2000.00.00", "01.01.0000.00.00")
    values = np.round(rhythm(rate, records, channels) / 100 * 32767).astype("<i2")
    body = values.reshape(channels, records, rate).transpose(1, 0, 2).tobytes()
    return (head + "".join("".join(column) for column in columns)).encode("latin-1") + body[:cut]


def gdf(unit, version="2.20"):
    """The same as GDF; version 2 has codes for units."""
    count, records, rate = 4, 3, 40
    labels = [f"{name:16}".encode() for name in NAMES]
    ranges = [struct.pack("<4d", *[-100.0] * 4), struct.pack("<4d", *[100.0] * 4)]
    length = struct.pack("<qII", records, 1, 1)
    if version[0] == "1":
        head = f"GDF {version}{'X X':80}{'':80}{'2020010100000000':16}".encode()
        head += struct.pack("<q", 256 * (count + 1)) + bytes(44) + length + struct.pack("<I", count)
        units = [f"{unit:8}".encode("latin-1")] * count
        ranges += [struct.pack("<4q", *[-32768] * 4), struct.pack("<4q", *[32767] * 4), b" " * 320]
        rest = [struct.pack("<4I", *[rate] * 4), struct.pack("<4I", *[3] * 4), bytes(128)]
    else:
        head = f"GDF {version}{'X X':66}".encode() + bytes(14) + b" " * 64 + bytes(32)
        head += struct.pack("<H", count + 1) + bytes(50) + length + struct.pack("<HH", count, 0)
        units = [bytes(6 * count), struct.pack("<4H", *[unit] * 4)]
        ranges += [struct.pack("<4d", *[-32768.0] * 4), struct.pack("<4d", *[32767.0] * 4), bytes(68 * count)]
        rest = [bytes(48), struct.pack("<4I", *[rate] * 4), struct.pack("<4I", *[3] * 4), bytes(128)]
    whole = head + b"".join([*labels, b" " * 320, *units, *ranges, *rest])
    assert (len(head), len(whole)) == (256, 256 * (count + 1))
    return whole + edf()[-2 * count * records * rate :] + b"\1" + bytes(7)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def expected(seconds=3):
    return rhythm()[[0, 1, 3], : seconds * 40].reshape(3, seconds, 40).transpose(1, 0, 2) / 100


def test_channels_are_chosen_by_name():
    assert [plain(name) for name in ("EEG FP1-REF", "Fp1.", "eeg fp1", "FP1-F7", "Cz")] == [
        "FP1",
        "FP1",
        "FP1",
        "FP1-F7",
        "CZ",
    ]
    assert chosen(("CZ", "T7", "XX"), ["EEG T3-LE", "Cz"]) == [1, 0, None]
    assert (len(PLACES), PLACES[0], PLACES.index("CZ")) == (128, "FP1", 41)


def test_files_and_arrays_hold_the_same_signal(fif, tmp_path):
    (tmp_path / "a.edf").write_bytes(edf())
    for name in ("a.npy", "named.eeg"):
        (tmp_path / name).write_bytes(npy(rhythm()[[0, 1, 3]]))
    row = {"array": rhythm(), "sampling_rate": 40, "channels": NAMES}
    for value, tolerance in (
        (fif, 1e-6),
        (tmp_path / "a.edf", 2e-4),
        (edf(), 2e-4),
        (row, 1e-6),
        (rhythm()[[0, 1, 3]], 1e-6),
        (npy(rhythm()[[0, 1, 3]]), 1e-6),
        (tmp_path / "a.npy", 1e-6),
        (str(tmp_path / "named.eeg"), 1e-6),
    ):
        assert np.allclose(processor()(value)["signal"], expected(), atol=tolerance)


@pytest.mark.parametrize(
    ("unit", "scale"),
    [("uV", 1), ("\u00b5V", 1), ("UV", 1), ("uv", 1), ("mV", 1e3), ("V", 1e6), ("nV", 1e-3)],
)
def test_units_of_a_file_become_microvolts(unit, scale):
    assert np.allclose(processor()(edf(unit=unit))["signal"], expected() * scale, atol=2e-4 * scale)


@pytest.mark.parametrize(
    ("version", "unit", "scale"),
    [
        *[
            ("1.25", unit, scale)
            for unit, scale in (("uV", 1), ("\u00b5V", 1), ("mV", 1e3), ("V", 1e6), ("nV", 1e-3))
        ],
        *[("2.20", unit, scale) for unit, scale in ((4275, 1), (4274, 1e3), (4256, 1e6), (4276, 1e-3))],
    ],
)
def test_units_of_gdf_become_microvolts(version, unit, scale):
    assert np.allclose(processor()(gdf(unit, version))["signal"], expected() * scale, atol=2e-4 * scale)


@pytest.mark.parametrize(
    ("version", "unit", "said"),
    [
        ("1.25", "", "no unit"),
        ("1.25", "DegC", "DegC"),
        ("2.20", 512, "no unit"),
        ("2.20", 0, "no unit"),
        ("2.20", 6048, "the unit of code 6048"),
    ],
)
def test_what_is_no_voltage_in_gdf_is_not_taken_for_volts(version, unit, said):
    with pytest.raises(BadSample, match=f"channel EEG Fz-REF is in {said}; V, mV, uV"):
        processor()(gdf(unit, version))


@pytest.mark.parametrize(("unit", "said"), [("", "no unit"), ("DegC", "DegC")])
def test_what_is_no_voltage_is_not_taken_for_volts(unit, said):
    with pytest.raises(BadSample, match=f"channel EEG Fz-REF is in {said}; V, mV, uV"):
        processor()(edf(unit=unit))


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"digits": (0, 0)}, "-100 to 100 uV in the digits 0 to 0"),
        ({"volts": (7, 7)}, "7 to 7 uV in the digits -32768 to 32767"),
    ],
)
def test_a_range_that_tells_no_voltage_is_refused(ranges, said):
    """MNE gives the bare digits, a hundred thousand microvolts."""
    with pytest.raises(BadSample, match=f"channel EEG Fz-REF keeps {said}, which tell no voltage. Correct"):
        processor()(edf(**ranges))


def test_a_band_above_what_a_recording_holds_is_refused_by_name():
    slow = {"array": rhythm(10)[:3], "sampling_rate": 10}
    with pytest.raises(
        BadSample, match="10 samples a second holds nothing above 5 Hz, but band begins at 6 Hz"
    ):
        processor(band=(6, 15))(slow)
    assert processor(band=(1, 15))(slow)["signal"].shape == (3, 3, 40)


def test_other_rates_are_resampled():
    row = {"array": rhythm(160), "sampling_rate": 160, "channels": NAMES}
    made_of = processor()(row)["signal"]
    assert made_of.shape == (3, 3, 40)
    assert np.abs(made_of[1] - expected()[1]).mean() < 0.03
    assert np.array_equal(processor()({**row, "sampling_rate": np.int64(160)})["signal"], made_of)


def test_resampling_keeps_an_offset_to_the_ends():
    row = {"array": np.full((4, 512), 1000.0), "sampling_rate": 128, "channels": NAMES}
    assert np.allclose(processor()(row)["signal"], 1000 / 100, rtol=1e-4)


def test_hum_and_drift_are_taken_out():
    times = np.arange(400) / 100
    signal = np.stack([20 * np.sin(2 * np.pi * 8 * times)] * 3)
    noisy = signal + 50 * np.sin(2 * np.pi * 30 * times) + 100 * times
    clean = processor(rate=100, window=100, width=52, notch=30.0, band=(1.0, 40.0))(noisy)["signal"]
    middle = clean[1:3].transpose(1, 0, 2).reshape(3, -1) * 100
    assert np.abs(middle - signal[:, 100:300]).max() < 8
    assert np.abs(noisy[:, 100:300] - signal[:, 100:300]).max() > 200


def test_hum_at_half_of_the_models_rate_is_taken_out_before_resampling():
    times = np.arange(1600) / 400
    tone = 20 * np.sin(2 * np.pi * 8 * times)
    row = {
        "array": np.stack([tone + 80 * np.sin(2 * np.pi * 50 * times + 1)] * len(NAMES)),
        "sampling_rate": 400,
    }
    options = {"rate": 100, "window": 100, "width": 52}
    wanted = tone[::4][100:300]

    def heard(**more):
        signal = processor(**options, **more)({**row, "channels": NAMES})["signal"]
        return signal[1:3].transpose(1, 0, 2).reshape(3, -1) * 100

    assert np.abs(heard()[:, :200] - wanted).max() > 20  # it comes back at another frequency, or as it is
    assert np.abs(heard(notch=50.0)[:, :200] - wanted).max() < 2


def test_filters_are_designed_once_for_a_rate():
    filters = _filters(50.0, (1.0, 30.0), 200.0)
    assert filters is _filters(50.0, (1.0, 30.0), 200.0)
    assert len(_filters(50.0, (1.0, 30.0), 80.0)) == 1  # no hum above half of the recording's rate
    assert _filters(None, None, 80.0) == ()


def test_a_missing_channel_is_refused_or_zero():
    row = {"array": rhythm()[:2], "sampling_rate": 40, "channels": NAMES[:2]}
    with pytest.raises(BadSample, match="has no channel O1, but EEG Fz-REF, Cz"):
        processor()(row)
    signal = processor(missing="zero")(row)["signal"]
    assert not signal[:, 2].any()
    assert np.allclose(signal[:, :2], expected()[:, :2])
    with pytest.raises(BadSample, match="has no channel"):
        processor(missing="zero")({**row, "channels": ["A", "B"]})


def test_longer_recordings_are_refused_or_cut(fif):
    with pytest.raises(BadSample, match=r"3.0 s; the encoder reads 2 s. Set too_long: cut"):
        processor(max_windows=2)(fif)
    assert np.allclose(processor(max_windows=2, too_long="cut")(fif)["signal"], expected(2))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (edf(stated=9999), "claims 9999 channels in"),
        (edf(stated="x"), "claims x channels in"),
        (edf()[:300], "claims 4 channels in 300 bytes"),
        (edf(cut=40), "cannot be read|one window|samples at"),
        (b"junk" * 200, "of no known format"),
        ({"bytes": b"junk" * 200, "path": "a.fif"}, "cannot be read"),
        ("/nowhere/a.edf", "no such file"),
        (np.full((3, 80), np.nan), "no finite numbers"),
        (np.zeros((3, 30)), "one window is 40"),
        (np.zeros((5, 80)), r"\(5, 80\) for 3 channels"),
        ({"array": np.zeros((3, 80)), "sampling_rate": 0}, "0 samples a second"),
        ({"bytes": npy(np.zeros((80, 3))), "path": "a.npy"}, r"a.npy: float64 \(80, 3\) for 3 channels"),
        (npy(np.array([{}, []], dtype=object)), "holds object, not numbers"),
        (npy(np.zeros((3, 80)))[:500], "but ends before"),
    ],
    ids=range(14),
)
def test_what_cannot_be_used_is_a_bad_sample(value, message):
    with pytest.raises(BadSample, match=message):
        processor()(value)


@pytest.mark.parametrize("options", [{}, {"band": (0.5, 15.0)}, {"notch": 10.0}, {"rate": 20}])
def test_a_recording_without_samples_is_a_bad_sample_whatever_is_done_to_it(options):
    with pytest.raises(BadSample, match="without samples; one window is 40"):
        processor(**options)({"array": np.zeros((3, 0)), "sampling_rate": 40})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ("CZ", "Cz.")}, "CZ are given twice"),
        ({"channels": ("CZ", "QQ")}, "knows no place for channels QQ"),
        ({"band": (1.0, 30.0)}, "below half of rate 40"),
        ({"width": 30}, "multiple of 4 x 5"),
        ({"model": "eegnet", "window": 20}, "less than the 32"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EegConfig(**{**TINY, **options})


def test_padding_does_not_move_the_norm():
    norm, given = PaddedGroupNorm(4, 8), torch.randn(2, 8, 6, 5)
    assert torch.allclose(norm(given, torch.ones(2, 6, dtype=torch.bool)), norm(given), atol=1e-5)
    there = torch.arange(6) < torch.tensor([[6], [2]])
    assert torch.allclose(norm(given, there)[1, :, :2], norm(given[1:, :, :2])[0], atol=1e-5)


def test_labram_weights_under_their_published_names_load(tmp_path):
    options = {**TINY, "max_windows": 3}
    published = made(EEG, {**TINY, "max_windows": 16}, 4)
    tensors = {"student.mask_token": torch.zeros(1, 1, 40), "lm_head.weight": torch.zeros(2)}
    for name, each in published.trunk.state_dict().items():
        theirs = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        tensors[f"student.{theirs}"] = each
    save_file(tensors, tmp_path / "labram.safetensors")
    encoder = made(EEG, options)
    encoder.load_weights(str(tmp_path))
    items = collate_items([processor()(rhythm()[:3])])
    assert torch.equal(encoder(items), published(items))


def test_published_size():
    with torch.device("meta"):
        encoder = made(EEG, {})
    assert (encoder.config.facts().width, encoder.config.facts().max_tokens) == (200, 304)
    assert sum(each.numel() for each in encoder.parameters()) == 5_819_936


def test_lists_are_read_as_arrays():
    rows = rhythm()[[0, 1, 3]]
    for value in (rows.tolist(), {"array": rhythm().tolist(), "sampling_rate": 40, "channels": NAMES}):
        assert np.array_equal(processor()(value)["signal"], processor()(rows)["signal"])
    with pytest.raises(BadSample, match="a recording of brain signals that is no array of numbers"):
        processor()([[1.0, 2.0], [1.0]])
