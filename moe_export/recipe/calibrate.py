"""The source model, sources of documents, and the calibration set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from moe_export.recipe.base import MOST, Count, DocumentCount, Factor, Section, Seed


class ModelOverrides(Section):
    """Keys of the source's `config.json` that get other values; unset keys stay as published.

    The model that is pruned, exported and compared with is the one with these values. Every
    `config.json` of the run has the published ones in `moe_export_overrides`.

    Attributes:
        max_position_embeddings: Most positions of a sequence. Rotary tables of exports and the KV
            cache of onnxruntime-genai have this length; Phi-3.5-MoE runs with its original 4096.
        sliding_window: Tokens that attention sees in a family with windows; 0 for all.
        num_experts_per_tok: Number of routed experts that a token is sent to.
    """

    max_position_embeddings: Count | None = None
    sliding_window: Annotated[int, Field(ge=0, le=MOST)] | None = None
    num_experts_per_tok: Count | None = None

    @property
    def keys(self) -> dict[str, int]:
        """New values by config key."""
        return self.model_dump(exclude_none=True)


class ModelSettings(Section):
    """The source model.

    Attributes:
        source: `demo` or `demo-narrow` (the embedded models), a directory, or a Hugging Face id
            (`owner/name`), which is taken from the local cache or, if the network allows, fetched.
        revision: Revision of a Hugging Face id.
        overrides: Keys of its `config.json` that get other values.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    overrides: ModelOverrides = ModelOverrides()


class Source(Section):
    """One origin of documents, named by exactly one of `demo`, `text`, `jsonl` and `hub`.

    Attributes:
        demo: Kind of the embedded tasks.
        text: Local text file in UTF-8, read as one text. A sequence is a window of exactly
            `sequence_length` tokens from it; a blank line is text like any other.
        jsonl: Local file of rows: JSON lines, a JSON array, either compressed by gzip, or Parquet
            (needs `moe-export[parquet]`). A row is one document.
        hub: Hugging Face data set id, with the same fields as jsonl.
        config: Configuration of the data set.
        split: Split of the data set.
        revision: Revision of the data set.
        text_field: Field of a row that holds a document's text.
        prompt_field: Field of a row that holds a prompt; goes with `answer_field`.
        answer_field: Field of a row that holds the answer to a prompt.
        choices_field: Field of a row that holds a list of answers, the right one included; a task
            with it is also scored by which of them is the likeliest.
        eos: `required` if an answer has to end with the end-of-sequence token, `optional` if no
            such token follows answers; base models seldom write it. Unless given, it is required,
            but in a task of `validate` if the exported baseline finds it most likely after fewer
            than half of the answers.
        chat_template: `true` to render documents with the tokenizer's chat template: the prompt as
            a message of the user, or, without `prompt_field`, the row's `messages` or ShareGPT
            `conversations`, with its `tools` or `functions` and `system` if it has them.
        weight: Share of this source, relative to the others, among the sequences and in every
            score but those that are a mean over sequences. If no source gives a weight, all
            contribute as many sequences, and weigh by their tokens in scores. If some do, 1 is
            that of the others.
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
    choices_field: str | None = None
    eos: Literal["required", "optional"] | None = None
    chat_template: bool = False
    weight: Factor | None = None

    @field_validator("text", "jsonl")
    @classmethod
    def _local(cls, path: str | None) -> str | None:
        if path is not None and "://" in path:
            raise ValueError(f"{path!r} is an address; fetch the file, and give its path")
        if path is not None and path.startswith("~"):
            raise ValueError(f"{path!r} begins with ~, which is not expanded; write the whole path")
        return path

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        named = [kind for kind in ("demo", "text", "jsonl", "hub") if getattr(self, kind)]
        if len(named) != 1:
            raise ValueError(f"give exactly one of demo, text, jsonl, hub; {len(named)} are given")
        if (self.prompt_field is None) != (self.answer_field is None):
            raise ValueError("prompt_field and answer_field go together")
        if self.choices_field is not None and self.prompt_field is None:
            raise ValueError("choices_field needs prompt_field and answer_field")
        return self

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self.demo or self.text or self.jsonl or self.hub or ""


class Task(Source):
    """A source of held-out documents that are scored.

    Attributes:
        items: Number of documents.
    """

    items: DocumentCount = 100


class CalibrateSource(Source):
    """A source of calibration sequences, named by exactly one of `demo`, `text`, `jsonl` and `hub`.

    Attributes:
        sequences: Number of its sequences, in place of a share of `calibrate.sequences`. So short
            documents can be many, while `weight` says what they count.
    """

    sequences: DocumentCount | None = None


class CalibrateSettings(Section):
    """The calibration set: token sequences that are drawn from the sources by weight.

    Attributes:
        sources: Origins of the documents.
        sequences: Number of sequences of all sources that do not give their own.
        sequence_length: Most tokens of a sequence.
        seed: Seed of the draw.
        held_out: Further sequences of each source, on which rankings are compared; follows
            `ranking.held_out` and may not be given.
    """

    sources: Annotated[tuple[CalibrateSource, ...], Field(min_length=1)]
    sequences: DocumentCount = 128
    sequence_length: Annotated[int, Field(ge=2, le=MOST)] = 2048
    seed: Seed = 0
    held_out: DocumentCount | None = None

    @property
    def weights(self) -> list[float]:
        """Weight of each source; empty if the recipe gives none."""
        weights = [source.weight for source in self.sources]
        return [] if set(weights) == {None} else [weight or 1.0 for weight in weights]
