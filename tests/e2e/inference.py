#!/usr/bin/env python3
"""The inference plane in real processes: the shipped small model and a random one in Hugging Face's layout, on the CPU's
simulated NeuronCore; the KV cache over sleep, restart, kill -9 and damage."""
import array
import json
import os
import random
import re
import signal
import struct
import time

from harness import ROOT, Daemon, check, note, run, wait_until

SHIPPED = os.path.join(ROOT, "config", "models")
AGENT = """
name = "small"
model = "mainstay_tiny"
temperature = 0
[[tools]]
type = "builtin"
names = ["memory", "clock", "calc", "price"]
prices = { tozek = "2.50", apple = "0.40" }
"""
MODEL = """
name = "mainstay_tiny"
device = "neuron_core_sim"
path = "%s"
context_window = 768
[kv]
device = "16MB"
host = "64MB"
disk = "256MB"
""" % os.path.join(SHIPPED, "mainstay_tiny")


def start(models=None, agents=None, env=None):
    daemon = Daemon(agents or {"small": AGENT}, models or {"small": MODEL}, env)
    daemon.start()
    return daemon


def ask(daemon, text, conversation=None, model="small", **more):
    body = {"model": model, "input": text, **more}
    if conversation:
        body["conversation"] = conversation
    return daemon.call("POST", "/v1/responses", body)


def conversation_of(daemon):
    return daemon.call("POST", "/v1/conversations", {})["id"]


def words(turn):
    """What was called and said, in order."""
    out = []
    for item in turn["output"]:
        if item["type"] == "message":
            out.append("".join(part["text"] for part in item["content"]))
        else:
            out.append("%s(%s) = %s" % (item["name"], item["arguments"], item.get("output")))
    return out


def computed(turn):
    return turn["usage"]["input_tokens"] - turn["usage"]["input_tokens_details"]["cached_tokens"]


def wait_asleep(daemon):
    wait_until("all sessions to sleep", lambda: metric(daemon, "mainstay_sessions_active") == 0)


def metric(daemon, name):
    total = 0.0
    for line in daemon.request("GET", "/metrics").raw.decode().splitlines():
        if re.match(name + r"(\{| )", line):
            total += float(line.rsplit(" ", 1)[1])
    return total


def tools_and_usage():
    """The model calls tools, its text streams, and usage says what was cached and what the device took."""
    daemon = start()
    turn = ask(daemon, "what is 17 + 25?")
    check(words(turn) == ['calc({"expression":"17+25"}) = 42', "17 + 25 = 42."], "a call, and an answer from it", words(turn))
    usage = turn["usage"]
    check(usage["simulated"] is True and usage["device_seconds"] > 0 and usage["joules"] > 0, "device seconds, simulated", usage)
    check(computed(turn) < usage["input_tokens"], "the second step found the first one's prompt in the cache", usage)
    deltas = [data["delta"] for name, data in daemon.stream({"model": "small", "input": "how much are 12 tozek?"})
              if name == "response.output_text.delta"]
    check("".join(deltas) == "12 tozek cost 30.", "streamed deltas are the text", deltas)
    forced = ask(daemon, "hello", tools=[{"type": "function", "name": "look", "parameters": {
        "type": "object", "properties": {"at": {"type": "string", "enum": ["sky", "sea"]}}, "required": ["at"]}}],
        tool_choice={"type": "function", "name": "look"})
    call = [item for item in forced["output"] if item["type"] == "function_call"]
    check(len(call) == 1 and json.loads(call[0]["arguments"])["at"] in ("sky", "sea"), "a call that is required is made, and fits", forced)
    check(daemon.stop() == 0, "exit 0")


def same_words_after_kill():
    """kill -9 amid a batch of sampled answers: every turn finishes, with the tokens that it would have had."""
    daemon = start()
    count = 64

    def submit(background):
        ids = []
        for n in range(count):
            turn = ask(daemon, "how much are %d apple?" % (n + 2), conversation_of(daemon), background=background,
                       temperature=0.7, seed=n)
            ids.append(turn["id"])
        return ids

    turns = submit(True)
    daemon.kill()
    daemon.start()

    def settled():
        read = [daemon.read(one) for one in turns]
        return read if all(one["status"] not in ("queued", "in_progress") for one in read) else None

    after = wait_until("all turns to settle", settled)
    undisturbed = [daemon.read(one) for one in submit(False)]
    same = sum(words(a) == words(b) and a["status"] == b["status"] for a, b in zip(after, undisturbed))
    check(same == count, "the same words, %d of %d" % (same, count))
    daemon.stop()


def cache_outlives_restart():
    """A session that slept finds its prompt in the cache: in the same process, after a restart, and after kill -9."""
    daemon = start(env={"MAINSTAY_SESSION__PASSIVATE_AFTER": "200ms"})
    session = conversation_of(daemon)

    def sleep():
        wait_asleep(daemon)

    def next_turn(what):
        before = ask.last
        turn = ask(daemon, "hello", session)
        fresh = computed(turn)
        # What it did not know yet: the last answer's end, the question, and what follows the last full block.
        check(fresh <= before["usage"]["output_tokens"] + 16 + 12, "%s only new tokens are computed: %d of %d"
              % (what, fresh, turn["usage"]["input_tokens"]))
        ask.last = turn

    ask(daemon, "tell me a joke", session)
    ask.last = ask(daemon, "hello", session)
    next_turn("awake,")
    sleep()
    next_turn("after sleep,")
    sleep()
    check(daemon.stop() == 0, "exit 0")
    daemon.start()
    next_turn("after a restart,")
    sleep()
    grown = []

    def at_rest():
        grown.append(sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(
            os.path.join(daemon.data, "kv")) for name in names))
        return len(grown) > 40 and grown[-40:] == [grown[-1]] * 40

    wait_until("its blocks to be on disk", at_rest)
    daemon.kill()
    daemon.start()
    next_turn("after kill -9,")
    sleep()
    daemon.call("DELETE", "/v1/sessions/" + session)
    daemon.stop()


def damage_is_computed_again():
    """Every block on disk is damaged while the daemon is down: the answers are the same, computed."""
    daemon = start(env={"MAINSTAY_SESSION__PASSIVATE_AFTER": "200ms"})
    session = conversation_of(daemon)
    for _ in range(3):
        ask(daemon, "tell me a joke", session)
    wait_asleep(daemon)
    daemon.stop()
    damaged = 0
    for folder, _, files in os.walk(os.path.join(daemon.data, "kv")):
        for name in files:
            if name != "data.mdb":
                continue
            with open(os.path.join(folder, name), "r+b") as file:
                size = file.seek(0, 2)
                for at in range(64 * 1024, size, 4096):  # past the root pages; in each page that may hold a value
                    file.seek(at + 2048)
                    byte = file.read(1)
                    if byte and byte != b"\0":
                        file.seek(at + 2048)
                        file.write(bytes([byte[0] ^ 0xff]))
                        damaged += 1
    check(damaged > 4, "blocks were damaged: %d" % damaged)
    daemon.start()
    turn = ask(daemon, "what is 17 + 25?", session)
    check(words(turn)[-1] == "17 + 25 = 42.", "the same words all the same", words(turn))
    check(computed(turn) > 60, "computed: %d tokens" % computed(turn))
    daemon.stop()


def write_llama(folder, seed=7, hidden=64, layers=2, heads=4, kv=2, feed_forward=128, context=512):
    """A Llama of random weights as Hugging Face lays it out, with a tokenizer of bytes and ChatML's marks."""
    os.makedirs(folder)
    marks = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    vocabulary = {}
    spare = 0x100
    for byte in range(256):
        itself = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        vocabulary[chr(byte if itself else spare)] = byte
        spare += not itself
    for extra in range(200):  # words that no text is tokenized to: what it says is not what it sampled
        vocabulary["w%dx" % extra] = 259 + extra
    count = 259 + 200
    with open(os.path.join(folder, "tokenizer.json"), "w") as file:
        json.dump({"added_tokens": [{"id": 256 + i, "content": mark, "special": True} for i, mark in enumerate(marks)],
                   "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                   "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}, file)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump({"chat_template": "chatml"}, file)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
                   "intermediate_size": feed_forward, "num_hidden_layers": layers, "num_attention_heads": heads,
                   "num_key_value_heads": kv, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": count,
                   "max_position_embeddings": context, "tie_word_embeddings": True, "hidden_act": "silu"}, file)
    shapes = {"model.embed_tokens.weight": (count, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        at = "model.layers.%d." % layer
        width = hidden // heads
        shapes.update({at + "self_attn.q_proj.weight": (heads * width, hidden), at + "self_attn.k_proj.weight": (kv * width, hidden),
                       at + "self_attn.v_proj.weight": (kv * width, hidden), at + "self_attn.o_proj.weight": (hidden, heads * width),
                       at + "mlp.gate_proj.weight": (feed_forward, hidden), at + "mlp.up_proj.weight": (feed_forward, hidden),
                       at + "mlp.down_proj.weight": (hidden, feed_forward), at + "input_layernorm.weight": (hidden,),
                       at + "post_attention_layernorm.weight": (hidden,)})
    dice, header, data = random.Random(seed), {}, array.array("f")
    for name, shape in shapes.items():
        begin = len(data) * 4
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        scale = 1.0 if len(shape) == 1 else (3.0 / shape[1]) ** 0.5
        data.extend([1.0] * size if len(shape) == 1 else [dice.uniform(-scale, scale) for _ in range(size)])
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data) * 4]}
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data.tobytes())


def any_llama():
    """A model in Hugging Face's layout is dropped into a folder and named; what it sampled is its history, not its text."""
    daemon = Daemon({}, {}, {"MAINSTAY_SESSION__PASSIVATE_AFTER": "200ms"})
    write_llama(os.path.join(daemon.folder, "models", "random"))
    with open(os.path.join(daemon.folder, "models", "random.toml"), "w") as file:
        file.write('name = "random"\ndevice = "neuron_core_sim"\npath = "random"\nprecision = "f32"\n'
                   'context_window = 512\nhardware = "inf2"\n[kv]\ndisk = "64MB"\n')
    daemon.start()
    session = conversation_of(daemon)
    first = ask(daemon, "say something", session, model="random", max_output_tokens=40)
    check(first["status"] in ("completed", "incomplete") and first["usage"]["output_tokens"] > 0, "it says something", first)
    said = first["usage"]["input_tokens"] + first["usage"]["output_tokens"]
    second = ask(daemon, "and more", session, model="random", max_output_tokens=8)
    check(second["usage"]["input_tokens_details"]["cached_tokens"] >= said - 1,
          "what it sampled is the next prompt's beginning, token by token", first["usage"], second["usage"])
    wait_asleep(daemon)
    daemon.stop()
    daemon.start()
    third = ask(daemon, "go on", session, model="random", max_output_tokens=8)
    check(third["usage"]["input_tokens"] > second["usage"]["input_tokens"] + second["usage"]["output_tokens"],
          "also after a restart the prompt has all that was sampled", second["usage"], third["usage"])
    check(third["usage"]["input_tokens_details"]["cached_tokens"] >= said // 16 * 16, "and the cache fits it", third["usage"])
    long = ask(daemon, "x" * 600, session, model="random", max_output_tokens=8)
    check(long["status"] == "failed" and long["error"]["code"] == "context_overflow", "a message that is too long is told so", long)
    daemon.stop()


if __name__ == "__main__":
    run(tools_and_usage, same_words_after_kill, cache_outlives_restart, damage_is_computed_again, any_llama)
