"""Reader and writer of Hugging Face checkpoint directories, one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from moe_export.errors import CheckpointError
from moe_export.formats import block_scaled
from moe_export.quantization import QUANTIZATION_KEY
from moe_export.system.digested import digested
from moe_export.system.digests import Digests, open_regular
from moe_export.system.disk import disk_error
from moe_export.system.published_files import other_weights, require_content

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Accepted dtypes of weights, by their name in a safetensors header."""

CODE_DTYPES: dict[str, np.dtype[Any]] = {"I8": np.dtype(np.int8), "U8": np.dtype(np.uint8)}
"""Dtypes that are accepted too if the config has `QUANTIZATION_KEY`."""

LARGEST_BITS = {
    DTYPES["F16"]: int(np.float16(np.finfo(np.float16).max).view(np.uint16)),
    DTYPES["BF16"]: int(ml_dtypes.finfo(ml_dtypes.bfloat16).max.view(np.uint16)),
}
"""Bits of the largest finite number of each two-byte dtype; infinity and NaN have larger bits."""

_FOREIGN = {
    "F64": "float64",
    "I32": "packed integers, as of GPTQ or AWQ",
    "I8": "8-bit codes",
    "U8": "packed codes, as of MXFP4 or bitsandbytes",
    "F8_E4M3": "FP8",
    "F8_E5M2": "FP8",
}
"""Common meaning of dtypes that are not accepted."""

LARGEST_JSON_BYTES = 1 << 26
"""Most bytes of a JSON file. The index of the largest published model has a tenth of that."""

_OF_WHOLE = {"text_config", "vision_config", "architectures", "model_type"}
"""Config keys of a model that also sees which say nothing about its language model."""

_DTYPE_WORDS = {dtype: word for word, dtype in (DTYPES | CODE_DTYPES).items()}


class Part(NamedTuple):
    """Row range of a stored tensor, within one expert if its first axis is the experts."""

    stored: str
    expert: int | None
    start: int
    stop: int


@dataclass(frozen=True)
class TensorInfo:
    """Entry of a tensor in a shard's header.

    Attributes:
        shard: File name of the shard.
        dtype: Stored dtype.
        shape: Shape of the tensor, or of its part.
        part: Row range of a larger stored tensor; None if the tensor is stored by itself.
        stored: Name in the shard if it is another one.
        scales: Name and entry of the scales of FP8 blocks; None if the tensor is stored as it is.
    """

    shard: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    part: Part | None = None
    stored: str | None = None
    scales: tuple[str, TensorInfo] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor on disk."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Checkpoint:
    """Lazy reader of a checkpoint directory; the constructor reads only the headers.

    Attributes:
        directory: Folder of the checkpoint.
        config: Content of `config.json`, without the note of FP8 weights that are read as floats.
        tensors: Entries by the names that the model knows. FP8 matrices with scales of blocks are
            read as bfloat16, and their entries say so.
        dropped: Reasons by the name of each stored tensor that is left out.

    Raises:
        CheckpointError: `config.json` or the weights are missing, a shard is missing or truncated,
            a tensor is in two shards, or a dtype is not float32, float16 or bfloat16 (nor int8 or
            uint8 if the config has `QUANTIZATION_KEY`).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = _read_config(directory / "config.json")
        self.tensors: dict[str, TensorInfo] = {}
        self.dropped: dict[str, str] = {}
        accepted = DTYPES | (CODE_DTYPES if QUANTIZATION_KEY in self.config else {})
        self._block = block_scaled.block_of(self.config)
        if self._block is not None:
            accepted = accepted | {block_scaled.CODE_WORD: block_scaled.CODES}
            self.config.pop(block_scaled.CONFIG_KEY)
        for shard in self._shards():
            for name, info in _read_header(directory / shard, accepted).items():
                if name in self.tensors:
                    first = self.tensors[name].shard
                    raise CheckpointError(
                        f"{directory}: tensor {name} is in {first} and in {shard}; remove one of "
                        "the two files"
                    )
                self.tensors[name] = info
        self._check_index()
        if self._block is not None:
            self._fold_scales(self._block)

    def read(self, name: str) -> NDArray[Any]:
        """Reads one tensor from disk, in its stored dtype.

        Raises:
            CheckpointError: The tensor is absent or unreadable, or holds a NaN or an infinity.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: tensor {name} is missing")
        info = self.tensors[name]
        path = self.directory / info.shard
        tensor: NDArray[Any]
        if info.scales is not None:
            tensor = self._read_block_scaled(name, info, *info.scales)
            self._check_finite(path, name, tensor)
            return tensor
        try:
            with safe_open(path, "np") as shard:
                if info.part is None:
                    tensor = shard.get_tensor(info.stored or name)
                else:
                    stored, expert, start, stop = info.part
                    rows = slice(start, stop)
                    place = (rows,) if expert is None else (expert, rows)
                    tensor = shard.get_slice(stored)[place]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: tensor {name} cannot be read ({error}); copy the shard again"
            ) from error
        self._check_finite(path, name, tensor)
        return tensor

    def _check_finite(self, path: Path, name: str, tensor: NDArray[Any]) -> None:
        bad = _not_finite(tensor)
        if bad:
            raise CheckpointError(
                f"{path}: tensor {name} holds {bad} values that are not "
                "finite; get an undamaged copy of the checkpoint"
            )

    def _fold_scales(self, block: tuple[int, int]) -> None:
        """Joins every FP8 matrix with its scales, which are no tensors of the model."""
        for name, info in list(self.tensors.items()):
            if info.dtype != block_scaled.CODES:
                continue
            scale_name = name + block_scaled.SCALE_SUFFIX
            scales = self.tensors.pop(scale_name, None)
            wanted = block_scaled.blocks(info.shape, block)
            if len(info.shape) != 2 or scales is None or scales.shape != wanted:
                found = "no such tensor" if scales is None else f"shape {list(scales.shape)}"
                raise CheckpointError(
                    f"{self.directory / info.shard}: FP8 tensor {name} of shape "
                    f"{list(info.shape)} needs scales {scale_name} of shape {list(wanted)}, found "
                    f"{found}; give the checkpoint as it was published, or in bfloat16"
                )
            self.dropped[scale_name] = block_scaled.REASON
            self.tensors[name] = replace(
                info, dtype=block_scaled.READ_AS, scales=(scale_name, scales)
            )

    def _read_block_scaled(
        self, name: str, info: TensorInfo, scale_name: str, scales: TensorInfo
    ) -> NDArray[Any]:
        """Reads a matrix of FP8 codes, multiplied by the scales of its blocks."""
        assert self._block is not None
        stored = info.stored or name
        codes_NK = _stored_bytes(self.directory / info.shard, stored).view(block_scaled.CODES)
        path = self.directory / scales.shard
        try:
            with safe_open(path, "np") as shard:
                scale_IJ = shard.get_tensor(scale_name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: tensor {scale_name} cannot be read ({error}); copy the shard again"
            ) from error
        return block_scaled.dequantized(codes_NK.reshape(info.shape), scale_IJ, self._block)

    def divide(self, stored: str, parts: Mapping[str, Part]) -> None:
        """Replaces a tensor by its parts, which are then read one by one.

        Args:
            stored: Stored name of the tensor.
            parts: Parts by their new names.
        """
        whole = self.tensors.pop(stored)
        for name, part in parts.items():
            part = part._replace(stored=whole.stored or stored)
            first = 0 if part.expert is None else 1
            shape = (part.stop - part.start, *whole.shape[first + 1 :])
            self.tensors[name] = TensorInfo(whole.shard, whole.dtype, shape, part)

    def rename(self, name: str, new: str) -> None:
        """Gives a stored tensor the name that the model knows it by."""
        info = self.tensors.pop(name)
        self.tensors[new] = replace(info, stored=info.stored or name)

    def drop(self, name: str, reason: str) -> None:
        """Leaves a tensor out from now on.

        Args:
            name: Name of the tensor.
            reason: Reason for the ledger of pruning.
        """
        del self.tensors[name]
        self.dropped[name] = reason

    def fingerprint(self, digests: Digests | None = None) -> str:
        """SHA-256 over the names and digests of `config.json`, the index and all shards, in hex.

        Args:
            digests: Digests that are known already; every byte is read if None.

        Raises:
            CheckpointError: A file cannot be read.
        """
        shards = self._shards()
        index = [] if shards == [SINGLE_FILE] else [INDEX_FILE]
        names = ["config.json", *index, *shards]
        try:
            found = (digests or Digests()).of(self.directory / name for name in names)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename}: cannot be read ({error.strerror}); copy it again"
            ) from error
        lines = (f"{digest} {name}\n" for name, digest in zip(names, found, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _shards(self) -> list[str]:
        if (self.directory / SINGLE_FILE).exists():
            return [SINGLE_FILE]
        if not (self.directory / INDEX_FILE).exists():
            raise CheckpointError(
                f"{self.directory}: neither {SINGLE_FILE} nor {INDEX_FILE} is there; "
                f"{other_weights(self.directory)}"
            )
        index = self._index()
        for shard in index.values():
            if not _is_file_name(shard):
                raise CheckpointError(
                    f"{self.directory / INDEX_FILE}: shard {shard!r} is not a plain file name"
                )
        return sorted(set(index.values()))

    def _index(self) -> dict[str, str]:
        weight_map = _read_json(self.directory / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{self.directory / INDEX_FILE}: no weight_map in it")
        return weight_map

    def _check_index(self) -> None:
        if (self.directory / SINGLE_FILE).exists():
            return
        for name, shard in self._index().items():
            if name not in self.tensors or self.tensors[name].shard != shard:
                raise CheckpointError(
                    f"{self.directory / shard}: tensor {name} is missing, although "
                    f"{INDEX_FILE} places it there; copy the shard again"
                )


class CheckpointWriter:
    """Writer of shards, which writes the index and `config.json` last.

    An interrupted write therefore never looks like a complete checkpoint. Use it as a context
    manager; after an exception neither index nor config is written.

    Args:
        directory: Existing directory.
        config: Content of `config.json`.
        num_shards: Number of shards that will be written.
    """

    def __init__(self, directory: Path, config: dict[str, Any], num_shards: int) -> None:
        self.directory = directory
        self._config = config
        self._num_shards = num_shards
        self._weight_map: dict[str, str] = {}
        self._written = 0
        self._total_bytes = 0

    def __enter__(self) -> Self:
        return self

    def write_shard(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Writes one shard of tensors that are in memory.

        Raises:
            ResourceError: The disk is full.
        """
        layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        self.stream_shard(layout, tensors.values())

    def stream_shard(
        self,
        layout: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
        values: Iterable[NDArray[Any]],
    ) -> None:
        """Writes one shard, with one tensor in memory at a time.

        Args:
            layout: Dtype and shape of every tensor of the shard, by name.
            values: Tensors in the order of `layout`.

        Raises:
            ResourceError: The disk is full.
        """
        self._written += 1
        shard = f"model-{self._written:05d}-of-{self._num_shards:05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in layout.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            word = _DTYPE_WORDS[dtype]
            header[name] = {"dtype": word, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        try:
            with digested(self.directory / shard) as (file, _):
                file.write(struct.pack("<Q", len(text)) + text)
                remaining = iter(values)
                for name, (dtype, shape) in layout.items():
                    value = next(remaining, None)
                    assert value is not None, f"fewer tensors than the layout has: no {name}"
                    tensor = np.ascontiguousarray(value)
                    assert (tensor.dtype, tensor.shape) == (dtype, shape), name
                    file.write(tensor.reshape(-1).view(np.uint8).data)
                    # Otherwise they would be in memory until the next one has been read.
                    del value, tensor
                assert next(remaining, None) is None, "more tensors than the layout has"
        except OSError as error:
            raise disk_error(error, self.directory / shard) from error
        self._weight_map |= dict.fromkeys(layout, shard)
        self._total_bytes += end

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            return
        assert self._written == self._num_shards
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(self._weight_map.items())),
        }
        write_json(self.directory / INDEX_FILE, index)
        write_json(self.directory / "config.json", self._config)


def overwrite(directory: Path, values: Mapping[str, NDArray[Any]]) -> None:
    """Overwrites the values of tensors in place; dtypes, shapes and file sizes do not change.

    Args:
        directory: Checkpoint written by `CheckpointWriter`.
        values: New values by name, in the stored shape; converted to the stored dtype.

    Raises:
        ResourceError: A shard cannot be written.
    """
    tensors = Checkpoint(directory).tensors
    for name, array in values.items():
        info = tensors[name]
        assert array.shape == info.shape, name
        path = directory / info.shard
        try:
            with path.open("r+b") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                start, _ = json.loads(file.read(length))[name]["data_offsets"]
                file.seek(8 + length + start)
                file.write(np.ascontiguousarray(array.astype(info.dtype)).view(np.uint8).data)
        except OSError as error:
            raise disk_error(error, path) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON under a temporary name and renames it, so that readers never see half a file.

    Raises:
        ResourceError: The file cannot be written.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error


def _not_finite(tensor: NDArray[Any]) -> int:
    """Number of values that are infinite or NaN."""
    largest = LARGEST_BITS.get(tensor.dtype)
    if largest is None:
        return int(tensor.size - np.count_nonzero(np.isfinite(tensor)))
    # Bits without the sign order values by magnitude; comparing them is five times as fast.
    magnitude = tensor.view(np.uint16) & np.uint16(0x7FFF)
    if magnitude.max(initial=0) <= largest:
        return 0
    return int(np.count_nonzero(magnitude > largest))


def read_config(place: Path) -> dict[str, Any]:
    """Content of a `config.json`.

    Args:
        place: The file, or a checkpoint's folder.

    Raises:
        CheckpointError: The file is missing, or is no JSON object.
    """
    return _read_config(place / "config.json" if place.is_dir() else place)


def _read_config(path: Path) -> dict[str, Any]:
    """Content of a config that pruned and exported models can hold too."""
    content = _text_config(_read_json(path))
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # infinities, NaN, and halves of surrogate pairs
        raise CheckpointError(
            f"{path} holds a value that JSON in UTF-8 cannot ({error}); correct it"
        ) from error
    return content


def _text_config(content: dict[str, Any]) -> dict[str, Any]:
    """Config of the language model within a model that also sees; any other config as it is."""
    text = content.get("text_config")
    if not isinstance(text, dict) or text.get("model_type") != f"{content.get('model_type')}_text":
        return content
    whole = {key: value for key, value in content.items() if key not in _OF_WHOLE}
    return whole | text


def _read_json(path: Path) -> dict[str, Any]:
    _require_file(path, "give the directory of a Hugging Face checkpoint")
    try:
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, expected at most {LARGEST_JSON_BYTES}; "
                "copy it again"
            )
        text = path.read_text(encoding="utf-8")
        require_content(path, text)
        content = json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{path} cannot be read as JSON (it is nested too deep)") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}); copy the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _require_file(path: Path, advice: str) -> None:
    """Checks that a path is a file; to open a pipe or a device may never end.

    Raises:
        CheckpointError: The path is missing, or something else than a file.
    """
    if path.is_file():
        return
    fault = "is not a file" if path.exists() else "is missing"
    raise CheckpointError(f"{path} {fault}; {advice}")


def _is_file_name(name: object) -> bool:
    """True for the name of a file in the same folder, of printable characters."""
    if not isinstance(name, str) or not name.isprintable() or name in ("", ".", ".."):
        return False
    return Path(name).name == name and len(name) < 256


def _read_header(path: Path, accepted: dict[str, np.dtype[Any]]) -> dict[str, TensorInfo]:
    if path.exists():
        _require_file(path, "copy the shard again")
    infos = {}
    try:
        with open_regular(path) as file:  # safetensors calls an unreadable file missing
            require_content(path, file.read(64).decode("latin-1"))
        with safe_open(path, "np") as shard:
            for name in shard.keys():  # noqa: SIM118 - not a dict
                view = shard.get_slice(name)
                dtype = accepted.get(view.get_dtype())
                if dtype is None:
                    raise CheckpointError(_foreign(path, name, view.get_dtype(), accepted))
                infos[name] = TensorInfo(path.name, dtype, tuple(view.get_shape()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the shard is missing; copy it again") from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: the shard cannot be read ({error.strerror or error}); give a readable copy"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: the shard is truncated or damaged ({error}); copy it again"
        ) from error
    return infos


def _stored_bytes(path: Path, name: str) -> NDArray[np.uint8]:
    """Bytes of a tensor of a dtype that safetensors cannot give numpy."""
    try:
        with open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            start, stop = json.loads(file.read(length))[name]["data_offsets"]
            file.seek(8 + length + start)
            return np.frombuffer(file.read(stop - start), np.uint8)
    except OSError as error:
        raise CheckpointError(
            f"{path}: tensor {name} cannot be read ({error}); copy the shard again"
        ) from error


def _foreign(path: Path, name: str, word: str, accepted: Iterable[str]) -> str:
    """Message for a tensor of a dtype that is not accepted."""
    meaning = f" ({_FOREIGN[word]})" if word in _FOREIGN else ""
    way = (
        "save it with torch_dtype=float32 in transformers"
        if word == "F64"
        else "give the checkpoint that these weights were quantized from"
    )
    return (
        f"{path}: tensor {name} is stored as {word}{meaning}, expected one of "
        f"{', '.join(accepted)}; {way}"
    )
