import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from search.text.encoders import E5_PROMPTS, WORDS, describe, save_encoder, write
from transformers import AutoModel, AutoTokenizer

from mmsearch_trl.commands.main import main
from mmsearch_trl.search.index.folder import read_manifest
from mmsearch_trl.search.index_build import build_dense_index
from mmsearch_trl.search.text import encoder_recipe
from mmsearch_trl.search.text.dense import DenseIndex
from mmsearch_trl.search.text.encoder import TextEncoder
from mmsearch_trl.search.text.encoder_recipe import read_recipe


TEXT = " ".join(WORDS[:7])
LONG = " ".join(WORDS[:40])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that says nothing of itself."""
    return save_encoder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def states(folder: Path, text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The last hidden states of a text by itself, `(t, d)`."""
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0].numpy()


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


POOLINGS = {
    "cls": lambda rows: rows[0],
    "lasttoken": lambda rows: rows[-1],
    "max": lambda rows: rows.max(axis=0),
    "mean": lambda rows: rows.mean(axis=0),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(axis=0) / np.sqrt(len(rows)),
    "weightedmean": lambda rows: (rows * np.arange(1, len(rows) + 1)[:, None]).sum(axis=0) / sum(range(len(rows) + 1)),
    "cls+mean": lambda rows: np.concatenate([rows[0], rows.mean(axis=0)]),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_is_pooled_as_the_model_says(copy: Path, pooling: str, side: str) -> None:
    encoder = TextEncoder(describe(copy, pooling=pooling))
    encoder._tokenizer.padding_side = side
    rows = encoder.queries([TEXT, LONG])
    if side == "right":  # BERT counts places from the left, padding too
        for text, row in zip([TEXT, LONG], rows, strict=True):
            assert np.allclose(row, unit(POOLINGS[pooling](states(copy, text))), atol=1e-5)
    else:
        assert np.allclose(rows[1], unit(POOLINGS[pooling](states(copy, LONG))), atol=1e-5)
    assert encoder.dim == rows.shape[1] and np.isfinite(encoder.queries([""])).all()


def test_prompts_come_from_the_model_and_not_from_the_name_of_its_folder(folder: Path, tmp_path: Path) -> None:
    described = describe(shutil.copytree(folder, tmp_path / "encoder"), prompts=E5_PROMPTS)
    encoder = TextEncoder(described)
    for rows, prompt in ((encoder.queries([TEXT]), "query : "), (encoder.passages([TEXT]), "passage : ")):
        assert np.allclose(rows[0], unit(states(described, prompt + TEXT).mean(axis=0)), atol=1e-5)
    plain = TextEncoder(folder)
    for name in ("re5earch", "e5-base", "tiny-bge"):
        named = TextEncoder(shutil.copytree(folder, tmp_path / name))
        assert named.fingerprint == plain.fingerprint
        assert np.array_equal(named.queries([TEXT]), plain.passages([TEXT]))


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({"prompts": {"query": "q", "document": "d", "passage": "p"}}, ("q", "d")),
        ({"prompts": {"query": "q", "document": ""}}, ("q", "")),
        ({"prompts": {"search_query": "q", "search_document": "d"}}, ("q", "d")),
        ({"prompts": {"query": "q", "document": None, "passage": "p"}}, ("q", "p")),
        ({"prompts": {"sts": "s"}}, ("", "")),
        ({"prompts": {"query": None, "document": 3}}, ("", "")),
        ({"prompts": {}}, ("", "")),
    ],
)
def test_which_prompts_are_used(copy: Path, settings: dict[str, Any], prompts: tuple[str, str]) -> None:
    recipe = read_recipe(describe(copy, **settings))
    assert (recipe.query, recipe.passage) == prompts
    given = read_recipe(copy, "a ", "")
    assert (given.query, given.passage) == ("a ", "")


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("intfloat/e5-base-v2", "query: "),
        ("intfloat/multilingual-e5-large", "query: "),
        ("BAAI/bge-base-en-v1.5", "Represent this sentence for searching relevant passages: "),
        ("BAAI/bge-m3", ""),
        ("somebody/e5-base-v2", ""),
    ],
)
def test_released_models_that_say_their_prompts_nowhere_are_known_by_their_whole_name(
    name: str, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_recipe, "cached_file", lambda *_, **__: None)
    assert read_recipe(name).query == query


def test_a_model_that_says_nothing_of_itself_is_told_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_recipe(folder)
    assert "does not say how its vectors are made" in caplog.text
    caplog.clear()
    read_recipe(folder, "query: ", "passage: ")
    assert not caplog.text


def test_linear_layers_follow_the_pooling(copy: Path) -> None:
    describe(copy, pooling="cls", steps=("Dense", "Normalize"))
    torch.manual_seed(3)
    weights = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}
    write(copy / "2_Dense" / "config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
    save_file(weights, copy / "2_Dense" / "model.safetensors")
    encoder = TextEncoder(copy)
    expected = np.tanh(states(copy, TEXT)[0] @ weights["linear.weight"].numpy().T + weights["linear.bias"].numpy())
    assert encoder.dim == 8 and np.allclose(encoder.queries([TEXT])[0], unit(expected), atol=1e-5)
    before = encoder.fingerprint
    save_file(weights | {"linear.bias": torch.randn(8)}, copy / "2_Dense" / "model.safetensors")
    assert TextEncoder(copy).fingerprint != before


def test_vectors_that_are_compared_by_dot_product_keep_their_length(copy: Path) -> None:
    encoder = TextEncoder(describe(copy, steps=(), similarity_fn_name="dot"))
    assert np.allclose(encoder.queries([TEXT])[0], states(copy, TEXT).mean(axis=0), atol=1e-5)
    assert np.isclose(np.linalg.norm(TextEncoder(describe(copy, steps=("Normalize",))).queries([TEXT])), 1.0)


def test_the_words_before_a_text_can_be_left_out_of_the_pooling(copy: Path) -> None:
    describe(copy, prompts={"query": "query : "})
    write(copy / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    rows = states(copy, "query : " + TEXT)
    assert np.allclose(TextEncoder(copy).queries([TEXT])[0], unit(rows[2:].mean(axis=0)), atol=1e-5)


def test_texts_are_cut_and_lowered_as_the_model_says(copy: Path) -> None:
    describe(copy)
    write(copy / "sentence_bert_config.json", {"max_seq_length": 5, "do_lower_case": True})
    encoder = TextEncoder(copy)
    cut = " ".join(WORDS[:5])
    assert np.allclose(encoder.passages([LONG.upper()]), encoder.passages([cut]), atol=1e-6)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("modules.json", [{"type": "a.Router", "path": ""}], "makes its vectors by Router, which is not known here"),
        ("modules.json", {"no": 1}, "is no list of steps"),
        ("modules.json", [3], "is no list of steps"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "by pooling 'attention', which is not known"),
        ("1_Pooling/config.json", [1], "is no object"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "by a comparison by 'euclidean'"),
    ],
)
def test_what_is_not_known_here_is_refused(copy: Path, file: str, values: Any, message: str) -> None:
    describe(copy, steps=())
    write(copy / file, values)
    with pytest.raises(ValueError, match=message):
        TextEncoder(copy)


@pytest.mark.parametrize("step", ["LSTM", "WeightedLayerPooling", "CNN"])
def test_a_step_that_is_not_known_is_refused(copy: Path, step: str) -> None:
    with pytest.raises(ValueError, match=f"by {step}, which is not known here"):
        TextEncoder(describe(copy, steps=(step,)))
    (copy / "modules.json").write_text("{oops")
    with pytest.raises(ValueError, match=r"modules.json is no JSON"):
        TextEncoder(copy)


def test_an_index_remembers_what_went_before_texts(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": f"{word} {WORDS[0]}"}) for word in WORDS[:9]))
    command = ["index", "dense", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "index"), "--model", str(copy)]
    assert main([*command, "--query_prefix", "query : ", "--passage_prefix", "passage : "]) == 0
    assert tuple(read_manifest(tmp_path / "index", "dense").prefixes or ()) == ("query : ", "passage : ")
    moved = copy.rename(tmp_path / "elsewhere")
    index = DenseIndex.open(tmp_path / "index", str(moved))
    hits = index.search_now([f"{WORDS[3]} {WORDS[0]}"], 1)[0]
    expected = unit(states(moved, f"query : {WORDS[3]} {WORDS[0]}").mean(axis=0))
    shown = unit(states(moved, f"passage : {hits[0].text}").mean(axis=0))
    assert hits[0].score == pytest.approx(float(expected @ shown), abs=1e-4)


def test_an_index_is_not_searched_by_another_pooling(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": TEXT}))
    build_dense_index(tmp_path / "c.jsonl", tmp_path / "index", model=str(copy), progress=False)
    describe(copy, pooling="cls")
    with pytest.raises(ValueError, match=r"was built with encoder .* build the index again or name the encoder"):
        DenseIndex.open(tmp_path / "index")


def test_a_text_has_one_vector_whatever_it_is_encoded_with(folder: Path) -> None:
    encoder = TextEncoder(folder)
    texts = [" ".join(WORDS[number : number + 1 + number % 9]) for number in range(150)]
    together = encoder.passages(texts)
    assert together.shape == (150, encoder.dim) and np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for number in (0, 8, 149):
        assert np.allclose(together[number], encoder.passages([texts[number]])[0], atol=1e-5)
    assert encoder.passages([]).shape == (0, encoder.dim)


def test_long_and_odd_texts_are_encoded(folder: Path) -> None:
    rows = TextEncoder(folder).queries(["", "\ud800 \x00", "word1 " * 5000])
    assert np.isfinite(rows).all()


def test_the_fingerprint_follows_weights_pooling_and_prompts(folder: Path, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return shutil.copytree(folder, tmp_path / name)

    encoders = [
        TextEncoder(folder),
        TextEncoder(save_encoder(tmp_path / "seed", seed=1)),
        TextEncoder(describe(copied("cls"), pooling="cls")),
        TextEncoder(describe(copied("prompts"), prompts=E5_PROMPTS)),
        TextEncoder(describe(copied("dot"), steps=(), similarity_fn_name="dot")),
    ]
    assert len({encoder.fingerprint for encoder in encoders}) == len(encoders)
    assert TextEncoder(describe(copied("mean"))).fingerprint == encoders[0].fingerprint


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' cannot be loaded"):
        TextEncoder(tmp_path / "nowhere")
