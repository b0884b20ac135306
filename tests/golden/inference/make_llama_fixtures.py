#!/usr/bin/python3
"""Writes the fixtures that llama_test compares our logits with: tiny Llamas of random weights, and what an independent
implementation (torch, F32, written here from the published architecture) computes for a row of tokens.

  /usr/bin/python3 make_llama_fixtures.py      needs Debian's python3-torch; the test itself needs neither

Each folder holds config.json, model.safetensors and expected.safetensors: `tokens` and `logits` [tokens, vocabulary].
"""

import json
import math
import struct
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def save(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8 if tensor.element_size() == 1 else
                                       {2: torch.int16, 4: torch.int32}[tensor.element_size()]).numpy().tobytes()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def make_weights(config, dtype, generator):
    d, ff, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim

    def matrix(rows, columns):
        return (torch.randn(rows, columns, generator=generator) / math.sqrt(columns)).to(dtype)

    def norm():
        return (1 + 0.2 * torch.randn(d, generator=generator)).to(dtype)

    weights = {"model.embed_tokens.weight": torch.randn(config["vocab_size"], d, generator=generator).to(dtype)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, shape in [("self_attn.q_proj", (heads, d)), ("self_attn.k_proj", (kv, d)),
                            ("self_attn.v_proj", (kv, d)), ("self_attn.o_proj", (d, heads)),
                            ("mlp.gate_proj", (ff, d)), ("mlp.up_proj", (ff, d)), ("mlp.down_proj", (d, ff))]:
            weights[f"{at}{name}.weight"] = matrix(*shape)
        weights[at + "input_layernorm.weight"] = norm()
        weights[at + "post_attention_layernorm.weight"] = norm()
    weights["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], d)
    return weights


def inverse_frequencies(config):
    dim = config["head_dim"]
    freq = config["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    scaling = config.get("rope_scaling")
    if not scaling:
        return freq
    if scaling["rope_type"] == "linear":
        return freq / scaling["factor"]
    original = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / freq
    smooth = (original / wavelength - scaling["low_freq_factor"]) / (
        scaling["high_freq_factor"] - scaling["low_freq_factor"])
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * freq / scaling["factor"] + smooth * freq


def forward(config, weights, tokens):
    w = {name: tensor.float() for name, tensor in weights.items()}
    dim, heads, kv = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    n = len(tokens)
    angles = torch.outer(torch.arange(n, dtype=torch.float64), inverse_frequencies(config))
    cos = torch.cat([angles.cos()] * 2, dim=1).float()
    sin = torch.cat([angles.sin()] * 2, dim=1).float()

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight

    def turn(x):  # [n, heads, dim]
        turned = torch.cat([-x[..., dim // 2:], x[..., :dim // 2]], dim=-1)
        return x * cos[:, None] + turned * sin[:, None]

    x = w["model.embed_tokens.weight"][tokens]
    mask = torch.full((n, n), float("-inf")).triu(1)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, w[at + "input_layernorm.weight"])
        q = turn((h @ w[at + "self_attn.q_proj.weight"].T).view(n, heads, dim))
        k = turn((h @ w[at + "self_attn.k_proj.weight"].T).view(n, kv, dim))
        v = (h @ w[at + "self_attn.v_proj.weight"].T).view(n, kv, dim)
        k, v = k.repeat_interleave(heads // kv, dim=1), v.repeat_interleave(heads // kv, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(dim) + mask
        h = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(n, heads * dim)
        x = x + h @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, w[at + "post_attention_layernorm.weight"])
        h = torch.nn.functional.silu(h @ w[at + "mlp.gate_proj.weight"].T) * (h @ w[at + "mlp.up_proj.weight"].T)
        x = x + h @ w[at + "mlp.down_proj.weight"].T
    x = norm(x, w["model.norm.weight"])
    return x @ w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


BASE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "attention_bias": False, "mlp_bias": False, "max_position_embeddings": 512}
FIXTURES = {
    "llama_untied": (torch.bfloat16, 70, BASE | {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 96, "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}}),
    "llama_tied": (torch.float16, 33, BASE | {
        "hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 22, "vocab_size": 70, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
}


def main():
    for name, (dtype, count, config) in FIXTURES.items():
        generator = torch.Generator().manual_seed(11)
        weights = make_weights(config, dtype, generator)
        tokens = torch.randint(0, config["vocab_size"], (count,), generator=generator)
        with torch.no_grad():
            logits = forward(config, weights, tokens)
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save(folder / "model.safetensors", weights)
        save(folder / "expected.safetensors", {"tokens": tokens.float()[None], "logits": logits})


if __name__ == "__main__":
    main()
