"""The tiny random LLaVA checkpoints: configs, seeded weights, tensor-name layouts, and the files of a model folder."""

import dataclasses
import zlib

import numpy
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import golden_files
import golden_tokenizer

VOCAB_SIZE = 331  # rows of embed_tokens and lm_head; odd, so that no kernel may count on a multiple of 8
TOKENIZER_SIZE = 325  # ids that tokenizer.json defines; like the real checkpoints, the rest are rows without a token
MAX_POSITIONS = 512


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    name: str
    seed: int
    weights: str  # checkpoints with the same `weights` and seed hold the same numbers, rounded to their dtype
    dtype: torch.dtype
    layout: str  # tensor names, see `rename`
    shards: int
    hub_config: bool  # config.json in the spelling of the hub files (transformers 4) or of transformers 5


CHECKPOINTS = [
    Checkpoint("llava-tiny-mha", 24, "mha", torch.float32, layout="A", shards=1, hub_config=True),
    Checkpoint("llava-tiny-gqa", 16, "gqa", torch.float32, layout="B", shards=2, hub_config=False),
    Checkpoint("llava-tiny-gqa-f16", 16, "gqa", torch.float16, layout="A", shards=1, hub_config=True),
    Checkpoint("llava-tiny-gqa-bf16", 16, "gqa", torch.bfloat16, layout="C", shards=1, hub_config=False),
]

DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def vision_fields(weights):
    """CLIP sizes; both have heads of 64, the size of ViT-L/14."""
    return {
        # 16 patches, two heads; the third block must not be used: vision_feature_layer is -2.
        "mha": dict(
            hidden_size=128,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        # 9 patches and the class token, one head; every block is used: vision_feature_layer is -1.
        "gqa": dict(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=42,
            patch_size=14,
            layer_norm_eps=1e-3,  # not the default 1e-5, and large enough to show in the logits
        ),
    }[weights]


def text_fields(weights):
    """Llama sizes; head_dim is explicit because it is not hidden_size / num_attention_heads."""
    shared = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    return {
        "mha": dict(**shared, head_dim=64, rms_norm_eps=1e-5),
        # An epsilon that shows in the logits when a loader falls back to the default 1e-6.
        "gqa": dict(**shared, head_dim=128, num_key_value_heads=1, rms_norm_eps=1e-4),
    }[weights]


def rope_theta(weights):
    """Not the default 10000 for gqa, whose folders spell the field in both the old and the new way."""
    return {"mha": 10000.0, "gqa": 40000.0}[weights]


def llava_fields(weights):
    return {
        "mha": dict(vision_feature_layer=-2, vision_feature_select_strategy="default"),
        "gqa": dict(vision_feature_layer=-1, vision_feature_select_strategy="full"),
    }[weights]


def image_size(checkpoint):
    return vision_fields(checkpoint.weights)["image_size"]


def image_tokens(weights):
    """Rows of one picture: the patches, and with strategy `full` the class token before them."""
    vision = vision_fields(weights)
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    return patches + (llava_fields(weights)["vision_feature_select_strategy"] == "full")


def llava_config(checkpoint):
    weights = checkpoint.weights
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_fields(weights), projection_dim=32),
        text_config=LlamaConfig(
            **text_fields(weights),
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=MAX_POSITIONS,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=TOKENIZER_SIZE - 1,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta(weights)},
            tie_word_embeddings=False,
        ),
        image_token_index=TOKENIZER_SIZE - 2,
        image_seq_length=image_tokens(weights),
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        **llava_fields(weights),
    )


def hub_config(checkpoint):
    """config.json as the hub's llava-1.5 files spell it: only what differs from the class defaults, old key names."""
    dtype = DTYPE_NAMES[checkpoint.dtype]
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": image_tokens(checkpoint.weights),
        "image_token_index": TOKENIZER_SIZE - 2,
        "model_type": "llava",
        "pad_token_id": TOKENIZER_SIZE - 1,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **text_fields(checkpoint.weights),
            "max_position_embeddings": MAX_POSITIONS,
            "rope_theta": rope_theta(checkpoint.weights),
            "torch_dtype": dtype,
            "vocab_size": VOCAB_SIZE,
        },
        "torch_dtype": dtype,
        "vision_config": {
            "model_type": "clip_vision_model",
            **vision_fields(checkpoint.weights),
            "projection_dim": 32,
            "vocab_size": 32000,
        },
        **llava_fields(checkpoint.weights),
        "vocab_size": VOCAB_SIZE,
    }


# Tensors that are added to, or stand beside, activations.
SMALL = ["embed_tokens", "class_embedding", "position_embedding", "image_newline", "_GN"]


def random_tensor(name, shape, seed):
    """Weights that keep activations near unit size, so logits are far from flat and an error shows.

    transformers' own initialisation (standard deviation 0.02) leaves logits nearly equal. Every tensor has its own
    generator, so one tensor's shape does not change another's numbers.
    """
    values = numpy.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if "norm" in name and name.endswith("weight"):  # LayerNorm and RMSNorm, CLIP's `pre_layrnorm` included
        values = 1 + 0.1 * values
    elif name.endswith("bias") or any(part in name for part in SMALL):
        values = 0.3 * values
    else:
        values = values / numpy.sqrt(numpy.prod(shape[1:]))
    return torch.from_numpy(values.astype(numpy.float32))


def random_weights(kind, config, seed):
    """In-memory name -> f32 tensor for every parameter of a model of class `kind`."""
    with torch.device("meta"):
        model = kind(config)
    return {name: random_tensor(name, p.shape, seed) for name, p in model.named_parameters()}


def rename(name, layout):
    """In-memory tensor name -> the name in a file.

    A: the hub's llava-hf files. B: `save_pretrained` of transformers 5. C: the in-memory names themselves. C': those of
    transformers 4.52, whose tower had a level more.
    """
    if layout == "C":
        return name
    if layout == "C'":
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    if layout == "A":
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def write_weights(folder, checkpoint, kind, config):
    tensors = {
        rename(name, checkpoint.layout): values.to(checkpoint.dtype)
        for name, values in random_weights(kind, config, checkpoint.seed).items()
    }
    golden_files.write_weights(folder, tensors, checkpoint.shards, checkpoint.seed)


def write_configs(folder, checkpoint):
    if checkpoint.hub_config:
        golden_files.write_json(folder / "config.json", hub_config(checkpoint))
    else:
        config = llava_config(checkpoint)
        config.architectures = ["LlavaForConditionalGeneration"]
        config.dtype = DTYPE_NAMES[checkpoint.dtype]
        config.save_pretrained(folder)
    size = image_size(checkpoint)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": TOKENIZER_SIZE - 1}
    golden_files.write_json(folder / "generation_config.json", {"_from_model_config": True, **special})
    golden_files.write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": {"height": size, "width": size},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "CLIPImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": size},
        },
    )
    golden_files.write_json(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": vision_fields(checkpoint.weights)["patch_size"],
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": llava_fields(checkpoint.weights)["vision_feature_select_strategy"],
        },
    )
    golden_files.write_json(folder / "tokenizer.json", golden_tokenizer.tokenizer_json(TOKENIZER_SIZE))
    write_chat_template(folder, checkpoint, golden_tokenizer.CHAT_TEMPLATE)
    golden_files.write_json(folder / "tokenizer_config.json", golden_tokenizer.tokenizer_config(MAX_POSITIONS))


def write_chat_template(folder, checkpoint, template):
    """The template's second place: a processor of transformers 5 does not look into tokenizer_config.json."""
    if checkpoint.hub_config:
        golden_files.write_json(folder / "chat_template.json", {"chat_template": template})
    else:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write(folder, checkpoint):
    """Write the checkpoint's folder in Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, checkpoint)
    write_weights(folder, checkpoint, LlavaForConditionalGeneration, llava_config(checkpoint))


def load(folder, dtype, kind=LlavaForConditionalGeneration):
    """The model that transformers reads from `folder`, with eager attention; a name it cannot place is an error."""
    model, info = kind.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise SystemExit(f"make_goldens: {folder}: transformers reports {kind}: {sorted(info[kind])}")
    # Greedy search runs all its steps: no id ends it, and no processor changes the scores.
    model.generation_config.eos_token_id = None
    return model.eval()
