"""Shards and the index of a checkpoint: headers, offsets and bytes."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import load_file

from moe_export.checkpoint import INDEX_FILE, Checkpoint
from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.kinds.base import RIGHT, Case, Kind, copy_model, run_words, write_recipe
from tools.trust.mutate import change_bytes, change_json, json_bytes

SHARD = "model-00001-of-00002.safetensors"


class Weights(Kind):
    """Accepted shards are read again by safetensors and compared tensor by tensor."""

    NAME = "safetensors"
    WHAT = "headers, lengths and bytes of shards"
    SHARE = 1.2

    def prepare(self) -> None:
        tiny_checkpoint(self.base / "model")

    def case(self, random: Random, place: Path) -> Case:
        model = copy_model(self.base / "model", place)
        what = self._change(random, model)
        write_recipe(place)
        return Case(what, [run_words("--until", "export")], lambda _: _judge(model))

    def _change(self, random: Random, model: Path) -> str:
        shard = model / SHARD
        raw = shard.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        match random.randrange(6):
            case 0 | 1:
                header, what = change_json(random, json.loads(raw[8 : 8 + length]))
                shard.write_bytes(with_header(json_bytes(header), raw[8 + length :]))
            case 2:
                raw, what = change_bytes(random, raw, most=8 + length)
                shard.write_bytes(raw)
            case 3:
                raw, what = change_bytes(random, raw)
                shard.write_bytes(raw)
            case 4:
                size = random.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))
                what = f"header of {size} bytes"
                shard.write_bytes(struct.pack("<Q", size) + raw[8:])
            case _:
                what = _replace(random, shard)
        return what


class Index(Kind):
    """As `Weights`, with the index that tells the shard of each tensor."""

    NAME = "index"
    WHAT = "values and bytes of model.safetensors.index.json"
    SHARE = 0.6

    def prepare(self) -> None:
        tiny_checkpoint(self.base / "model")

    def case(self, random: Random, place: Path) -> Case:
        model = copy_model(self.base / "model", place)
        path = model / INDEX_FILE
        if random.random() < 0.6:
            content, what = change_json(random, json.loads(path.read_bytes()))
            path.write_bytes(json_bytes(content))
        else:
            raw, what = change_bytes(random, path.read_bytes())
            path.write_bytes(raw)
        write_recipe(place)
        return Case(what, [run_words("--until", "export")], lambda _: _judge(model))


def with_header(header: bytes, content: bytes) -> bytes:
    """A shard with another header."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + content


def _replace(random: Random, shard: Path) -> str:
    """Puts something else in the place of a shard."""
    way = random.choice(("pipe", "folder", "zeros", "link", "other"))
    content = shard.read_bytes()
    shard.unlink()
    if way == "pipe":
        os.mkfifo(shard)
    elif way == "folder":
        shard.mkdir()
    elif way == "zeros":
        shard.symlink_to("/dev/zero")
    elif way == "link":
        shard.symlink_to(shard.name)
    else:
        (shard.parent / "model.safetensors").write_bytes(content)
    return f"a shard replaced: {way}"


def _judge(model: Path) -> str:
    checkpoint = Checkpoint(model)
    shards = {info.shard for info in checkpoint.tensors.values()}
    theirs = {name: tensor for shard in shards for name, tensor in _tensors(model / shard).items()}
    if theirs.keys() != checkpoint.tensors.keys() | checkpoint.dropped.keys():
        return "the names of tensors are others than safetensors reads"
    for name in checkpoint.tensors:
        if not np.array_equal(checkpoint.read(name), theirs[name]):
            return f"{name} has other values than safetensors reads"
    return RIGHT


def _tensors(shard: Path) -> dict[str, np.ndarray]:
    return dict(load_file(shard))
