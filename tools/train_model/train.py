#!/usr/bin/python3
"""Trains the small model. Needs Debian's python3-torch. See README.md.

Every step's data depends only on the seed and the step's number, so a run that was stopped (Ctrl-C, SIGTERM, kill -9)
goes on from its last checkpoint as if nothing had happened.
"""
import argparse
import os
import random
import signal
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin for each other lose where the machine is shared

import torch
import torch.nn.functional as F

import model as llama
from examine import examine, report_of
from sessions import HARD, USUAL, make_session
from template import ASSISTANT, BOS, END, PAD, USER, render


def options():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", required=True, help="folder of checkpoint, log and finished model")
    p.add_argument("--start", help="folder of a finished model whose weights this run begins with, at step --start-step")
    for name, value in dict(dim=192, layers=4, heads=6, kv=2, ff=448, context=768, steps=3200, start_step=0, copy_steps=300, hard_from=3200, batch_tokens=6000,
                            lr=2e-3, muon=0.02, seed=1, threads=2, report=50, save=200, check=500).items():
        p.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    return p.parse_args()


def copy_batch(r, longest, tokens):
    """Copying random strings: without it the model learns the sentences and never the names in them."""
    rows = []
    while len(rows) * (2 * longest + 4) < tokens:
        d, n = r.random(), r.randint(max(2, longest // 2), longest)
        pool = "bcdfghjklmnprstvwzaeiouxyq" if d < 0.6 else "0123456789." if d < 0.8 else "".join(map(chr, range(32, 127)))
        text = [ord(r.choice(pool)) for _ in range(n)]
        rows.append(([BOS, USER] + text + [END, ASSISTANT] + text + [END], [0] * (n + 4) + [1] * (n + 1)))
    return collate(rows)


def collate(rows):
    n = max(len(ids) for ids, _ in rows)
    x, m = torch.full((len(rows), n), PAD), torch.zeros(len(rows), n, dtype=torch.bool)
    for j, (ids, said) in enumerate(rows):
        x[j, :len(ids)] = torch.tensor(ids)
        m[j, :len(ids)] = torch.tensor(said, dtype=torch.bool)
    return x, m


class Batches:
    """Sessions sorted by length into batches of about the same number of tokens; 16 batches from each pool."""

    def __init__(self, seed, tokens, context, hard_from):
        self.seed, self.tokens, self.context, self.hard_from, self.pool_no, self.pool = seed, tokens, context, hard_from, None, []

    def __getitem__(self, step):
        if self.pool_no != step // 16:
            self.pool_no = step // 16
            r = random.Random(f"sessions {self.seed} {self.pool_no}")
            rows, total = [], 0
            while total < 16 * self.tokens:
                ids, said = render(make_session(r, of=HARD if step >= self.hard_from else USUAL)[0])
                if len(ids) <= self.context:
                    rows.append((ids, said))
                    total += len(ids)
            rows.sort(key=lambda row: len(row[0]))
            share, batches, batch, count = total / 16, [], [], 0
            for row in rows:
                batch.append(row)
                count += len(row[0])
                if count >= share * (len(batches) + 1) and len(batches) < 15:
                    batches.append(batch)
                    batch = []
            if batch:
                batches.append(batch)
            r.shuffle(batches)
            self.pool = batches
        return collate(self.pool[step % len(self.pool)])


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal by five Newton-Schulz steps (Jordan and others, 2024)."""

    def __init__(self, parameters, lr, momentum=0.95):
        super().__init__(parameters, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"].mul_(group["momentum"]).add_(p.grad)
                g = p.grad + group["momentum"] * m
                flip = g.shape[0] > g.shape[1]
                x = g.t() if flip else g
                x = (x / (x.norm() + 1e-7)).bfloat16()
                for _ in range(5):
                    a = x @ x.t()
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = (x.t() if flip else x).float()
                p.mul_(1 - group["lr"] * 0.01).add_(x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def optimizers(net, o):
    matrices = [p for n, p in net.named_parameters() if p.dim() == 2 and "embed" not in n]
    embedding = [p for n, p in net.named_parameters() if "embed" in n]
    gains = [p for p in net.parameters() if p.dim() != 2]
    groups = [{"params": embedding, "weight_decay": 0.01}, {"params": gains, "weight_decay": 0.0}]
    if not o.muon:
        groups.append({"params": matrices, "weight_decay": 0.01})
    made = [torch.optim.AdamW(groups, lr=o.lr, betas=(0.9, 0.98))]
    if o.muon:
        made.append(Muon(matrices, o.muon))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return made


def main():
    o = options()
    torch.manual_seed(o.seed)
    torch.set_num_threads(o.threads)
    llama.Linear.short = True
    os.makedirs(o.out, exist_ok=True)
    checkpoint, log = f"{o.out}/checkpoint.pt", open(f"{o.out}/log.txt", "a", buffering=1)

    def tell(text):
        print(text, flush=True)
        log.write(text + "\n")

    net = llama.Llama(dict(dim=o.dim, layers=o.layers, heads=o.heads, kv=o.kv, ff=o.ff, context=o.context))
    steppers = optimizers(net, o)
    step, seconds, mean = 0, 0.0, None
    if os.path.exists(checkpoint):
        kept = torch.load(checkpoint)
        net.load_state_dict(kept["net"])
        for optimizer, state in zip(steppers, kept["optimizers"]):
            optimizer.load_state_dict(state)
        step, seconds, mean = kept["step"], kept["seconds"], kept["mean"]
        tell(f"goes on at step {step}")
    else:
        if o.start:
            net, step = llama.read_model(o.start), o.start_step
            net.requires_grad_(True)
            steppers = optimizers(net, o)
        tell(f"parameters {sum(p.numel() for p in net.parameters())}, {vars(o)}")

    def save():
        torch.save(dict(net=net.state_dict(), optimizers=[s.state_dict() for s in steppers], step=step, seconds=seconds, mean=mean),
                   checkpoint + ".new")
        os.replace(checkpoint + ".new", checkpoint)

    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(1))
    batches, began = Batches(o.seed, o.batch_tokens, o.context, o.hard_from), time.process_time() - seconds
    while step < o.steps and not stop:
        done = step / o.steps
        rate = min(1, (step - o.start_step + 1) / 100) * (1 if done < 0.4 else max(0.01, (1 - done) / 0.6))
        for optimizer in steppers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * rate
        if step < o.copy_steps or (done < 0.5 and step % 8 == 0):
            x, m = copy_batch(random.Random(f"copy {o.seed} {step}"), 6 + min(20, step // 20), o.batch_tokens // 2)
        else:
            x, m = batches[step]
        wanted = m[:, 1:]
        loss = F.cross_entropy(net(x[:, :-1], wanted), x[:, 1:][wanted])
        for optimizer in steppers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in steppers:
            optimizer.step()
        step += 1
        mean = loss.item() if mean is None or step == o.copy_steps else 0.95 * mean + 0.05 * loss.item()
        seconds = time.process_time() - began
        if step % o.report == 0:
            tell(f"step {step} cpu {seconds:.0f} s loss {mean:.4f} rate {rate:.3f}")
        if step % o.save == 0:
            save()
        if step % o.check == 0:
            tell(f"  sessions right: {report_of(net, examine(200, 'check'))[0]:.1f} %")
    save()
    if stop:
        return tell(f"stopped at step {step}")
    llama.write_model(o.out, net)
    llama.Linear.short = False
    tell(report_of(llama.read_model(o.out), examine(1000, "final"))[1])


if __name__ == "__main__":
    main()
