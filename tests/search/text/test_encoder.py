from pathlib import Path

import numpy as np
import pytest
import torch
from search.text.encoders import WORDS, save_encoder
from transformers import AutoModel, AutoTokenizer

from mmsearch_trl.search.text.encoder import TextEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("models") / "tiny-e5")


def test_a_vector_is_the_mean_of_the_last_states_of_the_prefixed_text(folder: Path) -> None:
    encoder = TextEncoder(folder)
    text = " ".join(WORDS[:7])
    inputs = AutoTokenizer.from_pretrained(folder)("query: " + text, return_tensors="pt")
    with torch.inference_mode():
        mean = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0].mean(dim=0)
    assert np.allclose(encoder.queries([text])[0], mean / mean.norm(), atol=1e-5)
    assert not np.allclose(encoder.passages([text])[0], encoder.queries([text])[0], atol=1e-3)


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


def test_the_fingerprint_follows_weights_and_prefixes(folder: Path, tmp_path: Path) -> None:
    same = TextEncoder(save_encoder(tmp_path / "other-e5"))
    other = TextEncoder(save_encoder(tmp_path / "seed-e5", seed=1))
    plain = TextEncoder(save_encoder(tmp_path / "plain"))
    assert same.fingerprint == TextEncoder(folder).fingerprint
    assert len({same.fingerprint, other.fingerprint, plain.fingerprint}) == 3


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' cannot be loaded"):
        TextEncoder(tmp_path / "nowhere")
