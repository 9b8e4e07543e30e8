"""Cards (`README.md`) of exported and pruned models: facts, code that runs them, and licence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import moe_export
from moe_export.artifacts.formats import TensorFormats
from moe_export.documents.exported_tokenizer import TextStart
from moe_export.families.base import ModelSpec
from moe_export.families.states import fixed_bytes, token_bytes
from moe_export.graph.metadata import first_runtime
from moe_export.op.platforms import PlatformName, named, this_platform
from moe_export.op.spec import Dtype, Layout
from moe_export.reporting import card_snippets as snippets
from moe_export.reporting.card_source import Source
from moe_export.reporting.units import percent, size
from moe_export.system.disk import disk_error

CARD_FILE = "README.md"

UNMEASURED = (
    "Accuracy, memory and speed were measured after this file was written. The report of the run, "
    "`report/report.md`, has them, and `report/cards` has this card with them."
)
"""Paragraph that the complete card of the report stage has results in place of."""

PADDING = (
    "Rows of a batch may be padded on either side, with 0 in `attention_mask` there. With "
    "`logits_from` -1 the logits are those of the last token of each row."
)
"""Paragraph about batches."""

TRANSFORMERS_JS = (
    "With transformers.js 4, which reads the folder `onnx`, in Node or the browser "
    "(`npm install --ignore-scripts @huggingface/transformers@4`):"
)
"""Heading of the code for transformers.js. The install script of onnxruntime-node, which comes with
it, downloads libraries for CUDA."""


@dataclass(frozen=True)
class Pruning:
    """Expert dimensions of a model before and after pruning, shared experts included."""

    kept: int
    whole: int

    @property
    def share(self) -> float:
        """Kept share of the expert dimensions, 0 to 1."""
        return self.kept / self.whole if self.whole else 1.0

    @classmethod
    def of(cls, spec: ModelSpec, whole: ModelSpec) -> Pruning:
        """Counts the dimensions of a model and of the same model before pruning."""
        return cls(_dimensions(spec), _dimensions(whole))


@dataclass(frozen=True)
class ExportFacts:
    """Facts that the card of an exported model states.

    Attributes:
        source: Model that it was made from.
        spec: Sizes and formats of the exported model.
        pruning: Dimensions before and after pruning.
        dtype: Dtype of activations, cache and of weights that are not quantized.
        layout: Layout of the experts' weights.
        library: File name of the operator library beside the model; None if there is none.
        platforms: Platforms with a library of their own beside the model, one of them
            `library`; empty if the library is that of the exporting machine.
        data_bytes: Size of the weights' file.
        start: Beginning of a text.
        ends: Ids of the tokens that end a text.
        licence_files: Names of the licence files beside the model.
        web: True if the model has the names of transformers.js too.
    """

    source: Source
    spec: ModelSpec
    pruning: Pruning
    dtype: Dtype
    layout: Layout
    library: str | None
    data_bytes: int
    start: TextStart
    ends: Sequence[int]
    licence_files: Sequence[str]
    web: bool = False
    platforms: Sequence[PlatformName] = ()


def export_card(facts: ExportFacts) -> str:
    """Card of an exported model."""
    spec = facts.spec
    rows = {
        "made from": facts.source.name,
        "family": spec.family.model_type,
        "expert dimensions kept": _kept(facts.pruning),
        "experts per token": _experts_text(spec),
        "formats": formats_text(spec),
        "activations and KV cache": facts.dtype,
        "weights": f"{size(facts.data_bytes)}, {spec.parameters:,} parameters",
        "KV cache": _cache_text(spec, facts.dtype),
        "context": f"{spec.max_positions:,} tokens",
        "operator library": _library(facts),
    }
    tags = ["onnx", "onnxruntime", "mixture-of-experts", *_pruned_tag(facts.pruning)]
    return _page(
        _front_matter(facts.source, "onnxruntime", tags, facts.licence_files),
        f"# {facts.source.name} for ONNX Runtime",
        f"Made by moe-export {moe_export.__version__}.",
        _table(rows),
        UNMEASURED,
        *_export_code(facts),
        *_licence(facts.source, facts.licence_files),
    )


def prune_card(
    source: Source, spec: ModelSpec, pruning: Pruning, licence_files: Sequence[str], padded: bool
) -> str:
    """Card of a pruned checkpoint, or of its twin that is padded with zeros."""
    rows = {
        "made from": source.name,
        "family": spec.family.model_type,
        "expert dimensions kept": _kept(pruning),
        "parameters": f"{spec.parameters:,}" + (", zeros included" if padded else ""),
    }
    register = "" if padded else snippets.REGISTER
    library = "transformers" if padded else "moe-export"
    tags = ["mixture-of-experts", *_pruned_tag(pruning)]
    note = (
        "The experts that were cut are filled up with zeros, so that transformers and other "
        "loaders take this checkpoint as it is."
        if padded
        else "The experts have unequal widths, which transformers loads only after "
        "`import moe_export` (`pip install moe-export`)."
    )
    return _page(
        _front_matter(source, library, tags, licence_files),
        f"# {source.name}, pruned",
        f"Made by moe-export {moe_export.__version__}. {note}",
        _table(rows),
        "## Run it in this folder",
        snippets.filled(snippets.TRANSFORMERS, register=register),
        *_licence(source, licence_files),
    )


def tune_card(
    source: Source, spec: ModelSpec, pruning: Pruning, licence_files: Sequence[str], method: str
) -> str:
    """Card of a tuned checkpoint, pruned before or not."""
    rows = {
        "made from": source.name,
        "family": spec.family.model_type,
        "trained": method,
        "experts per token": _experts_text(spec),
        "parameters": f"{spec.parameters:,}",
    }
    is_pruned = pruning.kept < pruning.whole
    if is_pruned:
        rows["expert dimensions kept"] = _kept(pruning)
    tags = ["mixture-of-experts", *_pruned_tag(pruning)]
    # Other loaders would leave vectors and biases out.
    is_ours = is_pruned or spec.compressed is not None or spec.condensers is not None
    library = "moe-export" if is_ours else "transformers"
    return _page(
        _front_matter(source, library, tags, licence_files),
        f"# {source.name}, tuned",
        f"Made by moe-export {moe_export.__version__}. `tuning.json` has the losses of training "
        "and those on held-out documents.",
        _table(rows),
        "## Run it in this folder",
        snippets.filled(snippets.TRANSFORMERS, register=snippets.REGISTER if is_ours else ""),
        *_licence(source, licence_files),
    )


def write_card(directory: Path, card: str) -> None:
    """Writes the card of the model in a folder.

    Raises:
        ResourceError: The file cannot be written.
    """
    try:
        (directory / CARD_FILE).write_text(card, encoding="utf-8")
    except OSError as error:
        raise disk_error(error, directory / CARD_FILE) from error


def _experts_text(spec: ModelSpec) -> str:
    """Experts per token in words, such as `4, and the vectors of 4 more`."""
    if spec.compressed is not None:
        return f"{spec.active_experts}, and the vectors of {spec.compressed.auxiliary} more"
    if spec.condensers is not None and spec.condensers.count:
        return f"{spec.chosen_experts}, and {spec.condensers.count} that every token gets"
    return str(spec.active_experts)


def formats_text(spec: ModelSpec) -> str:
    """Formats of the weights in words, such as `experts int4, dense int8, embedding float`."""
    if spec.quantization.is_float:
        return "nothing is quantized"
    formats = TensorFormats.of(spec.quantization)
    experts = formats.experts
    named = experts if isinstance(experts, str) else " and ".join(dict.fromkeys(experts))
    words = [f"experts {named}", f"dense {formats.dense}", f"embedding {formats.embedding}"]
    if formats.lm_head is not None:
        words.append(f"lm_head {formats.lm_head}")
    return f"{', '.join(words)}, in groups of {formats.group_size}"


def _cache_text(spec: ModelSpec, dtype: Dtype) -> str:
    """Size of the cache of a sequence, which may have a part that its tokens do not change."""
    fixed = fixed_bytes(spec, dtype)
    text = f"{size(token_bytes(spec, dtype))} per token"
    return f"{text}, and {size(fixed)} per sequence" if fixed else text


def _dimensions(spec: ModelSpec) -> int:
    return sum(map(sum, spec.widths)) + sum(width or 0 for width in spec.shared_widths)


def _kept(pruning: Pruning) -> str:
    return f"{percent(pruning.share)} ({pruning.kept:,} of {pruning.whole:,})"


def _pruned_tag(pruning: Pruning) -> list[str]:
    return ["pruned"] if pruning.kept < pruning.whole else []


def _library(facts: ExportFacts) -> str:
    if facts.layout == "packed":
        place = f"`{facts.library}`" if facts.library else "not in this folder"
        return f"needed, {place}; {_systems(facts)} only"
    if facts.library is None:
        return "not in this folder; ONNX Runtime runs the model without it"
    systems = _systems(facts)
    if facts.platforms:
        return f"one each for {systems}; ONNX Runtime runs the model without it"
    return f"`{facts.library}` ({systems}) is faster; ONNX Runtime runs the model without it"


def _systems(facts: ExportFacts) -> str:
    """Platforms of the libraries beside the model."""
    if facts.platforms:
        return ", ".join(facts.platforms)
    here = this_platform()
    return "this system" if here is None else here.name


def _registration(facts: ExportFacts, comment: str) -> str:
    """Lines that register the library beside the model."""
    if not facts.platforms:
        return f'options.register_custom_ops_library("./{facts.library}"){comment}\n'
    return (
        f"{_library_here(facts)}"
        f'options.register_custom_ops_library(f"./{{libraries[system]}}"){comment}\n'
    )


def _library_here(facts: ExportFacts) -> str:
    """Lines that pick the library of the system that they run on."""
    names = {named(name).words: named(name).exported for name in facts.platforms}
    files = "".join(f'    "{words}": "{name}",\n' for words, name in names.items())
    return snippets.LIBRARY_HERE.substitute(files=files)


def _genai_code(facts: ExportFacts) -> str:
    """Code for onnxruntime-genai, whose config can name one library alone."""
    several = bool(facts.platforms)
    return snippets.filled(
        snippets.GENAI,
        imports="import json\nimport platform\n\n" if several else "",
        config=_library_here(facts) + snippets.GENAI_LIBRARY if several else "",
        model="config" if several else '"."',
        special=snippets.SPECIAL if facts.start.has_bos else "",
        ends=list(facts.ends),
    )


def _export_code(facts: ExportFacts) -> list[str]:
    ends = list(facts.ends)
    parts = ["## Run it in this folder", "With moe-export:", snippets.filled(snippets.MOE_EXPORT)]
    if facts.layout == "packed" and facts.library is None:
        return [*parts, "ONNX Runtime alone needs the operator library, which is not here."]
    library = ""
    if facts.library is not None:
        comment = "" if facts.layout == "packed" else snippets.FASTER
        library = _registration(facts, comment)
    oldest, has_states = first_runtime(facts.spec), facts.spec.has_fixed_states
    cache = snippets.STATES if has_states else snippets.CACHE.substitute(dtype=facts.dtype)
    parts += [
        f"With ONNX Runtime {oldest} or newer (`pip install onnxruntime tokenizers`):",
        snippets.filled(
            snippets.ONNX_RUNTIME,
            imports="import platform\n\n" if facts.platforms else "",
            library=library,
            cache=cache,
            ends=ends,
            bos="" if facts.start.missing_bos is None else f"[{facts.start.missing_bos}] + ",
        ),
        PADDING,
        "With onnxruntime-genai 0.18 (`pip install 'onnxruntime-genai==0.18.*'`):",
        _genai_code(facts),
    ]
    if facts.platforms:
        parts.append(
            f"`genai_config.json` names `{facts.library}`; other applications elsewhere name "
            "another in this way, or by the key `custom_ops_library` in that file."
        )
    if facts.start.has_bos:
        parts.append(
            "A text begins with BOS, which onnxruntime-genai adds only with that option. Leave the "
            "option out for a prompt made by a chat template that writes BOS itself."
        )
    if facts.web:
        parts += [
            TRANSFORMERS_JS,
            snippets.filled(snippets.TRANSFORMERS_JS, "js"),
        ]
    return parts


def _front_matter(
    source: Source, library: str, tags: Sequence[str], licence_files: Sequence[str]
) -> str:
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    if source.hub_id is not None:
        lines.append(f"base_model: {source.hub_id}")
    licence = dict(source.licence)
    if not licence and licence_files:
        licence = {"license": "other", "license_link": licence_files[0]}
    lines += [f'{key}: "{value}"' for key, value in licence.items()]
    lines += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    return "\n".join(lines)


def _licence(source: Source, licence_files: Sequence[str]) -> list[str]:
    named = source.licence.get("license_name") or source.licence.get("license")
    text = f"The licence of {source.name} applies"
    text += f": {named}." if named else "; its model card names none."
    if licence_files:
        text += f" Its files are here: {', '.join(f'`{name}`' for name in licence_files)}."
    return ["## Licence", text]


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {rows[key]} |" for key in rows)])


def _page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"
