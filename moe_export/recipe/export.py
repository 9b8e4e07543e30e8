"""The sections of the exported models and of the report."""

from __future__ import annotations

from typing import Literal

from moe_export.op.platforms import PlatformName
from moe_export.op.spec import Dtype, Layout, LinearWord
from moe_export.recipe.base import Section


class ExportSettings(Section):
    """Models that are exported, their dtype and the layout of their experts.

    Attributes:
        dtype: Dtype of activations and of weights that are not quantized.
        layout: `portable` runs anywhere; `packed` holds the weights in the native kernels' own
            layout, which loads at once and decodes faster, and needs the native library.
        linear: Nodes of the matrices of attention, of layers without experts and of the lm_head:
            `standard`, ONNX Runtime's own; `panels`, which run in the native kernels, on the CPU
            only; `auto`, which is panels in the packed layout and standard nodes in the portable
            one.
        baseline: `true` to export the unpruned model too, so that both run in the same engine.
        pruned: `true` to export the model that is pruned and not quantized, besides the quantized
            one.
        library: `true` to copy the native operator library beside each model, where runtimes find
            it by its bare name.
        platforms: Platforms whose libraries are copied beside each model, each under a name of its
            own, such as `libmoe_export_ops-linux_aarch64.so`; without the key, the library of this
            machine under its bare name. Needs `library: true`.
        wheels: Folder with wheels of moe-export-ops, from which the libraries of platforms other
            than this machine's are taken.
        web: `true` to write each model under the names of transformers.js too, in a folder `onnx`,
            such as `onnx/model_q4.onnx`, with a copy of the weights.
        genai_provider: Execution provider that `genai_config.json` names: `cuda`, or none for the
            CPU. Follows `validate.providers` if that has `cuda`.
    """

    dtype: Dtype = "float32"
    layout: Layout = "portable"
    linear: LinearWord = "auto"
    baseline: bool = True
    pruned: bool = True
    library: bool = True
    platforms: tuple[PlatformName, ...] | None = None
    wheels: str | None = None
    web: bool | None = None
    genai_provider: Literal["cuda"] | None = None


class ReportSettings(Section):
    """The report.

    Attributes:
        title: Heading of the report.
    """

    title: str | None = None
