#!/usr/bin/python3
"""How often the small model gets whole sessions right: every byte of every call and answer, greedy, no grammar.

  tools/train_model/evaluate.py                  1,000 sessions nobody has seen: the seed is drawn, and printed
  tools/train_model/evaluate.py --seed 7 --count 3000
  tools/train_model/evaluate.py --natural        sentences written by hand (natural.py)
  tools/train_model/evaluate.py --ask "what is 17 + 25?" "and now?"      one session, with tools that do as ours do
  tools/train_model/evaluate.py --fixture FILE --count 200               sessions as JSON lines, for other runtimes

Products are F32 (--short: BF16, much faster with Debian's torch, and what the kernels for BF16 do).
"""
import argparse
import json
import os
import random
import re
import secrets

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

import torch

import model as llama
from examine import examine, report_of
from natural import natural_sessions
from sessions import DIVISION_BY_ZERO, FORGOTTEN, NO_PRICE, NOTHING_REMEMBERED, REMEMBERED, calculate, make_session
from template import ASSISTANT, CALL, END, render, text_of

SHIPPED = Path(__file__).resolve().parents[2] / "config/models/mainstay_tiny"
PRICES = {"tozek": "2.50", "banuko": "12.50", "apple": "0.40"}


def tool(name, arguments, memory):
    if name == "calc":
        terms = re.findall(r"[0-9.]+|[-+*/]", arguments["expression"])
        result = calculate(terms)
        return DIVISION_BY_ZERO if result is None else result
    if name == "price":
        return PRICES.get(arguments["item"].lower().rstrip("s"), NO_PRICE)
    if name == "memory_set":
        memory[arguments["key"]] = arguments["value"]
        return REMEMBERED
    if name == "memory_get":
        return memory.get(arguments["key"], NOTHING_REMEMBERED)
    if name == "memory_delete":
        return FORGOTTEN if memory.pop(arguments["key"], None) else NOTHING_REMEMBERED
    if name == "memory_list":
        return json.dumps(sorted(memory), separators=(",", ":"))
    if name == "clock_now":
        return "2026-01-02T03:04:05.678Z"
    return "Error: tool_not_allowed: the agent does not offer " + name


@torch.no_grad()
def answer(net, ids):
    said = []
    while len(said) < 200:
        x = torch.tensor([ids + said])
        wanted = torch.zeros(1, x.shape[1], dtype=torch.bool)
        wanted[0, -1] = True
        said.append(net(x, wanted)[0].argmax().item())
        if said[-1] == END:
            break
    return said


def ask(net, questions):
    messages, memory = [], {}
    for question in questions:
        messages.append({"role": "user", "content": question})
        print("user:     ", question)
        for _ in range(6):
            said = answer(net, render(messages)[0] + [ASSISTANT])
            text = text_of(said[:-1])
            if said[0] != CALL:
                messages.append({"role": "assistant", "content": text})
                print("assistant:", text)
                break
            call = json.loads(text.removeprefix("<|call|>"))
            result = tool(call["name"], call["arguments"], memory)
            written = json.dumps(call["arguments"], separators=(",", ":"), ensure_ascii=False)
            messages += [{"role": "assistant", "tool_calls": [{"name": call["name"], "arguments": written}]}, {"role": "tool", "content": result}]
            print(f"           {call['name']} {written} -> {result}")


def fixture(path, count, seed):
    r = random.Random(f"fixture {seed}")
    with open(path, "w", encoding="utf-8") as out:
        for i in range(count):
            messages, kinds = make_session(r)
            line = {"kinds": kinds, "messages": messages}
            if i < 40:  # as a check of other tokenizers and templates; the rest follows
                line["tokens"] = render(messages)[0]
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=str(SHIPPED), help="folder of config.json and model.safetensors")
    p.add_argument("--count", type=int, default=1000)
    p.add_argument("--seed", default=None)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--short", action="store_true")
    p.add_argument("--natural", action="store_true")
    p.add_argument("--ask", nargs="+")
    p.add_argument("--fixture")
    p.add_argument("--at-least", type=float, default=0, help="exit 1 below this percentage")
    o = p.parse_args()
    seed = o.seed if o.seed is not None else secrets.token_hex(4)
    if o.fixture:
        return fixture(o.fixture, o.count, o.seed or "1")
    torch.set_num_threads(o.threads)
    llama.Linear.short = o.short
    net = llama.read_model(o.model)
    if o.ask:
        return ask(net, o.ask)
    if o.natural:
        right, report = report_of(net, natural_sessions())
    else:
        print(f"seed {seed}")
        right, report = report_of(net, examine(o.count, seed))
    print(report)
    raise SystemExit(right < o.at_least)


if __name__ == "__main__":
    main()
