"""A stand-in for ONNX Runtime's table of functions: enough of it to create and run one CUDA node.

It keeps to what was seen of onnxruntime-gpu 1.31.1: inputs come where the operator asked for them,
stored weights when the node is created.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moe_export.formats import int4
from moe_export.op.c_interface import ONNX_TYPES, RefusedError
from moe_export.testing.cases import Inputs
from tests.cuda.launches import StandIn

FOUR_BITS = ("int4", "uint4")
STREAM = 0x57EA
HOST_INPUT = -2
ALLOCATOR = 77

# Places of functions in OrtCustomOp.
NAME, PROVIDER, INPUT_COUNT, INPUT_KIND, INPUT_MEMORY = 2, 3, 5, 10, 12
DESTROY, CREATE, COMPUTE = 9, 17, 18


@dataclass
class Value:
    """A tensor somewhere."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    memory: bytes


class CudaNode:
    """A RaggedMoE node on the CUDA provider.

    Args:
        library: File of the native library.
        stand_in: The driver.
        inputs: Inputs of a call; the weights are stored.
    """

    # The library makes its domain once in a process.
    _ops: ClassVar[list[int]] = []

    def __init__(self, library: Path, stand_in: StandIn, inputs: Inputs) -> None:
        self._stand_in = stand_in
        self._keep: list[Any] = []
        self._values: dict[int, Value] = {}
        self._messages: dict[int, str] = {}
        self.scratch_pointers: list[int] = []
        self.allocators = 0
        self._attributes = {
            "activation": inputs.activation,
            "format": inputs.format_name,
            "num_experts": len(inputs.experts),
            "group_size": inputs.group_size,
        }
        self._table = self._functions()
        self._register(library)
        x_type = ONNX_TYPES[inputs.x.dtype.name]
        self.op = next(
            op
            for op in self._ops
            if self._ask(op, PROVIDER, ctypes.c_char_p) == b"CUDAExecutionProvider"
            and self._ask(op, 4, ctypes.c_int, 0) == x_type
        )
        if inputs.extra_inputs:
            self._attributes["extra_inputs"] = " ".join(inputs.extra_inputs)
        self._first_weight = len(_computed(inputs))
        units = inputs.extra_inputs.get("units")
        stored = inputs.weights if units is None else [units, *inputs.weights]
        self._weights = [
            self._value(array, self._memory_of(self._first_weight + i))
            for i, array in enumerate(stored)
        ]
        self._y = 0
        self._inputs: list[int] = []
        self._kernel = ctypes.c_void_p()
        create = self._function(CREATE, ctypes.c_void_p, *[ctypes.c_void_p] * 4)
        self._raise(create(self.op, self._table, 1, ctypes.byref(self._kernel)))

    def run(self, inputs: Inputs) -> NDArray[Any]:
        """One execution, with everything on the device."""
        computed = [self._value(array, b"Cuda") for array in _computed(inputs)]
        # ONNX Runtime would copy others to the host, where kernels cannot read them.
        assert {self._memory_of(place) for place in range(len(computed))} == {b"Cuda"}
        self._inputs = [*computed, *self._weights]
        compute = self._function(COMPUTE, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self._raise(compute(self._kernel, 1))
        y = np.empty_like(inputs.x)
        ctypes.memmove(y.ctypes.data, self._values[self._y].pointer, y.nbytes)
        return y

    def destroy(self) -> None:
        """Ends the node."""
        self._function(DESTROY, None, ctypes.c_void_p)(self._kernel)

    def memory_type(self, place: int) -> int:
        """Memory type that the operator asks for an input, a number of ONNX Runtime."""
        asked: int = self._ask(self.op, INPUT_MEMORY, ctypes.c_int, place)
        return asked

    def input_counts(self) -> set[int]:
        """Declared inputs of all operators of this one's name."""
        name = self._ask(self.op, NAME, ctypes.c_char_p)
        return {
            self._ask(op, INPUT_COUNT, ctypes.c_size_t)
            for op in self._ops
            if self._ask(op, NAME, ctypes.c_char_p) == name
        }

    def _memory_of(self, place: int) -> bytes:
        return b"Cpu" if self.memory_type(place) == HOST_INPUT else b"Cuda"

    def _ask(self, op: int, place: int, result: Any, *arguments: int) -> Any:
        function = self._function(
            place, result, ctypes.c_void_p, *[ctypes.c_size_t] * len(arguments), op=op
        )
        return function(op, *arguments)

    def _function(self, place: int, result: Any, *kinds: Any, op: int | None = None) -> Any:
        address = ctypes.c_void_p.from_address((op or self.op) + 8 * place).value
        assert address is not None
        return ctypes.CFUNCTYPE(result, *kinds)(address)

    def _value(self, array: NDArray[Any], memory: bytes) -> int:
        data = int4.pack(array) if array.dtype.name in FOUR_BITS else np.ascontiguousarray(array)
        self._keep.append(data)
        pointer = data.ctypes.data
        if memory == b"Cuda" and data.nbytes:
            pointer = self._stand_in.allocate(data.nbytes)
            ctypes.memmove(pointer, data.ctypes.data, data.nbytes)
        handle = len(self._values) + 1
        self._values[handle] = Value(pointer, array.shape, array.dtype.name, memory)
        return handle

    def _raise(self, status: int | None) -> None:
        if status:
            raise RefusedError(self._messages[status])

    def _register(self, library: Path) -> None:
        def get_api(_version: int) -> int:
            return ctypes.addressof(self._table)

        get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(get_api)
        self._keep.append(get)
        base = (ctypes.c_void_p * 2)(ctypes.cast(get, ctypes.c_void_p), None)
        register = ctypes.CDLL(str(library)).RegisterCustomOps
        register.restype = ctypes.c_void_p
        self._raise(register(None, base))

    def _functions(self) -> Any:
        values, messages = self._values, self._messages

        def put(address: int, kind: Any, value: Any) -> int:
            kind.from_address(address).value = value
            return 0

        def number(address: int, value: int) -> int:
            return put(address, ctypes.c_int64, value)

        def create_status(_code: int, message: int) -> int:
            messages[len(messages) + 1] = ctypes.string_at(message).decode()
            return len(messages)

        def add_op(_domain: int, op: int) -> int:
            self._ops.append(op)
            return 0

        def text(value: str | None, out: int | None, size: int) -> int:
            if value is None:
                return create_status(0, ctypes.addressof(missing))
            if out:
                ctypes.memmove(out, value.encode() + b"\0", len(value) + 1)
            return number(size, len(value) + 1)

        def dimensions(info: int, out: int, rank: int | None) -> int:
            for axis in range(rank or 0):
                number(out + 8 * axis, values[info].shape[axis])
            return 0

        def constant(_info: int, place: int, is_constant: int, out: int) -> int:
            put(is_constant, ctypes.c_int32, 1)
            return number(out, self._weights[(place or 0) - self._first_weight])

        def output(_context: int, _place: int, shape: int, rank: int, out: int) -> int:
            sizes = tuple(ctypes.c_int64.from_address(shape + 8 * i).value for i in range(rank))
            dtype = values[self._inputs[0]].dtype
            self._y = self._value(np.full(sizes, np.nan, dtype), b"Cuda")
            return number(out, self._y)

        def allocate(allocator: int, size: int, out: int) -> int:
            assert allocator == ALLOCATOR
            self.scratch_pointers.append(self._stand_in.allocate(size))
            return number(out, self.scratch_pointers[-1])

        def free(_allocator: int, pointer: int) -> int:
            self.scratch_pointers.remove(pointer)
            self._stand_in.free(pointer)
            return 0

        def take_allocator(_info: int, kind: int, out: int) -> int:
            assert not kind  # the device's
            self.allocators += 1
            return number(out, ALLOCATOR)

        def release_allocator(_allocator: int) -> int:
            self.allocators -= 1
            return 0

        def name(memory: int, out: int) -> int:
            buffer = ctypes.create_string_buffer(values[memory].memory)
            self._keep.append(buffer)
            return number(out, ctypes.addressof(buffer))

        missing = ctypes.create_string_buffer(b"no such attribute")
        self._keep.append(missing)
        attributes = self._attributes
        slots: dict[int, tuple[int, Callable[..., int]]] = {
            0: (2, create_status),
            26: (2, lambda _name, out: number(out, 1)),
            27: (2, add_op),
            28: (2, lambda _options, _domain: 0),
            51: (2, lambda value, out: number(out, values[value].pointer)),
            60: (2, lambda i, out: put(out, ctypes.c_int32, ONNX_TYPES[values[i].dtype])),
            61: (2, lambda info, out: number(out, len(values[info].shape))),
            62: (3, dimensions),
            65: (2, lambda value, out: number(out, value)),
            71: (2, name),
            75: (3, allocate),
            76: (2, free),
            86: (3, lambda _i, key, out: number(out, attributes[ctypes.string_at(key).decode()])),
            87: (4, lambda _i, key, out, size: text(attributes.get(_text(key)), out, size)),
            90: (3, lambda _context, place, out: number(out, self._inputs[place or 0])),
            91: (5, output),
            93: (1, lambda _status: 0),
            99: (1, lambda _info: 0),
            132: (1, release_allocator),
            193: (2, lambda _context, out: number(out, STREAM)),
            194: (2, lambda value, out: number(out, value)),
            230: (2, lambda _i, out: number(out, self._first_weight + len(self._weights))),
            244: (3, lambda _info, out, size: text("the node", out, size)),
            249: (4, constant),
            278: (3, take_allocator),
        }
        table = (ctypes.c_void_p * 300)()
        for slot, (count, function) in slots.items():
            made = ctypes.CFUNCTYPE(ctypes.c_void_p, *[ctypes.c_void_p] * count)(function)
            self._keep.append(made)
            table[slot] = ctypes.cast(made, ctypes.c_void_p)
        return table


def _computed(inputs: Inputs) -> list[NDArray[Any]]:
    """Inputs of a call, in the node's order: all but the stored ones."""
    scales = [array for name, array in inputs.extra_inputs.items() if name != "units"]
    first = [inputs.x, inputs.expert_indices, inputs.routing_weights]
    return [*first, *([] if inputs.shared_weight is None else [inputs.shared_weight]), *scales]


def _text(address: int) -> str:
    return ctypes.string_at(address).decode()
