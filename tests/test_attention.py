"""Cross-attention of the shipped U-Net: what is read, what is replaced, and that nothing of it stays."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention as Layer
from torch import Tensor

from audit.diffusion.noise import latent
from audit.diffusion.optimise import Variables, start_from_prompt
from audit.diffusion.prompt_to_prompt import (
    TEMPERATURE,
    Injection,
    Recording,
    edited,
    edited_place,
    foreground,
    record,
    remapping,
    resized,
    word_similarity,
)
from audit.diffusion.sampling import denoise
from audit.errors import BadItem, ModelError
from audit.generators import Site, diffusers
from audit.generators._attention import attended

PROMPTS = ["a photograph of a red crab on sand", "a photograph of an ice cream on grass"]


@pytest.fixture(scope="module")
def generator() -> diffusers.DiffusersGenerator:
    return diffusers.load(diffusers.Options(ref="zoo:diffusion", steps=4, guidance_scale=3.0))


def start(generator: diffusers.DiffusersGenerator, prompts: list[str] = PROMPTS) -> Variables:
    z = torch.stack([latent(generator.latent_shape, "attention", prompt) for prompt in prompts])
    return start_from_prompt(generator, prompts, z)


def processors(generator: diffusers.DiffusersGenerator) -> list[object]:
    return [module.processor for module in generator.unet.modules() if hasattr(module, "processor")]


@torch.no_grad()
def test_reading_maps_changes_no_bit_and_each_row_sums_to_one(generator) -> None:
    z, cond = start(generator).latent, generator.embed(PROMPTS)
    before, seen = processors(generator), {}

    def read(site: Site, maps) -> None:
        seen[site.name] = (site, maps(2))

    assert torch.equal(generator.eps(z, 500, cond, read), generator.eps(z, 500, cond))
    assert processors(generator) == before
    assert {(site.height, site.width) for site, _ in seen.values()} == {(16, 16), (8, 8), (4, 4)}
    assert all("attn2" in name for name in seen)
    for site, maps in seen.values():
        assert maps.shape[2:] == (site.height * site.width, 16)
        assert torch.allclose(maps.sum(-1), torch.ones(maps.shape[:-1]), atol=1e-5)


@torch.no_grad()
def test_maps_are_the_softmax_of_queries_and_keys(generator) -> None:
    """Eq. 16, head by head, from the inputs that a hook on the layer sees."""
    z, cond, seen, inputs = start(generator).latent, generator.embed(PROMPTS), {}, {}
    name = "up_blocks.2.attentions.1.transformer_blocks.0.attn2"
    layer = generator.unet.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda module, args, kwargs: inputs.update(x=args[0]), with_kwargs=True)
    generator.eps(z, 500, cond, lambda site, maps: seen.update({site.name: maps(2)}))
    handle.remove()
    width = layer.to_q.out_features // layer.heads
    for item in range(2):
        queries, keys = layer.to_q(inputs["x"][item]), layer.to_k(cond[item])
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            expected = (queries[:, part] @ keys[:, part].T / math.sqrt(width)).softmax(-1)
            assert torch.allclose(seen[name][item, head], expected, atol=1e-5)


@torch.no_grad()
def test_injecting_own_maps_changes_nothing_and_others_do(generator) -> None:
    z, cond, seen = start(generator).latent, generator.embed(PROMPTS), {}
    generator.eps(z, 500, cond, lambda site, maps: seen.update({site.name: maps(2)}))
    plain = generator.eps(z, 500, cond)
    assert torch.allclose(generator.eps(z, 500, cond, lambda site, maps: seen[site.name]), plain, atol=1e-5)
    swapped = generator.eps(z, 500, cond, lambda site, maps: seen[site.name].flip(0))
    assert (swapped - plain).abs().max() > 1e-3
    second = generator.eps(z, 500, cond, lambda site, maps: seen[site.name][:1])  # for the last item alone
    assert torch.equal(second[0], plain[0])
    assert not torch.allclose(second[1], plain[1], atol=1e-3)


def test_processors_are_restored_when_something_raises(generator) -> None:
    before = processors(generator)

    def broken(site: Site, maps) -> None:
        if site.height == 4:
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        generator.eps(start(generator).latent, 500, generator.embed(PROMPTS), broken)
    assert processors(generator) == before


def test_a_condition_that_is_more_than_a_prompt_is_refused(generator) -> None:
    """Image adapters hand over a tuple; their maps cannot be read as a prompt's."""
    processor = next(m for n, m in generator.unet.named_modules() if n.endswith("attn2"))
    from audit.generators._attention import _Processor

    reader = _Processor("here", processor.processor, lambda site, maps: None, (16, 16))
    with pytest.raises(ModelError, match="without adapters"):
        reader(processor, torch.zeros(1, 16, 96), (torch.zeros(1, 16, 64), torch.zeros(1, 4, 64)))


@torch.no_grad()
def test_own_maps_give_the_own_output_of_any_layer_that_reads_a_prompt() -> None:
    """With what the shipped U-Net lacks: normed conditions, a rescaled output, a map wider than high, no bias."""
    torch.manual_seed(0)
    layer = Layer(8, cross_attention_dim=6, heads=2, dim_head=4, cross_attention_norm="layer_norm")
    layer.rescale_output_factor, layer.norm_cross.weight[:] = 2.0, torch.rand(6)
    net, hidden, text = torch.nn.ModuleDict({"x": layer}), torch.randn(3, 32, 8), torch.randn(3, 5, 6)
    plain, seen = layer(hidden, text), {}

    def again(site: Site, maps) -> Tensor:
        seen[site.name] = (site, maps(2))
        return seen[site.name][1]

    with attended(net, again, (8, 16)):
        got = layer(hidden, text)
    assert torch.allclose(got, plain, atol=1e-5)
    site, maps = seen["x"]
    assert (site.height, site.width, maps.shape) == (4, 8, (2, 2, 32, 5))
    for item in range(2):
        x = text[1 + item]
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        keys = layer.to_k(normed * layer.norm_cross.weight + layer.norm_cross.bias)
        for head in range(2):
            products = layer.to_q(hidden[1 + item])[:, 4 * head : 4 * head + 4] @ keys[:, 4 * head : 4 * head + 4].T
            assert torch.allclose(maps[item, head], (products / 2).softmax(-1), atol=1e-5)


def test_what_has_no_maps_to_read_is_refused() -> None:
    """No cross-attention at all, positions that are no copy of the latents, and a mask over the prompt."""
    layer, text = Layer(8, cross_attention_dim=6, heads=2, dim_head=4), torch.randn(1, 5, 6)
    net, own = torch.nn.ModuleDict({"x": layer}), layer.processor

    def look(site: Site, maps) -> None:
        maps(1)

    with pytest.raises(ModelError, match="no cross-attention layers"), attended(torch.nn.Linear(2, 2), look, (4, 4)):
        pass
    with pytest.raises(ModelError, match="7 positions"), attended(net, look, (8, 8)):
        layer(torch.randn(1, 7, 8), text)
    with pytest.raises(ModelError, match="without adapters"), attended(net, look, (4, 4)):
        layer(torch.randn(1, 16, 8), text, attention_mask=torch.zeros(1, 1, 5))
    with pytest.raises(ModelError, match="without adapters"), attended(net, look, (4, 4)):
        layer(torch.randn(1, 8, 4, 4), text)
    assert layer.processor is own


def test_a_recording_holds_the_process_as_it_went(generator) -> None:
    """The last latent is what the process gives; maps are those of the conditional branch, not of the null text."""
    variables = start(generator)
    kept = record(generator, variables)
    with torch.no_grad():
        z_0 = denoise(generator.eps, generator.levels(), 3.0, *variables.tensors())
    assert torch.equal(kept.latents[0], variables.latent)
    assert torch.equal(kept.latents[-1], z_0)
    assert (len(kept.latents), len(kept.maps), len(kept.sites)) == (5, 4, 9)
    own: dict[str, Tensor] = {}
    t = generator.levels()[0].t
    with torch.no_grad():
        generator.eps(variables.latent, t, variables.cond[:, 0], lambda s, maps: own.update({s.name: maps(2)}))
    for name, maps in own.items():
        assert torch.allclose(kept.maps[0][name], maps, atol=1e-3)


def test_a_recording_injected_into_its_own_process_changes_nothing(generator) -> None:
    """Same prompt, same null text: maps and background are the process's own."""
    variables = start(generator)
    kept, identity = record(generator, variables), torch.eye(16).expand(2, -1, -1)
    mask = torch.rand((2, 16, 16), generator=torch.Generator().manual_seed(0))
    steering = Injection(kept, identity, mask, torch.tensor([4.0, 2.0]), torch.tensor([3.0, 0.0]))
    with torch.no_grad():
        z_0 = denoise(generator.eps, generator.levels(), 3.0, *variables.tensors(), steering=steering)
    assert torch.allclose(z_0, kept.latents[-1], atol=1e-4)


def test_only_wanted_maps_are_kept(generator) -> None:
    kept = record(generator, start(generator), lambda step, site: step == 1 and site.height == 8)
    assert [{kept.sites[name].height for name in step} for step in kept.maps] == [set(), {8}, set(), set()]
    assert {site.height for site in kept.sites.values()} == {4, 8, 16}


def test_a_recording_of_a_steered_process_holds_what_was_steered(generator) -> None:
    """Where maps are injected they are the ones that are used, so they are kept; latents are kept after blending."""
    variables = start(generator)
    first, identity = record(generator, variables), torch.eye(16).expand(2, -1, -1)
    other = Variables(variables.latent.flip(0), variables.cond.flip(0), variables.null)
    steering = Injection(first, identity, torch.zeros(2, 16, 16), torch.full((2,), 2.0), torch.full((2,), 3.0))
    second = record(generator, other, steering=steering)
    for step, same in enumerate((True, True, False, False)):
        for name, maps in second.maps[step].items():
            assert torch.equal(maps, first.maps[step][name]) == same
    for step, same in enumerate((True, True, True, False)):  # with an empty mask all is background
        assert torch.equal(second.latents[step + 1], first.latents[step + 1]) == same


def test_injected_maps_are_the_recorded_ones_in_the_words_of_the_new_prompt() -> None:
    """The attention on a new token is the sum over old tokens of theirs times R[old, new], for each item with its R."""
    g = torch.Generator().manual_seed(0)
    maps, remap = (torch.rand(shape, generator=g) for shape in ((2, 3, 4, 5), (2, 5, 5)))
    none = torch.zeros(2)
    steering = Injection(Recording([], [{}, {"a": maps}]), remap, torch.ones(2, 2, 2), none + 2, none)
    inject = steering.attention(1)
    assert inject is not None
    got = inject(Site("a", 2, 2), lambda count: pytest.fail("own maps are of no use here"))
    for item in range(2):
        for new in range(5):
            expected = sum(maps[item, :, :, old] * remap[item, old, new] for old in range(5))
            assert torch.allclose(got[item, :, :, new], expected, atol=1e-6)


def test_rows_of_a_recording_are_those_of_its_items() -> None:
    whole = Recording([torch.tensor([[1.0], [2.0]])], [{"a": torch.tensor([[3.0], [4.0]])}], {"a": Site("a", 1, 1)})
    some = whole.rows(torch.tensor([1, 0, 1]))
    assert (some.latents[0].flatten().tolist(), some.maps[0]["a"].flatten().tolist()) == ([2, 1, 2], [4, 3, 4])
    assert some.sites == whole.sites


def test_blending_keeps_the_recorded_background_for_its_steps() -> None:
    """z S + recorded (1 - S) while step < blend_until, item by item; then z as it is."""
    recorded = [torch.full((2, 1, 2, 2), float(i)) for i in range(4)]
    mask = torch.tensor([[[1.0, 0.0], [0.25, 1.0]]]).expand(2, -1, -1)
    steering = Injection(Recording(recorded), torch.eye(3)[None], mask, torch.zeros(2), torch.tensor([2.0, 0.0]))
    z = torch.full((2, 1, 2, 2), 10.0)
    got = steering.latent(1, z)
    assert got[0, 0].tolist() == [[10.0, 2.0], [0.25 * 10 + 0.75 * 2, 10.0]]
    assert torch.equal(got[1], z[1])
    assert steering.latent(2, z) is z
    assert steering.attention(0) is None


def test_only_items_whose_share_is_not_over_are_injected(generator) -> None:
    variables = start(generator)
    kept, identity = record(generator, variables), torch.eye(16).expand(2, -1, -1)
    other = Variables(variables.latent.flip(0), variables.cond, variables.null)
    plain = record(generator, other).latents[-1]
    until = torch.tensor([0.0, 2.0])
    steering = Injection(kept, identity, torch.ones(2, 16, 16), until, torch.zeros(2))
    with torch.no_grad():
        z_0 = denoise(generator.eps, generator.levels(), 3.0, *other.tensors(), steering=steering)
    assert torch.allclose(z_0[0], plain[0], atol=1e-4)
    assert not torch.allclose(z_0[1], plain[1], atol=1e-2)


def test_the_foreground_is_the_mean_map_of_the_words_written_out() -> None:
    """Mean over the noisier half of the steps, sites of that height, heads, tokens; divided by its largest value."""
    g = torch.Generator().manual_seed(0)
    sites = {name: Site(name, side, side) for name, side in (("a", 2), ("b", 2), ("c", 4))}
    maps = [
        {name: torch.rand((2, 3, s.height * s.width, 5), generator=g) for name, s in sites.items()} for _ in range(4)
    ]
    got = foreground(Recording([], maps, sites), [((1, 2), (3,)), ((4,),)], 2)
    for item, tokens in enumerate([(1, 2, 3), (4,)]):
        values = [0.0] * 4
        for position in range(4):
            read = [maps[k][n][item, h, position, t] for k in (0, 1) for n in "ab" for h in range(3) for t in tokens]
            values[position] = float(sum(read)) / len(read)
        expected = [value / max(values) for value in values]
        assert got[item].flatten().tolist() == pytest.approx(expected, rel=1e-5)
    sharp = foreground(Recording([], maps, sites), [((1, 2), (3,)), ((4,),)], 2, sharpen=0.3)
    assert torch.allclose(sharp, ((got - 0.3).clamp_min(0) / 0.7).sqrt())
    with pytest.raises(ModelError, match=r"no cross-attention maps of height 3.*\[2, 4\]"):
        foreground(Recording([], maps, sites), [((1,),)] * 2, 3)


def test_the_foreground_of_maps_that_are_wider_than_high() -> None:
    """One token, one head: the map itself, row by row, divided by its largest value."""
    maps = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 8.0]).view(1, 1, 6, 1)
    got = foreground(Recording([], [{"a": maps}], {"a": Site("a", 2, 3)}), [((0,),)], 2)
    assert got.tolist() == [[[0.125, 0.25, 0.375], [0.5, 0.625, 1.0]]]


def test_the_crab_is_found_where_it_was_drawn() -> None:
    """Planted truth: the scene's own mask. Most of the object is in the foreground, little of the rest is."""
    from audit.counterfactual import Numbers, invert, prepare
    from audit.predictions import to_tensor
    from audit.zoo.scenes import Scene, caption, render

    scenes = [Scene("crab", "sand", size=0.62, x=x) for x in (-0.34, 0.34)]
    drawn = [render(scene) for scene in scenes]
    images = torch.stack([to_tensor(one.image) for one in drawn])
    objects = torch.stack([torch.from_numpy(one.mask.copy()) > 127 for one in drawn])
    prompts = [caption(scene) for scene in scenes]
    generator = diffusers.load(diffusers.Options(ref="zoo:diffusion", steps=10, guidance_scale=3.0))
    numbers = Numbers(map_side=8, map_share=1.0, threshold=0.5, null_text=None, refinements=3)
    inversion = invert(generator, images, prompts, numbers)
    mask = prepare(generator, images, prompts, ["crab", "crab"], inversion, numbers).mask > 0
    for i in range(2):
        assert mask[i][objects[i]].float().mean() > 0.7
        assert mask[i][~objects[i]].float().mean() < 0.3


def test_masks_are_resized_bilinearly() -> None:
    assert torch.allclose(resized(torch.tensor([[[0.0, 1.0]]]), (1, 4))[0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


@pytest.mark.parametrize(
    ("prompt", "source", "target", "expected"),
    [
        ("an image of a dog at the beach", "dog", "cat", "an image of a cat at the beach"),
        ("a photograph of a crab", "crab", "ice cream", "a photograph of an ice cream"),
        ("a photo of an Ice Cream on sand", "ice cream", "car", "a photo of a car on sand"),
        ("two red crabs and a crab", "crab", "boat", "two red crabs and a boat"),
        ("a red crab", "crab", "ice cream", "a red ice cream"),
    ],
)
def test_the_class_name_is_replaced_with_its_article(prompt: str, source: str, target: str, expected: str) -> None:
    assert edited(prompt, source, target) == expected


def test_a_prompt_without_the_class_is_refused() -> None:
    with pytest.raises(BadItem, match="class_not_in_caption"):
        edited("a scarab on sand", "crab", "boat")


def test_one_word_becomes_two() -> None:
    """Of two and one tokens: each new word averages the one old map, so its row is halved, evenly over the tokens of a
    word; tokens before stay, tokens after move on by two."""
    got = remapping(((2,),), ((2, 3), (4,)), torch.tensor([[0.9, 0.6]]), ("crab", "ice cream"), 8)
    expected = torch.zeros(8, 8)
    expected[0, 0] = expected[1, 1] = 1
    expected[2, 2] = expected[2, 3] = 0.25
    expected[2, 4] = 0.5
    for token, to in ((3, 5), (4, 6), (5, 7), (6, 7), (7, 7)):
        expected[token, to] = 1
    assert torch.allclose(got, expected, atol=1e-6)


def test_remapping_moves_attention_to_the_words_that_are_like_it() -> None:
    """Two words to two: averages over the old words, weighted by exp(cosine / T), then rows that sum to 1."""
    similarity = [[0.9, 0.6], [0.5, 0.8]]
    got = remapping(((1,), (2,)), ((1,), (2,)), torch.tensor(similarity), ("water bottle", "ice cream"), 4)
    weight = [[math.exp(s / TEMPERATURE) for s in row] for row in similarity]
    average = [[weight[i][j] / (weight[0][j] + weight[1][j]) for j in (0, 1)] for i in (0, 1)]
    for i in (0, 1):
        for j in (0, 1):
            assert got[1 + i, 1 + j].item() == pytest.approx(average[i][j] / sum(average[i]), rel=1e-5)
    assert got[1, 1] > 0.7 < got[2, 2]


@pytest.mark.parametrize(
    ("old", "new"),
    [("ice cream", "water cream"), ("water bottle", "ice bottle"), ("bottle", "water bottle"), ("crab", "ice cream")],
)
def test_no_new_word_is_left_without_attention(generator, old: str, new: str) -> None:
    """With the embeddings of the real text tower; a map that is all on the old name."""
    prompts = [f"a photograph of a {name} on sand" for name in (old, new)]
    cond, places = (
        generator.embed(prompts),
        [generator.positions(p, n) for p, n in zip(prompts, (old, new), strict=True)],
    )
    similarity = word_similarity(cond[0], cond[1], *places)
    got = remapping(*places, similarity, (old, new), cond.shape[1])
    arriving = [got[:, list(word)].sum().item() for word in places[1]]
    kept = len([word for word in new.split() if word in old.split()])
    assert min(arriving) > 0.25
    assert sum(arriving) == pytest.approx(len(old.split()), rel=1e-5)
    assert kept == 0 or max(arriving) < len(old.split())


def test_remapping_to_fewer_words() -> None:
    """Both rows of the old name go to the one new token; what comes after moves back."""
    got = remapping(((1, 2), (3,)), ((1,),), torch.tensor([[0.2], [0.8]]), ("ice cream", "crab"), 6)
    assert got[1:4].argmax(1).tolist() == [1, 1, 1]
    assert got[4:].argmax(1).tolist() == [2, 3]
    assert torch.allclose(got.sum(1), torch.ones(6))


@pytest.mark.parametrize("words", [((1,),), ((1, 2), (3,))])
def test_equal_names_give_the_identity(words) -> None:
    similarity = torch.eye(len(words)) * 0.3 + 0.6
    name = " ".join(["ice", "cream"][: len(words)])
    assert torch.equal(remapping(words, words, similarity, (name, name.upper()), 6), torch.eye(6))


def test_a_kept_word_shares_with_the_new_one_what_that_asks_for() -> None:
    """'tiger cat' to 'house cat': cat takes from cat alone, house from both, so all of tiger's goes to house."""
    similarity = torch.tensor([[0.5, 0.6], [0.5, 0.6]])
    got = remapping(((1,), (2,)), ((1,), (2,)), similarity, ("tiger cat", "house cat"), 4)
    assert torch.allclose(got[1], torch.tensor([0.0, 1, 0, 0]))
    assert torch.allclose(got[2], torch.tensor([0.0, 1 / 3, 2 / 3, 0]))  # house asks for half of it, cat for all


def test_a_word_that_is_dropped_gives_its_attention_to_the_rest() -> None:
    got = remapping(((1,), (2,)), ((1,),), torch.tensor([[0.1], [0.9]]), ("polar bear", "bear"), 4)
    assert got[1:3, 1].tolist() == [1, 1]


def test_names_with_hyphens_are_split_as_prompts_are() -> None:
    """'soft-coated' is one word of the prompt, so it is one word here."""
    words, similarity = ((1, 2, 3), (4,)), torch.tensor([[0.6, 0.6]])
    got = remapping(((1,),), words, similarity, ("terrier", "soft-coated terrier"), 8)
    assert torch.allclose(got.sum(1), torch.ones(8))


def test_the_place_of_the_new_name_is_where_the_old_one_was() -> None:
    """Also where the prompt has the new name already, further ahead."""
    prompt = "a boat beside an orange crab on sand"
    whole = edited(prompt, "crab", "boat")
    assert whole == "a boat beside an orange boat on sand"
    assert edited_place(prompt, "crab", "boat") == whole.rindex("boat")
    assert edited_place("a crab", "crab", "ice cream") == len("an ")


def test_similarity_is_the_cosine_of_mean_token_embeddings() -> None:
    g = torch.Generator().manual_seed(1)
    source, target = torch.randn((6, 4), generator=g), torch.randn((6, 4), generator=g)
    got = word_similarity(source, target, ((1, 2), (3,)), ((2,),))
    for i, tokens in enumerate(((1, 2), (3,))):
        a, b = source[list(tokens)].mean(0), target[2]
        assert got[i, 0].item() == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-5)


def test_positions_of_words_in_a_prompt(generator) -> None:
    prompt = "a photograph of a red ice cream on sand"
    assert generator.positions(prompt, "ice cream") == ((6,), (7,))
    assert generator.positions(prompt, "SAND") == ((9,),)
    assert generator.positions("a boat and a red boat", "boat", 5) == ((6,),)
    with pytest.raises(BadItem, match="phrase_not_in_prompt"):
        generator.positions("a scarab on sand", "crab")
    with pytest.raises(BadItem, match="first 16 tokens"):
        generator.positions("a red crab on sand " * 4 + "and a boat", "boat")


def test_a_word_of_several_tokens_with_the_real_tokenizer(generator, real_data) -> None:
    """The tokens between the places of a word spell the word."""
    from transformers import CLIPTokenizer

    real = CLIPTokenizer.from_pretrained(real_data / "clip_tokenizer")
    kept, generator.tokenizer = (generator.tokenizer, generator._length), real
    generator._length = real.model_max_length  # of a text tower that goes with this tokenizer
    try:
        prompt = "An image of a Schipperke-like cocker spaniel's ball, at Timbuktu"
        for phrase in ("cocker spaniel", "Timbuktu"):
            ids = real(prompt).input_ids
            spelled = [real.decode([ids[i] for i in word]).strip() for word in generator.positions(prompt, phrase)]
            assert spelled == phrase.lower().split()
        assert len(generator.positions(prompt, "Timbuktu")[0]) > 1
    finally:
        generator.tokenizer, generator._length = kept
