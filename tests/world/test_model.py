from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from mmsearch_trl.world.model import build_model
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor
from mmsearch_trl.world.world import Group, World


PROCESSOR = build_processor()


def test_the_model_has_the_documented_size_and_precision() -> None:
    model = build_model(PROCESSOR)
    assert 0.80e6 < sum(p.numel() for p in model.parameters()) < 0.85e6
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert isinstance(model.config.text_config, Qwen2_5_VLTextConfig)
    assert model.config.text_config.vocab_size == len(PROCESSOR.tokenizer)


def test_the_seed_decides_the_weights_and_nothing_else_is_touched() -> None:
    state = torch.get_rng_state()
    one, two, other = (build_model(PROCESSOR, seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_reloaded_model_computes_the_same_logits_for_a_task(tmp_path: Path) -> None:
    protocol = build_protocol(PROCESSOR)
    prompt = protocol.prompt(World(0).tasks(Group.KNOWN)[0])
    assert len(prompt.token_ids) == 19
    features = protocol.chat.images.features(prompt.parts[0])  # pyright: ignore[reportArgumentType]
    ids = torch.tensor([prompt.token_ids])
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == protocol.chat.image_pad_id).int(),
        "pixel_values": features.pixel_values,
        "image_grid_thw": features.grid_thw[None],
    }
    model = build_model(PROCESSOR).eval()
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = model(**inputs).logits
        assert torch.equal(logits, reloaded(**inputs).logits)
    assert logits.shape == (1, 19, len(PROCESSOR.tokenizer))
