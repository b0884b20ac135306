#!/usr/bin/env python3
"""Our raw device beside llama.cpp: the same random weights, precision, threads and prompt, in the same minute.

  bench/peer_llama_cpp.py [--bin build/release/bin] [--package DIR] [--seconds 1] [--threads 2] [--json FILE]

llama.cpp comes as the npm package node-llama-cpp, installed into --package (default: a temporary folder) with
--ignore-scripts; where it cannot be had, the script says so and ends with 3. Nothing of it is kept in the repository.
"""

import argparse
import array
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPTS = {"15M": 128, "110M": 64}
F32, BF16 = 0, 30  # ggml's types
ALIGNMENT = 32


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def field(key, value):
    """One metadata pair of GGUF v3: the type is that of the Python value; lists hold strings, floats or ints."""
    def typed(v):
        if isinstance(v, bool):
            return 7, struct.pack("<?", v)
        if isinstance(v, str):
            return 8, text(v)
        if isinstance(v, float):
            return 6, struct.pack("<f", v)
        return 4, struct.pack("<I", v)
    if isinstance(value, list):
        kinds = [typed(v) for v in value]
        kind = 5 if isinstance(value[0], int) else kinds[0][0]
        return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + b"".join(data for _, data in kinds)
    kind, data = typed(value)
    return text(key) + struct.pack("<I", kind) + data


def read_safetensors(path):
    data = path.read_bytes()
    length, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    return {name: (entry["shape"], data[8 + length + entry["data_offsets"][0]:8 + length + entry["data_offsets"][1]])
            for name, entry in header.items() if name != "__metadata__"}


def widen(raw):
    """BF16 to F32: llama.cpp wants its norms so."""
    return struct.pack(f"<{len(raw) // 2}I", *(v << 16 for v in array.array("H", raw)))


def interleave(raw, heads):
    """Rows of queries or keys from halves to neighbours, as llama.cpp turns them."""
    rows = len(raw) // heads
    row = None
    out = []
    for head in range(heads):
        block = raw[head * rows:(head + 1) * rows]
        dim = interleave.dim
        row = len(block) // dim
        for i in range(dim // 2):
            out.append(block[i * row:(i + 1) * row])
            out.append(block[(i + dim // 2) * row:(i + dim // 2 + 1) * row])
    return b"".join(out)


def write_gguf(model, path):
    config = json.loads((model / "config.json").read_text())
    tensors = read_safetensors(model / "model.safetensors")
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    interleave.dim = config["head_dim"]
    infos, data = b"", b""
    for name, (shape, raw) in tensors.items():
        stem = name.removesuffix(".weight")
        if stem in names:
            target = names[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            target = f"blk.{layer}.{parts[part]}"
        if target.endswith("attn_q"):
            raw = interleave(raw, config["num_attention_heads"])
        if target.endswith("attn_k"):
            raw = interleave(raw, config["num_key_value_heads"])
        kind = F32 if len(shape) == 1 else BF16
        raw = widen(raw) if kind == F32 else raw
        data += b"\0" * (-len(data) % ALIGNMENT)
        infos += text(target + ".weight") + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", extent) for extent in reversed(shape))
        infos += struct.pack("<IQ", kind, len(data))
        data += raw
    vocabulary = config["vocab_size"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    types = [2, 3, 3] + [6] * 256
    tokens += [f"t{i}" for i in range(len(tokens), vocabulary)]
    types += [1] * (vocabulary - len(types))
    fields = [
        ("general.architecture", "llama"), ("general.name", "random"), ("general.alignment", ALIGNMENT),
        ("llama.context_length", config["max_position_embeddings"]), ("llama.embedding_length", config["hidden_size"]),
        ("llama.block_count", config["num_hidden_layers"]),
        ("llama.feed_forward_length", config["intermediate_size"]),
        ("llama.attention.head_count", config["num_attention_heads"]),
        ("llama.attention.head_count_kv", config["num_key_value_heads"]),
        ("llama.attention.layer_norm_rms_epsilon", float(config["rms_norm_eps"])),
        ("llama.rope.dimension_count", config["head_dim"]), ("llama.rope.freq_base", float(config["rope_theta"])),
        ("llama.vocab_size", vocabulary), ("tokenizer.ggml.model", "llama"), ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.scores", [0.0] * vocabulary), ("tokenizer.ggml.token_type", types),
        ("tokenizer.ggml.bos_token_id", 1), ("tokenizer.ggml.eos_token_id", 2),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(field(key, value) for key, value in fields) + infos
    head += b"\0" * (-len(head) % ALIGNMENT)
    path.write_bytes(head + data)


def have_package(folder):
    if (folder / "node_modules/node-llama-cpp").is_dir():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text("{\"private\": true}\n")
    done = subprocess.run(["npm", "install", "node-llama-cpp", "--ignore-scripts", "--no-audit", "--no-fund"],
                          cwd=folder, capture_output=True, text=True)
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, default=HERE.parent / "build/release/bin")
    parser.add_argument("--package", type=Path)
    parser.add_argument("--seconds", default="1")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--only", choices=list(PROMPTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mainstay_peer_") as scratch:
        scratch = Path(scratch)
        package = options.package or scratch / "package"
        if not have_package(package):
            print("llama.cpp: npm cannot install node-llama-cpp here; nothing compared", file=sys.stderr)
            return 3
        rows = []
        for model, prompt in PROMPTS.items():
            if options.only not in (None, model):
                continue
            ours_at = scratch / f"{model}.json"
            command = [options.bin / "bench_decode", "--only", model, "--seconds", options.seconds,
                       "--threads", options.threads, "--write", scratch, "--json", ours_at]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            gguf = scratch / f"{model}.gguf"
            write_gguf(scratch / f"{model}-bf16", gguf)
            peer = subprocess.run(["node", HERE / "peer_llama_cpp.mjs", package, gguf, str(prompt), options.seconds,
                                   options.threads], capture_output=True, text=True, env=os.environ)
            if peer.returncode != 0:
                print(f"llama.cpp failed: {peer.stderr.strip()[-400:]}", file=sys.stderr)
                return 1
            theirs = {(row["what"], row["batch"]): row for row in map(json.loads, filter(None, peer.stdout.split("\n")))}
            for row in json.loads(ours_at.read_text())["decode"]:
                other = theirs[row["what"], row["batch"]]
                rows.append(row | {"llama_cpp": other["best"], "llama_cpp_median": other["median"],
                                   "times_llama_cpp": row["tokens_per_s"] / other["best"]})
        print(f"{'model':6}{'kernels':12}{'what':9}{'batch':>5} | {'ours best':>10}{'median':>9} | "
              f"{'llama.cpp':>10}{'median':>9} | {'times':>6}")
        for row in rows:
            print(f"{row['model']:6}{row['kernels']:12}{row['what']:9}{row['batch']:5} | {row['tokens_per_s']:10.0f}"
                  f"{row['tokens_per_s_median']:9.0f} | {row['llama_cpp']:10.0f}{row['llama_cpp_median']:9.0f} | "
                  f"{row['times_llama_cpp']:5.1f}x")
        if options.json:
            options.json.write_text(json.dumps({"peer": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
