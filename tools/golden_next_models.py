"""The tiny random LLaVA-NeXT checkpoints: one with Llama's text model, one with Mistral's."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
)

import golden_files
import golden_models
import golden_tokenizer
from golden_models import DTYPE_NAMES, MAX_POSITIONS, TOKENIZER_SIZE, VOCAB_SIZE, Checkpoint

CHECKPOINTS = [
    Checkpoint("next-tiny-llama", 277, "next-llama", torch.bfloat16, layout="C'", shards=2, hub_config=False),
    Checkpoint("next-tiny-mistral", 0, "next-mistral", torch.float16, layout="A", shards=1, hub_config=True),
]

# As llava-v1.6-mistral-7b-hf has it: pictures before text, and no prompt for the answer to ask for.
MISTRAL_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<<SYS>>\\n' + message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}"
    "{% endfor %}"
)


def template(checkpoint):
    """v1.6-vicuna has the template of LLaVA-1.5."""
    return MISTRAL_TEMPLATE if checkpoint.weights == "next-mistral" else golden_tokenizer.CHAT_TEMPLATE


def vision_fields(weights):
    """CLIP sizes. Tiles of an even and of an odd number of patches: what the border takes away differs in parity.

    Of three blocks the last must not be used: vision_feature_layer is -2.
    """
    shared = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, patch_size=14)
    return {
        "next-llama": dict(**shared, num_attention_heads=2, image_size=28),
        "next-mistral": dict(**shared, num_attention_heads=1, image_size=42),
    }[weights]


def pinpoints(weights):
    """The hub's five resolutions, (height, width), in tiles of this size."""
    tile = vision_fields(weights)["image_size"]
    return [[down * tile, across * tile] for down, across in [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]]


def text_fields(weights):
    """head_dim is explicit because it is not hidden_size / num_attention_heads."""
    shared = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, rms_norm_eps=1e-5)
    return {
        "next-llama": dict(**shared, num_attention_heads=2, head_dim=64),
        "next-mistral": dict(**shared, num_attention_heads=8, num_key_value_heads=2, head_dim=32),
    }[weights]


def text_config(weights):
    shared = dict(
        **text_fields(weights),
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=TOKENIZER_SIZE - 1,
        tie_word_embeddings=False,
    )
    if weights == "next-mistral":
        rope = {"rope_type": "default", "rope_theta": 1e6}
        # transformers' default is a window of 4096.
        return MistralConfig(**shared, rope_parameters=rope, sliding_window=None)
    return LlamaConfig(**shared, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


def next_config(checkpoint):
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision_fields(checkpoint.weights), projection_dim=32),
        text_config=text_config(checkpoint.weights),
        image_token_index=TOKENIZER_SIZE - 2,
        image_grid_pinpoints=pinpoints(checkpoint.weights),
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def hub_config(checkpoint):
    """config.json as llava-v1.6-mistral-7b-hf spells it: old key names, class defaults left out, a window of `null`."""
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": pinpoints(checkpoint.weights),
        "image_token_index": TOKENIZER_SIZE - 2,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
            "architectures": ["MistralForCausalLM"],
            **text_fields(checkpoint.weights),
            "max_position_embeddings": MAX_POSITIONS,
            "model_type": "mistral",
            "rope_theta": 1000000.0,
            "sliding_window": None,
            # The type of the file that it was converted from; the outer one counts.
            "torch_dtype": "bfloat16",
            "vocab_size": VOCAB_SIZE,
        },
        "tie_word_embeddings": False,
        "torch_dtype": DTYPE_NAMES[checkpoint.dtype],
        "use_image_newline_parameter": True,
        "vision_config": {
            **vision_fields(checkpoint.weights),
            "model_type": "clip_vision_model",
            "projection_dim": 32,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": VOCAB_SIZE,
    }


def preprocessor_config(checkpoint):
    tile = vision_fields(checkpoint.weights)["image_size"]
    return {
        "aspect_ratio_setting": "anyres",
        "crop_size": {"height": tile, "width": tile},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": pinpoints(checkpoint.weights),
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "LlavaNextImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "LlavaNextProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": tile},
    }


def write_configs(folder, checkpoint):
    if checkpoint.hub_config:
        golden_files.write_json(folder / "config.json", hub_config(checkpoint))
    else:
        config = next_config(checkpoint)
        config.architectures = ["LlavaNextForConditionalGeneration"]
        config.dtype = DTYPE_NAMES[checkpoint.dtype]
        config.save_pretrained(folder)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": TOKENIZER_SIZE - 1}
    golden_files.write_json(folder / "generation_config.json", {"_from_model_config": True, **special})
    golden_files.write_json(folder / "preprocessor_config.json", preprocessor_config(checkpoint))
    golden_files.write_json(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": vision_fields(checkpoint.weights)["patch_size"],
            "processor_class": "LlavaNextProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    golden_files.write_json(folder / "tokenizer.json", golden_tokenizer.tokenizer_json(TOKENIZER_SIZE))
    golden_models.write_chat_template(folder, checkpoint, template(checkpoint))
    config = golden_tokenizer.tokenizer_config(MAX_POSITIONS, template(checkpoint), "LlavaNextProcessor")
    golden_files.write_json(folder / "tokenizer_config.json", config)


def write(folder, checkpoint):
    """Write the checkpoint's folder in Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, checkpoint)
    golden_models.write_weights(folder, checkpoint, LlavaNextForConditionalGeneration, next_config(checkpoint))


def load(folder, dtype):
    return golden_models.load(folder, dtype, LlavaNextForConditionalGeneration)
