"""Byte-for-byte reproducible files: safetensors, JSON, and where a fixture came from."""

import json
import pathlib
import zlib

import torch

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
}

# The versions the committed fixtures were made with. Pillow >= 12.2 resizes some pictures in another pass order, and
# transformers changes names and defaults between minor versions, so a mismatch would quietly make other goldens.
REQUIRED = {"transformers": "5.17.0", "pillow": "11.3.0"}
COMMAND = "python tools/make_goldens.py"


def versions():
    """Versions of every library whose change could change a fixture."""
    import numpy
    import PIL
    import safetensors
    import tokenizers
    import transformers

    return {
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "safetensors": safetensors.__version__,
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def check_versions():
    """Stop before anything is written when a pinned library has another version."""
    found = versions()
    wrong = [f"{name} is {found[name]}, need {want}" for name, want in REQUIRED.items() if found[name] != want]
    if wrong:
        raise SystemExit(f"make_goldens: {'; '.join(wrong)}. Install tools/requirements-goldens.txt.")


def provenance(seed=None):
    """The note that stands in every generated file: script, command, versions and, for random weights, the seed."""
    note = {"script": "tools/make_goldens.py", "command": COMMAND, "versions": versions()}
    return note if seed is None else {**note, "seed": seed}


def write_json(path, value):
    pathlib.Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


def write_safetensors(path, tensors, metadata):
    """Write `tensors` (name -> torch tensor) with string `metadata`, both sorted by name.

    The safetensors package keeps metadata in a hash map, so two runs of its writer give different bytes. The format is
    small enough to write directly: a little-endian u64 header length, a JSON header, the data.
    """
    header = {"__metadata__": {k: metadata[k] for k in sorted(metadata)}}
    blobs, offset = [], 0
    # Widest elements first keeps every tensor aligned to its own element size.
    for name in sorted(tensors, key=lambda n: (-tensors[n].element_size(), n)):
        tensor = tensors[name].detach().contiguous()
        blob = tensor.flatten().view(torch.uint8).numpy().tobytes()
        end = offset + len(blob)
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        blobs.append(blob)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        out.writelines(blobs)


def write_weights(folder, tensors, shards, seed):
    """Write a checkpoint's `tensors` (name -> tensor) as model.safetensors, or as `shards` files and their index."""
    metadata = {"format": "pt", "provenance": json.dumps(provenance(seed), sort_keys=True)}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, metadata)
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        # Neighbours in different shards: a loader that takes a shard for a layer range fails here.
        part = names[shard::shards]
        write_safetensors(folder / file, {name: tensors[name] for name in part}, metadata)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    parameters = sum(t.numel() for t in tensors.values())
    index = {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(folder / "model.safetensors.index.json", index)


def crc32(tensor):
    """CRC-32 of a tensor's bytes, row after row, little-endian."""
    return zlib.crc32(tensor.detach().contiguous().numpy().tobytes())
