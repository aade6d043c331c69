"""What transformers computes for a LLaVA-NeXT checkpoint: pictures as tiles, their packed rows, and prompts."""

import torch
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import golden_cases
import golden_family
import golden_files
import golden_next_models
import golden_pictures
import golden_views
from golden_cases import difference

# name -> (prompt in the words of LLaVA-1.5's template, pictures).
CASES = {
    "text": ("USER: what colour is the sky? ASSISTANT:", []),
    "picture_start": ("<image>\nwhat is in this picture?", ["large"]),
    "picture_middle": ("USER: in the first picture <image> there are stars. how many? ASSISTANT:", ["tall"]),
    # Spans that touch, of two lengths: neither says where it ends.
    "two_pictures": ("USER: <image><image>\ncompare the two. ASSISTANT:", ["wide", "photo"]),
    # Of a thin picture there may be no grid at all, or a grid of nothing but line ends.
    "thin": ("USER: <image>\n<image>\nis the first one tall? ASSISTANT:", ["strip", "column"]),
    "long": (
        "USER: <image>\nthe sea is blue and the sky over it is red. is the moon on the left? ASSISTANT:",
        ["tiny"],
    ),
}


def prompt_of(checkpoint, case):
    prompt = CASES[case][0]
    if checkpoint.weights == "next-mistral":
        prompt = prompt.replace("USER: ", "[INST] ").replace(" ASSISTANT:", " [/INST]")
    return prompt


def inputs_of(proc, pictures, checkpoint, case):
    """The processor's tensors: expanded input_ids [1, L]; pixel_values [P, T, 3, S, S], image_sizes [P, 2] (h, w)."""
    images = [Image.open(pictures[name]) for name in CASES[case][1]]
    batch = proc(text=prompt_of(checkpoint, case), images=images or None, return_tensors="pt")
    return {key: batch[key] for key in ("input_ids", "pixel_values", "image_sizes") if key in batch}


@torch.no_grad()
def picture_goldens(model, pixel_values, image_sizes):
    """Features [N, C] of the first tile, the one that shows everything, and the picture's packed rows [tokens, D]."""
    config = model.config
    pixel_values = pixel_values.to(model.dtype)
    tower = model.model.vision_tower(pixel_values[0, :1], output_hidden_states=True)
    features = tower.hidden_states[config.vision_feature_layer][0, 1:]
    rows = model.get_image_features(
        pixel_values=pixel_values,
        image_sizes=image_sizes,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    ).pooler_output[0]
    return features, rows


def describe_picture(checkpoint, name, pixel_values):
    """The numbers of a picture: sizes, kept part of the grid, rows, and a checksum a tile."""
    vision = golden_next_models.vision_fields(checkpoint.weights)
    tile, patch = vision["image_size"], vision["patch_size"]
    pinpoints = golden_next_models.pinpoints(checkpoint.weights)
    return {
        "size": list(golden_pictures.SIZES[name]),
        **golden_views.next_view(*golden_pictures.SIZES[name], tile, tile // patch, pinpoints),
        "pixels_crc32": [golden_files.crc32(values) for values in pixel_values[0]],
        "vision_features_tile": 0,
    }


def record_pictures(checkpoint, proc, pictures, truth, native):
    tensors, described = {}, {}
    for name in golden_pictures.SIZES:
        if not any(name in names for _, names in CASES.values()):
            continue
        batch = proc.image_processor(Image.open(pictures[name]), return_tensors="pt")
        pixels, sizes = batch["pixel_values"], batch["image_sizes"]
        features, rows = picture_goldens(truth, pixels, sizes)
        native_features, native_rows = picture_goldens(native, pixels, sizes)
        described[name] = {
            **describe_picture(checkpoint, name, pixels),
            "native_vision_features": difference(native_features, features),
            "native_projected": difference(native_rows, rows),
        }
        if len(rows) != described[name]["tokens"]:
            raise SystemExit(f"make_goldens: {name} has {len(rows)} rows, not {described[name]['tokens']}")
        tensors[f"picture/{name}/vision_features"] = features
        tensors[f"picture/{name}/rows"] = rows
    return tensors, described


def record(folder, checkpoint, pictures):
    """(tensors, description) of every golden of a checkpoint folder."""
    proc = golden_cases.processor(folder, LlavaNextImageProcessorPil)
    models = [golden_next_models.load(folder, dtype) for dtype in (torch.float32, torch.float64, checkpoint.dtype)]
    tensors, described = record_pictures(checkpoint, proc, pictures, models[0], models[2])
    cases = {}
    for name, (_, names) in CASES.items():
        inputs = inputs_of(proc, pictures, checkpoint, name)
        ids = inputs["input_ids"][0]
        found, numbers = golden_family.case(
            name,
            ids,
            models,
            lambda model: golden_cases.prompt_logits(model, inputs),
            lambda model: golden_cases.greedy(model, inputs),
        )
        lengths = [described[picture]["tokens"] for picture in names]
        cases[name] = {
            "prompt": prompt_of(checkpoint, name),
            "pictures": names,
            "image_spans": golden_family.spans(ids, models[0].config.image_token_id, lengths),
            "text": proc.tokenizer.decode(found[f"case/{name}/greedy_ids"], skip_special_tokens=True),
            **numbers,
        }
        tensors |= found
    return tensors, {"pictures": described, "cases": cases}
