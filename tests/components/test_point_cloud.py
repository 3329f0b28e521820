"""Point clouds: sampling, neighbourhoods, order, files of every format, lying headers, weights."""

import io
import math
import time

import numpy as np
import pytest
import torch
import trimesh
from safetensors.torch import save_file

from janus_plugins.core.errors import BadSample, CheckpointError
from janus_plugins.encoders.point_cloud.groups import farthest_points, gathered, neighbours
from janus_plugins.encoders.point_cloud.processor import PointCloudProcessor, unit
from janus_plugins.encoders.point_cloud.reading import read_points
from janus_plugins.encoders.point_cloud.spec import POINT_CLOUD, PointCloudConfig
from tests.components.keeps import made

TINY = PointCloudConfig.tiny()
CLOUD = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
COLOURS = np.random.default_rng(3).integers(0, 256, (50, 3), dtype=np.uint8)


def naive_farthest(places, count):
    first = ((places - places.mean(0)) ** 2).sum(1).argmax()
    chosen = [int(first)]
    while len(chosen) < count:
        distances = [min(math.dist(place, places[other]) for other in chosen) for place in places]
        chosen.append(int(np.argmax(distances)))
    return chosen


def test_farthest_points_are_those_of_the_definition():
    places = np.random.default_rng(0).normal(size=(3, 40, 3)).astype(np.float32)
    found = farthest_points(torch.from_numpy(places), 9)
    assert found.tolist() == [naive_farthest(cloud, 9) for cloud in places]


def test_neighbours_are_the_nearest():
    places = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    centres = places[:, :5]
    found = neighbours(places, centres, 4)
    for item in range(2):
        for centre in range(5):
            distances = (places[item] - centres[item, centre]).norm(dim=1)
            assert found[item, centre].tolist() == distances.argsort()[:4].tolist()
    assert torch.equal(gathered(places, found)[1, 3, 2], places[1, found[1, 3, 2]])
    assert found[:, :, 0].tolist() == [[0, 1, 2, 3, 4]] * 2


def test_sampling_is_fast():
    places = torch.randn(4, 1024, 3)
    started = time.thread_time()
    neighbours(places, gathered(places, farthest_points(places, 64)), 32)
    assert time.thread_time() - started < 5.0


def test_the_order_of_points_has_no_say():
    encoder = made(POINT_CLOUD, TINY)
    points = torch.from_numpy(unit(np.random.default_rng(1).normal(size=(48, 3))))[None]
    mixed = points[:, torch.randperm(48, generator=torch.Generator().manual_seed(1))]
    assert torch.allclose(encoder({"points": points}), encoder({"points": mixed}), atol=1e-5)


def processor(**options):
    return PointCloudProcessor(PointCloudConfig(**{**TINY, **options}))


def test_clouds_are_centred_scaled_and_of_one_size():
    for size in (1, 20, 48, 500):
        points = processor()(np.random.default_rng(size).normal(3, 5, (size, 3)))["points"]
        assert points.shape == (48, 3)
        assert np.linalg.norm(points, axis=1).max() == pytest.approx(float(size > 1))
    cloud = processor()(CLOUD * 7 + 2)["points"]
    assert np.allclose(cloud, processor()(CLOUD * 7 + 2)["points"])


@pytest.mark.parametrize("size", [1, 7, 20, 47, 48])
def test_the_order_of_a_small_clouds_points_has_no_say(size):
    cloud = np.random.default_rng(size).normal(3, 5, (size, 3)).astype(np.float32)
    points = processor()(cloud)["points"]
    assert np.array_equal(points, processor()(cloud[::-1])["points"])
    found, times = np.unique(points, axis=0, return_counts=True)
    assert len(found) == size
    assert times.max() - times.min() <= 1
    assert np.allclose(found, unit(cloud)[np.lexsort(cloud.T[::-1])], atol=1e-6)


def pcd(form, count=50, cut=None):
    packed = (COLOURS.astype(np.uint32) * (65536, 256, 1)).sum(1).astype(np.uint32)
    header = f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {form}\n"
    if form == "ascii":
        body = "\n".join(
            f"{x:.9g} {y:.9g} {z:.9g} {c}" for (x, y, z), c in zip(CLOUD, packed, strict=True)
        ).encode()
    else:
        rows = np.zeros(50, [("p", "<f4", 3), ("c", "<u4")])
        rows["p"], rows["c"] = CLOUD, packed
        body = rows.tobytes()
    return header.encode() + body[:cut]


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


FILES = {
    "a.npy": saved(CLOUD),
    "a.ply": trimesh.PointCloud(CLOUD).export(file_type="ply"),
    "a.xyz": "\n".join(f"{x:.9g} {y:.9g} {z:.9g}" for x, y, z in CLOUD).encode(),
    "a.txt": "\n".join(f"{x:.9g} {y:.9g} {z:.9g}" for x, y, z in CLOUD).encode(),
    "a.obj": "\n".join(f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in CLOUD).encode(),
    "a.pcd": pcd("ascii"),
    "b.pcd": pcd("binary"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_hold_the_same_points(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    for value in (tmp_path / name, str(tmp_path / name), {"bytes": FILES[name], "path": name}):
        assert np.allclose(read_points(value, 48)[:, :3], CLOUD, atol=1e-6)


@pytest.mark.parametrize(
    "data", [pcd("ascii"), pcd("binary"), trimesh.PointCloud(CLOUD, COLOURS).export(file_type="ply")]
)
def test_colours_are_read(data):
    points = read_points(data, 48)
    assert np.allclose(points[:, 3:], COLOURS / 255, atol=1e-6)
    assert processor(channels=6)(data)["points"].shape == (48, 6)
    assert processor()(data)["points"].shape == (48, 3)
    assert np.allclose(processor(channels=6, missing_colour=0.4)(CLOUD)["points"][:, 3:], 0.4)
    with pytest.raises(BadSample, match="without colours for an encoder of 6 channels"):
        processor(channels=6)(CLOUD)


def lines(columns, between):
    rows = np.concatenate([CLOUD, columns], axis=1)
    return "\n".join(between.join(f"{number:.9g}" for number in row) for row in rows).encode()


@pytest.mark.parametrize("between", [" ", ", ", ","])
def test_lines_of_text_hold_colours_of_either_scale(between):
    for columns in (COLOURS, COLOURS / 255):
        points = read_points({"bytes": lines(columns, between), "path": "a.txt"}, 48)
        assert np.allclose(points, np.concatenate([CLOUD, COLOURS / 255], axis=1), atol=1e-6)
    normals = {"bytes": lines(-CLOUD, between), "path": "a.txt"}  # as ModelNet40 keeps them
    assert np.allclose(processor()(normals)["points"], processor()(CLOUD)["points"], atol=1e-6)
    labelled = {"bytes": lines(np.ones((50, 2)), between), "path": "a.xyz"}
    assert np.allclose(read_points(labelled, 48), CLOUD, atol=1e-6)


@pytest.mark.parametrize("columns", [COLOURS, -CLOUD])
def test_what_is_no_colour_in_0_to_1_is_refused(columns):
    with pytest.raises(BadSample, match=r"colours from .*; red, green and blue lie in \[0, 1\]"):
        processor(channels=6)(np.concatenate([CLOUD, columns], axis=1))
    assert processor()(np.concatenate([CLOUD, columns], axis=1))["points"].shape == (48, 3)


NAMES = ("red", "green", "blue")


def coloured_ply(form, kind, colours, names=NAMES):
    """A .ply whose colours are of a kind of number: its name there and in numpy."""
    named, known = kind
    names = [f"float {axis}" for axis in "xyz"] + [f"{named} {name}" for name in names]
    rows = np.zeros(50, [("p", "<f4", 3), ("c", known, 3)])
    rows["p"], rows["c"] = CLOUD, colours
    text = "\n".join(" ".join(map(str, (*row["p"], *row["c"]))) for row in rows).encode()
    head = [
        f"ply\nformat {form} 1.0\nelement vertex 50",
        *(f"property {name}" for name in names),
        "end_header\n",
    ]
    return "\n".join(head).encode() + (text if form == "ascii" else rows.tobytes())


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        (("ushort", "<u2"), 257),
        (("ushort", "<u2"), 1),
        (("int", "<i4"), 1),
        (("float", "<f4"), 1),
        (("float", "<f4"), 1 / 255),
        (("double", "<f8"), 1 / 255),
    ],
)
def test_colours_of_a_ply_are_read_however_it_stores_them(form, kind, scale):
    points = read_points(coloured_ply(form, kind, COLOURS.astype(float) * scale), 48)
    assert np.allclose(points, np.concatenate([CLOUD, COLOURS / 255], axis=1), atol=1e-6)


def test_colours_of_a_ply_keep_what_is_finer_than_8_bits_and_out_of_range():
    fine = np.linspace(0, 1, 150).reshape(50, 3)
    data = coloured_ply("binary_little_endian", ("float", "<f4"), fine)
    assert np.allclose(read_points(data, 48)[:, 3:], fine, atol=1e-6)
    with pytest.raises(BadSample, match=r"colours from .*; red, green and blue lie in \[0, 1\]"):
        processor(channels=6)(coloured_ply("binary_little_endian", ("float", "<f4"), 200 * fine + 0.5))


@pytest.mark.parametrize(
    "names", [("r", "g", "b"), tuple(f"diffuse_{name}" for name in NAMES), ("Red", "Green", "Blue")]
)
@pytest.mark.parametrize("kind", [("uchar", "u1"), ("float", "<f4")])
def test_colours_of_a_ply_go_by_several_names(names, kind):
    scaled = COLOURS if kind[1] == "u1" else COLOURS / 255
    points = read_points(coloured_ply("binary_little_endian", kind, scaled, names), 48)
    assert np.allclose(points, np.concatenate([CLOUD, COLOURS / 255], axis=1), atol=1e-6)


@pytest.mark.parametrize("names", [NAMES, ("r", "g", "b")])
@pytest.mark.parametrize(
    ("kind", "colour"), [("uchar", 128), ("ushort", 30000), ("float", 0.458), ("float", 117)]
)
def test_colours_of_a_meshs_vertices_are_those_of_points(names, kind, colour):
    head = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    head += "".join(f"property {kind} {name}\n" for name in names)
    corners = "".join(
        f"{place} {colour} {colour / 2 if kind == 'float' and colour < 1 else 0} 0\n"
        for place in ("0 0 0", "1 0 0", "0 1 0")
    )
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    points = read_points((head + faces + corners + "3 0 1 2\n").encode(), 20)
    flat = read_points((head + "end_header\n" + corners).encode(), 20)
    assert points.shape == (20, 6)
    assert np.allclose(points[:, 3:], flat[0, 3:], atol=1e-6)
    assert flat[0, 3] == pytest.approx(
        {"uchar": 128 / 255, "ushort": 30000 / 65535}.get(kind, 0.4588), abs=1e-3
    )


def far_off():
    """The same cloud, in the coordinates of a land survey."""
    return CLOUD.astype(np.float64) + np.array([500_000.0, 5_400_000.0, 300.0])


@pytest.mark.parametrize("form", ["array", "npy", "xyz", "ply", "pcd"])
def test_small_things_far_from_the_origin_keep_their_shape(form):
    text = "\n".join(" ".join(f"{number:.9f}" for number in row) for row in far_off())
    header = "ply\nformat ascii 1.0\nelement vertex 50\nproperty double x\nproperty double y\nproperty double z\nend_header\n"
    pcl = "VERSION 0.7\nFIELDS x y z\nSIZE 8 8 8\nTYPE F F F\nCOUNT 1 1 1\nPOINTS 50\nDATA ascii\n"
    value = {
        "array": far_off(),
        "npy": saved(far_off()),
        "xyz": {"bytes": text.encode(), "path": "a.xyz"},
        "ply": (header + text).encode(),
        "pcd": (pcl + text).encode(),
    }[form]
    far, near = (processor(num_points=50)(each)["points"] for each in (value, CLOUD))  # each in its own order
    assert np.allclose(far[far[:, 0].argsort()], near[near[:, 0].argsort()], atol=1e-6)


@pytest.mark.parametrize("kind", ["obj", "off", "stl", "ply"])
def test_surfaces_are_sampled_the_same_each_time(kind):
    data = trimesh.creation.icosphere(subdivisions=2).export(file_type=kind)
    value = {"bytes": data if isinstance(data, bytes) else data.encode(), "path": f"ball.{kind}"}
    points = read_points(value, 300)
    assert points.shape == (300, 3)
    assert np.all(np.abs(np.linalg.norm(points, axis=1) - 1) < 0.05)
    assert np.array_equal(points, read_points(value, 300))


def ply(count, body=b"\0" * 1200, form="binary_little_endian"):
    header = f"ply\nformat {form} 1.0\nelement vertex {count}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    return header.encode() + body


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ply(10**9), "claims 1,000,000,000 elements in"),
        (ply(10**9, b"1 2 3\n", "ascii"), "claims 1,000,000,000 elements in"),
        (ply(1000), "cannot be read as points"),
        (pcd("binary", 10**9), "claims 1,000,000,000 points"),
        (pcd("binary", cut=300), "ends before"),
        (pcd("ascii", cut=500), "ends before|cannot be read as points"),
        (
            pcd("binary").replace(b"DATA binary", b"DATA binary_compressed"),
            "save the file as ascii or binary",
        ),
        (b"VERSION 0.7\nFIELDS x y\nSIZE 4 4\nTYPE F F\nPOINTS 1\nDATA ascii\n1 2\n", "lacks x, y or z"),
        (b"VERSION 0.7\nFIELDS x y z\n" + b"#" * 5000, "no DATA line"),
        (np.zeros((5, 2)), r"\(5, 2\); numbers"),
        (np.zeros((0, 3)), "0 points"),
        (np.full((5, 3), np.nan), "no finite numbers"),
        (b"hello", "of no known format"),
        ({"bytes": b"hello", "path": "a.obj"}, "0 points|cannot be read|of no known"),
        ({"bytes": b"\0" * 200, "path": "a.stl"}, "cannot be read|0 points|numbers|no area|without area"),
        ("/nowhere/a.ply", "no such file"),
    ],
)
def test_what_cannot_be_used_is_a_bad_sample_in_no_time(value, message):
    started = time.thread_time()
    with pytest.raises(BadSample, match=message):
        processor()(value)
    assert time.thread_time() - started < 5.0


def test_weights_under_point_berts_names_load(tmp_path):
    options = {**TINY, "norm": "batch"}
    published = made(POINT_CLOUD, options, 4)
    with torch.no_grad():
        published.encoder.first_conv[1].running_mean += 0.5
    tensors = {f"module.transformer_q.{name}": each for name, each in published.state_dict().items()}
    extra = {"module.transformer_q.lm_head.weight": torch.zeros(2), "module.queue": torch.zeros(3)}
    save_file({**tensors, **extra}, tmp_path / "model.safetensors")
    encoder = made(POINT_CLOUD, options)
    encoder.load_weights(str(tmp_path))
    items = {"points": torch.randn(2, 48, 3)}
    assert torch.equal(encoder(items), published(items))
    before = {name: each.clone() for name, each in encoder.named_buffers()}
    encoder.train()(items)
    assert all(torch.equal(each, before[name]) for name, each in encoder.named_buffers())
    with pytest.raises(CheckpointError, match=r"unexpected \(encoder.first_conv.1.num_batches_tracked"):
        made(POINT_CLOUD, TINY).load_weights(str(tmp_path))


@pytest.mark.parametrize("prefix", ["module.point_encoder.", "point_encoder.", "model.point_backbone."])
def test_weights_of_models_built_on_it_load(tmp_path, prefix):
    options = {**TINY, "norm": "batch", "channels": 6}
    published = made(POINT_CLOUD, options, 4)
    tensors = {f"{prefix}{name}": each for name, each in published.state_dict().items()}
    save_file({**tensors, "module.logit_scale": torch.zeros(())}, tmp_path / "model.safetensors")
    encoder = made(POINT_CLOUD, options)
    encoder.load_weights(str(tmp_path))
    items = {"points": torch.randn(2, 48, 6)}
    assert torch.equal(encoder(items), published(items))


def test_norms_are_those_of_point_bert():
    """Every epsilon is torch's own, as in `PointTransformer`: small states feel it."""
    norms = [each for each in made(POINT_CLOUD, TINY).modules() if isinstance(each, torch.nn.LayerNorm)]
    assert len(norms) == 2 + 2 * 2 + 1
    assert {each.eps for each in norms} == {1e-5}


def test_published_size():
    with torch.device("meta"):
        encoder = made(POINT_CLOUD, {"norm": "batch"})
    assert sum(each.numel() for each in encoder.parameters()) == 21_858_816


def test_the_small_pointnet_is_that_of_point_bert():
    """The common half of a neighbourhood is multiplied once; the answer is that of two joined halves."""
    for norm in ("layer", "batch"):
        net = made(POINT_CLOUD, {**TINY, "norm": norm}).encoder
        points = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(3))

        def plain(layers, given, norm=norm):
            for layer in layers:
                turned = given.transpose(1, 2) if norm == "batch" else given
                if isinstance(layer, torch.nn.Conv1d):
                    given = torch.nn.functional.conv1d(given.transpose(1, 2), layer.weight, layer.bias)
                    given = given.transpose(1, 2)
                elif isinstance(layer, torch.nn.BatchNorm1d):
                    given = torch.nn.BatchNorm1d.forward(layer.eval(), turned).transpose(1, 2)
                else:
                    given = layer(given)
            return given

        each = plain(net.first_conv, points)
        joined = torch.cat([each.amax(1, keepdim=True).expand_as(each), each], dim=2)
        assert torch.allclose(net(points), plain(net.second_conv, joined).amax(1), atol=1e-5)


def test_neighbourhoods_are_brought_to_scale_under_layer_norm():
    """A finer cloud's neighbourhoods are smaller; the small PointNet sees them as large."""
    seen = {}
    for norm in ("layer", "batch"):
        encoder = made(POINT_CLOUD, {**TINY, "norm": norm})
        encoder.encoder.register_forward_pre_hook(
            lambda _, given, norm=norm: seen.__setitem__(norm, given[0])
        )
        encoder({"points": torch.from_numpy(processor()(CLOUD)["points"])[None] * 0.01})
    assert float(seen["layer"].square().sum(-1).mean()) == pytest.approx(1, rel=1e-3)
    assert float(seen["batch"].square().sum(-1).mean()) < 1e-3


def test_positions_start_bent():
    """Over points within the unit sphere the first layer's answers reach where GELU is no straight line."""
    first = made(POINT_CLOUD, TINY).pos_embed[0]
    answers = first(torch.nn.functional.normalize(torch.randn(500, 3), dim=1)).detach()
    assert float((answers - first.bias.detach()).std()) > 1.0


def test_lists_are_read_as_arrays():
    assert np.array_equal(processor()(CLOUD.tolist())["points"], processor()(CLOUD)["points"])
    for value in ([[1, 2, 3], [4, 5]], torch.zeros(5, 3, requires_grad=True)):
        with pytest.raises(BadSample, match="a point cloud that is no array of numbers"):
            processor()(value)
