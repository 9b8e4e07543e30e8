"""Checks of the library's CUDA side on the stand-in driver, in a process of its own.

`python -m tests.cuda.checks CHECK LIBRARY STAND_IN` runs one, or those that go `together`; it fails
by raising. It is no test of pytest's, because what the library finds when it first looks for a
driver holds for the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from moe_export.gpu_check.library import row_of
from moe_export.op.c_interface import RefusedError
from moe_export.op.spec import ACTIVATIONS
from moe_export.ort.device_memory import DeviceMemory
from moe_export.testing.cases import (
    CASES,
    SCALED_CASES,
    THREE,
    TIED,
    Case,
    Inputs,
    Kind,
    inputs_of,
)
from moe_export.testing.cuda_kinds import CUDA_KINDS, PACKAGED_KINDS
from moe_export.testing.cuda_library import CudaLayer
from moe_export.testing.executors import run_reference
from moe_export.testing.tolerance import error_bound
from tests.cuda.launches import StandIn
from tests.cuda.onnx_runtime import HOST_INPUT, CudaNode
from tests.cuda.onnx_runtime import STREAM as ORT_STREAM
from tests.helpers.triton_kernels import layout_of

GOOD = inputs_of(Case("good", (33, 0, 7), tokens=3, top_k=2), "float16")
STREAM = 0x5EED

THROUGH_THE_LIBRARY: tuple[Kind, ...] = (
    ("float16", "float16", 0),
    ("float32", "int8", 32),
    ("float16", "uint4", 32),
    ("float16", "nf4", 64),
)
"""Kinds that together need every array of the layout."""


UP_KERNELS = (("rows", "up_scaled"), ("tiles", "16.up_scaled"))
"""Path, and end of the key of its first kernel."""


def equals_the_reference(library: Path, stand_in: StandIn) -> None:
    """Packing, launches and kernels together give what the operator means."""
    tiles = Case("tiles", (33, 0, 130), tokens=9, top_k=2, hidden=80, shared_width=65)
    odd = Case("odd", (3, 5, 17, 31), tokens=2, top_k=2, hidden=33)
    many = Case("many", (24, 33), tokens=40, top_k=1, hidden=33, routing="all_on_0")
    names = ("one_token", "all_widths_zero")
    cases = [*(case for case in CASES if case.name in names), odd, tiles]
    for kind in THROUGH_THE_LIBRARY:
        for case in cases:
            _assert_equal(library, stand_in, inputs_of(case, *kind))
    _assert_equal(library, stand_in, inputs_of(many, "float16", "int4", 32))
    assert stand_in.allocated_bytes == 0
    kernels = {launch.key.split(".")[0] for launch in stand_in.launches}
    assert len(kernels) == 7, kernels
    assert {launch.key.rsplit(".")[-1] for launch in stand_in.launches} >= {"16", "128"}


def _assert_equal(library: Path, stand_in: StandIn, inputs: Inputs, x_shift: int = 0) -> None:
    layer = CudaLayer(library, stand_in, inputs)
    y = layer.run(inputs, stream=STREAM, x_shift=x_shift)
    layer.destroy()
    error = np.abs(y.astype(np.float64) - run_reference(inputs).astype(np.float64))
    assert (error <= error_bound(inputs)).all(), f"worst {error.max()}"


def activations_equal_the_reference(library: Path, stand_in: StandIn) -> None:
    """Activations with a gate and without."""
    for activation in ACTIVATIONS:
        case = Case("activation", (33, 0, 7), tokens=1, top_k=2, activation=activation)
        _assert_equal(library, stand_in, inputs_of(case, "float16", "uint8", 32))


def launches_are_those_of_the_manifest(library: Path, stand_in: StandIn) -> None:
    """Threads and shared memory as compiled, on the caller's stream."""
    _assert_equal(library, stand_in, GOOD)
    assert [launch.key.split(".")[0] for launch in stand_in.launches] == [
        "gate_up_rows",
        "down_rows",
    ]
    gate_up, down = stand_in.launches
    assert (gate_up.key, gate_up.threads) == ("gate_up_rows.float16.float16", 128)
    # Two experts a token, of 64 stored values at most.
    assert gate_up.grid == (2 * 64 // 4, 3)
    assert down.grid == (48 // 4, 3)
    assert {launch.stream for launch in stand_in.launches} == {STREAM}


def x_that_begins_anywhere_is_padded(library: Path, stand_in: StandIn) -> None:
    """Kernels load 16 bytes at a time."""
    _assert_equal(library, stand_in, GOOD, x_shift=2)
    assert stand_in.launches[0].key == "pad_rows.float16"


def weights_are_laid_out_as_in_the_definition_of_the_layout(
    library: Path, stand_in: StandIn
) -> None:
    """The device holds the arrays of the layout, byte for byte, and nothing else."""
    cases = [(Case("bytes", (64, 0, 130), 1, top_k=1, hidden=96), kind) for kind in PACKAGED_KINDS]
    others = Case("others", (33, 7), 1, top_k=1, activation="relu2", scales=(*TIED, "units"))
    for case, kind in (*cases, (others, ("float16", "uint4", 32))):
        inputs = inputs_of(case, *kind)
        layer = CudaLayer(library, stand_in, inputs)
        assert stand_in.allocated_bytes == layer.device_bytes
        memory = stand_in.only_allocation()
        layout = layout_of(inputs)
        start = 0
        for array in layout.arrays.values():
            assert memory[start : start + array.nbytes] == array.tobytes(), kind
            start += -(-array.nbytes // 256) * 256
        assert start == len(memory)
        layer.destroy()
    assert stand_in.allocated_bytes == 0


def a_token_with_many_experts_goes_by_tiles(library: Path, stand_in: StandIn) -> None:
    """The number of experts that are laid side by side is bounded."""
    for top_k, kernel in ((16, "gate_up_rows"), (17, "group_pairs")):
        inputs = inputs_of(Case("slots", (5,) * 17, tokens=1, top_k=top_k), "float16")
        stand_in.launches.clear()
        _assert_equal(library, stand_in, inputs)
        assert stand_in.launches[0].key.split(".")[0] == kernel


def factors_per_token_equal_the_reference(library: Path, stand_in: StandIn) -> None:
    """Factors of x, of hidden values and of both, by rows and by tiles."""
    scales = (*TIED, "units")
    of_rows = Case("rows", (33, 0, 70), tokens=2, top_k=2, shared_width=40, scales=scales)
    of_tiles = replace(of_rows, tokens=9)
    odd = replace(of_rows, hidden=33, shared_width=None, scales=TIED)
    cases = (of_rows, of_tiles, odd, replace(of_tiles, scales=TIED[:1]))
    for case in (*cases, replace(odd, tokens=9, scales=TIED[1:])):
        _assert_equal(library, stand_in, inputs_of(case, "float16", "int4", 32))
    assert stand_in.allocated_bytes == 0
    kernels = {launch.key for launch in stand_in.launches}
    assert {"gate_up_rows.float16.int4.scaled", "shift_pairs.any"} < kernels
    assert {"scale_rows.float16", "scale_pairs.float16"} < kernels


def factors_of_up_alone_equal_the_reference(library: Path, stand_in: StandIn) -> None:
    """Rows and tiles, and tiles where those of down are of the large kind."""
    rows = Case("rows", (33, 0, 70), tokens=2, top_k=2, shared_width=40, scales=(*THREE, "units"))
    odd = replace(rows, hidden=33, shared_width=None, scales=THREE[:2])
    large = Case("large", (24, 33), tokens=40, top_k=1, hidden=33, scales=THREE)
    for case in (rows, replace(rows, tokens=9), odd, large):
        _assert_equal(library, stand_in, inputs_of(case, "float16", "uint4", 32))
    assert stand_in.allocated_bytes == 0
    kernels = {launch.key for launch in stand_in.launches}
    of_up = {f"gate_up_{path}.float16.uint4.{kind}" for path, kind in UP_KERNELS}
    assert {key for key in kernels if "gate_up" in key} == of_up
    assert {"shift_pairs.any", "down_tiles.float16.uint4.128"} < kernels


def factors_per_token_run_as_onnx_runtime_would_run_them(library: Path, stand_in: StandIn) -> None:
    """Factors come on the device, and so does what is stored where factors may stand."""
    case = Case("node", (33, 0, 7), tokens=2, top_k=2, scales=(*TIED, "units"))
    three = replace(case, shared_width=40, scales=(*THREE, "units"))
    for node_case in (case, replace(case, shared_width=40), three):
        inputs = inputs_of(node_case, "float16", "int4", 32)
        node = CudaNode(library, stand_in, inputs)
        y = node.run(inputs)
        error = np.abs(y.astype(np.float64) - run_reference(inputs).astype(np.float64))
        assert (error <= error_bound(inputs)).all(), f"worst {error.max()}"
        node.destroy()


def factors_whose_kernels_are_not_packaged_are_refused(library: Path, stand_in: StandIn) -> None:
    """The layer refuses them when it is run, the node when it is made."""
    sentence = (
        "the CUDA kernels for the inputs input_scale, up_scale and hidden_scale are for models in "
        "float16; export in float16, or run on the CPU"
    )
    inputs = inputs_of(SCALED_CASES[0], "float32")
    layer = CudaLayer(library, stand_in, inputs)
    assert _refusal(lambda: layer.run(inputs)) == sentence
    layer.destroy()
    message = _refusal(lambda: CudaNode(library, stand_in, inputs))
    assert message == f"RaggedMoE node 'the node': {sentence}"


def a_value_that_float16_does_not_reach_is_refused(library: Path, stand_in: StandIn) -> None:
    """Experts in bfloat16 are rounded to float16 for a model in float16."""
    inputs = inputs_of(Case("large", (33, 7), tokens=1, top_k=1), "float16", "bfloat16")
    weight = inputs.experts[1][2]
    weight[0, 0] = 65280  # the largest of bfloat16 that float16 reaches
    CudaLayer(library, stand_in, inputs).destroy()
    weight[0, 0] = -65536
    assert _refusal(lambda: CudaLayer(library, stand_in, inputs)) == (
        "down_1 holds a value that float16 does not reach, in which the CUDA kernels multiply; "
        "export the experts in another format, or run on the CPU"
    )
    assert stand_in.allocated_bytes == 0


def device_memory_is_what_layers_take(library: Path, stand_in: StandIn) -> None:
    """Allocated bytes are those that the driver counts, and the peak is kept."""
    before = CudaLayer(library, stand_in, GOOD)
    memory = DeviceMemory()
    layers = [CudaLayer(library, stand_in, GOOD) for _ in range(3)]
    assert memory.taken_bytes() == 3 * before.device_bytes > 0
    layers.pop().destroy()
    assert memory.taken_bytes() == 2 * before.device_bytes
    assert memory.peak_bytes == 3 * before.device_bytes
    for layer in (before, *layers):
        layer.destroy()


def no_tokens_launch_nothing(library: Path, stand_in: StandIn) -> None:
    """An empty batch is no error."""
    inputs = inputs_of(Case("none", (33, 0, 7), tokens=0, top_k=2), "float16")
    layer = CudaLayer(library, stand_in, inputs)
    assert layer.run(inputs).shape == (0, 48)
    assert stand_in.launches == []
    layer.destroy()


def a_wrong_shape_is_refused(library: Path, stand_in: StandIn) -> None:
    """The refusal comes before anything is launched."""
    layer = CudaLayer(library, stand_in, GOOD)
    bad = replace(GOOD, routing_weights=GOOD.routing_weights[:, :1])
    assert "routing_weights is float16 [3, 1], expected float16 [3, 2]" in _refusal(
        lambda: layer.run(bad)
    )
    assert stand_in.launches == []
    layer.destroy()


def a_node_runs_as_onnx_runtime_would_run_it(library: Path, stand_in: StandIn) -> None:
    """Computed inputs come on the device, weights from the host, work goes to ORT's stream."""
    inputs = inputs_of(
        Case("node", (33, 0, 7), tokens=9, top_k=2, shared_width=40), "float16", "int4", 32
    )
    node = CudaNode(library, stand_in, inputs)
    on_device = 7
    assert [node.memory_type(place) for place in range(on_device)] == [0] * on_device
    assert {node.memory_type(place) for place in (on_device, 50, 4095)} == {HOST_INPUT}
    assert node.input_counts() == {4096}
    first, again = node.run(inputs), node.run(inputs)
    np.testing.assert_array_equal(first, again)
    error = np.abs(first.astype(np.float64) - run_reference(inputs).astype(np.float64))
    assert (error <= error_bound(inputs)).all(), f"worst {error.max()}"
    assert {launch.stream for launch in stand_in.launches} == {ORT_STREAM}
    assert node.scratch_pointers == []
    assert node.allocators == 1
    node.destroy()
    assert node.allocators == 0


def a_weight_that_comes_on_the_device_is_taken_from_there(library: Path, stand_in: StandIn) -> None:
    """The first weights lie where factors and a shared expert's weight would be."""
    node = CudaNode(library, stand_in, GOOD)
    error = np.abs(node.run(GOOD).astype(np.float64) - run_reference(GOOD).astype(np.float64))
    assert (error <= error_bound(GOOD)).all(), f"worst {error.max()}"
    node.destroy()


def formats_whose_kernels_are_not_packaged_are_refused(library: Path, stand_in: StandIn) -> None:
    """The layer refuses them, and so does the node, which adds its name."""
    case = Case("shared", (33, 0), tokens=3, top_k=1, shared_width=7)
    without = [kind for kind in CUDA_KINDS if kind not in PACKAGED_KINDS]
    assert [kind[1] for kind in without] == ["uint8", "uint4", "nf4"]
    for kind in without:
        inputs = inputs_of(case, *kind)
        sentence = (
            f"the CUDA kernels of format '{kind[1]}' are for models in float16, since ONNX "
            "Runtime's CUDA provider has no attention in float32; export in float16, or run on the "
            "CPU"
        )
        before = stand_in.allocated_bytes
        assert _refusal(lambda inputs=inputs: CudaLayer(library, stand_in, inputs)) == sentence
        assert stand_in.allocated_bytes == before
        message = _refusal(lambda inputs=inputs: CudaNode(library, stand_in, inputs))
        assert message == f"RaggedMoE node 'the node': {sentence}"


def gpu_check_tells_of_errors(library: Path, stand_in: StandIn) -> None:
    """Runs kernels by rows and by tiles of both kinds, and names a case with a wrong result."""
    case = Case("few", (33, 7), tokens=1, top_k=1, hidden=32, shared_width=8)
    row = row_of(library, stand_in, ("float16", "int4", 32), [case])
    assert row["held"], row
    assert 0 < row["worst_error_of_bound"] < 1
    kernels = {launch.key for launch in stand_in.launches}
    assert {f"gate_up_tiles.float16.int4.{pairs}" for pairs in (16, 128)} < kernels
    assert "gate_up_rows.float16.int4" in kernels
    stand_in.forget(1)  # its output stays NaN
    row = row_of(library, stand_in, ("float16", "int4", 32), [case])
    assert (row["held"], row["failed"]) == (False, "few/1")


def a_device_without_kernels_is_refused(library: Path, stand_in: StandIn) -> None:
    """The message names the device."""
    stand_in.configure(capability=(7, 5))
    assert _refusal(lambda: CudaLayer(library, stand_in, GOOD)) == (
        "there are no kernels for the device Stand-in (sm_75): they are for sm_80, sm_86, sm_89, "
        "sm_90, sm_100, sm_120; run on the CPU"
    )


def a_later_minor_version_takes_the_kernels_of_an_earlier_one(
    library: Path, stand_in: StandIn
) -> None:
    """Binaries run on devices of the same major version."""
    stand_in.configure(capability=(9, 3))
    _assert_equal(library, stand_in, GOOD)


def an_old_driver_is_refused(library: Path, stand_in: StandIn) -> None:
    """The message gives the version that is needed."""
    stand_in.configure(driver_version=11080)
    assert _refusal(lambda: CudaLayer(library, stand_in, GOOD)) == (
        "the NVIDIA driver is for CUDA 11.8, too old for the kernels; install one for CUDA 12.0 "
        "or newer"
    )


def a_thread_without_a_device_is_refused(library: Path, stand_in: StandIn) -> None:
    """The library creates no context of its own."""
    stand_in.leave_context()
    message = _refusal(lambda: CudaLayer(library, stand_in, GOOD))
    assert message == "no CUDA device is in use by this thread"


def a_full_device_is_refused_and_nothing_is_lost(library: Path, stand_in: StandIn) -> None:
    """Refusals while weights are uploaded and while a call runs free what was allocated."""
    stand_in.configure(memory_bytes=1000)
    message = _refusal(lambda: CudaLayer(library, stand_in, GOOD))
    assert message == (
        "CUDA failed to allocate the weights of a layer: CUDA_ERROR_OUT_OF_MEMORY (2)"
    )
    assert stand_in.allocated_bytes == 0
    stand_in.configure()


def a_scale_that_is_no_float16_number_is_refused(library: Path, stand_in: StandIn) -> None:
    """The message names the weight, and what was allocated is freed."""
    inputs = inputs_of(Case("scale", (33, 7), tokens=1, top_k=1), "float32", "int4", 32)
    down = inputs.experts[1][2]
    down.scale[0, 0] = np.float32(1 / 3)  # type: ignore[union-attr]
    message = _refusal(lambda: CudaLayer(library, stand_in, inputs))
    assert message.startswith("down_scale_1 holds a value that is not a float16 number")
    assert stand_in.allocated_bytes == 0


def _refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except RefusedError as error:
        return str(error)
    raise AssertionError("not refused")


TOGETHER = (
    equals_the_reference,
    factors_per_token_equal_the_reference,
    factors_of_up_alone_equal_the_reference,
    launches_are_those_of_the_manifest,
    x_that_begins_anywhere_is_padded,
    weights_are_laid_out_as_in_the_definition_of_the_layout,
    device_memory_is_what_layers_take,
    no_tokens_launch_nothing,
    a_wrong_shape_is_refused,
    a_scale_that_is_no_float16_number_is_refused,
    a_full_device_is_refused_and_nothing_is_lost,
    a_node_runs_as_onnx_runtime_would_run_it,
    a_weight_that_comes_on_the_device_is_taken_from_there,
    activations_equal_the_reference,
    formats_whose_kernels_are_not_packaged_are_refused,
    factors_per_token_run_as_onnx_runtime_would_run_them,
    factors_whose_kernels_are_not_packaged_are_refused,
    gpu_check_tells_of_errors,
)
"""Checks that leave the driver as it was."""

ALONE = (
    a_device_without_kernels_is_refused,
    a_later_minor_version_takes_the_kernels_of_an_earlier_one,
    an_old_driver_is_refused,
    a_thread_without_a_device_is_refused,
)
"""Checks whose effects last as long as the process."""

if __name__ == "__main__":
    torch.set_num_threads(1)
    _, chosen, library_path, stand_in_path = sys.argv
    driver = StandIn(Path(stand_in_path))
    for check in TOGETHER if chosen == "together" else ALONE:
        if chosen in ("together", check.__name__):
            driver.launches.clear()
            sys.stderr.write(f"{check.__name__}\n")
            check(Path(library_path), driver)
            sys.stdout.write(f"{check.__name__}\n")
