"""Exports and GGUF files of models with random weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from moe_export.bench.models import COPIED, Model
from moe_export.families import spec_of
from moe_export.families.quantized import in_formats
from moe_export.graph.predict import predicted_bytes
from moe_export.planning.shares import uniform_shares
from moe_export.quantization import Quantization
from moe_export.recipe import QuantizeSettings
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.stages.quantize import run as quantize
from moe_export.testing.synthetic_checkpoint import config_of
from moe_export.testing.synthetic_checkpoint import make as make_checkpoint
from moe_export.variants import MODEL_FILE
from tools.gguf.quantize import quantize as quantize_gguf
from tools.gguf.qwen2_moe import convert

FAMILY, SIZE = "qwen2_moe", "qwen1.5-moe-a2.7b"
DTYPE = "float16"
WIDTH, SHARED = 1408, 5632
"""Widths of a routed expert and of the shared one, unpruned."""

SPEEDUP = 1.2
"""`plan.speedup` of recipes/qwen15_50pct_int4.yaml."""

MULTIPLE = 32
"""`plan.multiple_of` of that recipe."""

Form = Literal["int8", "int4"]


@dataclass(frozen=True)
class Shape:
    """Widths of the experts.

    Attributes:
        name: Name in folders and tables.
        routed: Width of each routed expert.
        shared: Width of the shared expert.
    """

    name: str
    routed: int
    shared: int

    def config(self, layers: int) -> dict[str, Any]:
        """Config of a checkpoint of these widths."""
        return config_of(FAMILY, SIZE, layers) | {
            "moe_intermediate_size": self.routed,
            "shared_expert_intermediate_size": self.shared,
        }


@dataclass(frozen=True)
class Variant:
    """An export.

    Attributes:
        shape: Widths of its experts.
        experts: Format of the experts.
        dense: Format of attention and lm_head.
        linear: Nodes of attention and lm_head: ours (`panels`) or ONNX Runtime's (`standard`).
    """

    shape: Shape
    experts: Form
    dense: Form
    linear: Literal["panels", "standard"] = "panels"

    @property
    def name(self) -> str:
        """Name of its folder and in tables."""
        formats = self.experts if self.experts == self.dense else f"{self.experts}+{self.dense}"
        standard = "" if self.linear == "panels" else " MatMulNBits"
        return f"{self.shape.name} {formats}{standard}"


def active_bytes(shape: Shape, experts: str, dense: str, layers: int) -> int:
    """Bytes of weights that a token reads, if experts are chosen equally often."""
    spec = in_formats(spec_of(shape.config(layers)), Quantization(experts, dense))
    return predicted_bytes(spec, DTYPE, "packed").active_bytes(spec, uniform_shares(spec))


def peer_bytes(layers: int) -> int:
    """Bytes of weights that a token reads of `Q4_0`, unpruned; its lm_head is in Q6_K.

    Q4_0 has 18 bytes for 32 weights, as our int4 has with its scale; Q6_K has 210 for 256.
    """
    config = UNPRUNED.config(layers)
    head = config["vocab_size"] * config["hidden_size"]
    return active_bytes(UNPRUNED, "int4", "int4", layers) + head * 210 // 256 - head * 18 // 32


@cache
def planned_shape() -> Shape:
    """Half of the routed width, and as much of the shared one as a plan with `SPEEDUP` leaves.

    The bytes are those of 24 layers in the recipe's formats. A plan for real weights moves widths
    between experts and layers, but keeps these bytes.
    """
    limit = active_bytes(UNPRUNED, "int4", "int8", 24) / SPEEDUP
    widths = range(SHARED, 0, -MULTIPLE)
    shapes = (Shape("planned", WIDTH // 2, width) for width in widths)
    return next(shape for shape in shapes if active_bytes(shape, "int4", "int8", 24) <= limit)


UNPRUNED = Shape("unpruned", WIDTH, SHARED)
HALF = Shape("half", WIDTH // 2, SHARED)
BOTH = Shape("both half", WIDTH // 2, SHARED // 2)


def variants() -> tuple[Variant, ...]:
    """All exports; those of one shape are neighbours."""
    return (
        Variant(UNPRUNED, "int4", "int4"),
        Variant(UNPRUNED, "int4", "int8"),
        Variant(UNPRUNED, "int8", "int8"),
        Variant(HALF, "int4", "int4"),
        Variant(HALF, "int4", "int8"),
        Variant(HALF, "int4", "int8", "standard"),
        Variant(HALF, "int8", "int8"),
        Variant(planned_shape(), "int4", "int8"),
        Variant(BOTH, "int4", "int4"),
    )


PEERS = ("Q4_0", "Q8_0")
"""Types of the GGUF files of the unpruned model."""


def prepare(home: Path, layers: int, names: Sequence[str], libraries: Path) -> None:
    """Writes exports and files that are not there yet.

    Args:
        home: Folder of the models of this depth.
        layers: Number of layers.
        names: Names of variants and peers.
        libraries: Folder of llama.cpp's libraries.
    """
    wanted = [one for one in variants() if one.name in names]
    wanted = [one for one in wanted if not (home / one.name / MODEL_FILE).exists()]
    peers = [kind for kind in PEERS if kind in names and not gguf(home, kind).exists()]
    shapes = dict.fromkeys([one.shape for one in wanted] + [UNPRUNED] * bool(peers))
    for shape in shapes:
        source = home / "source"
        shutil.rmtree(source, ignore_errors=True)
        make_checkpoint(shape.config(layers), source)
        _convert(source, home, peers if shape == UNPRUNED else [], libraries)
        _export(source, home, [one for one in wanted if one.shape == shape])
        shutil.rmtree(source)


def gguf(home: Path, kind: str) -> Path:
    """Path of a GGUF file."""
    return home / f"{kind}.gguf"


def models(home: Path, names: tuple[str, ...], libraries: Path) -> Iterator[Model]:
    """Models of the bench by the names of variants and peers."""
    for name in names:
        if name in PEERS:
            yield Model(name, gguf(home, name), llama_cpp=libraries)
        else:
            stored = name.removesuffix(COPIED)
            yield Model(name, home / stored, copied=stored != name)


def _convert(source: Path, home: Path, kinds: list[str], libraries: Path) -> None:
    if kinds:
        floats = home / "bfloat16.gguf"
        convert(source, floats)
        for kind in kinds:
            part = home / "part.gguf"
            quantize_gguf(floats, part, kind, libraries, threads=2)
            part.rename(gguf(home, kind))
        floats.unlink()


def _export(source: Path, home: Path, wanted: list[Variant]) -> None:
    for formats in dict.fromkeys((variant.experts, variant.dense) for variant in wanted):
        quantized = home / "quantized"
        shutil.rmtree(quantized, ignore_errors=True)
        quantized.mkdir()
        experts, dense = formats
        settings = QuantizeSettings(experts=experts, dense=dense, method="rtn")
        quantize(Job(settings=settings, model=source, folders={"prune": source}, out=quantized))
        for variant in wanted:
            if (variant.experts, variant.dense) == formats:
                part = home / "part"
                shutil.rmtree(part, ignore_errors=True)
                export_model(quantized, part, DTYPE, layout="packed", linear=variant.linear)
                part.rename(home / variant.name)
        shutil.rmtree(quantized)
