"""BLIP captions: a small model with random weights in the real layout, saved and loaded as a user's would be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from audit.captioners import blip
from audit.errors import ModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
WORDS += ["an", "image", "of", "a", "koala", "hanging", "on", "the", "tree", "crab", "sand", "sleeping", "snow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("blip")
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=True)
    text = {"vocab_size": len(WORDS), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8, "max_position_embeddings": 32}
    text |= {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16, "projection_dim": 8}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        for bias in (model.text_decoder.cls.predictions.bias, model.text_decoder.cls.predictions.decoder.bias):
            bias[:7] = -100.0  # words only
    model.save_pretrained(target)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(target)
    return target


def test_a_caption_continues_its_beginning_and_repeats(folder: Path) -> None:
    caption = blip.load(blip.Options(ref=str(folder), max_words=4))
    image = torch.rand((3, 48, 64), generator=torch.Generator().manual_seed(1))
    first = caption(image, "an image of a Water-Bottle")
    assert first.startswith("an image of a Water-Bottle")  # as it was given, not as the tokenizer spells it
    rest = first.removeprefix("an image of a Water-Bottle").split()
    assert 1 <= len(rest) <= 4
    assert set(rest) <= set(WORDS)
    assert caption(image, "an image of a Water-Bottle") == first


def test_the_words_are_the_models_most_probable_ones(folder: Path) -> None:
    """Greedy decoding written out: the decoder reads the beginning without its last separator."""
    caption = blip.load(blip.Options(ref=str(folder), max_words=3))
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder)
    image = torch.rand((3, 32, 32), generator=torch.Generator().manual_seed(2))
    entered = processor(
        images=(image * 255).round().byte().permute(1, 2, 0).numpy(), text="an image of a crab", return_tensors="pt"
    )
    ids = entered.input_ids.clone()
    ids[:, 0] = 5
    ids = ids[:, :-1]
    words = []
    with torch.no_grad():
        seen = model.vision_model(entered.pixel_values).last_hidden_state
        for _ in range(3):
            logits = model.text_decoder(input_ids=ids, encoder_hidden_states=seen).logits[0, -1]
            word = int(logits.argmax())
            if word == 3:
                break
            words.append(word)
            ids = torch.cat([ids, torch.tensor([[word]])], 1)
    expected = processor.tokenizer.decode(words, skip_special_tokens=True)
    assert caption(image, "an image of a crab") == f"an image of a crab {expected}".strip()


def test_the_digest_follows_the_weights_and_a_wrong_folder_is_named(folder: Path, tmp_path: Path) -> None:
    before = blip.digest(blip.Options(ref=str(folder)))
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert blip.digest(blip.Options(ref=str(folder))) != before
    weights.write_bytes(kept)
    assert blip.digest(blip.Options(ref=str(folder))) == before
    with pytest.raises(ModelError, match=r"is no model folder: it has no config.json, and holds nothing"):
        blip.load(blip.Options(ref=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded as a BLIP model"):
        blip.load(blip.Options(ref=str(tmp_path)))
