"""A worker: its own place in each partition's tail, its connections with their lines, and over SSE their common id."""
from collections import deque

from outbox import Line


class Seat:
    """A worker's place in a partition's tail, and what it learnt of the partition with its last pull."""

    def __init__(self):
        self.life, self.epoch, self.cursor = 0, None, -1
        self.fresh_at, self.settled = -99, -1
        self.proofs = deque(maxlen=8)                # (the head that was applied, when its fetch was sent), oldest first

    def begin(self, partition):
        """A tail that was cleared is another one: the worker goes on from its floor."""
        self.__init__()
        self.life, self.epoch, self.cursor = partition.life, partition.epoch, partition.floor

    def learn(self, partition):
        self.fresh_at, self.settled = partition.fresh_at, partition.settled
        proof = (partition.fresh_head, partition.fresh_at)
        if self.fresh_at >= 0 and self.cursor >= partition.fresh_head and (not self.proofs or self.proofs[-1] != proof):
            self.proofs.append(proof)

    def proof(self, upto=None):
        """The newest proof that what this worker has handed to its lines makes true, or what is up to an offset."""
        return next((at for head, at in reversed(self.proofs) if upto is None or head <= upto), None)


class Worker:
    def __init__(self, node, k):
        self.node, self.world, self.name = node, node.world, k
        self.seats = [Seat() for _ in range(node.world.config.partitions)]
        self.connections, self.stalled = [], False

    def lines(self, k):
        return [line for c in self.connections for line in c.lines if line.k == k]

    def stall(self, rng, calm):
        """Whether it stands still: then it neither pulls nor writes, and nobody else notices."""
        config = self.world.config
        if config.stall:
            self.stalled = not calm and rng.random() < (1 - config.unstall if self.stalled else config.stall)
        return self.stalled

    def pull(self, partition, now):
        """Takes what is new in a tail, at the worker's own pace."""
        seat, lines = self.seats[partition.k], self.lines(partition.k)
        if partition.epoch is None:
            return
        if seat.life != partition.life:
            seat.begin(partition)
            for line in lines:
                partition.rejoin(line, now)
        if seat.cursor < partition.floor:                  # fell off the tail
            self.world.count("fell off the tail")
            seat.cursor = partition.floor                  # not further: a line that joined ahead of it goes on from here
            for line in lines:
                if line.state == "streaming" and line.cursor[1] < partition.floor:
                    partition.rejoin(line, now)
        todo = [u for u in partition.tail if u.offset > seat.cursor]
        for update in todo[:self.world.config.fetch]:
            seat.cursor = update.offset
            for line in lines:
                if line.channel == update.channel and line.state == "streaming" and update.offset > line.cursor[1]:
                    line.owe(update, now, self.world)
        if len(todo) <= self.world.config.fetch:
            seat.cursor = max(seat.cursor, partition.applied)
        seat.learn(partition)

    def proof_of_another(self, k):
        """A deliberate bug: what another worker of this node has handed to its own lines."""
        seats = [worker.seats[k] for worker in self.node.workers if worker.seats[k].life == self.seats[k].life]
        return max((seat.proof() for seat in seats if seat.proofs), default=None)

    def cursor_of_another(self, k):
        return max(worker.seats[k].cursor for worker in self.node.workers if worker.seats[k].life == self.seats[k].life)


class Connection:
    """A session on a worker: its lines, its lane for bad news, and a socket that takes only so much."""

    def __init__(self, world, worker, client, slow):
        self.world, self.worker, self.node, self.client, self.slow = world, worker, worker.node, client, slow
        self.lines, self.lane, self.socket = [], deque(), deque()
        self.open = True
        self.opened = world.now
        self.said = dict(client.id)            # over SSE: what the client's id is, by partition: the least position, and of which fold
        self.next_id, self.id_at_once = 0, False
        worker.connections.append(self)

    def subscribe(self, channel, k, token, mark):
        self.lines.append(Line(self, channel, k, token, mark if self.world.rules.incomplete_token else None, self.world.now))

    def seat(self, line):
        return self.worker.seats[line.k]

    def ids_in_frames(self):
        """Where a frame's position says all. As first written: also where several channels are in one partition."""
        return self.client.sse and (len(self.lines) == 1 or not self.world.rules.ids_apart and len({line.k for line in self.lines}) == 1)

    def ids_apart(self):
        return self.client.sse and not self.ids_in_frames()

    def in_order(self):
        """As first written: what leaves for one partition leaves in order over all its channels, since they have one id."""
        return self.ids_in_frames() and len(self.lines) > 1

    def step(self, now, rng, calm):
        config = self.world.config
        for line in self.lines:
            partition = self.node.partitions[line.k]
            if line.state == "resuming":
                if calm or config.answer == 1 or rng.random() < config.answer:
                    partition.resume(line, now)
                if line.state == "resuming" and now - line.arrived > config.hold:
                    return self.close()                     # retry_after: another node may know more
            self.bad_news(line, partition, now)
        while len(self.socket) < config.socket:
            message = self.lane.popleft() if self.lane else self.next_message(now, rng) or self.id_block(now)
            if message is None:
                break
            self.socket.append((now, message))

    def bad_news(self, line, partition, now):
        config, rules = self.world.config, self.world.rules
        old = now - self.seat(line).fresh_at > config.slo
        if rules.line_lag and line.waiting_since is not None and now - line.waiting_since > config.slo:
            old = True
        view = partition.views.get(line.channel)
        if view is not None and view.ready and (view.mark, line.mark) != (None, None):
            if not line.told_incomplete:
                line.told_live, line.told_incomplete = False, True
                self.lane.append(("stale", line.channel, line.k, "incomplete_history"))
        elif line.told_live and (old or line.state == "resuming"):
            line.told_live = False
            self.lane.append(("stale", line.channel, line.k, "lagging"))

    def next_message(self, now, rng):
        config, rules, bugs = self.world.config, self.world.rules, self.world.rules.bugs
        lines = list(self.lines)
        rng.shuffle(lines)
        if self.in_order():
            lines = self.ordered(lines, now)
        for line in lines:
            partition, seat = self.node.partitions[line.k], self.seat(line)
            if line.state != "streaming":
                if config.mode == "events" and line.frozen:
                    return self.left(line.next_message(now, config, rules, None))
                continue
            if line.frozen and not line.parts and not line.begins() and line.sent[0] == seat.epoch and line.sent[1] >= line.whole_from:
                if self.may_beat(line, seat, line.sent[1], seat.proof(line.sent[1]), now):
                    self.world.count("heartbeat before what waits")
                    return self.beat(line, seat.proof(line.sent[1]), now)
            proof = self.worker.proof_of_another(line.k) if "proof_of_another_worker" in bugs else seat.proof()
            taken_back = self.take_back_id(line)
            message = taken_back or line.next_message(now, config, rules, proof)
            if message is not None:
                return self.left(message)
            quiet = not line.pending() and not (self.in_order() and any(other.pending() for other in self.lines))
            behind = seat.cursor if rules.quiet_behind_line else partition.applied
            if "cursor_of_another_worker" in bugs:
                behind = self.worker.cursor_of_another(line.k)
            if (quiet or not rules.quiet_behind_line) and behind > line.cursor[1] and line.cursor[0] == seat.epoch and not line.parts:
                if quiet:
                    line.cursor = (seat.epoch, behind)
                line.sent = (seat.epoch, behind)
                return ("position", line.channel, line.k, (seat.epoch, behind))
            if quiet and self.may_beat(line, seat, line.cursor[1], line.proof, now):
                return self.beat(line, line.proof, now)
        return None

    def ordered(self, lines, now):
        """All lines freeze together, and the oldest of what is frozen is next."""
        config, rules = self.world.config, self.world.rules
        if not any(line.frozen or line.parts or line.state != "streaming" for line in lines):
            for line in lines:
                if config.mode == "view" and now >= line.next_flush:
                    line.freeze(now, config, rules, self.seat(line).proof())
        frozen = [line for line in lines if line.frozen and line.frozen[0][0] in ("update", "event")]
        return [min(frozen, key=lambda line: line.frozen[0][1].offset)] if frozen and not any(line.parts for line in lines) else lines

    def may_beat(self, line, seat, offset, proof, now):
        """Whether this position is one of the view's states, and a proof of it holds that was asked for after the client came."""
        config, rules = self.world.config, self.world.rules
        view = self.node.partitions[line.k].views.get(line.channel)
        complete = config.mode == "events" or (view is not None and view.mark is None and line.mark is None)
        recent = proof is not None and (proof >= line.arrived or not rules.live_after_arrival)
        state = offset >= seat.settled or not rules.settle_resident
        due = not line.told_live or now - line.last_proof >= config.heartbeat
        return recent and complete and state and due and now - proof <= config.slo

    def beat(self, line, proof, now):
        line.told_live, line.told_incomplete, line.last_proof = True, False, now
        self.id_at_once = True
        return ("live", line.channel, line.k, proof, line.sent)

    def left(self, message):
        if message is not None and (message[0] == "gap" or message[0] == "snapshot" and message[7]):
            self.id_at_once = True
        return message

    # --- over SSE, where ids are in blocks of their own
    def id_block(self, now):
        """Once nothing more leaves in this turn: of each partition the least of what its channels have been given."""
        rules, bugs = self.world.rules, self.world.rules.bugs
        if not self.ids_apart() or (now < self.next_id and not self.id_at_once):
            return None
        vector = {}
        for line in self.lines:
            given = self.given(line)
            if given is None:
                if rules.ids_after_joins:
                    return None
                continue
            known = vector.get(line.k, given)
            if rules.id_of_one_epoch and (known[0][0], known[1]) != (given[0][0], given[1]):
                return None
            which = max if "id_of_the_fastest_channel" in bugs else min
            vector[line.k] = which(known, given, key=lambda position: position[0][1])
        self.id_at_once = False
        if not vector or vector == self.said:
            return None
        if rules.ids_go_on:
            for line in self.lines:
                if line.sent and line.k in vector and not line.pending() and vector[line.k][0] > line.sent:
                    line.sent = vector[line.k][0]
        self.said, self.next_id = vector, now + self.world.config.ids_every
        self.world.count("id")
        return ("id", None, None, dict(vector))

    def given(self, line):
        """Up to where a client has everything of this line, and of which fold; none before its beginning has left."""
        seat = self.seat(line)
        if line.state != "streaming" or line.sent is None or line.begins():
            return None
        if "id_of_what_waits" in self.world.rules.bugs:
            return line.cursor, line.mark
        if line.pending() or line.cursor[0] != seat.epoch:
            return line.sent, line.mark
        return max(line.sent, line.cursor, (seat.epoch, seat.cursor)), line.mark

    def take_back_id(self, line):
        """Before rows of another epoch or fold leave, the id stops to say anything about their partition."""
        if not (self.ids_apart() and self.world.rules.id_taken_back and line.parts and line.parts[0][4] and line.k in self.said):
            return None
        (epoch, _), mark = self.said[line.k]
        if (epoch, mark) == (line.parts[0][3][0], line.parts[0][8]):
            return None
        self.said = {k: position for k, position in self.said.items() if k != line.k}
        self.world.count("id taken back")
        return ("id", None, None, dict(self.said))

    def close(self):
        self.open = False
        if self in self.worker.connections:
            self.worker.connections.remove(self)
