"""Logs, cache, materializers, nodes and clients; what befalls them in a tick; and the calm after which all must be well."""
import random
from collections import Counter

from cache import Cache
from check import Check
from client import Client
from log import Log
from materializer import Materializer
from node import Node


class World:
    def __init__(self, config, rules, seed, counts=None):
        self.config, self.rules, self.rng = config, rules, random.Random(seed)
        self.now, self.story, self.counts = 0, [], counts if counts is not None else Counter()
        self.generations = 0
        self.logs = [Log(self.rng, config) for _ in range(config.partitions)]
        self.cache = Cache(config.partitions, rules)
        self.check = Check(self)
        self.materializers = [[Materializer(self, k) for _ in range(config.zombies)] for k in range(config.partitions)] if config.cache else []
        self.nodes = [Node(self, f"node {i}") for i in range(config.nodes)]
        self.clients = [Client(self, f"client {i}", range(config.channels)) for i in range(config.clients)]
        self.numbers = 0

    def count(self, what):
        self.counts[what] += 1

    def new_generation(self):
        self.generations += 1
        return self.generations

    def may_lack_tombstones(self, proven, at):
        """Whether reading on from a place that was proven then may miss tombstones that have been cleaned away since."""
        config = self.config
        return self.rules.prove_tombstones and config.compact > 0 and at - proven >= config.tombstone_keep

    def partitions_of(self, channel):
        return range(self.config.partitions) if self.config.placement == "spread" else [channel % self.config.partitions]

    def tell(self, what):
        self.story.append(f"t={self.now} {what}")

    def publish(self):
        rng, config = self.rng, self.config
        self.numbers += 1
        channel, row = rng.randrange(config.channels), rng.randrange(config.rows)
        k = row % config.partitions if config.placement == "spread" else channel % config.partitions
        value = None if config.mode == "view" and rng.random() < config.deletes else self.numbers
        self.logs[k].append(channel, row, value, self.now, self.numbers)
        self.tell(f"log {k}: offset {self.logs[k].head} channel {channel} row {row} = {value}")

    def faults(self):
        rng, config = self.rng, self.config
        chance = lambda p: p and rng.random() < p
        log_at = rng.randrange(config.partitions)
        log = self.logs[log_at]
        if chance(config.compact):
            log.compact(self.now), self.tell(f"log {log_at} compacted")
        if chance(config.trim):
            log.trim(log.start + rng.randint(1, 15)), self.tell(f"log {log_at} trimmed to {log.start}")
        if chance(config.truncate) and log.next > 4:
            log.truncate(log.head - rng.randint(1, 6), self.now), self.tell(f"log {log_at} truncated to {log.head}, epoch {log.epoch}")
        if config.cache:
            if chance(0.04):
                self.cache.back_up(), self.tell("cache backed up")
            if chance(config.cache_back):
                self.cache.go_back(rng), self.tell(f"cache went back to {[self.cache.header(k) for k in range(config.partitions)]}")
            if chance(config.cache_empty):
                self.cache.empty(), self.tell("cache emptied")
            if chance(config.lose_key):
                self.cache.lose_a_channel(rng), self.tell("cache lost a key")
            for k, crew in enumerate(self.materializers):
                if chance(config.crash):
                    crew[rng.randrange(len(crew))] = Materializer(self, k)
                    self.tell(f"materializer {k} crashed")
        for i, node in enumerate(self.nodes):
            if chance(config.restart):
                for connection in list(node.connections):
                    connection.close()
                self.nodes[i] = Node(self, node.name)
                self.tell(f"{node.name} restarted")
            for k in range(config.partitions):
                if node.paused[k]:
                    node.paused[k] = not chance(config.unpause)
                elif chance(config.pause):
                    node.paused[k] = True
                    self.tell(f"{node.name} lost source {k}")

    def tick(self, calm):
        rng, config = self.rng, self.config
        self.now += 1
        if not calm:
            if rng.random() < config.publish:
                self.publish()
            self.faults()
        for crew in self.materializers:
            for materializer in crew:
                if calm or rng.random() < config.lazy_materializer:
                    materializer.step(self.now)
        for node in self.nodes:
            node.step(self.now, rng, calm)
        for client in self.clients:
            if client.connection is None and (calm or rng.random() < config.reconnect) and self.now >= client.back_at:
                node = rng.choice(self.nodes)
                client.connect(node, rng.random() < config.slow)
                self.tell(f"{client.name} connects to {node.name} with {[dict(h.token) for h in client.held.values()]}")
            elif client.connection is not None and not calm:
                if client.deaf:
                    if rng.random() < 0.04:
                        client.forget()
                elif rng.random() < config.cut:
                    client.cut(config.silent > 0 and rng.random() < 0.5)
                    self.tell(f"{client.name} is cut")
            slow = client.connection is not None and client.connection.slow
            if calm or rng.random() < (0.15 if slow else 0.9):
                client.pump(1 if slow and not calm else 20)
        if config.watch_ages:
            self.check.ages()

    def run(self):
        for _ in range(self.config.ticks):
            self.tick(False)
        for node in self.nodes:
            node.paused = [False] * self.config.partitions
        for client in self.clients:
            if client.deaf:
                client.forget()
        self.materializers = [crew[:1] for crew in self.materializers]
        self.tell("all is calm")
        for _ in range(self.config.calm):
            self.tick(True)
            if self.check.settled():
                break
        self.check.settled(complain=True)
