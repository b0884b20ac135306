"""The token ids of a session: the template `mainstay-tiny`, and the vocabulary behind it.

A second implementation, on purpose: runtime/inference/chat_template.cpp and tokenizer.cpp are held against what this
file renders (tests/runtime/inference/). Ids 0..255 are bytes; then marks of the template; then the plumbing of the
calls, each piece one token, so that what the model has to learn are names and numbers.
"""

MARKS = ["<|bos|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|call|>", "<|pad|>"]
BOS, USER, ASSISTANT, TOOL, END, CALL, PAD = range(256, 256 + len(MARKS))
PLUMBING = [
    '{"name":"calc","arguments":{"expression":"',
    '{"name":"price","arguments":{"item":"',
    '{"name":"memory_set","arguments":{"key":"',
    '{"name":"memory_get","arguments":{"key":"',
    '{"name":"memory_delete","arguments":{"key":"',
    '{"name":"memory_list","arguments":{}}',
    '{"name":"clock_now","arguments":{}}',
    '","value":"',
    '"}}',
]
VOCABULARY = 256 + len(MARKS) + len(PLUMBING)
assert VOCABULARY == 272


def encode(text):
    """Leftmost match of a piece of plumbing, the longest first; else bytes."""
    ids, at = [], 0
    while at < len(text):
        for i, piece in sorted(enumerate(PLUMBING), key=lambda e: -len(e[1])) if text[at] in '{"' else ():
            if text.startswith(piece, at):
                ids.append(256 + len(MARKS) + i)
                at += len(piece)
                break
        else:
            ids += text[at].encode()
            at += 1
    return ids


def call_text(call):
    return '{"name":"' + call["name"] + '","arguments":' + call["arguments"] + "}"


def render(messages):
    """-> ids, and for each id 1 where the model has to say it"""
    ids, said = [BOS], [0]

    def add(more, by_model):
        ids.extend(more)
        said.extend([by_model] * len(more))

    for m in messages:
        add([{"user": USER, "assistant": ASSISTANT, "tool": TOOL}[m["role"]]], 0)
        mine = 1 if m["role"] == "assistant" else 0
        body = encode((m.get("content") or "").strip(" \t\r\n") if m["role"] == "user" else m.get("content") or "")
        for call in m.get("tool_calls", []):
            body += [CALL] + encode(call_text(call))
        add(body + [END], mine)
    return ids, said


def text_of(ids):
    """What the model said, marks left out of nothing: for reading."""
    out = bytearray()
    for i in ids:
        out += bytes([i]) if i < 256 else (MARKS + PLUMBING)[i - 256].encode()
    return out.decode("utf-8", "replace")
