"""The second demo model: transformers' Phi-3 and CLIP put together as Phi-3-vision is, and its files as on the hub.

transformers has no class for Phi-3-vision. The parts here are its own; what stands between them is little: two
separators and a projection.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

from demo_hd import merge
from demo_phi3v_batches import FIRST_FEATURE
from demo_tokenizer import write_json

TILE, PATCH = 84, 14
TILE_TOKENS = (TILE // PATCH // 2) ** 2
VISION = dict(
    hidden_size=192, intermediate_size=256, num_hidden_layers=4, num_attention_heads=3, image_size=TILE,
    patch_size=PATCH, projection_dim=192, hidden_act="quick_gelu", layer_norm_eps=1e-5,
)
TEXT = dict(
    hidden_size=288, intermediate_size=224, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=3,
    hidden_act="silu", max_position_embeddings=2048, original_max_position_embeddings=1024, rms_norm_eps=1e-5,
    sliding_window=4096,
)
ROPE_THETA = 10000.0
PAIRS_OF_A_HEAD = TEXT["hidden_size"] // TEXT["num_attention_heads"] // 2
# Like Phi's lists they rise with the wavelength; the long ones are not trained.
SHORT_FACTOR = [round(1.02 + 0.03 * pair, 2) for pair in range(PAIRS_OF_A_HEAD)]
LONG_FACTOR = [round(1.05 + 0.08 * pair, 2) for pair in range(PAIRS_OF_A_HEAD)]
VISION_PREFIX = "model.vision_embed_tokens.img_processor.vision_model."
EMBED_PREFIX = "model.vision_embed_tokens."


class Phi3V(nn.Module):
    """The parts of a Phi-3-vision model."""

    def __init__(self, vision: dict, text: dict):
        super().__init__()
        self.clip = CLIPVisionModel(CLIPVisionConfig(**vision))
        self.phi = Phi3ForCausalLM(Phi3Config(**text))
        merged, hidden = 4 * self.clip.config.hidden_size, self.phi.config.hidden_size
        self.sub_GN = nn.Parameter(0.02 * torch.randn(1, 1, 1, merged))
        self.glb_GN = nn.Parameter(0.02 * torch.randn(1, 1, merged))
        self.img_projection = nn.Sequential(nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def untrained(self) -> list[nn.Module]:
        """What the features, the tower's `hidden_states[-2]`, do not depend on."""
        return [self.clip.encoder.layers[-1], self.clip.post_layernorm]

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        """Merged features [n, 4c] and behind them `sub_GN` and `glb_GN`, projected: [n + 2, hidden]."""
        separators = torch.cat([self.sub_GN.flatten()[None], self.glb_GN.flatten()[None]])
        return self.img_projection(torch.cat([features, separators.to(features.dtype)]))


def text_config(vocab_size: int, bos: int, eos: int, pad: int) -> dict:
    """Arguments of Phi3Config."""
    return {
        **TEXT, "vocab_size": vocab_size, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": ROPE_THETA, "short_factor": SHORT_FACTOR,
            "long_factor": LONG_FACTOR, "original_max_position_embeddings": TEXT["original_max_position_embeddings"],
        },
    }


class PackedPhi3V(nn.Module):
    """The forward pass over packed rows (see demo_phi3v_batches): transformers' blocks, our own mask and positions.

    Beside the answers it predicts what each patch of a tile shows, through two linear heads that are dropped after
    training: a tower that knows what it looks at early learns to answer early.
    """

    def __init__(self, model: Phi3V, owners: int, colors: int):
        super().__init__()
        self.model = model
        self.owner_head = nn.Linear(VISION["hidden_size"], owners)
        self.color_head = nn.Linear(VISION["hidden_size"], colors)

    def vision_features(self, tiles: torch.Tensor) -> torch.Tensor:
        """[n, patches, hidden]: `hidden_states[-2]` without the class row; the unused last block is not run."""
        tower = self.model.clip
        hidden = tower.pre_layrnorm(tower.embeddings(tiles))
        for block in tower.encoder.layers[:-1]:
            hidden = block(hidden, attention_mask=None)
        return hidden[:, 1:]

    def forward(self, tiles, prefix, ids, segments, visible, positions):
        """Logits [n, orders, suffix, vocab] and the patch logits of [n, 2, tiles, 3, side, side]."""
        n, orders, suffix_len = ids.shape
        prefix_len = prefix.shape[2]
        features = self.vision_features(tiles.flatten(0, 2))
        merged = merge(features).view(n, -1, 4 * features.shape[-1])
        rows = self.model.rows(merged.flatten(0, 1))
        bank = torch.cat([rows[:-2].view(n, merged.shape[1], -1), rows[-2:].expand(n, -1, -1)], dim=1)
        embed = self.model.phi.model.embed_tokens
        feature = (FIRST_FEATURE - prefix).clamp(min=0).flatten(1)
        image = bank.gather(1, feature[:, :, None].expand(-1, -1, bank.shape[2])).view(*prefix.shape, -1)
        before = torch.where((prefix <= FIRST_FEATURE)[..., None], image, embed(prefix.clamp(min=0)).to(image.dtype))
        hidden = torch.cat([before, embed(ids).to(image.dtype)], dim=2).flatten(0, 1)
        steps = torch.arange(prefix_len, device=ids.device).expand(n * orders, -1)
        where = torch.cat([steps, positions.flatten(0, 1)], dim=1)
        mask = packed_mask(segments.flatten(0, 1), visible.flatten(0, 1), prefix_len)
        last = self.text(hidden, mask, where)[:, prefix_len:]
        logits = self.model.phi.lm_head(last).view(n, orders, suffix_len, -1)
        real = features.view(n, 2, -1, *features.shape[1:])[:, :, 1:]
        return logits, self.owner_head(real), self.color_head(real)

    def text(self, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Phi3Model's forward pass in the short regime; its own decides the regime by looking at the positions."""
        phi = self.model.phi.model
        angles = positions[..., None].float() * phi.rotary_emb.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        scale = phi.rotary_emb.attention_scaling
        rotary = (angles.cos() * scale).to(hidden.dtype), (angles.sin() * scale).to(hidden.dtype)
        for layer in phi.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        return phi.norm(hidden)


def packed_mask(segments: torch.Tensor, visible: torch.Tensor, prefix_len: int) -> torch.Tensor:
    """[n, 1, t, t] true where a query may look: causal, its own segment, and what is visible of the prefix."""
    n, suffix_len = segments.shape
    total = prefix_len + suffix_len
    step = torch.arange(total, device=segments.device)
    causal = step[:, None] >= step[None, :]
    everything = torch.full((n, prefix_len), prefix_len, dtype=visible.dtype, device=visible.device)
    limit = torch.cat([everything, visible], dim=1)
    to_prefix = (step[None, None, :] < prefix_len) & (step[None, None, :] < limit[:, :, None])
    owner = torch.cat([torch.full_like(everything, -1), segments], dim=1)
    same = (owner[:, :, None] == owner[:, None, :]) & (owner >= 0)[:, None, :]
    return (causal & (same | to_prefix))[:, None]


def hub_config(model: Phi3V, dtype: torch.dtype) -> dict:
    """config.json as Microsoft's is written, and `vision_config`, which their files leave to the reader to know."""
    config, spelled = model.phi.config, str(dtype).removeprefix("torch.")
    return {
        "architectures": ["Phi3VForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "embd_layer": {
            "embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp",
            "use_hd_transform": True, "with_learnable_separator": True,
        },
        "embd_pdrop": 0.0,
        "eos_token_id": config.eos_token_id,
        **TEXT,
        "img_processor": {
            "image_dim_out": VISION["hidden_size"], "name": "clip_vision_model", "num_img_tokens": TILE_TOKENS,
        },
        "initializer_range": 0.02,
        "model_type": "phi3_v",
        "pad_token_id": config.pad_token_id,
        "resid_pdrop": 0.0,
        "rope_scaling": {"long_factor": LONG_FACTOR, "short_factor": SHORT_FACTOR, "type": "su"},
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": False,
        "torch_dtype": spelled,
        "transformers_version": "5.17.0",
        "use_cache": True,
        "vision_config": {"model_type": "clip_vision_model", **VISION, "torch_dtype": spelled},
        "vocab_size": config.vocab_size,
    }


def hub_tensors(model: Phi3V) -> dict[str, torch.Tensor]:
    """The parameters under the names of the files on the hub."""
    tensors = {EMBED_PREFIX + "sub_GN": model.sub_GN, EMBED_PREFIX + "glb_GN": model.glb_GN}
    for prefix, part in (
        (VISION_PREFIX, model.clip), (EMBED_PREFIX + "img_projection.", model.img_projection), ("", model.phi),
    ):
        tensors |= {prefix + name: parameter for name, parameter in part.named_parameters()}
    return tensors


def save_hub(folder: Path, model: Phi3V, dtype: torch.dtype) -> None:
    """Writes config.json and model.safetensors."""
    write_json(folder / "config.json", hub_config(model, dtype))
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in hub_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def load_hub(folder: Path) -> Phi3V:
    """The composition with a folder's weights as float32, built from its config.json alone."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scaling = config["rope_scaling"]
    original = config["original_max_position_embeddings"]
    text = {name: config[name] for name in (*TEXT, "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    text["tie_word_embeddings"] = config["tie_word_embeddings"]
    text["rope_parameters"] = {
        "rope_type": "longrope", "rope_theta": config["rope_theta"], "short_factor": scaling["short_factor"],
        "long_factor": scaling["long_factor"], "original_max_position_embeddings": original,
    }
    vision = {name: config["vision_config"][name] for name in VISION}
    model = Phi3V(vision, text).eval().requires_grad_(False)
    stored, targets = load_file(folder / "model.safetensors"), hub_tensors(model)
    if stored.keys() != targets.keys():
        raise ValueError(f"{folder} has other tensors than the model: {sorted(stored.keys() ^ targets.keys())}")
    for name, target in targets.items():
        target.copy_(stored[name])
    return model
