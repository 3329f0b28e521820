"""The semantic tokenizer: causal features, a teacher aside, and two opponents under one optimiser."""

import copy

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch.nn import functional

from janus_plugins.core.errors import CheckpointError
from janus_plugins.encoders.vq.judges import Discriminator, Perceptual, Teacher
from janus_plugins.encoders.vq.semantic_model import build, build_reader
from janus_plugins.encoders.vq.semantic_spec import (
    DiscriminatorConfig,
    SemanticReaderConfig,
    SemanticVqConfig,
    TeacherConfig,
)

TEACHER = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "weights": None}
TINY = {
    "image_size": 16,
    "channels": 8,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "z_channels": 8,
    "code_width": 4,
    "codebook_size": 16,
    "norm_groups": 4,
    "semantic": {"width": 16, "depth": 2, "num_heads": 2},
    "teacher": TEACHER,
    "discriminator": {"channels": 8, "layers": 2, "start": 0},
}


def tokenizer(seed=0, **options):
    torch.manual_seed(seed)
    config = SemanticVqConfig(**{**TINY, **options})
    return build(config, config.facts())


def pictures(number=4, channels=3):
    """Smooth pictures, which a small tokenizer can learn."""
    draw = torch.Generator().manual_seed(5)
    small = torch.rand(number, channels, 4, 4, generator=draw) * 2 - 1
    return {"pixels": functional.interpolate(small, size=16, mode="bilinear")}


def test_a_feature_sees_the_codes_before_it_alone():
    semantic = tokenizer().semantic
    vectors = torch.randn(1, 64, 4)
    changed = vectors.clone()
    changed[:, 30] += 1
    with torch.no_grad():
        apart = (semantic(vectors) - semantic(changed)).abs().amax(-1)[0]
    assert not apart[:30].any()
    assert (apart[30:] > 1e-6).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_semantic_loss_is_the_cosine_to_a_teacher_that_is_no_part_of_the_model(channels):
    made, items = tokenizer(in_channels=channels, discriminator=None), pictures(channels=channels)
    losses = made.reconstruction_loss(items)
    assert not [name for name in made.state_dict() if "teacher" in name and not name.startswith("to_teacher")]
    teacher = made._teacher(items["pixels"])
    wanted = teacher(items["pixels"])
    assert wanted.shape == (4, 64, 16)
    predicted = made.to_teacher(made.semantic(made._quantised(items["pixels"])[0]))
    cosine = functional.cosine_similarity(predicted, wanted, dim=-1).mean()
    torch.testing.assert_close(losses["semantic"], 1 - cosine)
    losses["loss"].backward()
    assert all(value.grad is None for value in teacher.parameters())
    again = tokenizer(seed=9, in_channels=channels)._teacher(items["pixels"])
    assert torch.equal(again(items["pixels"]), wanted)  # as after a resume


def test_a_teacher_of_another_size_sees_pictures_in_bf16():
    made, items = tokenizer(discriminator=None), pictures()
    exact = made.reconstruction_loss(items)["semantic"]
    rounded = made.to(torch.bfloat16).reconstruction_loss(items)["semantic"]
    assert made._teacher(items["pixels"]).pixels != items["pixels"].shape[-1]
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


def test_the_loss_is_the_weighted_sum():
    weights = {"l2": 2.0, "codebook": 1.0, "commitment": 0.25, "semantic": 0.25, "adversarial": 0.5}
    with torch.no_grad():
        losses = tokenizer(loss=weights).reconstruction_loss(pictures())
    expected = losses["reconstruction"] + losses["codebook"] + 0.25 * losses["commitment"]
    expected += 0.25 * losses["semantic"] + 0.5 * losses["adversarial"] + 0.5 * losses["discriminator"]
    assert float(losses["loss"]) == pytest.approx(float(expected), rel=1e-6)


def test_it_learns_pixels_and_meaning():
    made, items = tokenizer(discriminator={"channels": 8, "layers": 2, "start": 60}).train(), pictures()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    seen = []
    for _ in range(60):
        optimizer.zero_grad()
        losses = made.reconstruction_loss(items)
        losses["loss"].backward()
        optimizer.step()
        seen.append({name: float(value.detach()) for name, value in losses.items()})
    assert seen[-1]["semantic"] < 0.5 * seen[0]["semantic"]
    assert seen[-1]["reconstruction"] < 0.5 * seen[0]["reconstruction"]


def test_one_backward_gives_both_opponents_their_own_gradients():
    """Against the textbook form: the tokenizer under a frozen discriminator, then the discriminator."""
    critic = Discriminator(DiscriminatorConfig(channels=8, layers=2, start=0), 3)
    made, real = torch.randn(2, 3, 16, 16, requires_grad=True), torch.randn(2, 3, 16, 16)
    losses = critic(made, real)
    (0.3 * losses["adversarial"] + 0.7 * losses["discriminator"]).backward()

    judge, again = copy.deepcopy(critic).requires_grad_(False), made.detach().requires_grad_()
    (-0.3 * judge.layers(again).mean()).backward()
    torch.testing.assert_close(made.grad, again.grad, atol=1e-7, rtol=1e-5)
    student = copy.deepcopy(critic)
    student.zero_grad()
    faked, seen = student.layers(again.detach()), student.layers(real)
    hinge = (functional.relu(1 + faked).mean() + functional.relu(1 - seen).mean()) / 2
    (0.7 * hinge).backward()
    for name, value in student.named_parameters():
        torch.testing.assert_close(
            value.grad, critic.get_parameter(name).grad, atol=1e-6, rtol=1e-4, msg=name
        )
    assert float(losses["discriminator"].detach()) == pytest.approx(float(hinge.detach()), rel=1e-6)
    assert float(losses["adversarial"].detach()) == pytest.approx(-float(faked.detach().mean()), rel=1e-4)


def test_the_discriminator_counts_steps_of_several_batches():
    critic = Discriminator(DiscriminatorConfig(channels=8, layers=2, start=2), 3).train()
    critic.set_accumulation(3)
    pair = torch.randn(2, 2, 3, 16, 16)
    on = [bool(critic(*pair)["discriminator"]) for _ in range(9)]
    assert on == [False] * 6 + [True] * 3
    assert int(critic.steps) == 3


def test_the_discriminator_waits_for_its_start():
    made, items = tokenizer(discriminator={"channels": 8, "layers": 2, "start": 2}).train(), pictures()
    made.eval().reconstruction_loss(items)
    made.train()
    seen = [made.reconstruction_loss(items) for _ in range(3)]
    assert [bool(losses["discriminator"]) for losses in seen] == [False, False, True]
    assert int(made.state_dict()["discriminator.steps"]) == 3
    seen[0]["loss"].backward()
    grads = [value.grad for value in made.discriminator.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


def test_the_perceptual_distance_reads_torchvisions_file(tmp_path):
    from torchvision.models import vgg16

    torch.manual_seed(0)
    with torch.device("meta"):
        names = {name: value.shape for name, value in vgg16().features.state_dict(prefix="features.").items()}
    tensors = {name: torch.randn(shape) * 0.05 for name, shape in names.items()}
    save_file({**tensors, "classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg16.safetensors")
    distance = Perceptual(str(tmp_path / "vgg16.safetensors")).requires_grad_(False)
    one, other = torch.rand(2, 1, 3, 32, 32)
    assert float(distance(one, one)) == 0
    assert float(distance(one, other)) > float(distance(one, one * 0.99)) > 0
    made = tokenizer(perceptual_weights=str(tmp_path / "vgg16.safetensors"), teacher=None)
    losses = made.reconstruction_loss({"pixels": torch.rand(1, 3, 16, 16)})
    assert losses["perceptual"] > 0
    assert not [name for name in made.state_dict() if "features" in name]
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match="broken"):
        Perceptual(str(tmp_path / "broken.safetensors"))


def test_a_trained_tokenizer_is_used_without_its_judges(tmp_path):
    trained, items = tokenizer(seed=1), pictures()
    native = {f"generation.image.encoder.{name}": value for name, value in trained.state_dict().items()}
    save_file({**native, "language_model.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    used = tokenizer(seed=2, teacher=None, discriminator=None)
    config = SemanticReaderConfig(**TINY)
    reader = build_reader(config, config.facts())
    for module in (used, reader):
        module.load_weights(str(tmp_path))
    with torch.no_grad():
        expected = trained.features(items)
        assert torch.equal(used.features(items), expected)
        assert torch.equal(reader(items), expected)
        assert torch.equal(used.encode(items), trained.encode(items))
        assert torch.equal(used.decode(used.encode(items)), trained.decode(trained.encode(items)))
    assert not [name for name in reader.state_dict() if name.startswith("tokenizer.decoder")]
    plain = {name: value for name, value in trained.state_dict().items() if not name.startswith("semantic.")}
    save_file(plain, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing \(semantic"):
        used.load_weights(str(tmp_path))


def test_a_teachers_weights_load_and_another_size_is_refused(tmp_path):
    small = TeacherConfig(**TEACHER)
    teacher = Teacher(small, 8)
    save_file({**teacher.trunk.state_dict(), "attn_pool.q.bias": torch.zeros(1)}, tmp_path / "t.safetensors")
    named = small.model_copy(update={"weights": str(tmp_path / "t.safetensors")})
    pixels = pictures()["pixels"]
    assert torch.equal(Teacher(named, 8)(pixels), teacher(pixels))
    with pytest.raises(CheckpointError, match="does not fit"):
        Teacher(named.model_copy(update={"embed_dim": 32}), 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"semantic": {"width": 16, "num_heads": 3}}, "width 16 is not a multiple of num_heads 3"),
        ({"discriminator": {"layers": 3}}, "layers 3 leave 16 pixels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        SemanticVqConfig(**{**TINY, **options})
