"""BLIP: captions of the form 'an image of a koala' + ' hanging on a tree', by continuing what names the class."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from audit.captioners import Captioner
from audit.classifiers import check_whole
from audit.config import Frozen
from audit.errors import ModelError
from audit.predictions import to_uint8
from audit.reference import LOAD_ERRORS, ModelRef, digest_of_folder, model_folder


class Options(Frozen):
    ref: ModelRef = Field(description="folder, or hub id with a revision")
    revision: str | None = None
    max_words: int = Field(12, ge=1, description="tokens that may follow the beginning")


def load(options: Options, device: str = "cpu") -> Captioner:
    """Load a BLIP model for conditional captioning. Captions are the most probable words, nothing is drawn."""
    from transformers import BlipForConditionalGeneration, BlipProcessor

    folder = model_folder(options.ref, options.revision)
    try:
        network, loaded = BlipForConditionalGeneration.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
    except LOAD_ERRORS as error:
        raise ModelError(f"{options.ref} cannot be loaded as a BLIP model with safetensors: {error}") from error
    check_whole(options.ref, loaded["missing_keys"])
    network = network.float().eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def caption(image: Tensor, beginning: str) -> str:
        entered = processor(images=to_uint8(image), text=beginning, return_tensors="pt").to(device)
        length = entered.input_ids.shape[1]
        written = network.generate(**entered, do_sample=False, num_beams=1, max_new_tokens=options.max_words)
        # The decoder leaves out the separator that ends the tokenised beginning, so the words after it are kept whole.
        words = processor.tokenizer.decode(written[0, length - 1 :], skip_special_tokens=True)
        return f"{beginning} {words.strip()}".strip()

    return caption


def digest(options: Options) -> str:
    return digest_of_folder(model_folder(options.ref, options.revision))
