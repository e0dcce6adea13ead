"""What is run: sizes, speeds and how often each fault comes, as chances a tick. One configuration for each kind of trouble."""
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Config:
    name: str
    mode: str = "view"
    placement: str = "by_channel"
    partitions: int = 2
    channels: int = 3
    rows: int = 4
    nodes: int = 2
    clients: int = 2
    ticks: int = 140
    calm: int = 150               # ticks at the end, in which all must be well
    publish: float = 0.5          # records a tick
    deletes: float = 0.3
    holes: float = 0.2
    tail: int = 6
    fetch: int = 4                # records a fetch or a worker's pull
    batch: int = 4
    node_speed: float = 0.6
    evict: float = 0.3            # of a view without subscribers, a tick
    compact: float = 0.0
    compaction_lag: int = 12
    tombstone_keep: int = 30
    trim: float = 0.0
    truncate: float = 0.0
    cache: bool = True
    own_fold: bool = False
    pages: int = 1
    cache_back: float = 0.0
    cache_empty: float = 0.0
    lose_key: float = 0.0
    crash: float = 0.03
    zombies: int = 1              # materializers a partition
    lazy_materializer: float = 0.4
    restart: float = 0.01
    pause: float = 0.01           # a node loses its source
    unpause: float = 0.08
    cut: float = 0.03
    reconnect: float = 0.3        # of a client that is cut, a tick
    silent: float = 0.0
    slow: float = 0.0             # share of slow sockets
    socket: int = 3
    workers: int = 1              # of a node
    stall: float = 0.0            # a worker stands still
    unstall: float = 0.12
    sse: float = 0.0              # share of clients that come over SSE
    plain: float = 0.5            # of these, pages that compare no positions
    changes_set: float = 0.0      # of channels, when a client over SSE comes again
    ids_every: int = 4
    part: int = 2
    outbox: int = 3
    replay: int = 8
    remembered: int = 1           # deletes that a view remembers
    max_rate: int = 0
    grace: int = 0
    hold: int = 25
    answer: float = 1.0           # chance a tick that a join is answered
    slo: int = 15
    live_for: int = 6
    transit: int = 2
    heartbeat: int = 3
    watch_ages: bool = True


def configurations():
    base = Config("view by_channel, plain")
    compacted = replace(base, name="view by_channel, compacted, long pauses", compact=0.15, pause=0.02, unpause=0.03, restart=0.02)
    faults = dict(cache_back=0.012, cache_empty=0.004, lose_key=0.012, zombies=2)
    workers = dict(workers=2, stall=0.05, clients=4, tail=4)
    over_sse = dict(sse=1.0, slow=0.3, cut=0.06, changes_set=0.05, clients=3)
    early = replace(base, placement="spread", channels=2, compact=0.5, compaction_lag=3, tombstone_keep=8, deletes=0.5, pause=0.04, unpause=0.04, restart=0.03, lazy_materializer=0.15, tail=4, publish=0.7, slo=25)
    return [
        base,
        compacted,
        replace(compacted, name="view spread, compacted, long pauses", placement="spread", channels=2),
        replace(compacted, name="view by_channel, compacted, no cache: own folds", cache=False, own_fold=True),
        replace(base, name="view by_channel, cache faults", **faults),
        replace(base, name="view spread, cache faults, large views, restarts", placement="spread", channels=2, pages=3, restart=0.03, **faults),
        replace(compacted, name="view by_channel, compacted, cache faults, slow materializer", lazy_materializer=0.1, restart=0.03, **faults),
        replace(base, name="view by_channel, trimmed, cache faults", trim=0.03, **faults),
        replace(base, name="view by_channel, truncations", truncate=0.01, pause=0.03),
        replace(base, name="view spread, truncations, own folds", truncate=0.01, placement="spread", channels=2, own_fold=True, pause=0.03),
        replace(base, name="view by_channel, slow, max_rate, grace, parts", slow=0.5, max_rate=4, grace=3, part=1, rows=6, cut=0.05, publish=0.8),
        replace(base, name="view spread, slow, max_rate, grace, parts, truncations", slow=0.5, max_rate=4, grace=3, part=1, placement="spread", channels=2, cut=0.05, truncate=0.008, restart=0.02),
        replace(base, name="view by_channel, silent cuts, pauses, slow", silent=0.02, pause=0.03, slow=0.4, socket=6),
        replace(base, name="events by_channel, trimmed", mode="events", trim=0.03, pause=0.03, cache=False),
        replace(base, name="events by_channel, slow: drop_oldest", mode="events", slow=0.6, cache=False, publish=0.8, cut=0.05),
        replace(base, name="events spread, slow, trimmed, truncations", mode="events", placement="spread", channels=2, slow=0.4, trim=0.02, truncate=0.01, pause=0.03, cache=False),
        replace(early, name="harsh: tombstones cleaned early, long pauses"),
        replace(early, name="harsh: tombstones cleaned early, folds that take longer", rows=8, batch=2, deletes=0.3, publish=0.8, lazy_materializer=0.6, cache_empty=0.01),
        replace(early, name="harsh: tombstones cleaned early, own folds", rows=8, fetch=2, deletes=0.4, tombstone_keep=10, cache=False, own_fold=True, restart=0.04, pause=0.02),
        replace(early, name="harsh: tombstones cleaned early, long absences, refolds", placement="by_channel", partitions=1, channels=4, clients=4, publish=0.3, deletes=0.4, tombstone_keep=10, tail=2, cache_empty=0.03, lazy_materializer=0.6, pause=0.01, restart=0.08, cut=0.15, reconnect=0.05),
        replace(base, name="harsh: large views, caches going back", pages=3, channels=2, rows=6, restart=0.06, cache_back=0.06, cache_empty=0.01, lose_key=0.02, zombies=2, tail=4, publish=0.8, crash=0.06),
        replace(base, name="harsh: small parts, slow sockets, truncations", part=1, rows=6, deletes=0.15, slow=0.7, truncate=0.02, cut=0.06, nodes=3, node_speed=0.35, publish=0.7, slo=25),
        replace(base, name="harsh: conflation, then a node that lags", slow=0.5, max_rate=6, cut=0.08, nodes=3, node_speed=0.25, publish=0.9, slo=30),
        replace(base, name="harsh: slow answers of the source", node_speed=0.12, slo=8, live_for=4, publish=0.8, pause=0.03, heartbeat=1, deletes=0.5),
        replace(base, name="harsh: events, truncations, nodes that start behind", mode="events", partitions=1, channels=2, cache=False, tail=12, fetch=1, node_speed=0.3, restart=0.06, truncate=0.03, cut=0.15, reconnect=0.8, nodes=3, publish=0.8, slo=25, hold=60, calm=600),
        replace(compacted, name="workers: view by_channel, compacted, stalls", **workers),
        replace(base, name="workers: view spread, truncations, trimmed, own folds", truncate=0.01, trim=0.01, placement="spread", channels=2, own_fold=True, **workers),
        replace(base, name="workers: three, slow, max_rate, grace, parts", slow=0.4, max_rate=4, grace=3, part=1, rows=6, publish=0.8, **{**workers, "workers": 3}),
        replace(base, name="workers: events, slow, trimmed, truncations", mode="events", slow=0.4, trim=0.02, truncate=0.01, cache=False, **workers),
        replace(base, name="workers: rows that changed", partitions=1, rows=8, remembered=20, answer=0.3, publish=0.9, heartbeat=1, outbox=8, cut=0.06, **{**workers, "tail": 3}),
        replace(base, name="sse: one channel in one partition, truncations, slow", partitions=1, channels=1, publish=0.7, truncate=0.01, **over_sse),
        replace(base, name="sse: one partition, slow, max_rate, grace, parts", partitions=1, max_rate=4, grace=3, part=1, publish=0.8, **over_sse),
        replace(base, name="sse: by_channel, truncations, pauses", channels=4, truncate=0.012, pause=0.03, **over_sse),
        replace(base, name="sse: spread, two workers, truncations", placement="spread", channels=2, truncate=0.01, workers=2, stall=0.03, **over_sse),
        replace(base, name="sse: events, one partition, slow: drop_oldest", mode="events", partitions=1, cache=False, publish=0.8, **over_sse),
        replace(base, name="sse: events spread, trimmed, truncations", mode="events", placement="spread", channels=2, cache=False, trim=0.02, truncate=0.012, pause=0.03, **over_sse),
        replace(base, name="sse: harsh: events, truncations, nodes that lag", mode="events", partitions=1, channels=4, nodes=3, cache=False, publish=0.7, **{**over_sse, "truncate": 0.03, "pause": 0.08, "cut": 0.12, "reconnect": 0.8, "slow": 0.6, "plain": 0.2, "hold": 60}),
        replace(base, name="sse: harsh: own folds of a log that was trimmed", partitions=1, channels=2, rows=8, cache=False, own_fold=True, part=1, tail=12, publish=0.25, deletes=0.1, remembered=8, **{**over_sse, "trim": 0.02, "evict": 0.005, "restart": 0.02, "cut": 0.2, "reconnect": 0.8, "slow": 0.7, "clients": 4, "changes_set": 0}),
        replace(early, name="sse: harsh: tombstones cleaned early, folds", nodes=3, **over_sse),
        replace(base, name="sse and websocket, two workers: everything", compact=0.1, trim=0.005, truncate=0.006, pages=2, max_rate=3, grace=2, part=1, silent=0.01, pause=0.02, own_fold=True, restart=0.02, workers=2, stall=0.03, **faults, **{**over_sse, "sse": 0.6}),
        replace(base, name="everything, by_channel", compact=0.1, trim=0.005, truncate=0.006, pages=2, slow=0.3, max_rate=3, grace=2, part=1, silent=0.01, pause=0.02, own_fold=True, restart=0.02, **faults),
        replace(base, name="everything, spread", placement="spread", channels=2, compact=0.1, trim=0.005, truncate=0.006, pages=2, slow=0.3, max_rate=3, grace=2, part=1, silent=0.01, pause=0.02, own_fold=True, restart=0.02, **faults),
    ]
