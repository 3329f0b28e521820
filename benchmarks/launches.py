"""Count what a compiled step launches on a GPU, on a machine without one.

Run `python -m benchmarks.launches [--layers 2] [--images 1]`: Inductor writes its code for CUDA, for the
sizes of Janus-1.3B in bf16 with a few layers, and stops before a kernel is built. Counted are kernels that
it writes itself, our own and products of the library, of one more layer and, from these, of a step of all 24.
Times come from a GPU alone (`benchmarks.gpu`). How torch is kept from asking for a device is its own affair
and may differ between versions: written for torch 2.15.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.generation import GUIDANCE, PROMPT
from benchmarks.gpu import OVERRIDES
from janus_plugins.core.errors import RunFileError
from janus_plugins.core.native import on_gpu
from janus_plugins.door import plan as read_plan
from janus_plugins.inference import codes, graph
from janus_plugins.model.compose import compose_plan
from janus_plugins.model.unified import UnifiedModel

GPU = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, max_threads_per_multi_processor=2048,
    max_threads_per_block=1024, warp_size=32, regs_per_multiprocessor=65536, total_memory=80 << 30,
    shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10, L2_cache_size=50 << 20, gcnArchName="", uuid="",
)  # fmt: skip
"""The device that code is written for."""


class _Written(Exception):
    """Ends a compilation once the code is there."""


class Driver:
    """What Triton asks of a driver before anything is launched."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def written() -> Iterator[list[str]]:
    """Let Inductor write code for CUDA without a GPU.

    Yields:
        The sources of what is compiled inside, each of which ends in an error.
    """
    import torch._inductor.config as inductor
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.graph import GraphLowering
    from triton.runtime import driver

    sources: list[str] = []

    def keep(self: Any) -> None:
        wrapper, *_ = self.codegen()
        sources.append(getattr(wrapper, "value", wrapper))
        raise _Written

    def answer(value: Any) -> Any:
        return lambda *_, **__: value

    torch._C._ensureCUDADeviceGuardSet()
    driver.set_active(Driver())
    cuda = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": GPU,
        "get_device_capability": (9, 0), "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None, "is_current_stream_capturing": False, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "synchronize": None, "_lazy_init": None,
    }  # fmt: skip
    interface = {
        "get_compute_capability": 90, "is_bf16_supported": True, "is_triton_capable": True,
        "raise_if_triton_unavailable": None, "get_device_properties": GPU, "set_device": None,
    }  # fmt: skip
    with ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, answer(value)))
        for name, value in interface.items():
            stack.enter_context(patch.object(CudaInterface, name, staticmethod(answer(value))))
        stack.enter_context(patch.object(CudaInterface.Worker, "get_device_properties", answer(GPU)))
        stack.enter_context(patch.object(torch.accelerator, "is_available", answer(False)))
        for passes in (joint_graph, post_grad):
            stack.enter_context(patch.object(passes, "lazy_init", answer(None)))
        for name in ("compile_to_module", "_compile_to_module"):
            stack.enter_context(patch.object(GraphLowering, name, keep))
        options = {"joint_graph_constant_folding": False, "compile_threads": 1, "fx_graph_cache": False}
        stack.enter_context(inductor.patch(options))
        yield sources


def pretended(module: nn.Module, dtype: torch.dtype) -> None:
    """Put tensors without values, on a GPU that is not there, in the place of a module's own."""
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            made = torch.empty(parameter.shape, device="cuda", dtype=dtype)
            part._parameters[name] = known.setdefault(id(parameter), nn.Parameter(made, requires_grad=False))
        for name, buffer in part.named_buffers(recurse=False):
            kind = dtype if buffer.is_floating_point() else buffer.dtype
            part._buffers[name] = torch.empty(buffer.shape, device="cuda", dtype=kind)


def _tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    made = _REAL_TENSOR(data, dtype=dtype)
    if device is None or torch.device(device).type == "cpu":
        return made
    return torch.empty(made.shape, dtype=made.dtype, device=device)


_REAL_TENSOR = torch.tensor


def step_source(layers: int, images: int) -> str:
    """Return the code of one step of a model of so many layers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    plan = read_plan("janus_1.3b", [*OVERRIDES, f"model.language_model.options.num_layers={layers}"])
    model: UnifiedModel = compose_plan(plan, weights=False, device="meta").eval()
    with (
        written() as sources,
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(torch, "tensor", _tensor),
        patch.object(codes.CodeEmbedder, "_treats_alike", lambda *_: True),
        patch.object(graph, "recorded", lambda call, *_: call),
    ):
        pretended(model, torch.bfloat16)
        try:
            model.generate(
                PROMPT,
                num_per_prompt=images,
                guidance=GUIDANCE,
                temperature=0,
                return_codes=True,
                compile=True,
            )
        except RunFileError:
            if not sources:
                raise
    return sources[-1]


def counted(source: str, images: int) -> dict[str, int]:
    """Count launches in Inductor's code of a step of so many images, two rows each."""
    body = source[source.index("def call(") :]
    body = "\n".join(line for line in body[: body.index("return (")].splitlines() if "assert_" not in line)
    ours = len(re.findall(r"torch\.ops\.janus_plugins\.", body))
    if 2 * images > on_gpu.FEW:  # a norm before a product is a kernel then
        given = r"(?:\w+|reinterpret_tensor\((?:[^()]|\([^()]*\))*\)), "
        ours += len(re.findall(rf"janus_plugins\.product\.default\({given}{given}(?!None)", body))
    return {
        "written by Inductor": len(re.findall(r"\.run\(", body)),
        "our own": ours,
        "products of the library": len(re.findall(r"extern_kernels\.\w+\(", body)),
        "other operators": len(re.findall(r"torch\.ops\.(?!janus_plugins\.)\w+\.", body)),
    }


def main() -> int:
    """Count a step, and one more layer."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model (default 2)")
    parser.add_argument("--images", type=int, action="append", help="images at once (default: 1 and 16)")
    given = parser.parse_args()
    lines = [
        "| images | | written by Inductor | our own | products of the library | other operators | in all |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    kept = {}
    ways = {str(images): (images, False) for images in given.images or [1, 16]}
    many = [images for images, _ in ways.values() if 2 * images > on_gpu.FEW]
    ways |= {f"{images}, norms carried": (images, True) for images in many}
    for name, (images, carried) in ways.items():
        with patch.object(on_gpu, "CARRIED", carried):
            fewer, more = (
                counted(step_source(layers, images), images) for layers in (given.layers, given.layers + 1)
            )
        layer = {kind: more[kind] - fewer[kind] for kind in more}
        whole = {kind: fewer[kind] + (24 - given.layers) * layer[kind] for kind in fewer}
        kept[name] = {"a layer": layer, "a step of 24 layers": whole}
        for label, counts in kept[name].items():
            numbers = " | ".join(str(count) for count in (*counts.values(), sum(counts.values())))
            lines.append(f"| {name} | {label} | {numbers} |")
    harness.keep("launches", "\n".join(lines), {"torch": torch.__version__, "images": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
