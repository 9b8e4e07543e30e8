"""Recipes: one strict section per stage, and the only place where defaults are written.

A setting that changes *what* comes out is a recipe key; one that changes only where or how fast
(run directory, threads) is a command-line flag, so that it can never change a result's key.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from moe_export.quantization import (
    DenseFormat,
    EmbeddingFormat,
    ExpertFormat,
    Format,
    Quantization,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Score = Literal[
    "fisher_margin",
    "fisher",
    "rounding_margin",
    "absgrad",
    "activation",
    "router_weighted_activation",
    "magnitude",
    "router_frequency",
    "reap",
    "random",
]
DROPPING_SCORE: Score = "fisher_margin"
ROUNDING_SCORE: Score = "rounding_margin"
"""What choosing formats needs: the ranking, and what rounding costs in the same unit."""

Dtype = Literal["float32", "float16"]
Layout = Literal["portable", "packed"]
Provider = Literal["cpu", "cuda"]
Operator = Literal["native", "portable"]
Cache = Literal["growing", "static", "captured"]


def default_cache(provider: str, operator: str) -> Cache:
    """How the KV cache is held unless a word says so.

    The portable operator's experts wait for the device, which a graph cannot hold.
    """
    if provider == "cpu":
        return "growing"
    return "captured" if operator == "native" else "static"


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: object) -> object:
    """`6GiB`, `500 MB` or a plain number of bytes, as an int; anything else is left as it is."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if match and match[2].upper() in _UNITS:
            return int(float(match[1]) * _UNITS[match[2].upper()])
    return value


ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSettings(Section):
    """The source model.

    `source` is `demo` (the embedded model), a directory, or a Hugging Face id (`owner/name`), which
    is taken from the local cache or, where the network allows, fetched at `revision`.
    """

    source: str = Field(min_length=1)
    revision: str | None = None


class Source(Section):
    """One origin of documents; exactly one of `demo`, `text`, `jsonl` and `hub` names it.

    demo:  a kind of the embedded tasks.
    text:  a local text file; blank lines separate documents, which are packed to whole sequences.
    jsonl: a local file of JSON objects; `text`, `prompt` with `answer`, or `messages`.
    hub:   a Hugging Face data set id, with `split`, `config` and the same fields as jsonl.
    """

    demo: Literal["arithmetic", "sums", "facts", "strings", "text"] | None = None
    text: str | None = None
    jsonl: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    prompt_field: str | None = None
    answer_field: str | None = None
    chat_template: bool = False
    weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        named = [kind for kind in ("demo", "text", "jsonl", "hub") if getattr(self, kind)]
        if len(named) != 1:
            raise ValueError(f"give exactly one of demo, text, jsonl, hub; {len(named)} are given")
        if (self.prompt_field is None) != (self.answer_field is None):
            raise ValueError("prompt_field and answer_field go together")
        return self

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self.demo or self.text or self.jsonl or self.hub or ""


class CalibrateSettings(Section):
    """`sequences` of at most `sequence_length` tokens are shared out over `sources` by weight."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    sequences: Count = 128
    sequence_length: Annotated[int, Field(ge=2)] = 2048
    seed: Annotated[int, Field(ge=0)] = 0


class ImportanceSettings(Section):
    """Which scores are computed, in batches of at most `batch_tokens` padded tokens.

    shared_expert: of the shared expert's dimensions too; as plan.shared_expert needs it, and not to
                   be given.
    """

    scores: Annotated[tuple[Score, ...], Field(min_length=1)] = ("fisher_margin",)
    batch_tokens: Count = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    shared_expert: bool | None = None


class Formats(Section):
    """What weights are stored in.

    experts:    all matrices of experts, the shared one's too, which are in the same node; `auto`
                has the plan choose for each layer, of `choices`, so that a byte budget loses least.
    dense:      the matrices of attention and of layers without experts.
    lm_head:    as `dense`, unless given; not to be given where it is the embedding's table.
    embedding:  the table that tokens are looked up in, unless the lm_head is the same.
    group_size: weights along the axis that is summed over that share a scale.

    int8 and int4 have codes around 0, uint8 and uint4 a zero point for each group besides
    (asymmetric), nf4 sixteen values that suit normally distributed weights. Experts in bfloat16 are
    floats in two bytes whatever the export's dtype is. The router is always float.
    """

    experts: ExpertFormat | Literal["auto"] = "int4"
    choices: Annotated[tuple[Format, ...], Field(min_length=1)] = ("float", "int8", "int4")
    dense: DenseFormat = "float"
    lm_head: DenseFormat | None = None
    embedding: EmbeddingFormat = "float"
    group_size: Literal[32, 64, 128] = 32

    @field_validator("dense", "lm_head", mode="before")
    @classmethod
    def _no_codebook(cls, word: Any) -> Any:
        if word == "nf4":
            raise ValueError(
                "nf4 is for experts only, since MatMulNBits has no codebook; choose int4 or uint4"
            )
        return word

    def quantization(
        self, experts: ExpertFormat | tuple[ExpertFormat, ...] | None = None
    ) -> Quantization:
        """The formats of a model's tensors.

        Args:
            experts: of the experts, in place of the recipe's word.
        """
        if experts is None:
            assert self.experts != "auto"
            experts = self.experts
        return Quantization(experts, self.dense, self.embedding, self.group_size, self.lm_head)


class QuantizeSettings(Formats):
    """Which weights are quantized, and how; the router never is.

    method: `rtn` rounds to the nearest code, the largest value of a group having the last one;
            `mse` takes for each group the scale that loses the least, in squared error;
            `gptq` makes the weights that are still to be rounded make up for the error of those
            that are, as the calibration set's inputs ask for. It runs the pruned model in torch,
            layer by layer, and takes `mse` for a matrix that fewer tokens reach than it has
            inputs, which `quantization.json` and the report tell.
    damping: what gptq adds to the diagonal of the inputs' second moments, over its mean.
    calibration_tokens: how many of the calibration tokens gptq uses at most.
    """

    method: Literal["rtn", "mse", "gptq"] = "rtn"
    damping: Annotated[float, Field(gt=0)] = 0.01
    calibration_tokens: Count = 65536

    @model_validator(mode="after")
    def _something(self) -> QuantizeSettings:
        if self.experts != "auto" and self.quantization().is_float:
            raise ValueError("everything in the section is float; leave it out")
        return self


class PlanSettings(Section):
    """How much is kept (`keep`, a fraction of all expert dimensions; `target_bytes`, the size of
    the exported weights; or `target_active_bytes`, those of them that a token reads, mean over the
    calibration set) and by what ranking.

    dtype:   what byte budgets count weights in; the export's, unless given.
    formats: the same; always those of the quantize section, and not to be given.
    layout:  the same; always the export's, and not to be given.
    scope:   `model` ranks all dimensions together, `layer` within each layer, `expert` gives every
             expert the same width.
    unit:    `dimension`, or `expert`, which keeps or empties whole experts (for comparison).
    unknown: what becomes of experts that no calibration token reached.
    shared_expert: `keep` leaves the expert that every token takes whole; `prune` scores, ranks and
             budgets its dimensions together with those of the routed ones. Every token reads it.
    """

    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    target_bytes: ByteSize | None = None
    target_active_bytes: ByteSize | None = None
    dtype: Dtype | None = None
    formats: Formats | None = None
    layout: Layout | None = None
    score: Score = "fisher_margin"
    scope: Literal["model", "layer", "expert"] = "model"
    unit: Literal["dimension", "expert"] = "dimension"
    min_width: Annotated[int, Field(ge=0)] = 0
    multiple_of: Count = 1
    unknown: Literal["keep", "prune"] = "keep"
    shared_expert: Literal["keep", "prune"] = "keep"

    @model_validator(mode="after")
    def _one_budget(self) -> PlanSettings:
        budgets = (self.keep, self.target_bytes, self.target_active_bytes)
        if sum(budget is not None for budget in budgets) != 1:
            raise ValueError("give one of keep, target_bytes and target_active_bytes, and no other")
        if self.is_solved and (self.scope != "model" or self.unit != "dimension"):
            raise ValueError(
                "a budget of active bytes, or one that chooses formats, ranks dimensions over the "
                "whole model; leave scope and unit out"
            )
        return self

    @model_validator(mode="after")
    def _shared_expert_is_ranked(self) -> PlanSettings:
        if self.prunes_shared and self.score == "router_frequency":
            raise ValueError(
                "score router_frequency counts what the router sends, which the shared expert gets "
                "without being chosen; take another score, or leave shared_expert out"
            )
        return self

    @property
    def prunes_shared(self) -> bool:
        """Whether the shared expert's dimensions are ranked with the others."""
        return self.shared_expert == "prune"

    @property
    def is_solved(self) -> bool:
        """Whether widths come of `moe_export.planning.allocation`, and not of the ranking alone."""
        auto = self.formats is not None and self.formats.experts == "auto"
        return auto or self.target_active_bytes is not None


class DistillSettings(Section):
    """How routers are distilled.

    steps:           of Adam, whose rate falls evenly to zero.
    learning_rate:   by which part of its size (root mean square) a router's weight moves in the
                     first step. Where little was removed a smaller one does better.
    temperature:     that both models' logits are divided by.
    tokens_per_step: of the calibration tokens, how many a step sees at most.
    """

    steps: Count = 50
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    temperature: Annotated[float, Field(gt=0)] = 1.0
    tokens_per_step: Count = 4096


def _on_or_off(value: object) -> object:
    """`true` for a section of defaults, `false` for none."""
    return ({} if value else None) if isinstance(value, bool) else value


class PruneSettings(Section):
    """What is written beside the pruned checkpoint, and whether what is kept is fitted to it.

    save_padded: also writes the exact zero-padded twin that stock transformers loads.
    refit_down:  fits `down` of each expert to what the whole expert gave on the calibration tokens
                 that reach it, by least squares; a shared expert that is pruned, on all of them.
                 Masking then no longer equals pruning. An expert with fewer tokens than twice its
                 kept dimensions stays as it is, which the ledger tells.
    ridge:       how strongly it is held where it was, over the mean square of its inputs.
    distill_router: `true` or a section; then fits the routers, and nothing else, so that the pruned
                 model's distributions come near those of the unpruned one. Some sequences are held
                 out; what is no better on them is not taken, which the ledger and the report tell.
    calibration_tokens: how many of the calibration tokens either uses at most.
    """

    save_padded: bool = False
    refit_down: bool = False
    ridge: Annotated[float, Field(gt=0)] = 0.01
    distill_router: Annotated[DistillSettings | None, BeforeValidator(_on_or_off)] = None
    calibration_tokens: Count = 65536


class ExportSettings(Section):
    """What is exported, and in which dtype.

    baseline: also the unpruned model, so that both run in the same engine.
    pruned:   also the model that is pruned and not quantized, where the recipe quantizes.
    library:  copies the native operator library beside each model, where runtimes find it by its
              bare name.
    layout:   `portable` runs anywhere; `packed` holds the experts in the native kernels' own
              layout, which loads at once and decodes faster, and needs the native library.
    """

    dtype: Dtype = "float32"
    layout: Layout = "portable"
    baseline: bool = True
    pruned: bool = True
    library: bool = True


class Task(Source):
    """A source of held-out documents to be scored: `items` of them."""

    items: Count = 100


class SpeedSettings(Section):
    """Throughput is measured for every batch size with every number of threads."""

    batch_sizes: tuple[Count, ...] = (1,)
    threads: tuple[Count, ...] = (1, 2)
    prompt_tokens: Count = 128
    new_tokens: Count = 64
    repeats: Count = 5


class GateSettings(Section):
    """Limits; failing one still writes the report and ends with exit code 5.

    max_logit_error, min_greedy_agreement:
        between the pruned model as exported and in torch.
    max_quantized_kl_nats, min_quantized_top1_agreement:
        the same for the quantized one, whose weights are dequantized in torch. What is between
        them is the rounding of activations to int8, which kernels of quantized weights do.
    min_recovery, max_kl_nats:
        between the last variant and the baseline.
    """

    max_logit_error: Annotated[float, Field(gt=0)] = 1e-4
    min_greedy_agreement: Fraction = 1.0
    max_quantized_kl_nats: Annotated[float, Field(gt=0)] = 1e-3
    min_quantized_top1_agreement: Fraction = 0.98
    min_recovery: Fraction | None = None
    max_kl_nats: Annotated[float, Field(gt=0)] | None = None


class ValidateSettings(Section):
    """What is measured on the exported model, on which providers, and the limits.

    operator: `native` runs the experts in the native library, `portable` as the function of
              standard operators that the model carries; never one in place of the other.
    cache:    how the KV cache is held while tokens are decoded. `growing` gives a longer one at
              every step; `static` writes into one of full length; `captured` does too and has ONNX
              Runtime capture the step in a CUDA graph, for the provider cuda and the native
              operator. Unless given, `growing` on cpu; on cuda `captured`, or `static` with the
              portable operator.
    """

    providers: Annotated[tuple[Provider, ...], Field(min_length=1)] = ("cpu",)
    operator: Operator = "native"
    cache: Cache | None = None
    tasks: tuple[Task, ...] = ()
    greedy_tokens: Count = 64
    greedy_prompts: Count = 4
    sequence_length: Annotated[int, Field(ge=2)] = 2048
    speed: SpeedSettings = SpeedSettings()
    gates: GateSettings = GateSettings()

    @model_validator(mode="after")
    def _captured_where_it_can_be(self) -> ValidateSettings:
        if self.cache == "captured" and (self.providers != ("cuda",) or self.operator != "native"):
            raise ValueError(
                "cache captured needs the provider cuda alone and the operator native; choose "
                "static, or leave cache out"
            )
        return self

    def cache_on(self, provider: str) -> Cache:
        """How the KV cache is held on a provider."""
        return self.cache or default_cache(provider, self.operator)


class ReportSettings(Section):
    """`title` heads the report."""

    title: str | None = None


class BakeoffSettings(Section):
    """Compares rankings: every score at every `keep`, on one calibration draw per seed. The shared
    expert stays whole, so that rankings of whole experts compare with the others.
    """

    scores: Annotated[tuple[Score, ...], Field(min_length=1)]
    keeps: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    whole_expert_scores: tuple[Score, ...] = ()
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]


class SweepSettings(Section):
    """What `moe-export sweep` compares: every `keep` with every format of the experts; and at every
    `budget`, a share of the bytes of the unpruned model exported, each format filled up to it and
    the plan's own choice (`quantize.experts: auto`). All else is the plan section's, and so is
    whether the shared expert is pruned.
    """

    keeps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0, 0.75, 0.5, 0.25)
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = ("float", "int8", "int4")
    budgets: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.4, 0.3, 0.2)


class Recipe(Section):
    """A whole recipe: a run of the main job, or, with `bakeoff`, a comparison of rankings; of
    `sweep` only the command of that name takes notice.
    """

    model: ModelSettings
    calibrate: CalibrateSettings
    importance: ImportanceSettings = ImportanceSettings()
    plan: PlanSettings | None = None
    prune: PruneSettings = PruneSettings()
    quantize: QuantizeSettings | None = None
    export: ExportSettings = ExportSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    report: ReportSettings = ReportSettings()
    bakeoff: BakeoffSettings | None = None
    sweep: SweepSettings = SweepSettings()

    @model_validator(mode="before")
    @classmethod
    def _plan_counts_export_dtype(cls, content: Any) -> Any:
        """A byte budget means the exported file, so the plan takes the export's dtype."""
        if isinstance(content, dict) and isinstance(content.get("plan"), dict):
            export = content.get("export")
            dtype = export.get("dtype") if isinstance(export, dict) else None
            default = ExportSettings.model_fields["dtype"].default
            content = content | {"plan": {"dtype": dtype or default} | content["plan"]}
        return content

    @model_validator(mode="after")
    def _one_kind(self) -> Recipe:
        if (self.plan is None) == (self.bakeoff is None):
            raise ValueError("a recipe has a plan section or a bakeoff section, and not both")
        if self.plan is not None and self.plan.formats is not None:
            raise ValueError("plan.formats is taken from the quantize section; leave it out")
        if self.importance.shared_expert is not None:
            raise ValueError("importance.shared_expert follows plan.shared_expert; leave it out")
        if self.plan is not None and self.plan.layout is not None:
            raise ValueError("plan.layout is taken from the export section; leave it out")
        if self.export.layout == "packed" and self.validate_.operator == "portable":
            raise ValueError(
                "export.layout packed runs in the native library only; set validate.operator to "
                "native, or export.layout to portable"
            )
        if "cuda" in self.validate_.providers and self.export.dtype == "float32":
            raise ValueError(
                "validate.providers has cuda, and ONNX Runtime's CUDA provider has no attention in "
                "float32; set export.dtype to float16"
            )
        if "cuda" in self.validate_.providers and self.export.layout == "packed":
            raise ValueError(
                "validate.providers has cuda, and export.layout packed is the layout of the CPU's "
                "kernels; set export.layout to portable"
            )
        auto = self.quantize is not None and self.quantize.experts == "auto"
        if auto and self.plan is not None and self.plan.keep is not None:
            raise ValueError(
                "quantize.experts: auto needs a budget; give plan.target_bytes or "
                "plan.target_active_bytes in place of plan.keep"
            )
        if auto and self.plan is not None and self.plan.score != DROPPING_SCORE:
            raise ValueError(
                "quantize.experts: auto weighs dropping against rounding in one unit, which only "
                f"plan.score {DROPPING_SCORE} has"
            )
        if self.bakeoff is not None and self.quantize is not None:
            raise ValueError("a bakeoff quantizes nothing; leave the quantize section out")
        if self.quantize is None and not self.export.pruned:
            raise ValueError(
                "export.pruned is false and nothing is quantized, so there is nothing to export; "
                "leave it out or add a quantize section"
            )
        if self.plan is not None and self.plan.score not in self.importance.scores:
            raise ValueError(
                f"plan.score {self.plan.score} is not in importance.scores "
                f"({', '.join(self.importance.scores)}); add it there"
            )
        return self

    def section(self, stage: str) -> Section | None:
        """The settings of a stage; None if the recipe has no such section."""
        section = getattr(self, "validate_" if stage == "validate" else stage)
        assert section is None or isinstance(section, Section)
        return section

    def plain(self) -> dict[str, Any]:
        """The recipe with every default filled in, as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def settings_of(stage: str, text: str) -> Section:
    """The settings of a stage from their JSON."""
    kind: type[Section] = SETTINGS[stage]
    return kind.model_validate_json(text)


SETTINGS: dict[str, type[Section]] = {"importance": ImportanceSettings}
"""Of the stages that workers share."""
