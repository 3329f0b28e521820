"""The short decoding step of Llamas against transformers' own layers, and where it is not taken."""

import pytest
import torch
from torch import nn

from janus_plugins.core.contracts import Cached
from janus_plugins.inference import linears
from janus_plugins.language_models import model as module
from janus_plugins.language_models.step import LlamaStep, can_step
from tests.components.toys import tiny_llama


def decoded(llama, prompt, steps, visible=None):
    """Run a prompt [B, S, M], then one slot at a time; return all hidden states."""
    rows, length = len(prompt), prompt.shape[1]
    cache = llama.new_cache(rows, length + len(steps))
    pads = 0 if visible is None else (~visible).sum(1, keepdim=True)
    positions = (torch.arange(length + len(steps)) - pads).clamp(min=0).expand(rows, -1)
    hidden = [llama(prompt, positions[:, :length], Cached(0, visible), cache)[:, -1:]]
    for at, embeds in enumerate(steps, start=length):
        seen = None if visible is None else torch.cat((visible, visible.new_ones(rows, at + 1 - length)), 1)
        hidden.append(llama(embeds, positions[:, at : at + 1], Cached(at, seen), cache))
    return torch.cat(hidden, 1), cache


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_step_gives_what_the_layers_give(monkeypatch, groups, padded, dtype, slack):
    llama = tiny_llama(num_key_value_heads=groups).to(dtype).eval()
    torch.manual_seed(0)
    prompt, steps = torch.randn(2, 5, 32, dtype=dtype), torch.randn(6, 2, 1, 32, dtype=dtype)
    visible = torch.tensor([[False, False, True, True, True], [True] * 5]) if padded else None
    with torch.no_grad():
        short, cache = decoded(llama, prompt, steps, visible)
        assert isinstance(cache.step, LlamaStep)
        monkeypatch.setattr(module, "can_step", lambda body: False)
        long, cache = decoded(llama, prompt, steps, visible)
        assert cache.step is False
    assert short.dtype == dtype
    assert (short - long).abs().max() < slack


def test_gradients_and_training_take_the_layers():
    llama = tiny_llama().eval()
    prompt, steps = torch.randn(1, 3, 32), torch.randn(2, 1, 1, 32)
    hidden, cache = decoded(llama, prompt, steps)
    assert hidden.requires_grad
    assert cache.step is None
    with torch.no_grad():
        assert decoded(llama.train(), prompt, steps)[1].step is None


def test_a_body_that_something_hangs_on_takes_its_layers():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, source):
            return self.inner(source) * 2

    assert can_step(tiny_llama().model)
    body = tiny_llama().model
    body.layers[1].mlp.up_proj = Wrapped(body.layers[1].mlp.up_proj)
    assert not can_step(body)
    body = tiny_llama().model
    body.layers[0].register_forward_hook(lambda *_: None)
    assert not can_step(body)
    body = tiny_llama().model
    body.layers[0].self_attn.q_proj.weight.data = torch.empty(0)
    assert not can_step(body)
    body = tiny_llama().model
    body.config.rope_parameters["rope_type"] = "dynamic"
    assert not can_step(body)


@pytest.mark.parametrize("choice", ["packed", "int8", "int4", "kernels"])
def test_what_stands_in_for_a_layer_while_a_model_answers_is_no_change(choice):
    body = tiny_llama().model
    for layer in body.modules():
        if isinstance(layer, nn.Linear):
            layer.forward = linears._instead(layer, choice)
    assert can_step(body)


def _patched(body):
    inner = body.layers[1].mlp.forward
    body.layers[1].mlp.forward = lambda source: inner(source) * -2


def _without_norm(body):
    body.layers[0].post_attention_layernorm = nn.Identity()


def _other_activation(body):
    body.layers[0].mlp.act_fn = nn.Tanh()


def _first_left_out(body):
    body.layers = body.layers[1:]
    body.config.num_hidden_layers = len(body.layers)


def _fewer_run(body):
    body.config.num_hidden_layers = 1


def _in_another_order(body):
    body.layers = nn.ModuleList(reversed(body.layers))


@pytest.mark.parametrize(
    "change", [_patched, _without_norm, _other_activation, _first_left_out, _fewer_run, _in_another_order]
)
def test_a_rebuilt_body_takes_its_layers(change):
    llama = tiny_llama().eval()
    change(llama.model)
    torch.manual_seed(0)
    slots = torch.randn(2, 7, 32)
    with torch.no_grad():
        hidden, cache = decoded(llama, slots[:, :4], [slots[:, at : at + 1] for at in range(4, 7)])
        whole = llama(slots, torch.arange(7).expand(2, -1), Cached(0), llama.new_cache(2, 7))
    assert cache.step is False
    assert (hidden - whole[:, 3:]).abs().max() < 1e-5
