"""What transformers computes for a Phi-3-vision checkpoint, put together as Microsoft's model is.

Every greedy token is a forward pass over the whole sequence: what the model says when the sequence has grown past
`original_max_position_embeddings` must not depend on keys that were cached before.
"""

import re

import tokenizers
import torch
from PIL import Image

import golden_family
import golden_files
import golden_phi_models
import golden_phi_pictures
import golden_phi_tokenizer
import golden_pictures
from golden_cases import GREEDY_TOKENS, difference
from golden_phi_models import ORIGINAL_POSITIONS, SEPARATORS, SIDE, VISION

TAG = re.compile(r"<\|image_\d+\|>")

SKY = "<|user|>\nwhat colour is the sky?<|end|>\n<|assistant|>\n"
SEA = (
    "<|user|>\nthe sea is blue and the sky over it is red. is the moon on the left of it, or on {}?<|end|>\n"
    "<|assistant|>\n"
)
MOON = "<|user|>\n<|image_1|>\nis the red moon over the sea in this picture{}<|end|>\n<|assistant|>\n"
WHAT = "<|user|>\n<|image_1|>\nwhat is in this picture?<|end|>\n<|assistant|>\n"
MANY = "<|user|>\nin the first picture <|image_1|> there are stars. how many?<|end|>\n<|assistant|>\n"
TWO = "<|user|>\n<|image_1|><|image_2|>\ncompare the two.<|end|>\n<|assistant|>\n"
SYSTEM = "<|system|>\nthe answers are wide.<|end|>\n"

# name -> (prompt, pictures, num_crops where the request asks for another number than the checkpoint's).
CASES = {
    # A picture of 16 crops takes more than ORIGINAL_POSITIONS tokens; the text cases are all of the short factors.
    "phi3": {
        "text": (SKY, [], None),
        "crossing": (SYSTEM + SKY, [], None),
        "border_64": (SEA.format("the"), [], None),
        "border_65": (SEA.format("it"), [], None),
        "picture_start": ("<|image_1|>\nwhat is in this picture?", ["large"], None),
        "picture_middle": (MANY, ["tall"], None),
        # Tags that touch: a beginning-of-sequence token between the pictures.
        "two_pictures": (TWO, ["tiny", "wide"], None),
    },
    "phi35": {
        "text": (SKY, [], None),
        "border_64": (MOON.format("?"), ["tiny"], None),
        "border_65": (MOON.format("??"), ["tiny"], None),
        "picture_start": ("<|image_1|>\nwhat is in this picture?", ["large"], None),
        "crossing": (WHAT, ["wide"], None),
        "picture_middle": (MANY, ["tall"], None),
        "two_pictures": (TWO, ["strip", "column"], None),
        "crops_16": (WHAT, ["large"], 16),
    },
}
# What the names of cases promise of the prompt's tokens.
LENGTHS = {"border_64": range(64, 65), "border_65": range(65, 66), "crossing": range(32, 56)}
# The view of everything is compared number by number, so it is kept, and one of each checkpoint is enough.
OVERVIEW = "large"


def key(picture, num_crops):
    """A picture's name in the goldens: with another number of crops it is another."""
    return picture if num_crops is None else f"{picture}@{num_crops}"


def encode(tokenizer, prompt, lengths):
    """(ids [L], spans): the text between tags is encoded piece by piece, each with its beginning-of-sequence token."""
    pieces = TAG.split(prompt)
    if TAG.findall(prompt) != [f"<|image_{number}|>" for number in range(1, len(lengths) + 1)]:
        raise SystemExit(f"make_goldens: {prompt!r} does not name {len(lengths)} pictures in their order")
    ids, spans = tokenizer.encode(pieces[0]).ids, []
    for length, piece in zip(lengths, pieces[1:]):
        spans.append([len(ids), length])
        ids += [golden_phi_tokenizer.IMAGE] * length + tokenizer.encode(piece).ids
    return torch.tensor(ids), spans


@torch.no_grad()
def features(model, pixels):
    """Patches [T, SIDE * SIDE, C] after the last block but one."""
    return model.tower(pixels.to(model.dtype), output_hidden_states=True).hidden_states[-2][:, 1:]


def merged(patches):
    """2 x 2 neighbours beside each other: [T, SIDE * SIDE, C] -> [T, SIDE / 2, SIDE / 2, 4C]."""
    tiles, half = len(patches), SIDE // 2
    cells = patches.reshape(tiles, half, 2, half, 2, -1).permute(0, 1, 3, 2, 4, 5)
    return cells.reshape(tiles, half, half, -1)


@torch.no_grad()
def picture_rows(model, pixels, grid):
    """A picture's rows [tokens, D]: the tiles put together, a separator, the view of everything; all projected."""
    down, across = grid
    half = SIDE // 2
    sub, glb = (model.separators[name].reshape(-1) for name in SEPARATORS)
    cells = merged(features(model, pixels))
    tiles = cells[1:].reshape(down, across, half, half, -1).permute(0, 2, 1, 3, 4)
    tiles = tiles.reshape(down * half, across * half, -1)

    def lines(cells):
        ends = sub.expand(len(cells), 1, -1)
        return torch.cat([cells, ends], dim=1).flatten(0, 1)

    return model.projection(torch.cat([lines(tiles), glb[None], lines(cells[0])]))


def embeddings(model, ids, spans, rows):
    """[L, D]: the ids' embeddings, with the pictures' rows at their places."""
    embedded = model.text.get_input_embeddings()(ids)
    for (start, length), picture in zip(spans, rows):
        embedded[start : start + length] = picture
    return embedded


@torch.no_grad()
def logits(model, ids, spans, rows):
    """[L, V] of one pass over all of it."""
    return model.text(inputs_embeds=embeddings(model, ids, spans, rows)[None], use_cache=False).logits[0]


def greedy(model, ids, spans, rows):
    """GREEDY_TOKENS greedy steps: ids, log-softmax of each chosen id, and the gap between the two largest logits."""
    last = []
    for _ in range(GREEDY_TOKENS):
        last.append(logits(model, ids, spans, rows)[-1].float())
        ids = torch.cat([ids, last[-1].argmax()[None]])
    last = torch.stack(last)
    tokens, top = ids[-GREEDY_TOKENS:], last.topk(2).values
    return tokens, last.log_softmax(-1).gather(1, tokens[:, None])[:, 0], top[:, 0] - top[:, 1]


def record_pictures(checkpoint, pictures, models):
    """(tensors, descriptions, model -> picture -> rows)."""
    truth, _, native = models
    tensors, described, rows = {}, {}, [{} for _ in models]
    wanted = {
        key(name, num_crops): (name, num_crops or checkpoint.num_crops)
        for _, names, num_crops in CASES[checkpoint.weights].values()
        for name in names
    }
    tile = VISION["image_size"]
    for picture, (name, num_crops) in sorted(wanted.items()):
        size = golden_pictures.SIZES[name]
        pixels = golden_phi_pictures.transform(Image.open(pictures[name]).convert("RGB"), num_crops, tile)
        view = golden_phi_pictures.view(*size, num_crops, tile, SIDE)
        for model, found in zip(models, rows):
            found[picture] = picture_rows(model, pixels, [n // tile for n in view["canvas"]])
        first, native_first = features(truth, pixels)[1], features(native, pixels)[1]
        tensors[f"picture/{picture}/vision_features"] = first
        tensors[f"picture/{picture}/rows"] = rows[0][picture]
        if picture == OVERVIEW:
            tensors[f"picture/{picture}/overview"] = pixels[0]
        described[picture] = {
            "picture": name,
            "size": list(size),
            "num_crops": num_crops,
            **view,
            "pixels_crc32": [golden_files.crc32(values) for values in pixels[1:]],
            "vision_features_tile": 1,
            "native_vision_features": difference(native_first, first),
            "native_projected": difference(rows[2][picture], rows[0][picture]),
        }
        if len(rows[0][picture]) != view["tokens"]:
            raise SystemExit(f"make_goldens: {picture} has {len(rows[0][picture])} rows, not {view['tokens']}")
    return tensors, described, rows


def record(folder, checkpoint, pictures):
    """(tensors, description) of every golden of a checkpoint folder."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    models = [golden_phi_models.load(folder, dtype) for dtype in (torch.float32, torch.float64, checkpoint.dtype)]
    tensors, described, rows = record_pictures(checkpoint, pictures, models)
    cases = {}
    for name, (prompt, names, num_crops) in CASES[checkpoint.weights].items():
        keys = [key(picture, num_crops) for picture in names]
        ids, spans = encode(tokenizer, prompt, [described[picture]["tokens"] for picture in keys])
        if len(ids) not in LENGTHS.get(name, [len(ids)]):
            raise SystemExit(f"make_goldens: {checkpoint.name} {name} has {len(ids)} tokens")

        def inputs(model):
            return model, ids, spans, [rows[models.index(model)][picture] for picture in keys]

        found, numbers = golden_family.case(
            name, ids, models, lambda model: logits(*inputs(model)), lambda model: greedy(*inputs(model))
        )
        asked = {} if num_crops is None else {"num_crops": num_crops}
        cases[name] = {
            "prompt": prompt,
            "pictures": names,
            **asked,
            "image_spans": spans,
            "text": tokenizer.decode(found[f"case/{name}/greedy_ids"].tolist(), skip_special_tokens=True),
            **numbers,
        }
        tensors |= found
    return tensors, {"original_max_position_embeddings": ORIGINAL_POSITIONS, "pictures": described, "cases": cases}
