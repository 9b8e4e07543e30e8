"""Disk space, memory and time of a recipe, predicted from the config of its model alone.

Bytes on disk follow from the budget. Memory and time follow from `runner.rates`; they tell whether
a run takes seconds or hours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from moe_export.artifacts.exchange import EXCHANGE_TOKENS
from moe_export.artifacts.stage_mark import PredictedCost
from moe_export.checkpoint import read_config
from moe_export.documents.shares import sequence_counts
from moe_export.documents.tokens import (
    CHARACTERS_PER_TOKEN,
    HEAD_CHARACTERS,
    TOKENIZER_FILE,
)
from moe_export.evaluation.tally import CHUNK_BYTES, LOGIT_BATCH_BYTES
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.families.quantized import in_formats
from moe_export.families.stored import stored_tensors
from moe_export.fitting.limits import (
    DIMENSIONS_AT_ONCE,
    FIT_STATES,
    SMALL_MODEL_BYTES,
    STATES_AT_ONCE,
    SWEEPS,
)
from moe_export.graph.predict import predicted_bytes
from moe_export.op.spec import uses_panels
from moe_export.ort.predicted_memory import library_roles, predicted_resident, widened_bytes
from moe_export.passes.limits import LOGIT_BYTES
from moe_export.planning.shares import active_parameters, uniform_shares
from moe_export.quantization import UNQUANTIZED, Quantization
from moe_export.recipe import (
    AUTO,
    ImportanceSettings,
    Recipe,
    Source,
    TuneSettings,
    rounding_pair,
)
from moe_export.recipe.evaluate import TORCH_MODELS
from moe_export.recipe.tune import EXTENDING
from moe_export.runner.rates import (
    ACTIVATIONS,
    COPIED_PER_S,
    ENCODING_FACTOR,
    EVAL_DOCUMENTS,
    EVAL_MODELS,
    EVAL_TOKENS,
    EXPORTED_PER_S,
    FLOPS_PER_S,
    KERNEL_BYTES,
    LIBRARY_BYTES,
    LM_EVAL_BYTES,
    PLANNED_ROW_BYTES,
    PRIMITIVE_BYTES,
    PRIMITIVES,
    PYTHON_BYTES,
    QUANTIZED_PER_S,
    SCORING_COPIES,
    STORED_BYTES,
    TOKEN_BYTES,
    TOKENIZER_FACTOR,
    TORCH_BYTES,
)
from moe_export.runner.steps import Step, steps_of
from moe_export.scores import scores_named
from moe_export.scores.needs import losses_of, states_at_once
from moe_export.system.onednn import ROWS_AT_ONCE
from moe_export.system.prefetch import AHEAD_BYTES
from moe_export.tuning.extension import extended
from moe_export.tuning.methods import check_method
from moe_export.tuning.needs import SAVES, VALUE_BYTES, layer_needs, needs_of, state_bytes

FITTING_PASSES = 3
"""Passes over the tokens of a refit: inputs of each layer, products of its values, and outputs."""


PLAIN_ROWS, BYTES_PER_TOKEN = (".jsonl", ".json"), 4
"""Endings of files of rows that are not compressed, and their bytes for each token."""


@dataclass(frozen=True)
class StageEstimate:
    """Prediction for one step.

    Attributes:
        stage: Folder of the step.
        disk_bytes: Bytes that it writes.
        peak_bytes: Peak resident memory.
        seconds: Duration.
        partial_bytes: Further bytes on the disk until it ends.
        read_bytes: Bytes of weights that each process reads.
        shared_s: Part of the duration that processes divide among them.
    """

    stage: str
    disk_bytes: int
    peak_bytes: int
    seconds: float
    partial_bytes: int = 0
    read_bytes: int = 0
    shared_s: float = 0.0

    def among(self, workers: int) -> StageEstimate:
        """Prediction for several processes as fast as the one; each holds `peak_bytes`."""
        saved = self.shared_s * (1 - 1 / workers)
        return replace(self, seconds=self.seconds - saved, shared_s=self.shared_s - saved)

    def cost(self) -> PredictedCost:
        """Returns the predictions that the mark of the stage states beside its measurements."""
        return PredictedCost(
            wall_s=round(self.seconds, 1),
            peak_resident_bytes=self.peak_bytes,
            output_bytes=self.disk_bytes,
        )


def estimate(recipe: Recipe, model: Path) -> list[StageEstimate]:
    """Predicts every step of a recipe.

    Raises:
        CheckpointError: the model has no readable config, or one of an unknown family.
        RecipeError: the plan prunes a shared expert that the model does not have, a format is not
            known to what runs it, or the embedding is to be quantized and is the lm_head too.
    """
    spec = _tuned(recipe, spec_of(read_config(model)))
    tokenizer = model / TOKENIZER_FILE
    tokenizer_bytes = tokenizer.stat().st_size if tokenizer.is_file() else 0
    models = _Models(recipe, spec, _budgeted(recipe, spec), tokenizer_bytes)
    return [_predicted(step, models) for step in steps_of(recipe)]


def _tuned(recipe: Recipe, spec: ModelSpec) -> ModelSpec:
    """The source with what tuning adds to it.

    Raises:
        RecipeError: The method does not suit the model.
    """
    tune, plan = recipe.tune, recipe.plan
    if tune is None or plan is None or tune.after is not None:
        return spec
    routed = replace(spec, top_k=plan.top_k or spec.top_k)
    check_method(routed, tune.model_copy(update={"top_k": plan.top_k}))
    return extended(routed, tune, chosen=True) if tune.method in EXTENDING else spec


@dataclass(frozen=True)
class _Models:
    """The models of a recipe, and sizes of them that several stages need.

    Attributes:
        recipe: The recipe.
        spec: Sizes of the source model.
        kept: Sizes of the pruned model.
        tokenizer_bytes: Size of its `tokenizer.json`; 0 if there is none.
    """

    recipe: Recipe
    spec: ModelSpec
    kept: ModelSpec
    tokenizer_bytes: int

    @property
    def quantized(self) -> ModelSpec:
        """Sizes of the quantized model."""
        return in_formats(self.kept, _quantization(self.recipe))

    @property
    def exported(self) -> list[ModelSpec]:
        """Models that are exported."""
        models = [self.kept] if self.recipe.export.pruned else []
        models += [self.quantized] if self.recipe.quantize is not None else []
        return models + ([self.spec] if self.recipe.export.baseline else [])

    @cached_property
    def export_bytes(self) -> int:
        """Bytes of the exported weights."""
        export = self.recipe.export
        return sum(
            predicted_bytes(model, export.dtype, export.layout, export.linear).total_bytes
            for model in self.exported
        )

    @cached_property
    def largest_export_bytes(self) -> int:
        """Bytes of the weights of the largest exported model."""
        return max(self.weights_bytes(model) for model in self.exported)

    def weights_bytes(self, model: ModelSpec) -> int:
        """Bytes of the weights of an exported model."""
        export = self.recipe.export
        return predicted_bytes(model, export.dtype, export.layout, export.linear).total_bytes

    @cached_property
    def tokens(self) -> int:
        """Number of calibration tokens."""
        settings = self.recipe.calibrate
        counts = sequence_counts(settings)
        return sum(map(partial(_tokens, settings.sequence_length), settings.sources, counts))

    @property
    def fitting_tokens(self) -> int:
        """Number of calibration tokens that fitting uses."""
        return min(self.tokens, self.recipe.prune.calibration_tokens)

    @property
    def method(self) -> str:
        """Method that rounds the weights."""
        return self.recipe.quantize.method if self.recipe.quantize else "rtn"

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest tensor of the source checkpoint."""
        return STORED_BYTES * max(tensor.elements for tensor in self.spec.tensors.values())

    @property
    def layerwise_bytes(self) -> int:
        """Memory of one layer in torch beside hidden states and inputs of the fitting tokens."""
        states = 4 * 4 * self.spec.hidden_size * self.fitting_tokens
        return TORCH_BYTES - PYTHON_BYTES + 4 * self.spec.largest_part + states


def _tokens(length: int, source: Source, sequences: int) -> int:
    """Tokens of sequences of a source: all full, unless its file is too small for that."""
    most = length * sequences
    if source.jsonl is None or not source.jsonl.endswith(PLAIN_ROWS):
        return most
    path = Path(source.jsonl)
    return min(most, path.stat().st_size // BYTES_PER_TOKEN) if path.is_file() else most


def _predicted(step: Step, models: _Models) -> StageEstimate:
    """The prediction for one step."""
    settings = step.settings
    if isinstance(settings, ImportanceSettings):
        tokens = min(models.tokens, settings.calibration_tokens or models.tokens)
        return importance_estimate(step.folder, settings, models.spec, tokens)
    return replace(STAGE_ESTIMATES[step.stage](models), stage=step.folder)


def _tune(models: _Models) -> StageEstimate:
    """Steps of training, and the held-out documents twice; documents fill their rows."""
    settings = models.recipe.tune
    assert settings is not None
    spec = models.spec if settings.after is None else models.kept
    if settings.only is not None:
        return _tune_by_layer(spec, settings)
    needs = needs_of(spec, settings)
    batch_tokens = settings.rows * settings.sequence_length
    drawn = settings.documents * settings.sequence_length
    steps = settings.steps or math.ceil((settings.epochs or 1) * drawn / batch_tokens)
    state_bytes = 3 * VALUE_BYTES * needs.trained
    flops = needs.flops * (steps + settings.held_out * drawn / batch_tokens)
    return StageEstimate(
        "tune",
        STORED_BYTES * spec.parameters,
        TORCH_BYTES + needs.peak_bytes,
        10 + flops / FLOPS_PER_S["float32"] + SAVES * state_bytes / COPIED_PER_S,
        2 * state_bytes,
    )


def _tune_by_layer(spec: ModelSpec, settings: TuneSettings) -> StageEstimate:
    """Three passes of all documents through a layer, two of them of the source, and its steps."""
    needs = layer_needs(spec, settings)
    drawn = settings.documents * settings.sequence_length
    training = (1 - settings.held_out) * drawn
    steps = settings.steps or math.ceil((settings.epochs or 1) * training / settings.batch_tokens)
    positions = min(training, steps * settings.batch_tokens) + settings.held_out * drawn
    flops = 6 * _active_parameters(spec) * positions + steps * needs.flops
    read = 2 * STORED_BYTES * spec.parameters
    return StageEstimate(
        "tune",
        STORED_BYTES * spec.parameters,
        TORCH_BYTES + needs.peak_bytes,
        10 + flops / FLOPS_PER_S["float32"] + read / COPIED_PER_S,
        state_bytes(spec, round(positions)),
        read,
    )


def _calibrate(models: _Models) -> StageEstimate:
    """Draws sequences; of large files only pieces are encoded."""
    recipe, settings = models.recipe, models.recipe.calibrate
    tokens = models.tokens
    if recipe.plan is not None and recipe.plan.score == AUTO:
        tokens += recipe.ranking.held_out * len(settings.sources) * settings.sequence_length
    peak_bytes = PYTHON_BYTES + TOKENIZER_FACTOR * models.tokenizer_bytes
    if any(source.demo is None for source in settings.sources):
        head_bytes = max(HEAD_CHARACTERS, CHARACTERS_PER_TOKEN * settings.sequence_length)
        peak_bytes += TOKEN_BYTES * tokens + ENCODING_FACTOR * head_bytes
    return StageEstimate("calibrate", 4 * tokens, peak_bytes, 1.0)


def _plan(models: _Models) -> StageEstimate:
    spec = models.spec
    written = 100 * spec.num_layers * spec.num_experts
    rows = sum(map(sum, spec.widths))
    return StageEstimate("plan", written, PYTHON_BYTES + PLANNED_ROW_BYTES * rows, 2.0)


def _ranking(models: _Models) -> StageEstimate:
    recipe, spec, settings = models.recipe, models.spec, models.recipe.ranking
    refits = bool(recipe.prune.refit)
    held = len(recipe.calibrate.sources) * recipe.calibrate.sequence_length * settings.held_out
    held += min(models.tokens, settings.fitting_tokens) if refits else 0
    candidates, finalists = _candidates(recipe)
    read = STORED_BYTES * spec.parameters * (2 + candidates + finalists)
    flops = 2.0 * _active_parameters(spec) * _measured_tokens(models, refits)
    return StageEstimate(
        "ranking",
        1 << 16,
        TORCH_BYTES + LOGIT_BYTES + 4 * (spec.largest_part + 4 * spec.hidden_size * held),
        5 + flops / FLOPS_PER_S["float32"] + read / COPIED_PER_S,
        read_bytes=read,
    )


def _candidates(recipe: Recipe) -> tuple[int, int]:
    """Number of rankings that `plan.score: auto` measures, and of finalists among them."""
    settings = recipe.ranking
    is_solved = recipe.plan is not None and recipe.plan.is_solved
    candidates = len(settings.scores) * (1 if is_solved else len(settings.scopes))
    return candidates, min(settings.finalists, candidates)


def _measured_tokens(models: _Models, refits: bool) -> int:
    """Tokens that run forward to choose a ranking.

    Every candidate runs over a few sequences, every finalist over all held out, and over the tokens
    that it is refitted on; so does the unpruned model, without a refit.
    """
    recipe, settings = models.recipe, models.recipe.ranking
    candidates, finalists = _candidates(recipe)
    each = len(recipe.calibrate.sources) * recipe.calibrate.sequence_length
    tokens = each * ((1 + candidates) * settings.first + (1 + finalists) * settings.held_out)
    if refits:
        tokens += FITTING_PASSES * finalists * min(models.tokens, settings.fitting_tokens)
    return tokens


def _prune(models: _Models) -> StageEstimate:
    distilling = _distilling(models.recipe, models.spec, models.kept, models.fitting_tokens)
    pruned = models.kept.parameters
    fitting = _fitting(models)
    return StageEstimate(
        "prune",
        STORED_BYTES * pruned,
        PYTHON_BYTES + max(2 * models.largest_bytes, fitting.peak_bytes, distilling.peak_bytes),
        1
        + STORED_BYTES * (models.spec.parameters + pruned) / COPIED_PER_S
        + fitting.seconds
        + distilling.seconds,
        fitting.partial_bytes + distilling.partial_bytes,
        STORED_BYTES * models.spec.parameters,
    )


def _fitting(models: _Models) -> StageEstimate:
    """Addition of fitting blocks to the prune stage.

    Both models run forward through each unpruned layer, and the pruned one through the fitted
    layer. A sweep of least squares computes the kept dimensions twice, and their second moments, of
    all experts together if they are small; a step runs forward and back. In memory is a whole
    layer, and after that its kept weights with `down` as it was; with steps of Adam, there are four
    copies more.
    """
    settings, tokens = models.recipe.prune, models.fitting_tokens
    if not settings.refit:
        return StageEstimate("prune", 0, 0, 0.0)
    spec, kept = models.spec, models.kept
    whole, small = _active_parameters(spec), _active_parameters(kept)
    rows = spec.num_layers * spec.active_experts * _width(kept)
    experts = 3 * rows * spec.hidden_size
    at_once = spec.num_experts * _width(kept)
    if at_once <= DIMENSIONS_AT_ONCE:
        solving = tokens * (4 * experts + 2 * spec.num_layers * at_once**2)
    else:
        solving = SWEEPS * tokens * (4 * experts + 2 * rows * _width(kept))
    flops, copies = tokens * (4 * whole + 2 * small) + solving, 4 / 3
    if steps := settings.block_steps:
        flops += solving + 6 * experts * steps.steps * steps.tokens_per_step
        copies = 5.0
    held_bytes = round(4 * max(spec.largest_part, copies * kept.largest_part))
    states = 4 * spec.hidden_size * tokens
    return StageEstimate(
        "prune",
        0,
        TORCH_BYTES - PYTHON_BYTES + held_bytes + FIT_STATES * states,
        flops / FLOPS_PER_S["float32"],
        STATES_AT_ONCE * states,
    )


ROUNDING_BYTES = 32 << 20
"""Memory of the threads that round, beside results that wait; found with docs/results/shapes.md."""


def _quantize(models: _Models) -> StageEstimate:
    gptq_bytes = models.layerwise_bytes if models.method == "gptq" else 0
    # The allocator keeps what rounding ahead took when the largest tensor is read.
    parameters = models.quantized.parameters  # with a tied lm_head's own matrix
    ahead_bytes = min(AHEAD_BYTES, STORED_BYTES * parameters)
    return StageEstimate(
        "quantize",
        _quantized_bytes(models.quantized),
        PYTHON_BYTES + 2 * models.largest_bytes + ahead_bytes + ROUNDING_BYTES + gptq_bytes,
        1 + parameters / QUANTIZED_PER_S[models.method],
        read_bytes=STORED_BYTES * parameters,
    )


def _export(models: _Models) -> StageEstimate:
    libraries = LIBRARY_BYTES * len(models.exported) if models.recipe.export.library else 0
    return StageEstimate(
        "export",
        models.export_bytes * (2 if models.recipe.export.web else 1) + libraries,
        2 * PYTHON_BYTES + 2 * models.largest_bytes,
        2 + models.export_bytes / EXPORTED_PER_S,
        read_bytes=models.export_bytes,
    )


def _validate(models: _Models) -> StageEstimate:
    """Torch runs the pruned model layer by layer; then all exported models score the tasks."""
    validate, length = models.recipe.validate_, models.recipe.calibrate.sequence_length
    scored = sum(_tokens(length, task, task.items) for task in validate.tasks)
    # Torch holds a matrix twice while it is read.
    in_torch = 8 * models.kept.largest_part + LOGIT_BYTES
    return StageEstimate(
        "validate",
        1 << 16,
        TORCH_BYTES + max(in_torch, _scoring_bytes(models, scored)),
        20 + 6.0 * _active_parameters(models.spec) * scored / FLOPS_PER_S["float32"],
        read_bytes=STORED_BYTES * models.kept.parameters + models.export_bytes,
    )


def _scoring_bytes(models: _Models, scored_tokens: int) -> int:
    """Memory of all exported models in ONNX Runtime, and of the logits of each for one batch."""
    settings, export = models.recipe.validate_, models.recipe.export
    logits = min(LOGIT_BATCH_BYTES, 4 * models.spec.vocab_size * scored_tokens)
    # In a float16 model, those in float32 and in float16 stay with the runtime beside our copy.
    logits_bytes = logits * 5 // 2 if export.dtype == "float16" else logits
    on_cpu = "cpu" in settings.providers
    in_library = library_roles(
        native=settings.operator == "native", panels=uses_panels(export.layout, export.linear)
    )
    return SCORING_COPIES * CHUNK_BYTES + sum(
        predicted_resident(models.weights_bytes(model))
        + (widened_bytes(model, export.dtype, in_library) if on_cpu else 0)
        + logits_bytes
        for model in models.exported
    )


def _eval(models: _Models) -> StageEstimate:
    """Tasks of lm-eval, whose documents are not known before they are loaded."""
    settings = models.recipe.eval
    assert settings is not None
    wanted = settings.models or EVAL_MODELS
    of = {"source": models.spec, "baseline": models.spec, "quantized": models.quantized}
    specs = {name: of.get(name, models.kept) for name in wanted}
    documents = len(settings.tasks) * (settings.limit or EVAL_DOCUMENTS)
    flops = 2.0 * documents * EVAL_TOKENS * sum(map(_active_parameters, specs.values()))
    width = 4 if settings.dtype == "float32" else 2
    in_torch = [width * specs[name].parameters for name in TORCH_MODELS if name in specs]
    row_tokens = min(settings.max_length or EVAL_TOKENS, EVAL_TOKENS)
    # Logits, their logarithms, and the copy that the runtime hands over.
    logit_bytes = 3 * 4 * settings.batch_size * row_tokens * models.spec.vocab_size
    return StageEstimate(
        "eval",
        1 << 16,
        TORCH_BYTES + LM_EVAL_BYTES + max([*in_torch, models.largest_export_bytes]) + logit_bytes,
        20 + flops / FLOPS_PER_S[settings.dtype],
    )


def _report(_models: _Models) -> StageEstimate:
    return StageEstimate("report", 1 << 20, 2 * PYTHON_BYTES, 5.0)


def _bakeoff(models: _Models) -> StageEstimate:
    """The whole model runs over the tasks once for every ranking; a refit also over the tokens that
    it fits, and `auto` over what its candidates are measured on.
    """
    recipe, settings = models.recipe, models.recipe.bakeoff
    assert settings is not None
    length = min(recipe.calibrate.sequence_length, settings.sequence_length)
    scored = sum(task.items for task in settings.tasks) * length
    named = sum(score != AUTO for score in settings.scores)
    rankings = named * len(settings.scopes) + len(settings.whole_expert_scores)
    chosen = (named != len(settings.scores)) * _measured_tokens(models, sum(settings.refit) > 0)
    rounds = len(settings.keeps) * len(settings.refit) * len(settings.seeds)
    tokens = scored * (1 + rounds * (rankings + (named != len(settings.scores))))
    tokens += rounds * chosen
    tokens += rounds * (True in settings.refit) * rankings * FITTING_PASSES * models.fitting_tokens
    return StageEstimate(
        "bakeoff",
        1 << 20,
        TORCH_BYTES + LOGIT_BYTES + 4 * models.spec.parameters,
        20 + 2.0 * _active_parameters(models.spec) * tokens / FLOPS_PER_S["float32"],
    )


STAGE_ESTIMATES: dict[str, Callable[[_Models], StageEstimate]] = {
    "tune": _tune,
    "calibrate": _calibrate,
    "ranking": _ranking,
    "plan": _plan,
    "prune": _prune,
    "quantize": _quantize,
    "export": _export,
    "validate": _validate,
    "eval": _eval,
    "report": _report,
    "sweep": _report,
    "bakeoff": _bakeoff,
}
"""Predictions by stage; that of importance depends on the settings of its step."""


def importance_estimate(
    folder: str, settings: ImportanceSettings, spec: ModelSpec, tokens: int
) -> StageEstimate:
    """The importance stage with the settings of its step, which may have more scores than the
    recipe.

    A layer runs forward over all tokens; with a loss it runs forward again, and back.
    """
    element_bytes = 4 if settings.dtype == "float32" else 2
    scores = scores_named(settings.scores)
    losses = len(losses_of(scores))
    passes = 2 + losses if losses else 1
    flops = 2.0 * _active_parameters(spec) * tokens * passes
    if rounding_pair(settings.scores):
        # The exchange runs the model from each layer on with that layer rounded, and whole: as it
        # is, with all layers rounded, and with some shares of the rows dropped.
        exchange_passes = spec.num_layers / 2 + 6
        exchange_tokens = min(tokens, EXCHANGE_TOKENS)
        flops += 2.0 * _active_parameters(spec) * exchange_tokens * exchange_passes
    batch_tokens = min(settings.batch_tokens, tokens)
    activations = _activations(spec)
    peak = TORCH_BYTES + element_bytes * (
        spec.largest_part + batch_tokens * activations * (1 if losses else 0)
    )
    if settings.dtype == "bfloat16":
        peak += _kernels(spec, tokens, batch_tokens, 4 if losses else 2)
    rows = Axis(spec, settings.shared_expert is True and spec.has_shared_expert).rows
    states = states_at_once(scores, spec.num_layers)
    # Each process reads the layers on the way forward and, with a loss, on the way back.
    read = STORED_BYTES * spec.parameters * (2 if losses else 1)
    computing_s = flops / FLOPS_PER_S[settings.dtype]
    return StageEstimate(
        folder,
        8 * rows * len(settings.scores),
        peak + (LOGIT_BYTES if losses else 0),
        5 + computing_s + read / COPIED_PER_S,
        tokens * spec.hidden_size * element_bytes * states,
        read,
        computing_s,
    )


def _kernels(spec: ModelSpec, tokens: int, batch_tokens: int, products: int) -> int:
    """Bytes of oneDNN's code for experts: one shape for each number of tokens sent to an expert,
    rounded up to a multiple of `ROWS_AT_ONCE`.

    With random weights, a third of these numbers are new, until all have occurred.
    """
    batches = math.ceil(tokens / batch_tokens)
    possible = math.ceil(batch_tokens / ROWS_AT_ONCE)
    counts = min(spec.num_layers * spec.num_experts * batches // 3, possible)
    shapes = products * counts
    return KERNEL_BYTES * shapes + PRIMITIVE_BYTES * min(shapes, PRIMITIVES)


def _distilling(recipe: Recipe, spec: ModelSpec, kept: ModelSpec, tokens: int) -> StageEstimate:
    """Addition of distilling routers to the prune stage.

    The unpruned model runs forward once. A step runs the pruned model forward twice, and back to
    its inputs, and reads the layers each time unless the model stays in memory.
    """
    settings = recipe.prune.distill_router
    if settings is None:
        return StageEstimate("prune", 0, 0, 0.0)
    step_tokens = min(settings.tokens_per_step, tokens)
    passes = 2 * tokens * _active_parameters(spec)
    passes += settings.steps * 6 * step_tokens * _active_parameters(kept)
    held, read = spec.largest_part, settings.steps * 2 * STORED_BYTES * kept.parameters
    if 4 * kept.parameters <= SMALL_MODEL_BYTES:
        held, read = max(held, kept.parameters), 0
    activations = _activations(kept)
    state_bytes = 4 * spec.hidden_size
    return StageEstimate(
        "prune",
        0,
        TORCH_BYTES - PYTHON_BYTES + 4 * (held + step_tokens * activations) + LOGIT_BYTES,
        passes / FLOPS_PER_S["float32"] + read / COPIED_PER_S,
        state_bytes * (3 * tokens + (spec.num_layers + 2) * step_tokens),
    )


def _activations(spec: ModelSpec) -> int:
    """Values of a token that a layer keeps for its backward pass."""
    shared_width = max(width or 0 for width in spec.shared_widths)
    return ACTIVATIONS * (spec.active_experts * _width(spec) + shared_width) + 16 * spec.hidden_size


def _budgeted(recipe: Recipe, spec: ModelSpec) -> ModelSpec:
    """The model with its experts at the widths of a uniform plan."""
    plan = recipe.plan
    if plan is None:
        return spec
    axis = Axis(spec, plan.prunes_shared_of(spec.has_shared_expert)).routed_to(plan.top_k)

    def at(keep: float) -> ModelSpec:
        widths = [[round(width * keep) for width in layer] for layer in axis.widths]
        return axis.resized(widths).spec

    def sizes(model: ModelSpec) -> tuple[int, int]:
        """Bytes stored, and read for a token."""
        model = in_formats(model, _quantization(recipe))
        found = predicted_bytes(
            model, recipe.export.dtype, recipe.export.layout, recipe.export.linear
        )
        return found.total_bytes, found.active_bytes(model, uniform_shares(model))

    if plan.keep is not None:
        return at(plan.keep)
    least, most = sizes(at(0.0)), sizes(axis.spec)
    read = round(sizes(spec)[1] / plan.speedup) if plan.speedup else plan.target_active_bytes
    shares = [
        (target - low) / max(high - low, 1)
        for target, low, high in zip((plan.target_bytes, read), least, most, strict=True)
        if target is not None
    ]
    return at(min(max(min(shares), 0.0), 1.0))


def _quantization(recipe: Recipe) -> Quantization:
    section = recipe.quantize
    if section is None:
        return UNQUANTIZED
    # The plan's choice is not known yet; the last choice is usually the smallest.
    experts = section.choices[-1] if section.is_auto else section.experts
    return section.quantization(experts)


def _quantized_bytes(spec: ModelSpec) -> int:
    return sum(
        math.prod(tensor.shape) * (tensor.dtype.itemsize if tensor.dtype else STORED_BYTES)
        for tensor in stored_tensors(spec).values()
    )


def _active_parameters(spec: ModelSpec) -> float:
    """Parameters that one token is multiplied with, if experts are chosen alike."""
    active = active_parameters(spec, uniform_shares(spec))
    assert active is not None
    return active


def _width(spec: ModelSpec) -> int:
    return max(width for layer in spec.widths for width in layer)
