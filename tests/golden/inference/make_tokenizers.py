#!/usr/bin/env python3
"""Small tokenizers of five kinds and what they make of texts, by an implementation that shares nothing with ours:
Python's regex engine for the words, and merging by searching the whole word again after every merge.

  tests/golden/inference/make_tokenizers.py      writes tokenizer_<kind>.json (tokenizer and cases) beside itself
"""
import json
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

SPACE = "\u2581"
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def ranges(letter):
    out, start = [], None
    for point in range(0x110000 + 1):
        inside = point < 0x110000 and unicodedata.category(chr(point))[0] == letter
        if inside and start is None:
            start = point
        elif not inside and start is not None:
            out.append(f"\\U{start:08x}-\\U{point - 1:08x}")
            start = None
    return "".join(out)


LETTERS, NUMBERS = ranges("L"), ranges("N")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def compiled(pattern):
    """The expression with its classes spelled out, since Python knows no \\p and has another \\s."""
    out, inside, i = "", False, 0
    while i < len(pattern):
        for name, body in ((r"\p{L}", LETTERS), (r"\p{N}", NUMBERS), (r"\s", WHITE)):
            if pattern.startswith(name, i):
                out += body if inside else "[" + body + "]"
                i += len(name)
                break
        else:
            if pattern.startswith(r"\S", i):
                out += "[^" + WHITE + "]"
                i += 2
                continue
            inside = (inside or pattern[i] == "[") and pattern[i] != "]"
            out += pattern[i]
            i += 1
    return re.compile(out)


def byte_letters():
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


LETTER = byte_letters()
CORPUS = """The quick brown fox isn't lazy; it's 12345 years old, and they'll say 'we've seen 99 foxes' in 2024!
Prices: 12.50, 7, 1000000. What's 17 + 25? Remember that my code is kato. {"name":"calc","arguments":{"expression":"1+2"}}
    def f(x):\n\treturn x * x  # square\n\n\nfor i in range(10):\n    print(i)\r\n
Größe, façade, naïve, Übung, cœur, señor; русский текст и ещё слова; ελληνικά; 日本語のテキスト 中文 한국어; emoji 😀 👍🏽 done.
the there then these thing think that this other another together weather whether I'M SHE'S WE'LL""" * 3


def train(words, base, count):
    """Merges by frequency, ties by text: the usual way, as slow as it is plain."""
    counts = Counter(words)
    split = {w: list(base(w)) for w in counts}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for w, n in counts.items():
            for pair in zip(split[w], split[w][1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        if pairs[best] < 2:
            break
        merges.append(best)
        for w, symbols in split.items():
            split[w] = merge(symbols, best)
    return merges


def merge(symbols, pair):
    out, i = [], 0
    while i < len(symbols):
        if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == pair:
            out.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


def bpe(symbols, rank):
    while True:
        pairs = [(rank[p], p) for p in zip(symbols, symbols[1:]) if p in rank]
        if not pairs:
            return symbols
        symbols = merge(symbols, min(pairs)[1])


ADDED = [("<|begin|>", True), ("<|end|>", True), ("<tool_call>", False), ("</tool_call>", False)]


def added_tokens(first):
    return [{"id": first + i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": s}
            for i, (c, s) in enumerate(ADDED)]


def around_added(text):
    """Pieces: plain text, or a content that is not special."""
    return [p for p in re.split("(" + "|".join(re.escape(c) for c, s in ADDED if not s) + ")", text) if p]


def byte_level(kind, pattern, ignore_merges):
    finder = compiled(pattern)
    spell = lambda text: [LETTER[b] for b in text.encode()]
    words = ["".join(spell(w)) for w in finder.findall(CORPUS)]
    merges = train(words, list, 300)
    vocabulary = {LETTER[b]: i for i, b in enumerate(sorted(LETTER, key=lambda b: LETTER[b]))}
    for a, b in merges:
        vocabulary.setdefault(a + b, len(vocabulary))
    if ignore_merges:  # a word that no merge reaches
        vocabulary.setdefault("".join(spell(" together")), len(vocabulary))
        vocabulary.setdefault("".join(spell("zyzzy")), len(vocabulary))
    rank = {pair: i for i, pair in enumerate(merges)}
    split = ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} if kind == "gpt2" else
             {"type": "Sequence", "pretokenizers": [
                 {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                 {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]})
    first = len(vocabulary)
    spec = {
        "version": "1.0", "added_tokens": added_tokens(first), "normalizer": {"type": "NFC"} if kind == "qwen2" else None,
        "pre_tokenizer": split, "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges, "vocab": vocabulary,
                  "merges": [list(p) if kind == "qwen2" else " ".join(p) for p in merges]},
    }
    contents = {c: first + i for i, (c, _) in enumerate(ADDED)}

    def encode(text):
        ids = []
        for piece in around_added(text):
            if piece in contents:
                ids.append(contents[piece])
                continue
            for w in finder.findall(piece):
                whole = "".join(spell(w))
                ids += [vocabulary[whole]] if ignore_merges and whole in vocabulary else [vocabulary[s] for s in bpe(spell(w), rank)]
        return ids

    return spec, encode


def metaspace(kind, split):
    marked = lambda text: text.replace(" ", SPACE)
    words = [w for w in re.findall(SPACE + "?[^" + SPACE + "]+", marked(CORPUS))]
    merges = train(words, list, 250)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for b in range(256):
        vocabulary[f"<0x{b:02X}>"] = len(vocabulary)
    for c in sorted(set(marked(CORPUS)) - set("日本語😀")):
        vocabulary.setdefault(c, len(vocabulary))
    vocabulary.setdefault(SPACE, len(vocabulary))
    merges = [m for m in merges if all(c in vocabulary for c in m[0] + m[1])]
    for a, b in merges:
        vocabulary.setdefault(a + b, len(vocabulary))
    rank = {pair: i for i, pair in enumerate(merges)}
    first = len(vocabulary)
    own = [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
           for i, c in enumerate(["<unk>", "<s>", "</s>"])]
    spec = {
        "version": "1.0", "added_tokens": own + added_tokens(first),
        "normalizer": None if split else {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True} if split else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary, "merges": [" ".join(p) for p in merges]},
    }
    contents = {c: first + i for i, (c, _) in enumerate(ADDED)}

    def encode(text):
        ids = []
        for piece in around_added(text):
            if piece in contents:
                ids.append(contents[piece])
                continue
            piece = marked(piece)
            if not split or not piece.startswith(SPACE):
                piece = SPACE + piece
            for w in re.findall(SPACE + "[^" + SPACE + "]*|[^" + SPACE + "]+", piece) if split else [piece]:
                symbols = []
                for c in w:
                    symbols += [c] if c in vocabulary else [f"<0x{b:02X}>" for b in c.encode()]
                ids += [vocabulary[s] for s in bpe(symbols, rank)]
        return ids

    return spec, encode


def texts():
    r = random.Random(11)
    fixed = ["", " ", "  ", "\n", "a", " a", "  a", "a ", "a  ", "\n\n  x", "it's IT'S we'LL 'sx", "1234567", " 12 345", "x1y22z333", "\t\tif x:\n", "\r\n\r\n  y",
             "tab\tspace \u00a0nbsp \u3000wide", "¡¿?!...", " !!!\n\n", "½ Ⅷ ² ٣٤", "zyzzy together  together", "<tool_call>{\"name\": 1}</tool_call>", "a<tool_call> b", "<|end|> is text",
             "<tool_call", "日本語の 漢字", "e\u0301 combining", "😀👍🏽", "naïve Straße ǅ ªº", "'", "''s", "don’t", "a\u200bb", "\u2028x", "x \n y", "  \n  \n  z", "▁under▁", "<0x41>"]
    pieces = ["the", " ", "  ", "\n", "'s", "'LL", "12", "345", "ü", "ß", " x", "\t", "。", "漢", "!", "...", "'", "Z", "é", "\r\n", "😀", "-", "\u00a0", "½", "code", " kato", "{\"", "}"]
    return fixed + ["".join(r.choice(pieces) for _ in range(r.randint(1, 24))) for _ in range(150)]


def main():
    made = {"gpt2": byte_level("gpt2", GPT2, False), "llama3": byte_level("llama3", LLAMA3, True), "qwen2": byte_level("qwen2", QWEN2, False),
            "llama2": metaspace("llama2", False), "metaspace": metaspace("metaspace", True)}
    for kind, (spec, encode) in made.items():
        cases = [[t, encode(t)] for t in texts()]
        out = {"tokenizer": spec, "cases": cases}
        Path(__file__).with_name(f"tokenizer_{kind}.json").write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


main()
