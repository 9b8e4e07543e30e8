"""Tasks of lm-eval over the embedded items, in a folder of their own; no network is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from moe_export.demo.tasks import test_items as items_of

CHOICES = 4


def write_tasks(folder: Path, items: int) -> tuple[str, ...]:
    """Writes a task with answers, one with choices and one of whole texts; returns their names."""
    folder.mkdir()
    sums = [
        {"question": item.prompt, "answer": item.answer.strip()}
        for item in items_of("sums", items, seed=1)
    ]
    facts = [_with_choices(number, items) for number in range(items)]
    answered = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    chosen = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    read = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    _write(folder, "sums_answered", sums, answered)
    _write(folder, "facts_chosen", facts, chosen)
    _write(folder, "facts_read", facts, read)
    return "sums_answered", "facts_chosen", "facts_read"


def _with_choices(number: int, items: int) -> dict[str, Any]:
    facts = items_of("facts", items, seed=1)
    answers = [fact.answer.strip() for fact in facts]
    right = answers[number]
    others = [answer for answer in dict.fromkeys(answers) if answer != right]
    wrong = [others[(number + step) % len(others)] for step in range(CHOICES - 1)]
    return {"question": facts[number].prompt, "choices": [right, *wrong], "label": 0}


def _write(folder: Path, name: str, rows: list[dict[str, Any]], task: dict[str, Any]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | task))
