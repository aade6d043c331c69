"""The tiny random Phi-3-vision checkpoints, and the model put together from transformers' parts.

transformers has no class for them. Its Phi3ForCausalLM and CLIPVisionModel with a projection and two separators are
Microsoft's model, tensor for tensor.
"""

import dataclasses
import json
import zlib

import numpy
import safetensors.torch
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

import golden_files
import golden_models
import golden_phi_pictures
import golden_phi_tokenizer

VOCAB_SIZE = 341  # rows of embed_tokens and lm_head: some have no token, and no multiple of 8
MAX_POSITIONS = 512
# Prompts on either side of it are as short as the others.
ORIGINAL_POSITIONS = 64
HEADS, HEAD_DIM = 2, 96

VISION = dict(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=56,
    patch_size=14,
    projection_dim=32,
)
SIDE = VISION["image_size"] // VISION["patch_size"]

TOWER = "model.vision_embed_tokens.img_processor.vision_model."
PROJECTION = "model.vision_embed_tokens.img_projection."
SEPARATORS = {
    "model.vision_embed_tokens.sub_GN": (1, 1, 1, 4 * VISION["hidden_size"]),
    "model.vision_embed_tokens.glb_GN": (1, 1, 4 * VISION["hidden_size"]),
}
EMBEDDING = "model.embed_tokens.weight"
ALIAS = "model.vision_embed_tokens.wte.weight"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    name: str
    seed: int
    weights: str
    hub_name: str
    num_crops: int
    sliding_window: int  # never in effect: from MAX_POSITIONS on
    alias: bool  # the embedding also under the name by which the picture half of the original knows it
    shards: int
    dtype: torch.dtype = torch.bfloat16


CHECKPOINTS = [
    Checkpoint("phi3-tiny", 238, "phi3", "Phi-3-vision-128k-instruct", 16, 512, alias=True, shards=2),
    Checkpoint("phi35-tiny", 53, "phi35", "Phi-3.5-vision-instruct", 4, 1024, alias=False, shards=1),
]


def factors(weights):
    """Two rising lists with a factor for each pair of elements; every checkpoint has its own, as the hub's two have."""
    random = numpy.random.default_rng(zlib.crc32(weights.encode()))
    short = numpy.sort(random.uniform(1, 4, HEAD_DIM // 2))
    long = numpy.sort(numpy.exp(random.uniform(0, numpy.log(65), HEAD_DIM // 2)))
    return {"long_factor": long.round(2).tolist(), "short_factor": short.round(2).tolist()}


def config(checkpoint):
    """config.json as the hub's files have it, and with `vision_config`, because their ViT-L/14 goes without saying."""
    return {
        "_name_or_path": checkpoint.hub_name,
        "architectures": ["Phi3VForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3_v.Phi3VConfig",
            "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
        },
        "bos_token_id": 1,
        "embd_layer": {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
        "embd_pdrop": 0.0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HEADS * HEAD_DIM,
        "img_processor": {
            "image_dim_out": VISION["hidden_size"],
            "model_name": "openai/clip-vit-large-patch14-336",
            "name": "clip_vision_model",
            "num_img_tokens": (SIDE // 2) ** 2,
        },
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "phi3_v",
        "num_attention_heads": HEADS,
        "num_hidden_layers": 2,
        "num_key_value_heads": HEADS,
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
        "pad_token_id": golden_phi_tokenizer.END_OF_TEXT,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**factors(checkpoint.weights), "type": "su"},
        "rope_theta": 10000.0,
        "sliding_window": checkpoint.sliding_window,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.1",
        "use_cache": True,
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "vocab_size": VOCAB_SIZE,
        "_attn_implementation": "flash_attention_2",
    }


def preprocessor_config(checkpoint):
    return {
        "auto_map": {
            "AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor",
            "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
        },
        "do_convert_rgb": True,
        "image_mean": golden_phi_pictures.MEAN,
        "image_processor_type": "Phi3VImageProcessor",
        "image_std": golden_phi_pictures.STD,
        "num_crops": checkpoint.num_crops,
        "num_img_tokens": (SIDE // 2) ** 2,
        "processor_class": "Phi3VProcessor",
    }


def write_configs(folder, checkpoint):
    processor = {
        "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"},
        "processor_class": "Phi3VProcessor",
    }
    # As the hub's files: neither names the token that ends a turn.
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": golden_phi_tokenizer.END_OF_TEXT}
    files = {
        "config.json": config(checkpoint),
        "generation_config.json": {"_from_model_config": True, **special, "transformers_version": "4.38.1"},
        "preprocessor_config.json": preprocessor_config(checkpoint),
        "processor_config.json": processor,
        "tokenizer.json": golden_phi_tokenizer.tokenizer_json(),
        "tokenizer_config.json": golden_phi_tokenizer.tokenizer_config(MAX_POSITIONS),
    }
    for name, value in files.items():
        golden_files.write_json(folder / name, value)


def text_config(config):
    """transformers' config of the text model that a phi3_v config.json describes."""
    scaling = config["rope_scaling"]
    shared = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    shared += ["vocab_size", "rms_norm_eps", "hidden_act", "max_position_embeddings", "sliding_window"]
    shared += ["original_max_position_embeddings", "tie_word_embeddings"]
    shared += ["bos_token_id", "eos_token_id", "pad_token_id"]
    return Phi3Config(
        **{key: config[key] for key in shared},
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": config["rope_theta"],
            "short_factor": scaling["short_factor"],
            "long_factor": scaling["long_factor"],
            "original_max_position_embeddings": config["original_max_position_embeddings"],
        },
    )


class Phi3V:
    """Microsoft's model: text, tower, projection [rows, 4C] -> [rows, D], separators [4C]."""

    def __init__(self, config, dtype):
        build = dict(dtype=dtype, attn_implementation="eager")
        self.text = Phi3ForCausalLM._from_config(text_config(config), **build).eval()
        self.tower = CLIPVisionModel._from_config(CLIPVisionConfig(**config["vision_config"]), **build).eval()
        columns, hidden = 4 * config["vision_config"]["hidden_size"], config["hidden_size"]
        self.projection = torch.nn.Sequential(
            torch.nn.Linear(columns, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, hidden)
        ).to(dtype)
        self.separators = {name: torch.zeros(shape, dtype=dtype) for name, shape in SEPARATORS.items()}
        self.dtype = dtype

    def parameters(self):
        """The hub's name -> parameter."""
        parts = [("", self.text), (TOWER, self.tower), (PROJECTION, self.projection)]
        named = {prefix + name: p for prefix, part in parts for name, p in part.named_parameters()}
        return named | self.separators


def write(folder, checkpoint):
    """Write the checkpoint's folder as Microsoft's are."""
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, checkpoint)
    tensors = {}
    for name, parameter in Phi3V(config(checkpoint), torch.float32).parameters().items():
        # "vision_embed_tokens" would pass for the embedding.
        plain = name.removeprefix("model.vision_embed_tokens.")
        tensors[name] = golden_models.random_tensor(plain, parameter.shape, checkpoint.seed).to(checkpoint.dtype)
    if checkpoint.alias:
        tensors[ALIAS] = tensors[EMBEDDING]
    golden_files.write_weights(folder, tensors, checkpoint.shards, checkpoint.seed)


@torch.no_grad()
def load(folder, dtype):
    """The model that `folder` holds; a tensor that is missing or has no place is an error."""
    model = Phi3V(json.loads((folder / "config.json").read_text(encoding="utf-8")), dtype)
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= safetensors.torch.load_file(file)
    alias = tensors.pop(ALIAS, None)
    if alias is not None and not torch.equal(alias, tensors[EMBEDDING]):
        raise SystemExit(f"make_goldens: {folder}: {ALIAS} is not {EMBEDDING}")
    parameters = model.parameters()
    if differing := parameters.keys() ^ tensors.keys():
        raise SystemExit(f"make_goldens: {folder}: the model or the files lack {sorted(differing)}")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
    return model
