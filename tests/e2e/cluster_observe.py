#!/usr/bin/env python3
"""What an operator sees of a cluster: each family has its line in docs/METRICS.md, the shipped dashboard has an answer
to every panel from a real Prometheus, and what goes wrong is in the figures and wakes somebody by the shipped rules."""
import os
import re
import signal
import subprocess

import observe
from cluster_harness import Cluster
from harness import ROOT, agent, check, note, run, scripted, wait_until

DASHBOARD = os.path.join(ROOT, "config", "grafana", "cluster.json")
SHARDS = 6


def started():
    cluster = Cluster({"plain": agent("plain", "scripted")}, {"scripted": scripted("scripted", {"text": "yes"})},
                      shards=SHARDS)
    cluster.start()
    cluster.wait_in_sync()
    return cluster


def talk(cluster):
    """A turn and a read of it through each node, and through another one."""
    for at, node in enumerate(cluster.nodes):
        conversation = node.conversation()
        node.turn("plain", "hello", conversation)
        node.items(conversation)
        cluster.nodes[at - 1].items(conversation)


def every_family_is_documented():
    """promtool is content with each node's metrics; the families of a cluster are those of docs/METRICS.md, and no label is an id."""
    cluster = started()
    try:
        talk(cluster)
        documented, clustered = observe.documented_families()
        for node in cluster.nodes:
            def counted():
                text = observe.scrape(node)
                return text if observe.series(text, "mainstay_cluster_proposals_total").get('outcome="accepted"', 0) else None
            text = wait_until("the turn to be counted", counted, 10)
            promtool = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
            check(promtool.returncode == 0 and not promtool.stdout.strip(), "promtool is content", promtool.stdout, promtool.stderr)
            exposed = observe.families(text)
            check(clustered <= set(exposed), "every line has its family", sorted(clustered - set(exposed)))
            check(set(exposed) <= set(documented), "every family has its line", sorted(set(exposed) - set(documented)))
            check(all(documented[name] == kind for name, kind in exposed.items()), "of the type that it is")
            for family in clustered:
                for labels in observe.series(text, family):
                    check(set(re.findall(r'(\w+)="', labels)) <= {"state", "outcome", "change", "direction", "side", "event", "why", "le"},
                          "labels are of the closed list", family, labels)
            check(not any(other.uuid in text for other in cluster.nodes), "no node is named")
            days = observe.series(text, "mainstay_cluster_certificate_seconds")[""] / 86400
            check(728 < days <= 730, "a certificate lasts two years", days)
        with open(DASHBOARD) as file:
            shown = observe.names_in(file.read())
        check(shown <= set(documented), "the dashboard names what is there", sorted(shown - set(documented)))
        check(clustered <= shown, "each family of a cluster has a panel", sorted(clustered - shown))
        note("%d families of a cluster" % len(clustered))
    finally:
        cluster.close()


def a_kill_is_seen():
    """A real Prometheus over three nodes: all panels answer, nothing fires; then a killed node, a silent coordinator and lost shards do."""
    cluster = started()
    server = observe.Prometheus(*[node.address for node in cluster.nodes], hasty=True)
    try:
        def value(query):
            found = (server.get("query", query=query) or {}).get("result", [])
            return float(found[0]["value"][1]) if found else None

        def comes_to_be(query, wanted, patience=30):
            try:
                wait_until("", lambda: value(query) == wanted, patience, 0.1)
            except AssertionError:
                check(False, "%s comes to be %s" % (query, wanted), value(query), server.get("query", query=query), cluster.sick())

        def firing():
            return {rule["name"] for group in server.get("rules")["groups"] for rule in group["rules"] if rule["state"] == "firing"}

        def fires(name, wanted, patience=30):
            try:
                wait_until("", lambda: (name in firing()) == wanted, patience, 0.1)
            except AssertionError:
                check(False, "%s %s" % (name, "fires" if wanted else "ends"), firing())

        comes_to_be('sum(up{job="mainstay"})', 3)
        comes_to_be('sum(mainstay_cluster_shards{state="serving"})', SHARDS)
        check(value("max(mainstay_cluster_shards_configured)") == SHARDS, "all shards are served")
        unanswered = []

        def all_answered():
            talk(cluster)
            unanswered.clear()
            for panel in observe.panels(DASHBOARD)[0]:
                for target in panel["targets"]:
                    query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
                    if not server.get("query", query=query)["result"]:
                        unanswered.append((panel["title"], query))
            return not unanswered
        try:
            wait_until("", all_answered, 30, 0.2)
        except AssertionError:
            check(False, "every panel has an answer", *unanswered)
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        check(len(rules) >= 19 and all(rule["health"] == "ok" for rule in rules), "every rule is evaluated", rules)
        check(not firing(), "none fires on a cluster that is well", firing())

        # One is gone: two lead everything, with a copy less.
        first, second, third = cluster.nodes
        led = value('mainstay_cluster_shards{state="led",instance="%s"}' % first.address)
        check(led > 0, "the first node leads something", led)
        before = value('sum(mainstay_cluster_record_changes_total{change="take_over",outcome="ok"})')
        first.kill()
        comes_to_be('sum(mainstay_cluster_shards{state="serving"} and on(instance) up == 1)', SHARDS)
        comes_to_be('sum(mainstay_cluster_shards{state="under_replicated"} and on(instance) up == 1)', SHARDS)
        comes_to_be('max(mainstay_cluster_nodes_live and on(instance) up == 1)', 2)
        after = value('sum(mainstay_cluster_record_changes_total{change="take_over",outcome="ok"} and on(instance) up == 1)')
        check(after - (before or 0) >= led, "each shard that it led was taken over", before, after, led)
        fires("MainstayShardsUnderReplicated", True)
        fires("MainstayDown", True)
        check("MainstayNobodyLeads" not in firing(), "somebody leads everything", firing())

        # The coordinator is silent: ten seconds on both that are left.
        cluster.etcd.signal(signal.SIGSTOP)
        fires("MainstayCoordinatorSilent", True, 40)
        check(value("min(mainstay_cluster_coordinator_read_age_seconds and on(instance) up == 1)") > 8, "it is not read")
        cluster.etcd.signal(signal.SIGCONT)
        fires("MainstayCoordinatorSilent", False, 40)
        wait_until("leaders of all shards", lambda: len(cluster.leaders()) == SHARDS, 30, 0.1)

        # The first comes back, holds nothing for sure yet, and those that do are gone: nobody may lead.
        address = first.address
        first.listen = address
        first.launch()
        wait_until("its door", first.find_door)
        check(first.address == address, "it comes back at its address", first.address)
        for node in (second, third):
            node.kill()
        comes_to_be('mainstay_cluster_shards_unled{instance="%s"}' % address, SHARDS)
        fires("MainstayNobodyLeads", True)
        second.listen = second.address
        second.launch()
        fires("MainstayNobodyLeads", False, 60)
    finally:
        server.end()
        cluster.close()


if __name__ == "__main__":
    run(every_family_is_documented, a_kill_is_seen)
