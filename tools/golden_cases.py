"""What transformers computes for one checkpoint: pictures through the vision tower, prompts through the whole model."""

import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil

import golden_models
import golden_pictures

GREEDY_TOKENS = 64

# name -> (prompt, pictures). Prompts are raw text; `<image>` is the placeholder.
CASES = {
    "text": ("USER: what colour is the sky? ASSISTANT:", []),
    "picture_start": ("<image>\nwhat is in this picture?", ["large"]),
    "picture_middle": ("USER: in the first picture <image> there are stars. how many? ASSISTANT:", ["square"]),
    # Placeholders without text between them: two spans that touch.
    "two_pictures": ("USER: <image><image>\ncompare the two. ASSISTANT:", ["wide", "tall"]),
    # More than 40 tokens of text after a picture: paged attention crosses several blocks of 16.
    "long": (
        "USER: <image>\nthe sea is blue and the sky over it is red. is the moon on the left? ASSISTANT:",
        ["tiny"],
    ),
}
# Cases that the half-precision checkpoints record; the others add size and no new shape.
HALF_CASES = ["text", "picture_start", "two_pictures"]


def processor(folder, kind=CLIPImageProcessorPil):
    """The folder's own processor with the Pillow image backend; torchvision's resize differs by a level or two."""
    proc = AutoProcessor.from_pretrained(folder, backend="pil")
    images = proc.image_processor
    if not isinstance(images, kind):
        raise SystemExit(f"make_goldens: {folder}: {type(images).__name__} is not Pillow's image processor")
    return proc


def inputs_of(proc, pictures, case):
    """The processor's tensors for a case: expanded input_ids [1, L] and, with pictures, pixel_values [P, 3, S, S]."""
    prompt, names = CASES[case]
    images = [Image.open(pictures[name]) for name in names]
    batch = proc(text=prompt, images=images or None, return_tensors="pt")
    return {key: batch[key] for key in ("input_ids", "pixel_values") if key in batch}


def cast(inputs, dtype):
    """Pixels in the model's dtype, as a caller of transformers passes them."""
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}


@torch.no_grad()
def picture_goldens(model, pixel_values):
    """Selected features [N, C] and projected rows [N, D] of one picture's pixel_values [3, S, S]."""
    config = model.config
    hidden = model.model.vision_tower(pixel_values[None].to(model.dtype), output_hidden_states=True).hidden_states
    features = hidden[config.vision_feature_layer]
    if config.vision_feature_select_strategy == "default":
        features = features[:, 1:]
    projected = model.model.multi_modal_projector(features)
    whole = model.get_image_features(
        pixel_values=pixel_values[None].to(model.dtype),
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    ).pooler_output
    if not torch.equal(projected[0], whole[0]):
        raise SystemExit("make_goldens: the features selected here are not those of get_image_features")
    return features[0], projected[0]


@torch.no_grad()
def prompt_logits(model, inputs):
    """Logits [L, V] at every position of the expanded prompt, in the model's dtype."""
    return model(**cast(inputs, model.dtype)).logits[0]


@torch.no_grad()
def greedy(model, inputs):
    """GREEDY_TOKENS greedy steps: ids, log-softmax of each chosen id, and the gap between the two largest logits."""
    length = inputs["input_ids"].shape[1]
    out = model.generate(
        **cast(inputs, model.dtype),
        attention_mask=torch.ones_like(inputs["input_ids"]),
        do_sample=False,
        max_new_tokens=GREEDY_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = out.sequences[0, length:]
    logits = torch.cat(out.logits).float()
    if ids.numel() != GREEDY_TOKENS or not torch.equal(ids, logits.argmax(-1)):
        raise SystemExit("make_goldens: generate stopped early or did not take the largest logit")
    chosen = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    top = logits.topk(2).values
    return ids, chosen, top[:, 0] - top[:, 1]


def spans(ids, image_token, length):
    """[start, length] of every picture's rows in the expanded ids."""
    positions = (ids == image_token).nonzero()[:, 0].tolist()
    if len(positions) % length:
        raise SystemExit(f"make_goldens: {len(positions)} image tokens are no multiple of {length}")
    return [[positions[i], length] for i in range(0, len(positions), length)]


def difference(got, want):
    """How far `got` is from `want`: largest absolute difference and relative L2 norm."""
    got, want = got.double(), want.double()
    return {
        "max_abs": float(f"{(got - want).abs().max():.6g}"),
        "relative_l2": float(f"{(got - want).norm() / want.norm():.6g}"),
    }


def record(folder, checkpoint, pictures):
    """(tensors, description) of every golden of a checkpoint folder."""
    half = checkpoint.dtype != torch.float32
    proc = processor(folder)
    truth = golden_models.load(folder, torch.float32)
    exact = golden_models.load(folder, torch.float64)
    native = golden_models.load(folder, checkpoint.dtype) if half else None
    tensors, cases, described = {}, {}, {}

    names = HALF_CASES if half else list(CASES)
    for name in golden_pictures.SIZES:
        if any(name in CASES[case][1] for case in names):
            pixels = proc.image_processor(Image.open(pictures[name]), return_tensors="pt")["pixel_values"][0]
            features, projected = picture_goldens(truth, pixels)
            # The half folders share the f32 folder's preprocessing: its pixel values serve them too.
            if not half:
                tensors[f"picture/{name}/pixel_values"] = pixels
            tensors[f"picture/{name}/vision_features"] = features
            tensors[f"picture/{name}/projected"] = projected
            described[name] = {"size": list(golden_pictures.SIZES[name])}
            if half:
                native_features, native_projected = picture_goldens(native, pixels)
                described[name]["native_vision_features"] = difference(native_features, features)
                described[name]["native_projected"] = difference(native_projected, projected)

    for name in names:
        inputs = inputs_of(proc, pictures, name)
        logits = prompt_logits(truth, inputs)
        ids, logprobs, margins = greedy(truth, inputs)
        prompt_ids = inputs["input_ids"][0]
        tensors[f"case/{name}/input_ids"] = prompt_ids.int()
        tensors[f"case/{name}/logits"] = logits
        tensors[f"case/{name}/greedy_ids"] = ids.int()
        tensors[f"case/{name}/greedy_logprobs"] = logprobs
        tensors[f"case/{name}/greedy_margins"] = margins
        config = truth.config
        cases[name] = {
            "prompt": CASES[name][0],
            "pictures": CASES[name][1],
            "tokens": prompt_ids.numel(),
            "image_spans": spans(prompt_ids, config.image_token_id, golden_models.image_tokens(checkpoint.weights)),
            "text": proc.tokenizer.decode(ids, skip_special_tokens=True),
            "min_margin": float(f"{margins.min():.6g}"),
            "f32_against_f64": difference(logits, prompt_logits(exact, inputs)),
        }
        if half:
            native_logits = prompt_logits(native, inputs)
            native_ids, native_logprobs, _ = greedy(native, inputs)
            tensors[f"case/{name}/native_logits"] = native_logits
            tensors[f"case/{name}/native_greedy_ids"] = native_ids.int()
            tensors[f"case/{name}/native_greedy_logprobs"] = native_logprobs
            same = (native_ids == ids).int().cumprod(0).sum().item()
            cases[name]["native_against_f32"] = difference(native_logits, logits)
            cases[name]["native_greedy_prefix"] = same
    return tensors, {"pictures": described, "cases": cases}
