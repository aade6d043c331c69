"""The demo model: its configuration, its training-time forward pass, and saving it in the Hugging Face hub's layout."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_SIZE, PATCH_SIZE = 168, 14
VISION = dict(
    hidden_size=192, intermediate_size=576, num_hidden_layers=4, num_attention_heads=3, image_size=IMAGE_SIZE,
    patch_size=PATCH_SIZE, projection_dim=192, hidden_act="quick_gelu", layer_norm_eps=1e-5,
)
TEXT = dict(
    hidden_size=256, intermediate_size=448, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, hidden_act="silu", max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0,
)


def build_model(vocab_size: int, image_id: int, pad_id: int) -> LlavaForConditionalGeneration:
    """An untrained model; the last vision block stays as it is here, because `vision_feature_layer` -2 skips it."""
    text = LlamaConfig(
        **TEXT, vocab_size=vocab_size, bos_token_id=1, eos_token_id=2, pad_token_id=pad_id, tie_word_embeddings=False
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_index=image_id,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


class PackedLlava(nn.Module):
    """The forward pass over packed rows (see demo_batches): transformers' modules, our own mask and positions.

    Beside the answers it predicts what each patch shows, through two linear heads that are dropped after training:
    a tower that knows what it looks at early learns to answer early.
    """

    def __init__(self, model: LlavaForConditionalGeneration, prefix_ids: list[int], owners: int, colors: int):
        super().__init__()
        self.llava = model
        self.owner_head = nn.Linear(VISION["hidden_size"], owners)
        self.color_head = nn.Linear(VISION["hidden_size"], colors)
        self.register_buffer("prefix_ids", torch.tensor(prefix_ids), persistent=False)

    def vision_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[n, patches, hidden]: `hidden_states[-2]` without the class row; the unused last block is not run."""
        tower = self.llava.model.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for block in tower.encoder.layers[:-1]:
            hidden = block(hidden, attention_mask=None)
        return hidden[:, 1:]

    def forward(self, pixel_values, ids, segments, positions, no_picture):
        """Logits [n, suffix, vocab] and the patch logits."""
        features = self.vision_features(pixel_values)
        language = self.llava.model.language_model
        n, patches = features.shape[:2]
        prefix = language.embed_tokens(self.prefix_ids).expand(n, -1, -1)
        image = self.llava.model.multi_modal_projector(features)
        embeds = torch.cat([prefix.to(image.dtype), image, language.embed_tokens(ids).to(image.dtype)], dim=1)
        prefix_len = prefix.shape[1] + patches
        before = torch.arange(prefix_len, device=ids.device).expand(n, -1)
        hidden = language(
            inputs_embeds=embeds,
            attention_mask=packed_mask(segments, prefix_len, no_picture),
            position_ids=torch.cat([before, positions], dim=1),
            use_cache=False,
        ).last_hidden_state[:, prefix_len:]
        return self.llava.lm_head(hidden), self.owner_head(features), self.color_head(features)


def packed_mask(segments: torch.Tensor, prefix_len: int, no_picture: int) -> torch.Tensor:
    """[n, 1, t, t] true where a query may look: causal, own segment or the prefix."""
    n, suffix_len = segments.shape
    prefix = torch.zeros(n, prefix_len, dtype=segments.dtype, device=segments.device)
    owner = torch.cat([prefix, segments], dim=1)
    total = prefix_len + suffix_len
    step = torch.arange(total, device=segments.device)
    causal = step[:, None] >= step[None, :]
    same = owner[:, :, None] == owner[:, None, :]
    to_prefix = (step[None, None, :] < prefix_len) & (owner[:, :, None] < no_picture)
    return (causal & (same | to_prefix))[:, None]


def hub_name(name: str) -> str:
    """A transformers 5 parameter name in the spelling of the files on the hub."""
    for pattern, spelling in (
        (r"^model\.vision_tower\.(vision_model\.)?", "vision_tower.vision_model."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
        (r"^lm_head\.", "language_model.lm_head."),
    ):
        if re.match(pattern, name):
            return re.sub(pattern, spelling, name)
    raise ValueError(f"no hub spelling for the parameter {name}")


def hub_config(vocab_size: int, image_id: int, pad_id: int, dtype: str) -> dict:
    """config.json as LLaVA-1.5's is written: the field names that old and new readers both know."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        "image_token_index": image_id,
        "model_type": "llava",
        "pad_token_id": pad_id,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", **TEXT, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": pad_id, "tie_word_embeddings": False, "torch_dtype": dtype,
            "vocab_size": vocab_size,
        },
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": "5.17.0",
        "vision_config": {"model_type": "clip_vision_model", **VISION, "torch_dtype": dtype},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": vocab_size,
    }


def save_hub(folder: Path, model: LlavaForConditionalGeneration, dtype: torch.dtype) -> None:
    """Writes config.json and model.safetensors."""
    config = model.config
    spelled = str(dtype).removeprefix("torch.")
    fields = hub_config(config.text_config.vocab_size, config.image_token_id, config.text_config.pad_token_id, spelled)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    tensors = {
        hub_name(name): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
