from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from moe_export.errors import RecipeError
from moe_export.recipe import (
    BlockSettings,
    ImportanceSettings,
    RefitSettings,
    ValidateSettings,
    parse_bytes,
)
from moe_export.recipe.load import load_recipe, parse_recipe
from moe_export.recipe.reader import read_yaml
from moe_export.scores import SCORES

RECIPES = Path(__file__).parents[2] / "recipes"

MINIMAL = """\
model: {source: demo}
calibrate:
  sources:
    - {demo: sums}
plan: {keep: 0.5}
"""


def recipe_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_number_with_an_exponent_needs_no_point(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_with(tmp_path, MINIMAL.replace("0.5", "5e-1")), ("plan.keep=4E-1",))
    assert recipe.plan is not None
    assert recipe.plan.keep == 0.4


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path).plain()["model"]["source"]


def test_the_catalog_lists_exactly_the_shipped_recipes() -> None:
    catalog = (RECIPES / "README.md").read_text()
    named = {line.split("`")[1] for line in catalog.splitlines() if line.startswith("| `")}
    assert named == {path.name for path in RECIPES.glob("*.yaml")}


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    import yaml

    recipe = load_recipe(recipe_with(tmp_path, MINIMAL))
    again = recipe_with(tmp_path, yaml.safe_dump(recipe.plain()))
    assert load_recipe(again) == recipe


COMPRESSED = "tune: {method: compressed_experts, sources: [{demo: sums}]}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            MINIMAL.replace("keep", "kepe"),
            "recipe.yaml:5: unknown key 'plan.kepe'; the nearest known key is 'keep'",
        ),
        (
            MINIMAL.replace("demo: sums", "dmeo: sums"),
            "recipe.yaml:4: unknown key 'calibrate.sources.0.dmeo'; the nearest",
        ),
        (
            MINIMAL + "validate: {cache: captured}\n",
            "cache captured needs the provider cuda alone and the operator native; choose static",
        ),
        (
            MINIMAL + "export: {web: true, layout: packed}\n",
            "export.layout packed needs; set export.layout to portable",
        ),
        (
            MINIMAL + "export: {dtype: float16, layout: packed}\nvalidate: {providers: [cuda]}\n",
            "layout packed is the layout of the CPU's kernels; set export.layout to portable",
        ),
        (
            MINIMAL + "export: {dtype: float16, linear: panels}\nvalidate: {providers: [cuda]}\n",
            "export.linear panels has kernels for the CPU only; set export.linear to standard",
        ),
        (
            MINIMAL + "validate: {providers: [cuda]}\n",
            "CUDA provider has no attention in float32; set export.dtype to float16",
        ),
        (
            MINIMAL + "validate: {speed: {thread: [1]}}\n",
            "recipe.yaml:6: unknown key 'validate.speed.thread'; the nearest",
        ),
        (
            MINIMAL.replace("0.5", "1.5"),
            "recipe.yaml:5: 'plan.keep' is 1.5; input should be less than or equal to 1",
        ),
        (
            MINIMAL.replace("0.5", "half"),
            "recipe.yaml:5: 'plan.keep' is 'half'; input should be a valid number",
        ),
        (
            MINIMAL.replace("{keep: 0.5}", "{keep: 0.5, target_bytes: 1GB}"),
            "recipe.yaml:5: plan: give one of keep, speedup, target_bytes and target_active_bytes",
        ),
        (
            MINIMAL.replace("keep: 0.5", "target_active_bytes: 1GB, speedup: 1.2"),
            "recipe.yaml:5: plan: give one of keep, speedup, target_bytes and target_active_bytes",
        ),
        (
            MINIMAL.replace("keep: 0.5", "speedup: 1.2") + "quantize: {experts: auto}\n",
            "plan.speedup compares models in the same formats, which quantize.experts: auto leaves",
        ),
        (
            MINIMAL.replace("keep: 0.5", "keep: 0.5, score: fisher"),
            "plan.score fisher is not in importance.scores (fisher_margin); add it there",
        ),
        (
            MINIMAL.replace("keep: 0.5", "keep: 0.5, score: auto, scope: layer"),
            "recipe.yaml:5: plan: score auto chooses the scope as well; leave plan.scope out",
        ),
        (
            MINIMAL.replace("keep: 0.5", "target_bytes: 1MiB, score: auto")
            + "quantize: {experts: auto}\n",
            "auto compares scores of different units; give one of the two by name",
        ),
        (
            MINIMAL.replace("keep: 0.5", "target_active_bytes: 1MiB, score: auto")
            + "ranking: {scopes: [layer]}\n",
            "ranking.scopes has no model, and a budget of active bytes ranks over the whole model",
        ),
        (
            MINIMAL.replace("keep: 0.5", "keep: 0.5, score: auto, shared_expert: prune")
            + "ranking: {scores: [router_frequency]}\n",
            "ranking.scores has router_frequency, which counts what the router sends, and",
        ),
        (
            MINIMAL + "ranking: {first: 9, held_out: 8}\n",
            "ranking.first is 9, more than the 8 sequences that ranking.held_out gives; lower it",
        ),
        (
            MINIMAL + "ranking: {plan: {keep: 0.1}}\n",
            "ranking.plan and ranking.prune follow these sections; leave them out",
        ),
        (
            MINIMAL.replace("keep: 0.5", "target_active_bytes: 1GB, scope: layer"),
            "recipe.yaml:5: plan: a budget of active bytes, or one that chooses formats, ranks",
        ),
        (
            MINIMAL.replace("keep: 0.5", "target_bytes: 1MiB, score: fisher")
            + "importance: {scores: [fisher]}\nquantize: {experts: auto}\n",
            "in one unit; give plan.score fisher_margin or fisher_margin_weighted",
        ),
        (
            MINIMAL.replace("keep: 0.5", "target_bytes: 1MiB")
            + "importance: {scores: [fisher_margin, rounding_margin_weighted]}\n"
            "quantize: {experts: auto}\n",
            "has rounding_margin_weighted, which is not in the unit of plan.score fisher_margin",
        ),
        (
            MINIMAL + "quantize: {experts: auto}\n",
            "quantize.experts: auto needs a budget; give plan.target_bytes",
        ),
        (
            MINIMAL.replace("    - {demo: sums}", "    - {demo: sums, text: a.txt}"),
            "recipe.yaml:4: calibrate.sources.0: give exactly one of demo, text, jsonl, hub",
        ),
        (MINIMAL.replace("keep: 0.5", "keep: 010"), "recipe.yaml:5: '010' is read in base 8 or 60"),
        (MINIMAL.replace("keep: 0.5", "keep: 1:30"), "recipe.yaml:5: '1:30' is read in base 8"),
        (
            MINIMAL.replace("model:", "modle:"),
            "recipe.yaml:1: unknown key 'modle'; the nearest known key is 'model'",
        ),
        (
            MINIMAL.replace("demo: sums", "jsonl: https://a.org/b.jsonl"),
            "recipe.yaml:4: calibrate.sources.0.jsonl: 'https://a.org/b.jsonl' is an address",
        ),
        (
            MINIMAL.replace("demo: sums", "text: ~/a.txt"),
            "recipe.yaml:4: calibrate.sources.0.text: '~/a.txt' begins with ~, which is not",
        ),
        (
            MINIMAL + "export: {layout: packed}\nvalidate: {operator: portable}\n",
            "export.layout packed runs in the native library only; set validate.operator to native",
        ),
        (
            MINIMAL + COMPRESSED + "prune: {save_padded: true}\n",
            "prune.save_padded is for stock loaders, which would drop the tensors that tune.method",
        ),
        (
            MINIMAL.replace("keep: 0.5", "keep: 0.5, layout: packed"),
            "plan.layout is taken from the export section; leave it out",
        ),
        (
            MINIMAL.replace("keep: 0.5", "keep: 0.5, linear: panels"),
            "plan.linear is taken from the export section; leave it out",
        ),
        (
            MINIMAL + "quantize: {lm_head: nf4}\n",
            "recipe.yaml:6: quantize.lm_head: nf4 is for experts only, since MatMulNBits has no",
        ),
        (
            MINIMAL + "quantize: {experts: float, lm_head: float}\n",
            "recipe.yaml:6: quantize: everything in the section is float; leave it out",
        ),
        (
            MINIMAL + "importance: {shared_expert: true}\n",
            "recipe.yaml: importance.shared_expert follows plan.shared_expert; leave it out",
        ),
        (
            MINIMAL.replace(
                "keep: 0.5", "keep: 0.5, shared_expert: prune, score: router_frequency"
            ),
            "recipe.yaml:5: plan: score router_frequency counts what the router sends",
        ),
        (
            MINIMAL.replace("model: {source: demo}\n", ""),
            "recipe.yaml: 'model' is missing; it must",
        ),
        (
            MINIMAL.replace("keep: 0.5", "target_bytes: 3XB"),
            "recipe.yaml:5: plan.target_bytes: '3XB' is no number of bytes; write a whole number",
        ),
        ("plan: [", "recipe.yaml:"),
        ("just text", "recipe.yaml:1: expected sections"),
    ],
)
def test_a_wrong_recipe_names_file_line_key_and_the_nearest_right_key(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_with(tmp_path, text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_change_keys_and_entries_of_lists(tmp_path: Path) -> None:
    path = recipe_with(tmp_path, MINIMAL)
    recipe = load_recipe(path, ("plan.keep=0.25", "calibrate.sources.0.demo=facts"))
    assert recipe.plan is not None
    assert recipe.plan.keep == 0.25
    assert recipe.calibrate.sources[0].demo == "facts"


@pytest.mark.parametrize("key", ["dense", "lm_head", "experts", "embedding", "method"])
def test_a_mapping_in_the_place_of_a_word_is_one_sentence(tmp_path: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=f"'quantize.{key}' is .*; input should be"):
        load_recipe(recipe_with(tmp_path, MINIMAL), (f"quantize.{key}={{a: 1}}",))


@pytest.mark.parametrize("override", ["plan.keep", "=3", "model.source.deeper=1", "plan.kepe=1"])
def test_a_wrong_override_is_one_sentence(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError, match=r"kepe|--set"):
        load_recipe(recipe_with(tmp_path, MINIMAL), (override,))


def test_a_byte_budget_counts_in_the_dtype_of_the_export(tmp_path: Path) -> None:
    text = MINIMAL.replace("keep: 0.5", "target_bytes: 6 MiB") + "export: {dtype: float16}\n"
    plan = load_recipe(recipe_with(tmp_path, text)).plan
    assert plan is not None
    assert (plan.target_bytes, plan.dtype) == (6 * 2**20, "float16")


@pytest.mark.parametrize(
    ("text", "value"),
    [("6GiB", 6 * 2**30), ("500 MB", 500_000_000), ("1.5KiB", 1536), ("12", 12)],
)
def test_sizes_are_read_with_their_units(text: str, value: object) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["6 G", "3XB", "", "half"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of bytes; write a whole number"):
        parse_bytes(text)


def test_genai_runs_on_cuda_where_the_recipe_measures_on_cuda(tmp_path: Path) -> None:
    on_cuda = MINIMAL + "export: {dtype: float16}\nvalidate: {providers: [cpu, cuda]}\n"
    for text, provider in (
        (MINIMAL, None),
        (on_cuda, "cuda"),
        (on_cuda.replace("float16", "float16, genai_provider: null"), None),
    ):
        assert load_recipe(recipe_with(tmp_path, text)).export.genai_provider == provider


@pytest.mark.parametrize("value", ["9223372036854775808", "true", "{a: 1}", "cuda"])
def test_providers_that_are_no_list_are_refused(tmp_path: Path, value: str) -> None:
    path = recipe_with(tmp_path, MINIMAL + f"validate: {{providers: {value}}}\n")
    with pytest.raises(RecipeError, match=r"'validate\.providers' is"):
        load_recipe(path)


def test_nothing_to_export_is_refused(tmp_path: Path) -> None:
    path = recipe_with(tmp_path, MINIMAL + "export: {pruned: false}\n")
    with pytest.raises(RecipeError, match="nothing is quantized, so there is nothing to export"):
        load_recipe(path)
    assert not load_recipe(
        recipe_with(tmp_path, MINIMAL + "export: {pruned: false}\nquantize: {}\n")
    ).export.pruned


def test_the_cache_of_a_provider_is_growing_static_or_captured() -> None:
    default = ValidateSettings(providers=("cpu", "cuda"))
    assert [default.cache_on(word) for word in default.providers] == ["static", "captured"]
    portable = ValidateSettings(providers=("cuda",), operator="portable")
    assert portable.cache_on("cuda") == "static"
    assert ValidateSettings(cache="static").cache_on("cpu") == "static"


def test_distilling_is_off_or_on_by_a_word_or_a_section(tmp_path: Path) -> None:
    path = recipe_with(tmp_path, MINIMAL)
    plain = load_recipe(path)
    assert plain.prune.distill_router is None
    # So that runs made without the word stay fresh.
    assert "distill_router" not in plain.plain()["prune"]
    assert load_recipe(path, ("prune.distill_router=false",)) == plain
    found = load_recipe(path, ("prune.distill_router=true",)).prune.distill_router
    assert found is not None
    assert (found.steps, found.temperature) == (50, 1.0)
    changed = load_recipe(path, ("prune.distill_router.steps=7",)).prune.distill_router
    assert changed == found.model_copy(update={"steps": 7})
    with pytest.raises(RecipeError, match="nearest known key is 'steps'"):
        load_recipe(path, ("prune.distill_router.step=7",))


@pytest.mark.parametrize("key", ["refit", "distill_blocks"])
@pytest.mark.parametrize("value", ["0", "-0.0", "1.0"])
def test_a_number_does_not_turn_fitting_off(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(RecipeError, match="true, false or a section"):
        load_recipe(recipe_with(tmp_path, MINIMAL), (f"prune.{key}={value}",))


def test_refitting_is_on_and_its_off_is_read_back(tmp_path: Path) -> None:
    path = recipe_with(tmp_path, MINIMAL)
    plain = load_recipe(path).prune
    assert plain.refit == RefitSettings(ridge=0.01, mix=0.5)
    assert plain.block_steps == BlockSettings(steps=240)
    off = load_recipe(path, ("prune.refit=false",))
    assert load_recipe(recipe_with(tmp_path, json.dumps(off.plain()))).prune == off.prune
    assert (off.prune.refit, off.prune.block_steps) == (False, None)
    path = recipe_with(tmp_path, MINIMAL)
    for old, new in (("refit_down=true", "prune.refit,"), ("ridge=0.1", "prune.refit.ridge")):
        with pytest.raises(RecipeError, match=f"has another name now: {new}"):
            load_recipe(path, (f"prune.{old}",))


def test_names_of_scores_follow_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    overrides = ("importance.scores=[taylor]", "plan.score=taylor")
    names = ", ".join(repr(name) for name in list(SCORES)[:-1])
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert f"'importance.scores.0' is 'taylor'; input should be {names} or 'random'" in str(
        caught.value
    )
    monkeypatch.setitem(SCORES, "taylor", replace(SCORES["fisher"], name="taylor"))
    recipe = load_recipe(path, overrides)
    assert recipe.plan is not None
    assert recipe.plan.score == "taylor"
    schema = ImportanceSettings.model_json_schema()
    assert schema["properties"]["scores"]["items"]["enum"] == list(SCORES)
    assert recipe.plain()["importance"]["scores"] == ["taylor"]


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (MINIMAL + "plan: {keep: 0.7}\n", "recipe.yaml:6: the key 'plan' is given twice"),
        (MINIMAL.replace("0.5", '0.5, "keep": 0.6'), "recipe.yaml:5: the key 'keep' is given"),
        (MINIMAL.replace("0.5", ".inf"), "recipe.yaml:5: 'plan.keep' is inf, expected a finite"),
        (MINIMAL.replace("0.5", "-.inf"), "'plan.keep' is -inf, expected a finite number"),
        (MINIMAL.replace("0.5", ".nan"), "recipe.yaml:5: 'plan.keep' is nan, expected a finite"),
        (MINIMAL.replace("0.5", "1.0e+999"), "'plan.keep' is inf, expected a finite number"),
        (MINIMAL.replace("0.5", "2020-13-45"), "'plan.keep' is '2020-13-45'; input should be a"),
        (MINIMAL.replace("0.5", "0x_"), "recipe.yaml:5: '0x_' is no value of the type int"),
        (MINIMAL.replace("0.5", "!!int half"), "recipe.yaml:5: 'half' is no value of the type int"),
        (MINIMAL.replace("0.5", "!!float half"), "'half' is no value of the type float"),
        (MINIMAL.replace("0.5", "!!bool maybe"), "'maybe' is no value of the type bool"),
        (MINIMAL.replace("0.5", "!!timestamp now"), "'now' is no value of the type timestamp"),
        (MINIMAL.replace("0.5", "!!python/name:os.abort ''"), "recipe.yaml:5: could not determine"),
        (MINIMAL.replace("0.5", "9" * 5000), "recipe.yaml:5: a number has 5000 characters"),
        (MINIMAL.replace("0.5", "1" + ":59" * 999), "recipe.yaml:5: a number has 2998 characters"),
        (MINIMAL.replace("0.5", "[" * 5000), "recipe.yaml:5: it nests more than 40 levels"),
        ("plan: &p {keep: *p}\n", "recipe.yaml:1: the alias 'p' stands for itself"),
        ("plan: {keep: *nothing}\n", "recipe.yaml:1: found undefined alias 'nothing'"),
        (BOMB, "recipe.yaml:5: it holds more than 20000 values, those of every alias counted"),
        (MINIMAL.replace("sums", r'"su\0ms"'), r"'calibrate.sources.0.demo' is 'su\x00ms', with"),
        (MINIMAL.replace("demo}", r'"a\e[31m"}'), "'model.source' is 'a\\x1b[31m', with a"),
        (MINIMAL.replace("demo}", r'"a\nb"}'), "recipe.yaml:1: 'model.source' is 'a\\nb', with"),
        (MINIMAL.replace("demo}", r'"\uD800"}'), "'model.source' is '\\ud800', with a"),
        (MINIMAL.replace("demo}", r'"\UFFFFFFFF"}'), "recipe.yaml:1: not valid YAML"),
        (MINIMAL.replace("sums", "su\x1bms"), r"recipe.yaml:4: the character \x1b is not allowed"),
        ("#" * 2_000_000, "it has more than 1048576 bytes, expected a recipe"),
        (MINIMAL + "importance: {batch_tokens: 3000000000}\n", "should be less than or equal to"),
        (MINIMAL.replace("keep: 0.5", "target_bytes: " + "9" * 400 + "GB"), "plan.target_bytes"),
    ],
    ids=lambda value: value[:40],
)
def test_yaml_that_no_recipe_needs_is_refused_with_its_line(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_with(tmp_path, text))
    assert sentence in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_file_that_is_no_recipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "a\0b"):
        with pytest.raises(RecipeError, match="the recipe cannot be read"):
            load_recipe(path)


@pytest.mark.parametrize(
    "value",
    [".nan", "-.inf", "1.0e+999", "0x_", "!!int x", "9" * 5000, "[" * 99, '"\\0"', "&a [*a]"],
    ids=lambda value: value[:40],
)
def test_overrides_are_held_to_the_same_rules(tmp_path: Path, value: str) -> None:
    with pytest.raises(RecipeError, match=r"--set|plan\.keep"):
        load_recipe(recipe_with(tmp_path, MINIMAL), (f"plan.keep={value}",))


def test_an_override_cannot_lie_deeper_than_any_key(tmp_path: Path) -> None:
    for key in ("a." * 500 + "b", f"calibrate.sources.{'9' * 5000}.demo"):
        with pytest.raises(RecipeError, match="--set"):
            load_recipe(recipe_with(tmp_path, MINIMAL), (f"{key}=1",))


def test_a_recipe_that_is_a_mapping_is_held_to_the_same_rules() -> None:
    content: dict[str, object] = {
        "model": {"source": "demo"},
        "calibrate": {"sources": [{"demo": "sums"}]},
        "plan": {"keep": 0.5},
        "validate": {"gates": {"max_logit_error": float("inf")}},
    }
    with pytest.raises(RecipeError, match=r"recipe: 'validate.gates.max_logit_error' is inf"):
        parse_recipe(content)
    with pytest.raises(ValueError, match="finite number"):
        ValidateSettings.model_validate(content["validate"])


def test_merged_mappings_may_override_keys_and_dates_are_text(tmp_path: Path) -> None:
    text = MINIMAL.replace("{keep: 0.5}", "&plan {keep: 0.5}") + "report: {title: 2026-11-28}\n"
    recipe = load_recipe(recipe_with(tmp_path, text.replace("&plan", "")), ("plan.scope=layer",))
    assert recipe.report.title == "2026-11-28"
    merged = "x: &x {keep: 0.25}\nplan: {<<: *x, keep: 0.75}\n"
    content, _ = read_yaml(merged, "text")
    assert content["plan"] == {"keep": 0.75}


@pytest.mark.parametrize(
    ("changed", "score"),
    [
        (MINIMAL, "auto"),
        (MINIMAL.replace("keep: 0.5", "target_active_bytes: 1MiB"), "auto"),
        (MINIMAL.replace("keep: 0.5", "keep: 0.5, scope: layer"), "fisher_margin"),
        (MINIMAL.replace("keep: 0.5", "keep: 0.5, unit: expert"), "fisher_margin"),
        (
            MINIMAL.replace("keep: 0.5", "target_bytes: 1MiB") + "quantize: {experts: auto}\n",
            "fisher_margin",
        ),
    ],
)
def test_the_ranking_is_measured_unless_another_key_asks_for_one(
    tmp_path: Path, changed: str, score: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(changed)
    plan = load_recipe(path).plan
    assert plan is not None
    assert plan.score == score
