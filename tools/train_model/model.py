"""Llama in torch, with the names of Hugging Face, as small as it gets: RMSNorm, RoPE, GQA, SwiGLU, tied head."""
import json
import math
import struct

import torch
import torch.nn.functional as F
from torch import nn

from template import BOS, END, MARKS, PLUMBING, VOCABULARY

EPSILON, THETA = 1e-5, 10000.0


class Linear(nn.Linear):
    """The product in BF16 where `short` says so: Debian's torch has fast kernels for that alone (oneDNN), its F32 products
    are the reference BLAS, fifty times slower. Weights, sums and what is between the products stay F32."""

    short = False

    def forward(self, x):
        if not Linear.short:
            return F.linear(x, self.weight)
        return F.linear(x.bfloat16(), self.weight.bfloat16()).float()


def product(a, b):
    return (a.bfloat16() @ b.bfloat16()).float() if Linear.short else a @ b


def linear(i, o):
    return Linear(i, o, bias=False)


class Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * self.weight


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv, self.size = c["heads"], c["kv"], c["dim"] // c["heads"]
        self.q_proj, self.o_proj = linear(c["dim"], c["dim"]), linear(c["dim"], c["dim"])
        self.k_proj, self.v_proj = linear(c["dim"], self.kv * self.size), linear(c["dim"], self.kv * self.size)

    def forward(self, x, cos, sin, mask):
        b, n, d = x.shape
        split = lambda t, h: t.view(b, n, h, self.size).transpose(1, 2)
        turn = lambda t: t * cos + torch.cat((-t[..., self.size // 2:], t[..., :self.size // 2]), -1) * sin
        groups = self.heads // self.kv
        q, k, v = turn(split(self.q_proj(x), self.heads)), turn(split(self.k_proj(x), self.kv)), split(self.v_proj(x), self.kv)
        # Query heads of one group side by side: keys and values are not copied for them.
        q = (q * self.size ** -0.5).reshape(b, self.kv, groups * n, self.size)
        if Linear.short:
            q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        score = (q @ k.transpose(-1, -2)).view(b, self.kv, groups, n, n) + mask.to(q.dtype)
        mixed = (score.softmax(-1).view(b, self.kv, groups * n, n) @ v).float().view(b, self.heads, n, self.size)
        return self.o_proj(mixed.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(c["dim"], c["ff"]), linear(c["dim"], c["ff"]), linear(c["ff"], c["dim"])

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(c["dim"]), Attention(c)
        self.post_attention_layernorm, self.mlp = Norm(c["dim"]), Mlp(c)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(VOCABULARY, c["dim"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["layers"]))
        self.norm = Norm(c["dim"])
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.02 if "embed" in name else p.shape[1] ** -0.5 * (0.3 if "o_proj" in name or "down" in name else 1)
                nn.init.normal_(p, std=std)
        size = c["dim"] // c["heads"]
        frequency = THETA ** (-torch.arange(0, size, 2) / size)
        angle = torch.arange(c["context"])[:, None] * frequency[None]
        angle = torch.cat((angle, angle), -1)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.mask = torch.full((c["context"], c["context"]), -1e9).triu(1)

    def forward(self, ids, wanted):
        """logits at the positions where `wanted` is true"""
        n = ids.shape[1]
        x = self.embed_tokens(ids)
        for block in self.layers:
            x = block(x, self.cos[:n], self.sin[:n], self.mask[:n, :n])
        return product(self.norm(x[wanted]), self.embed_tokens.weight.t())


def write_safetensors(path, tensors):
    """tensors: name -> float tensor, written as BF16 (round to nearest even, torch's own)."""
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, t in tensors.items():
        data = t.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        blobs.append(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for data in blobs:
            out.write(data)


def read_safetensors(path):
    """name -> float32 tensor; BF16 and F32 only."""
    with open(path, "rb") as source:
        data = source.read()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = bytearray(data[8 + size + begin:8 + size + end])
        kind = {"BF16": torch.bfloat16, "F32": torch.float32}[entry["dtype"]]
        flat = torch.frombuffer(raw, dtype=torch.int16 if kind == torch.bfloat16 else torch.float32)
        flat = flat.view(torch.bfloat16) if kind == torch.bfloat16 else flat
        tensors[name] = flat.float().reshape(entry["shape"])
    return tensors


def tokenizer_json():
    """A byte-level BPE without merges, in the layout of Hugging Face."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in printable]
    letter = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocabulary = {letter[b]: b for b in range(256)}
    added = []
    for i, content in enumerate(MARKS + PLUMBING):
        vocabulary_id = 256 + i
        added.append({"id": vocabulary_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": i < len(MARKS)})
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": []},
    }


def write_model(folder, model):
    """config.json, model.safetensors, tokenizer.json, tokenizer_config.json"""
    c = model.config
    write_safetensors(f"{folder}/model.safetensors", {"model." + n: p for n, p in model.state_dict().items()})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": c["dim"], "intermediate_size": c["ff"],
        "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"], "num_key_value_heads": c["kv"],
        "vocab_size": VOCABULARY, "max_position_embeddings": c["context"], "rms_norm_eps": EPSILON, "rope_theta": THETA,
        "rope_scaling": None, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "bos_token_id": BOS, "eos_token_id": END, "torch_dtype": "bfloat16",
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "mainstay-tiny", "bos_token": "<|bos|>",
                "eos_token": "<|end|>", "pad_token": "<|pad|>", "model_max_length": c["context"], "clean_up_tokenization_spaces": False}
    for name, value in (("config", config), ("tokenizer", tokenizer_json()), ("tokenizer_config", settings)):
        with open(f"{folder}/{name}.json", "w", encoding="utf-8") as out:
            json.dump(value, out, indent=1, ensure_ascii=False)
            out.write("\n")


def read_model(folder):
    with open(f"{folder}/config.json", encoding="utf-8") as source:
        c = json.load(source)
    model = Llama({"dim": c["hidden_size"], "layers": c["num_hidden_layers"], "heads": c["num_attention_heads"],
                   "kv": c["num_key_value_heads"], "ff": c["intermediate_size"], "context": c["max_position_embeddings"]})
    model.load_state_dict({n.removeprefix("model."): t for n, t in read_safetensors(f"{folder}/model.safetensors").items()})
    return model
