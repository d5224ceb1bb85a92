from pathlib import Path

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.recipe.run_folder import record_run
from mmsearch_trl.search.imported import ImportedTextConfig


def test_what_is_recorded_is_the_whole_recipe_and_can_be_run_again(tmp_path: Path) -> None:
    lines = ["model_name_or_path: m", "use_cpu: true", "bf16: false", "seed: 1", "hub_token: hf_sesame"]
    lines += ["search: {text: {backend: bm25, path: texts, top_k: 3}}"]
    (tmp_path / "base.yaml").write_text("\n".join(lines))
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nsearch: {text: {top_k: 9}}")
    recipe = load_recipe(tmp_path / "own.yaml", {"seed": 2})
    record_run(recipe, tmp_path / "run")
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "sesame" not in text and "extends:" not in text
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert again.values == {key: value for key, value in recipe.values.items() if key != "hub_token"}
    assert (again.search, again.trainer.seed) == (recipe.search, 2)


def test_what_a_users_own_backend_calls_a_secret_is_not_recorded(tmp_path: Path) -> None:
    lines = ["model_name_or_path: m", "use_cpu: true", "bf16: false"]
    lines += ["search: {text: {backend: 'a.b:C', api_key: sesame, password: sesame, token: sesame, tokens: 3}}"]
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    record_run(load_recipe(tmp_path / "own.yaml"), tmp_path / "run")
    recorded = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert recorded.search.text == ImportedTextConfig(backend="a.b:C", arguments={"tokens": 3})


def test_secrets_inside_values_are_not_recorded_and_are_asked_for_again(tmp_path: Path) -> None:
    lines = ["model_name_or_path: m", "use_cpu: true", "bf16: false"]
    lines += ["search:", "  text:", "    backend: mcp", "    tool: search"]
    lines += ["    server: npx their-server --api-key sesame"]
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    record_run(load_recipe(tmp_path / "own.yaml"), tmp_path / "run")
    recorded = tmp_path / "run" / "recipe.yaml"
    assert "server: npx their-server --api-key <redacted>" in recorded.read_text()
    with pytest.raises(
        UserError, match=r"recipe.yaml: `search.text.server` holds <redacted>.*--search.text.server VALUE"
    ):
        load_recipe(recorded)
    again = load_recipe(recorded, {"search.text.server": "npx their-server --api-key sesame"})
    assert again.search == load_recipe(tmp_path / "own.yaml").search


@pytest.mark.parametrize(
    "value",
    [
        "{backend: retriever, url: 'http://user:sesame@host.example/retrieve'}",
        "{backend: retriever, url: 'http://host.example/retrieve?token=sesame'}",
        "{backend: mcp, tool: t, server: 'https://host.example/mcp?apiKey=sesame'}",
        "{backend: 'a.b:C', headers: {Authorization: 'Bearer sesame'}, more: [{password: sesame}]}",
        "{backend: 'a.b:C', command: [serve, '--token=sesame']}",
    ],
)
def test_no_backend_s_secret_is_recorded(value: str, tmp_path: Path) -> None:
    lines = ["model_name_or_path: m", "use_cpu: true", "bf16: false", f"search: {{text: {value}}}"]
    lines += ["vllm_server_base_url: 'http://user:sesame@host.example:8000'"]
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    recipe = load_recipe(tmp_path / "own.yaml")
    record_run(recipe, tmp_path / "run")
    for file in (tmp_path / "run").iterdir():
        assert "sesame" not in file.read_text()
    assert "sesame" in str(recipe.values), "the run itself has it"
    assert "sesame" not in str(recipe.trainer.to_dict()), "trackers do not"
