"""Nodes of the operators with wrong attributes, weights, inputs and bytes, for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.op import spec
from moe_export.testing.cases import CASES, FACTOR_CASES, inputs_of
from moe_export.testing.executors import feeds, one_node_model
from moe_export.testing.linear_cases import (
    LINEAR_CASES,
    linear_inputs_of,
    linear_model,
    packed_linear,
    packed_linear_model,
)
from moe_export.testing.native_executors import NATIVE_KINDS, native_session, packed, packed_model

Feeds = dict[str, NDArray[Any]]
RAN, REFUSED = "run", "refused"

NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 5, 7, 16, 31, 32, 48, 64, 65536, 65537, 2**31, 2**62)
WORDS = ("", "x", "int4", "uint4", "int8", "nf4", "float32", "float16", "swiglu", "relu", "a" * 999)
ALL_CASES = (*CASES, *FACTOR_CASES)
INDICES = (-(2**63), -1, 0, 6, 7, 2**31, 2**63 - 1)
BYTES = (0, 1, 0x7F, 0x80, 0xFF)


def hostile_node(random: Random, library: Path) -> tuple[onnx.ModelProto, Feeds, str]:
    """Makes a node, nearly right, and the arrays to feed.

    Returns:
        The model of one node, its inputs by name, and what was changed.
    """
    model, fed = random.choice(GOOD)(random, library)
    changes = []
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        if random.random() < 0.3:
            changes.append(_change_feed(random, fed))
        else:
            changes.append(random.choice(CHANGES)(random, model))
    return model, fed, "; ".join(changes)


def outcome(library: Path, model: onnx.ModelProto, fed: Feeds, num_threads: int) -> str:
    """Runs a node twice in ONNX Runtime; returns `RAN` or `REFUSED`.

    Raises:
        AssertionError: if two runs differ.
    """
    try:
        session = native_session(library, model, num_threads)
        first, second = (session.run(None, fed)[0] for _ in range(2))
    except Exception:  # noqa: BLE001 - ONNX Runtime's errors have no common type
        return REFUSED
    np.testing.assert_array_equal(first, second)
    return RAN


def _ragged(random: Random, _: Path) -> tuple[onnx.ModelProto, Feeds]:
    inputs = inputs_of(random.choice(ALL_CASES), *random.choice(NATIVE_KINDS))
    return one_node_model(inputs, with_function=False), _copied(feeds(inputs))


def _ragged_packed(random: Random, library: Path) -> tuple[onnx.ModelProto, Feeds]:
    inputs = inputs_of(random.choice(ALL_CASES), *random.choice(NATIVE_KINDS))
    return ir.to_proto(packed_model(packed(library, inputs), inputs)), _copied(feeds(inputs))


def _linear(random: Random, _: Path) -> tuple[onnx.ModelProto, Feeds]:
    inputs = linear_inputs_of(random.choice(LINEAR_CASES), *random.choice(NATIVE_KINDS))
    return linear_model(inputs, with_function=False), {"x": inputs.x.copy()}


def _linear_packed(random: Random, library: Path) -> tuple[onnx.ModelProto, Feeds]:
    inputs = linear_inputs_of(random.choice(LINEAR_CASES), *random.choice(NATIVE_KINDS))
    return packed_linear_model(packed_linear(library, inputs), inputs), {"x": inputs.x.copy()}


GOOD = (_ragged, _ragged_packed, _linear, _linear_packed)


def _copied(fed: Feeds) -> Feeds:
    return {name: array.copy() for name, array in fed.items()}


def _change_attribute(random: Random, model: onnx.ModelProto) -> str:
    node = model.graph.node[0]
    name = random.choice((*spec.ATTRIBUTES, *spec.QUANTIZED_ATTRIBUTES, "extra_inputs", "other"))
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if random.random() < 0.2:
        return f"{name} removed"
    value = random.choice((*NUMBERS, *WORDS, 0.5, [1, 2]))
    node.attribute.append(
        ir.serde.serialize_attribute(ir.convenience.convert_attribute(name, value))
    )
    return f"{name} = {value!r:.40}"


def _change_shape(random: Random, model: onnx.ModelProto) -> str:
    """Gives a weight another shape, with as many bytes as it needs."""
    tensor = _weight(random, model)
    array = onnx.numpy_helper.to_array(tensor)
    shape = list(array.shape)
    way = random.randrange(4)
    if way == 0:
        shape.reverse()
    elif way == 1 and shape:
        at = random.randrange(len(shape))
        shape[at] = max(0, shape[at] + random.choice((-1, 1, -shape[at], 64)))
    elif way == 2:
        shape = shape[1:]
    else:
        shape.append(1)
    changed = np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    return f"{tensor.name} has the shape {shape}"


def _change_type(random: Random, model: onnx.ModelProto) -> str:
    tensor = _weight(random, model)
    array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    dtype = random.choice((np.float32, np.float16, np.float64, np.int8, np.uint8, np.int64))
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(dtype), tensor.name))
    return f"{tensor.name} is of {dtype.__name__}"


def _change_values(random: Random, model: onnx.ModelProto) -> str:
    """Sets bytes of a weight: values that are not finite, and headers that do not fit."""
    tensor = _weight(random, model)
    raw = bytearray(tensor.raw_data)
    for _ in range(random.choice((1, 1, 4))):
        if raw:
            at = random.randrange(min(len(raw), random.choice((32, 96, 1 << 30))))
            raw[at] = random.choice(BYTES)
    tensor.raw_data = bytes(raw)
    return f"bytes of {tensor.name}"


def _change_length(random: Random, model: onnx.ModelProto) -> str:
    tensor = _weight(random, model)
    if tensor.data_type != onnx.TensorProto.UINT8 or len(tensor.dims) != 1:
        return _change_shape(random, model)
    raw = tensor.raw_data
    length = random.choice((0, 1, 47, 48, len(raw) // 2, len(raw) - 1))
    tensor.raw_data, tensor.dims[0] = raw[:length], min(length, len(raw))
    return f"{tensor.name} cut to {length} bytes"


def _change_inputs(random: Random, model: onnx.ModelProto) -> str:
    names = model.graph.node[0].input
    if not names:
        return "no input"
    at, other = random.randrange(len(names)), random.randrange(len(names))
    way = random.choice(("removed", "left out", "doubled", "exchanged"))
    if way == "removed":
        del names[at]
    elif way == "left out":
        names[at] = ""
    elif way == "doubled":
        names.append(names[at])
    else:
        names[at], names[other] = names[other], names[at]
    return f"input {at} {way}"


def _change_constant(random: Random, model: onnx.ModelProto) -> str:
    """Makes a weight an input of the graph, so that it is no constant."""
    tensor = _weight(random, model)
    dtype = ir.TensorType(ir.DataType(tensor.data_type))
    value = ir.Value(name=tensor.name, type=dtype, shape=ir.Shape(tensor.dims))
    model.graph.input.append(ir.serde.serialize_value(value))
    return f"{tensor.name} is no constant"


def _weight(random: Random, model: onnx.ModelProto) -> onnx.TensorProto:
    return random.choice(model.graph.initializer)


CHANGES: tuple[Callable[[Random, onnx.ModelProto], str], ...] = (
    _change_attribute,
    _change_shape,
    _change_type,
    _change_values,
    _change_length,
    _change_inputs,
    _change_constant,
)


def _change_feed(random: Random, fed: Feeds) -> str:
    name = random.choice(sorted(fed))
    array = fed[name]
    way = random.randrange(4)
    if way == 0 and array.size:
        values = INDICES if array.dtype == np.int64 else (np.nan, np.inf, -np.inf, 1e-8, 6e4)
        array.reshape(-1)[random.randrange(array.size)] = random.choice(values)
        return f"a value of {name}"
    if way == 1:
        fed[name] = array[..., :-1]
    elif way == 2:
        fed[name] = array[:0] if array.ndim else array[None]
    else:
        fed[name] = np.concatenate([array, array]) if array.ndim else array[None]
    return f"{name} has the shape {fed[name].shape}"
