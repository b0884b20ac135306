"""How often a model gets whole sessions right.

A session counts as right when, at every place where the model speaks, its most probable token is the expected one:
then greedy decoding reproduces every call and every answer to the byte. No grammar, no retry.
"""
import random
from collections import Counter

import torch

from sessions import make_session
from template import PAD, render, text_of


@torch.no_grad()
def judge(net, sessions):
    """sessions: lists of messages -> for each, the wrong places as (turn, expected, got)"""
    rows = [render(messages) for messages in sessions]
    order, wrong = sorted(range(len(rows)), key=lambda i: len(rows[i][0])), [[] for _ in rows]
    net.eval()
    for at in range(0, len(order), 32):
        part = order[at:at + 32]
        n = max(len(rows[i][0]) for i in part)
        x, m = torch.full((len(part), n), PAD), torch.zeros(len(part), n, dtype=torch.bool)
        for j, i in enumerate(part):
            x[j, :len(rows[i][0])] = torch.tensor(rows[i][0])
            m[j, :len(rows[i][0])] = torch.tensor(rows[i][1], dtype=torch.bool)
        wanted = m[:, 1:]
        best = net(x[:, :-1], wanted).argmax(-1)
        expected, places = x[:, 1:][wanted], wanted.nonzero()
        for k in (best != expected).nonzero()[:, 0].tolist():
            j, position = places[k].tolist()
            ids = x[j].tolist()
            users = [p for p, t in enumerate(ids[:position + 1]) if t == 257]
            end = ids.index(260, position + 1)
            wrong[part[j]].append((len(users) - 1, text_of(ids[users[-1]:position + 1]) + " >>" + text_of(ids[position + 1:end + 1]),
                                   text_of([best[k].item()])))
    net.train()
    return wrong


def examine(count, seed):
    """Sessions of a seed that training does not use: -> (messages, kinds of the turns) each"""
    r = random.Random(f"examination {seed}")
    return [make_session(r) for _ in range(count)]


def report_of(net, made):
    """-> (percentage of sessions that are right, report of several lines)"""
    wrong = judge(net, [messages for messages, _ in made])
    turns, bad_turns, lengths, bad_lengths = Counter(), Counter(), Counter(), Counter()
    for (_, kinds), places in zip(made, wrong):
        bad = {turn for turn, _, _ in places}
        for i, kind in enumerate(kinds):
            turns[kind] += 1
            bad_turns[kind] += i in bad
        size = len(kinds) if len(kinds) < 5 else "5 and more"
        lengths[size] += 1
        bad_lengths[size] += bool(places)

    def row(what, all_of_it, bad):
        return f"{what:28} {all_of_it - bad:5}/{all_of_it:<5} {100 * (1 - bad / all_of_it):6.2f} %"

    count, bad = len(made), sum(map(bool, wrong))
    report = [row("whole sessions", count, bad), row("turns", sum(turns.values()), sum(bad_turns.values()))]
    report += [row(f"  turns of kind {k}", turns[k], bad_turns[k]) for k in sorted(turns)]
    report += [row(f"  sessions of {k} turns", lengths[k], bad_lengths[k]) for k in sorted(lengths, key=str)]
    report += [f"  wrong: {places[0][1]}   said {places[0][2]!r}" for places in wrong if places][:20]
    return 100 * (1 - bad / count), "\n".join(report)
