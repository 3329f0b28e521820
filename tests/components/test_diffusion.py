"""The diffusion head: its schedule, what it learns, known distributions recovered, guidance, and its randomness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import GenerationFacts, HeadFacts, LanguageModelFacts
from janus_plugins.heads.diffusion.model import build
from janus_plugins.heads.diffusion.process import Diffusion, Flow, chain
from janus_plugins.heads.diffusion.spec import DIFFUSION, DiffusionConfig
from janus_plugins.inference.sampling import SeededDraws

MODEL = LanguageModelFacts(
    width=8, vocab_size=10, max_positions=16, num_layers=1, num_heads=1, num_key_value_heads=1
)
OBJECTIVES = ["diffusion", "flow"]
STEPS = 450


def latents(width=2):
    return GenerationFacts("image", "latents", 4, width, None, (2, 2))


def head(seed=0, size=2, **options):
    config = DiffusionConfig(**{**DiffusionConfig.tiny(), **options})
    torch.manual_seed(seed)
    return build(config, config.facts(latents(size), MODEL))


def test_facts_and_refusals():
    assert DiffusionConfig().facts(latents(), MODEL) == HeadFacts("latents", 8, 2)
    codes = GenerationFacts("image", "codes", 4, 2, 16, (2, 2))
    for target, made in ((codes, "codes"), (None, "text")):
        with pytest.raises(WiringError, match=f"makes latents, but it is asked to predict {made}"):
            DiffusionConfig().facts(target, MODEL)
    with pytest.raises(ValueError, match="sample_steps is 100, but train_steps is 50"):
        DiffusionConfig(train_steps=50)


def test_the_schedule_is_the_cosine():
    """Nichol and Dhariwal 2021, equation 17; the numbers are those of diffusers' squaredcos_cap_v2."""
    whole = chain(1000)
    np.testing.assert_allclose(whole.beta[[0, 499, 999]], [4.1284e-5, 3.1459e-3, 0.999], rtol=1e-4)
    np.testing.assert_allclose(whole.kept[[0, 499, 999]], [0.99995872, 0.49384359, 2.4287e-9], rtol=1e-4)
    few = chain(1000, 100)
    assert (few.times[0], few.times[-1], len(few.times)) == (0, 978, 100)
    assert set(np.diff(few.times)) <= {9.0, 10.0}
    np.testing.assert_array_equal(few.kept, whole.kept[few.times.astype(int)])
    np.testing.assert_allclose(np.cumprod(few.alpha), few.kept)
    assert (few.log_least <= few.log_most).all()


def test_a_step_back_is_the_posterior_of_the_papers():
    """Ho et al. 2020, equation 7, by way of the predicted latent."""
    steps, draw = chain(1000, 100), np.random.default_rng(0)
    for index in (1, 30, 98):
        kept, before, beta = steps.kept[index], steps.kept[index - 1], steps.beta[index]
        x, noise = draw.normal(size=3), draw.normal(size=3)
        latent = (x - math.sqrt(1 - kept) * noise) / math.sqrt(kept)
        wanted = (math.sqrt(before) * beta * latent + math.sqrt(1 - beta) * (1 - before) * x) / (1 - kept)
        np.testing.assert_allclose(x / math.sqrt(1 - beta) - steps.pull[index] * noise, wanted, rtol=1e-9)
        assert steps.log_least[index] == pytest.approx(math.log(beta * (1 - before) / (1 - kept)))


def test_a_learnt_variance_is_right_at_its_bounds():
    """Knowing the noise, the least variance is the true one; it costs nothing. A wrong mean asks for more."""
    steps, times = chain(1000), torch.tensor([1, 500, 900])
    nothing, spread = torch.zeros(3, 2), torch.full((3, 2), -1.0)
    assert torch.allclose(Diffusion._bound(steps, times, nothing, spread), torch.zeros(3), atol=1e-5)
    assert (Diffusion._bound(steps, times, nothing, -spread) > 0).all()
    wrong = torch.full((3, 2), 1.0)
    tight, wide = (Diffusion._bound(steps, times, wrong, each) for each in (spread, -spread))
    assert tight[0] > wide[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses(objective):
    module = head(objective=objective)
    hidden, targets = torch.randn(5, 8, requires_grad=True), torch.randn(5, 2)
    torch.manual_seed(1)
    first = module.loss(hidden, targets)
    torch.manual_seed(1)
    assert torch.equal(first, module.loss(hidden, targets))
    assert not torch.equal(first, module.loss(hidden, targets))
    assert (first.shape, first.dtype) == ((5,), torch.float32)
    first.sum().backward()
    assert hidden.grad.any(1).all()
    assert module.loss(hidden[:0], targets[:0]).shape == (0,)


def test_more_repeats_make_a_quieter_loss():
    hidden, targets = torch.zeros(400, 8), torch.zeros(400, 2)
    with torch.no_grad():
        one, many = (head(repeats=count, learn_variance=False).loss(hidden, targets) for count in (1, 16))
    assert float(many.std()) == pytest.approx(float(one.std()) / 4, rel=0.3)
    assert float(many.mean()) == pytest.approx(float(one.mean()), rel=0.2)


class Recovered:
    """Train a head on known 2-D distributions, told apart by the hidden state, and sample from it."""

    centres = torch.tensor([[[-1.5, 0.5], [1.0, -0.5]], [[0.0, 1.5], [0.0, 1.5]]])
    spread = 0.15

    def __init__(self, objective):
        self.module = head(objective=objective, sample_steps=25, repeats=1)
        optimizer = torch.optim.Adam(self.module.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        self.losses = []
        torch.manual_seed(4)
        for _ in range(STEPS):
            kinds = torch.randint(2, (256,))
            modes = torch.randint(2, (256,))
            targets = self.centres[kinds, modes] + self.spread * torch.randn(256, 2)
            loss = self.module.loss(self.hidden(kinds), targets).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            self.losses.append(float(loss.detach()))

    @staticmethod
    def hidden(kinds):
        return torch.nn.functional.one_hot(kinds, 8).float() * 3

    def sample(self, kind, count=400, **options):
        settings = {"guidance": 1.0, "temperature": 1.0, "seed": 0, **options}
        first, other = 1000 * settings.pop("seed"), settings.pop("beside", None)
        seeds = [first + index for index in range(count)]
        with torch.no_grad():
            hidden = self.hidden(torch.full((count,), kind))
            beside = None if other is None else self.hidden(torch.full((count,), other))
            return self.module.sample(hidden, beside, draws=SeededDraws(seeds), **settings)


@pytest.fixture(scope="module", params=OBJECTIVES)
def recovered(request):
    return Recovered(request.param)


def test_the_loss_falls(recovered):
    assert np.mean(recovered.losses[-50:]) < 0.6 * np.mean(recovered.losses[:5])


def test_a_mixture_is_recovered(recovered):
    """Both modes, as often as one another, each at its place: within 0.1 of a distance of 2.7."""
    made = recovered.sample(0)
    nearest = torch.cdist(made, recovered.centres[0]).argmin(1)
    assert float(nearest.float().mean()) == pytest.approx(0.5, abs=0.1)
    for mode in (0, 1):
        mine = made[nearest == mode]
        assert (mine.mean(0) - recovered.centres[0, mode]).norm() < 0.1
        assert float(mine.std(0).mean()) == pytest.approx(recovered.spread, abs=0.1)
    assert (made.mean(0) - recovered.centres[0].mean(0)).norm() < 0.25


def test_the_hidden_state_says_which(recovered):
    made = recovered.sample(1)
    assert (made.mean(0) - recovered.centres[1, 0]).norm() < 0.1


def test_a_temperature_of_zero_is_the_same_for_every_seed(recovered):
    made = recovered.sample(1, count=4, temperature=0.0)
    assert torch.allclose(made, made[:1].expand(4, 2), atol=1e-5)
    assert torch.equal(made, recovered.sample(1, count=4, temperature=0.0, seed=9))
    assert (made[0] - recovered.centres[1, 0]).norm() < 0.2


def test_temperature_narrows_and_seeds_differ(recovered):
    whole, half = recovered.sample(1), recovered.sample(1, temperature=0.5)
    assert float(half.std(0).mean()) < 0.9 * float(whole.std(0).mean())
    assert not torch.allclose(whole, recovered.sample(1, seed=9))
    assert torch.equal(whole, recovered.sample(1))


def test_a_row_does_not_see_its_mates(recovered):
    together = recovered.sample(0, beside=1, guidance=2.0, count=40)
    alone = recovered.sample(0, beside=1, guidance=2.0, count=3)
    assert torch.allclose(together[:3], alone, atol=1e-4)


def test_guidance_leads_from_the_unconditional_to_the_conditional(recovered):
    plain, other = recovered.sample(1), recovered.sample(0)
    assert torch.allclose(recovered.sample(1, beside=0, guidance=1.0), plain, atol=1e-3)
    if isinstance(recovered.module.process, Flow):  # a learnt variance is always the conditional one
        assert torch.allclose(recovered.sample(1, beside=0, guidance=0.0), other, atol=1e-3)
    strong = recovered.sample(1, beside=0, guidance=2.0)
    # Kind 0 lies lower; away from it is up.
    assert float(strong[:, 1].mean()) > float(plain[:, 1].mean()) + 0.02


def test_bfloat16_and_the_meta_device():
    module = head(size=4).to(torch.bfloat16)
    hidden = torch.randn(3, 8)
    assert module.loss(hidden, torch.randn(3, 4)).dtype == torch.float32
    with torch.no_grad():
        made = module.sample(hidden, None, guidance=1.0, temperature=1.0, draws=SeededDraws([1, 2, 3]))
    assert made.isfinite().all()
    with torch.device("meta"):
        empty = head(size=4)
    assert all(each.is_meta for each in empty.parameters())


def test_the_size_of_mar():
    config = DiffusionConfig(depth=6)
    with torch.device("meta"):
        module = build(config, HeadFacts("latents", 768, 16))
    # condition, time, input; six blocks (norm, MLP, modulation); the last modulation and layer
    wide = 1024
    block = 2 * wide + 2 * (wide**2 + wide) + 3 * (wide**2 + wide)
    ends = (768 + 1) * wide + (256 + 1) * wide + (wide**2 + wide) + (16 + 1) * wide
    last = 2 * (wide**2 + wide) + 32 * (wide + 1)
    assert sum(each.numel() for each in module.parameters()) == 6 * block + ends + last
    assert DIFFUSION.name == "diffusion"
