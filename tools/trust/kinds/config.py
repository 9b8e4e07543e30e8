"""`config.json` of every family with a wrong value, or with damaged bytes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from moe_export.families.schema import FLAGS, TOKEN_IDS
from moe_export.testing.families import ROWS, YARN
from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.kinds.base import RIGHT, Case, Kind, copy_model, run_words, write_recipe
from tools.trust.kinds.parity import difference
from tools.trust.mutate import VALUES, change_bytes, change_json, json_bytes

LOGIT_ERROR = 1e-4
"""Largest difference to the logits of transformers."""

MORE_KEYS = (*FLAGS, *TOKEN_IDS, *YARN, "rope_scaling", "rope_parameters", "expert_widths")


class Config(Kind):
    """Configs of all families; accepted ones are exported and compared with transformers."""

    NAME = "config.json"
    WHAT = "values, missing keys and bytes, every family"
    SHARE = 2.5

    def prepare(self) -> None:
        for row in ROWS:
            tiny_checkpoint(self.base / row.model_type, base=row.config)

    def case(self, random: Random, place: Path) -> Case:
        family = random.choice(ROWS).model_type
        model = copy_model(self.base / family, place)
        what = _change(random, model / "config.json")
        write_recipe(place, plan={"keep": 1.0, "score": "magnitude"}, export={"baseline": False})
        commands = [["sizes", "model"], run_words("--until", "export")]
        if random.random() < 0.2:
            commands.insert(1, run_words("--dry-run"))
        return Case(f"{family}: {what}", commands, lambda _: _judge(place))


def _change(random: Random, path: Path) -> str:
    raw = path.read_bytes()
    if random.random() < 0.25:
        raw, what = change_bytes(random, raw)
        path.write_bytes(raw)
        return what
    content, what = json.loads(raw), ""
    for _ in range(random.choice((1, 1, 1, 2))):
        if random.random() < 0.2:
            key, value = random.choice(MORE_KEYS), random.choice(VALUES)
            content[key] = value
            what += f"{key} = {value!r:.60}; "
        else:
            content, change = change_json(random, content)
            what += f"{change}; "
    path.write_bytes(json_bytes(content))
    return what


def _judge(place: Path) -> str:
    found = difference(place / "model", place / "run" / "export" / "pruned")
    if found is None:
        return "transformers refuses this config"
    return RIGHT if found <= LOGIT_ERROR else f"logits differ from transformers by {found:.3g}"
