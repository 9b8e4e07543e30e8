"""`RaggedMoEPacked`: the kernels' own layout as a tensor of the model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from moe_export.errors import ArtifactError, CheckpointError
from moe_export.formats import GRIDS, QuantizedMatrix
from moe_export.formats.storage import to_storage
from moe_export.op import packed as op_packed
from moe_export.op import spec
from moe_export.op.library import register
from moe_export.op.packed import Packer
from moe_export.ort.session import OrtModel
from moe_export.stages.export import export_model
from moe_export.testing.c_library import OpenedLayer, RefusedError
from moe_export.testing.cases import CASES, Case, Inputs, Kind, inputs_of
from moe_export.testing.executors import feeds
from moe_export.testing.native_executors import (
    KERNELS,
    NATIVE_KINDS,
    NATIVE_QUANTIZED,
    layer_of,
    layout_of,
    native_session,
    packed,
    packed_model,
    run_kernel,
)
from moe_export.testing.tiny import tiny_checkpoint


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_packed_layer_gives_the_bits_of_the_weights(
    library: Path, case: Case, kind: Kind
) -> None:
    inputs = inputs_of(case, *kind)
    tensor = packed(library, inputs)
    for kernel in KERNELS:
        layer = OpenedLayer(library, tensor, x_dtype=inputs.x.dtype.name, kernel=kernel)
        y = layer.run(inputs.x, inputs.expert_indices, inputs.routing_weights, inputs.shared_weight)
        np.testing.assert_array_equal(y, run_kernel(library, inputs, kernel))


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
@pytest.mark.parametrize("case", ["seven_tokens", "shared_expert", "relu2_and_a_shared_expert"])
def test_onnx_runtime_gives_the_same_bits(library: Path, case: str, kind: Kind) -> None:
    (found,) = (c for c in CASES if c.name == case)
    inputs = inputs_of(found, *kind)
    model = ir.to_proto(packed_model(packed(library, inputs), inputs))
    onnx.checker.check_model(model, full_check=True)
    y = native_session(library, model).run(None, feeds(inputs))[0]
    np.testing.assert_array_equal(y, run_kernel(library, inputs))


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
def test_a_packed_tensor_is_as_long_as_the_layer_that_is_packed_at_load(
    library: Path, kind: Kind
) -> None:
    for case in CASES:
        inputs = inputs_of(case, *kind)
        layout = layout_of(inputs)
        panels = layer_of(library, inputs).packed_bytes
        assert layout.total_bytes == layout.header_bytes + panels
        assert packed(library, inputs).nbytes == layout.total_bytes


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bytes_are_the_same_whatever_the_kernel(
    library: Path, tmp_path: Path, kernel: str
) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from moe_export.testing.native_executors import NATIVE_KINDS, packed\n"
        "from moe_export.testing.cases import CASES, inputs_of\n"
        "for kind in NATIVE_KINDS:\n"
        "    tensor = packed(Path(sys.argv[1]), inputs_of(CASES[18], *kind))\n"
        "    sys.stdout.buffer.write(tensor.tobytes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, library],
        env=os.environ | {"MOE_EXPORT_KERNEL": kernel},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    )
    here = [packed(library, inputs_of(CASES[18], *kind)).tobytes() for kind in NATIVE_KINDS]
    assert done.stdout == b"".join(here)


def test_the_header_is_written_as_documented(library: Path) -> None:
    (case,) = (c for c in CASES if c.name == "relu_and_a_shared_expert")
    tensor = packed(library, inputs_of(case, "float16", "int4", 32))
    # A header of 48 bytes and 4 widths of 8, filled up to 128. The panels are of 2 columns of 64
    # by one block of 1152 bytes for up, depth 33 being 2 blocks, and of 1 by 0, 1, 2 or 3 for down.
    block = 32 * 64 // 2 + 2 * 64
    panels = [1 * 2 + 1 * 1, 0, 2 * 2 + 1 * 3, 1 * 2 + 1 * 2]
    total = 128 + sum(panels) * block
    numbers = tensor[8:32].view("<u4").tolist(), tensor[32:48].view("<u8").tolist()
    assert tensor[:8].tobytes() == b"moepack\0"
    assert numbers == ([1, 4, 3, 32, 3, 1], [33, total])
    assert tensor[48:80].view("<i8").tolist() == [3, 0, 65, 50]
    assert not tensor[80:128].any()
    assert tensor.size == total


@pytest.mark.parametrize(("format_name", "number", "bits"), [("uint8", 5, 8), ("uint4", 6, 4)])
def test_zero_points_lie_between_scales_and_codes(
    library: Path, format_name: spec.Format, number: int, bits: int
) -> None:
    depth, columns, last = 40, 3, 2**bits - 1
    dtype = GRIDS[format_name].code_dtype
    codes = (np.arange(depth * columns).reshape(depth, columns) * 5 % (last + 1)).astype(dtype)
    scale = np.arange(1, 7, dtype=np.float32).reshape(2, columns)
    zero_point = (np.arange(2 * columns).reshape(2, columns) + 9).astype(dtype)
    layout = op_packed.PackedLayout(format_name, 32, depth, (columns,), activation="relu")
    down = np.zeros((columns, depth), dtype)
    weights = [codes, scale, zero_point, down, np.ones((1, depth), np.float32), down[:1]]
    panel = Packer(layout, library).expert(weights, columns, "the expert")
    assert np.frombuffer(layout.header(), "<u4", count=2, offset=8).tolist() == [1, number]
    # A block of up for the depths 0 to 31, one for 32 to 39, and one of down for 0 to 2.
    block = 64 * 2 + 64 + 32 * 64 * bits // 8
    assert panel.size == layout.expert_bytes(columns) == 3 * block
    for group in range(2):
        found = panel[group * block : (group + 1) * block]
        scales = found[:128].view(np.float16)
        assert scales[:columns].tolist() == scale[group].tolist()
        assert not scales[columns:].any()
        assert found[128 : 128 + columns].tolist() == zero_point[group].astype(int).tolist()
        assert not found[128 + columns : 192].any()
        if bits == 8:
            stored = found[192:].reshape(8, 64, 4).transpose(0, 2, 1).reshape(32, 64)
        else:
            pairs = found[192:].reshape(4, 64, 4).transpose(0, 2, 1)
            stored = np.concatenate([pairs & 15, pairs >> 4], axis=1).reshape(32, 64)
        here = codes[32 * group : 32 * group + 32].astype(np.uint8)
        np.testing.assert_array_equal(stored[: len(here), :columns], here)
        # What fills the block up means zero.
        filled = np.tile(zero_point[group].astype(np.uint8), (32 - len(here), 1))
        np.testing.assert_array_equal(stored[len(here) :, :columns], filled)
        assert not stored[:, columns:].any()


INPUTS = inputs_of(CASES[2], "float32", "int4", 32)


def with_number(offset: int, value: int, dtype: str) -> Callable[[Any], Any]:
    def change(tensor: NDArray[np.uint8]) -> NDArray[np.uint8]:
        tensor[offset : offset + np.dtype(dtype).itemsize].view(dtype)[:] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor[:40], "packed has 40 bytes, expected a header of 48"),
        (with_number(0, 0, "u1"), "packed does not begin with 'moepack', so it is no packed layer"),
        (with_number(8, 2, "<u4"), "packed is of version 2, expected 1; export the model with"),
        (with_number(12, 9, "<u4"), "the header of packed: attribute format is '?', expected"),
        (with_number(16, 7, "<u4"), "the header of packed: attribute activation is '?', expected"),
        (with_number(20, 48, "<u4"), "attribute group_size is 48, expected 32, 64 or 128"),
        (with_number(24, 0, "<u4"), "attribute num_experts is 0, expected 1 to 65536"),
        (with_number(32, 0, "<u8"), "the header of packed: the hidden size is 0, expected 1 to"),
        (with_number(32, 1 << 63, "<u8"), "the header of packed: the hidden size is -9223372"),
        (with_number(48, -1, "<i8"), "expert 0 of packed: the width is -1, expected 0 to"),
        (with_number(48, 200, "<i8"), "its widths make more"),
        (with_number(88, 0, "<i8"), "its widths make"),
        (lambda tensor: tensor[:-64], "its header says"),
    ],
)
def test_damaged_bytes_are_refused(
    library: Path, change: Callable[[Any], Any], message: str
) -> None:
    tensor = change(packed(library, INPUTS).copy())
    with pytest.raises(RefusedError) as refused:
        OpenedLayer(library, tensor, x_dtype="float32")
    assert message in str(refused.value)


def test_the_type_of_x_has_to_go_with_the_format(library: Path) -> None:
    tensor = packed(library, inputs_of(CASES[2], "float32"))
    with pytest.raises(RefusedError, match="x is float16, which does not go with the format"):
        OpenedLayer(library, tensor, x_dtype="float16")


def test_a_shared_expert_and_its_weight_go_together(library: Path) -> None:
    (case,) = (c for c in CASES if c.name == "shared_expert")
    inputs = inputs_of(case, "float32")
    model = ir.to_proto(packed_model(packed(library, inputs), inputs))
    del model.graph.node[0].input[-1]
    with pytest.raises(
        Exception, match=r"RaggedMoEPacked node '.*': a shared expert in packed and"
    ):
        native_session(library, model)


def test_onnx_runtime_says_which_operator_it_lacks_without_the_library(library: Path) -> None:
    model = ir.to_proto(packed_model(packed(library, INPUTS), INPUTS))
    with pytest.raises(Exception, match=r"RaggedMoEPacked.* is not a registered function/op"):
        onnxruntime.InferenceSession(model.SerializeToString())


def test_weights_that_do_not_fit_the_layout_are_refused(library: Path) -> None:
    packer = Packer(layout_of(INPUTS), library)
    with pytest.raises(CheckpointError, match="expert 3 cannot be packed: the packed expert takes"):
        packer.expert(INPUTS.weights[:6], 40, "expert 3")


def as_stored(inputs: Inputs, expert: int) -> list[NDArray[Any]]:
    return [
        part
        for matrix in inputs.experts[expert]
        if isinstance(matrix, QuantizedMatrix)
        for part in to_storage(matrix).values()
    ]


@pytest.mark.parametrize("format_name", NATIVE_QUANTIZED)
@pytest.mark.parametrize("expert", [1, 2, 3])
def test_weights_may_come_as_they_are_stored(
    library: Path, format_name: spec.Format, expert: int
) -> None:
    # Of widths 0, 1 and 33.
    inputs = inputs_of(CASES[2], "float32", format_name, 32)
    packer = Packer(layout_of(inputs), library)
    width = inputs.experts[expert][-1].shape[0]
    each = len(inputs.weights) // 6
    own = inputs.weights[each * expert : each * (expert + 1)]
    stored = as_stored(inputs, expert)
    assert len(stored) == each
    np.testing.assert_array_equal(
        packer.expert(stored, width, "it"), packer.expert(own, width, "it")
    )


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (3, r"tensor 3 of its uint4 weights is \[791\] bytes, expected \[792\]"),
        (8, r"tensor 8 of its uint4 weights is \[47\] bytes, expected \[48\]"),
    ],
)
def test_stored_bytes_of_another_number_are_refused(
    library: Path, place: int, message: str
) -> None:
    inputs = inputs_of(CASES[2], "float32", "uint4", 32)
    stored = as_stored(inputs, 3)
    stored[place] = stored[place][:-1]
    with pytest.raises(CheckpointError, match=f"it cannot be packed: {message}"):
        Packer(layout_of(inputs), library).expert(stored, 33, "it")


def _resident_bytes(kind: str) -> int:
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index(f"{kind}:") + 1]) * 1024


def test_a_packed_file_is_read_where_it_is_mapped(library: Path, tmp_path: Path) -> None:
    inputs = inputs_of(Case("large", (2048, 2048), 1, 1, hidden=1024), "float32")
    tensor = packed(library, inputs)
    ir.save(packed_model(tensor, inputs), tmp_path / "model.onnx", external_data="data")
    options = onnxruntime.SessionOptions()
    register(options, library)
    before = _resident_bytes("RssAnon"), _resident_bytes("RssFile")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    y = session.run(None, feeds(inputs))[0]
    after = _resident_bytes("RssAnon"), _resident_bytes("RssFile")
    np.testing.assert_array_equal(y, run_kernel(library, inputs))
    assert after[0] - before[0] < tensor.nbytes // 4
    # One of the two experts was read.
    assert tensor.nbytes // 4 < after[1] - before[1] < tensor.nbytes * 3 // 4


def test_sizes_are_those_of_the_format() -> None:
    layout = op_packed.PackedLayout("int8", 64, 2048, (704, 0), 5632)
    assert layout.expert_bytes(704) == 3 * 2048 * 704 * 34 // 32
    assert layout.scale_bytes(704) == 3 * 2048 * 704 * 2 // 32
    assert layout.expert_bytes(0) == 0
    assert layout.total_bytes == 128 + 3 * 2048 * (704 + 5632) * 34 // 32
    for format_name, block in (("uint8", 32 + 3), ("uint4", 16 + 3), ("nf4", 16 + 2)):
        layout = op_packed.PackedLayout(format_name, 128, 2048, (704, 0))
        assert layout.expert_bytes(704) == 3 * 2048 * 704 // 32 * block
        assert layout.scale_bytes(704) == 3 * 2048 * 704 // 32 * (2 if format_name == "nf4" else 3)


def test_copied_weights_give_the_bits_of_mapped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tiny_checkpoint(tmp_path / "source"), tmp_path / "out", "float32", layout="packed")
    mapped = first_logits(tmp_path / "out")
    monkeypatch.setenv("MOE_EXPORT_WEIGHTS", "copy")
    np.testing.assert_array_equal(first_logits(tmp_path / "out"), mapped)
    monkeypatch.setenv("MOE_EXPORT_WEIGHTS", "elsewhere")
    with pytest.raises(ArtifactError, match="is 'elsewhere', expected mapped or copy"):
        first_logits(tmp_path / "out")


def first_logits(folder: Path) -> NDArray[np.float32]:
    model = OrtModel(folder)
    ids = np.arange(6, dtype=np.int64)[None]
    return model.step(ids, np.ones_like(ids), model.empty_cache(1))[0]
