from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.search.image.siglip import VisionEncoder
from mmsearch_trl.search.index_build import build_image_index


TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_siglip(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    words = {"vocab_size": 32, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**TOWER, "image_size": 32, "patch_size": 16}
    SiglipModel(SiglipConfig(vision_config=vision, text_config={**TOWER, **words})).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def save_dinov2(folder: Path) -> str:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("save", [lambda folder: save_siglip(folder, 0), save_dinov2], ids=["siglip", "dinov2"])
def test_a_vision_model_gives_unit_rows_that_do_not_depend_on_the_batch(
    save: Callable[[Path], str], emblem: Callable[..., Image.Image], tmp_path: Path
) -> None:
    encoder = VisionEncoder(save(tmp_path))
    vectors = encoder.encode([emblem(number) for number in range(40)])
    assert vectors.shape == (40, 16) == (40, encoder.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[35], encoder.encode([emblem(35)])[0], atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)


def test_an_index_remembers_its_model_and_refuses_other_weights(
    emblem: Callable[..., Image.Image], tmp_path: Path
) -> None:
    model = save_siglip(tmp_path / "model", 0)
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        emblem(number).save(tmp_path / "pictures" / f"{number}.png")
    build_image_index(tmp_path / "pictures", tmp_path / "index", model=model, progress=False)
    assert ImageIndex.open(tmp_path / "index").search_now(emblem(2), 1)[0].title == "2"
    save_siglip(tmp_path / "model", 1)
    with pytest.raises(ValueError, match="was built with encoder siglip-"):
        ImageIndex.open(tmp_path / "index")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision model .*nothing.* cannot be loaded"):
        VisionEncoder(tmp_path / "nothing")
