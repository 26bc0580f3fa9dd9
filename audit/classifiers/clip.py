"""CLIP models: zero-shot classification by class names, and embeddings of images and texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from audit.classifiers import Embedder, check_network, check_whole, names_for
from audit.classifiers._image_processor import preprocess_of
from audit.classifiers._preprocessing import digest_with_steps
from audit.config import ClassNames, Frozen, Template
from audit.errors import ModelError
from audit.reference import LOAD_ERRORS, ModelRef, digest_of_folder, model_folder


class Options(Frozen):
    ref: ModelRef = Field(description="folder, zoo:<name>, or hub id with a revision")
    revision: str | None = None
    class_names: ClassNames = Field("data", description="classes to tell apart; 'data': the data set's labels")
    template: Template = Field("a photograph of a {}", description="prompt of a class; {} is its name")


def load(options: Options, data_classes: tuple[str, ...]) -> Embedder:
    """Load a CLIP model. Logits are the scaled cosine similarities to the classes' prompts."""
    from transformers import CLIPModel, CLIPTokenizer

    folder = model_folder(options.ref, options.revision)
    try:
        network, loaded = CLIPModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except LOAD_ERRORS as error:
        raise ModelError(f"{options.ref} cannot be loaded as a CLIP model with safetensors: {error}") from error
    check_whole(options.ref, loaded["missing_keys"])
    network = network.float().eval().requires_grad_(False)
    preprocess = preprocess_of(folder)
    count = len(data_classes) if isinstance(options.class_names, str) else len(options.class_names)
    names = names_for(options.class_names, (), data_classes, count)
    length = network.config.text_config.max_position_embeddings

    def embed_texts(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with torch.no_grad():
            return F.normalize(
                network.get_text_features(input_ids=tokens.input_ids.to(network.device)).pooler_output, dim=-1
            ).cpu()

    def embed_preprocessed(x: Tensor) -> Tensor:
        return F.normalize(network.get_image_features(pixel_values=x).pooler_output, dim=-1)

    def embed_images(x: Tensor) -> Tensor:
        return embed_preprocessed(preprocess(x))

    prompts = embed_texts([options.template.format(name) for name in names]) if names else torch.empty(0)

    def forward(x: Tensor) -> Tensor:
        return network.logit_scale.exp() * embed_preprocessed(x) @ prompts.T.to(x.device)

    if names:
        with torch.no_grad():
            check_network(forward(preprocess(torch.full((1, 3, *preprocess.size), 0.5))), len(names))
    scale = float(network.logit_scale.exp())
    return Embedder(
        *(names, preprocess, forward, network, embed_images, embed_texts, scale), embed_preprocessed=embed_preprocessed
    )


def digest(options: Options) -> str:
    return digest_with_steps(digest_of_folder(model_folder(options.ref, options.revision)))
