//! One connection and one batch: the shared bytes in one write, and what becomes of them where a socket does not take them.
//!
//! Keeps: I2, I4: what was cut goes first, what had not begun is owed in order, and a slow connection costs the others nothing.

use std::{io, rc::Rc, sync::Arc};

use super::{
    Sockets,
    batch::{Batch, Encoded, Load},
    connection::{Closing, Connection},
    outbox::{Line, OutboxMax, Owed, Phase},
};
use crate::{
    frame::{Shared, Wire},
    model::{Epoch, Mode, Moment, Offset, Policy, Position},
    protocol::{CloseCode, write},
    session,
    telemetry::WorkerCounts,
};

/// What an outbox is told of its lane while it is owed something.
#[derive(Clone)]
pub(super) struct LaneFacts {
    pub(super) number: u32,
    pub(super) partition: u32,
    pub(super) mode: Mode,
    pub(super) policy: Policy,
    pub(super) epoch: Option<Epoch>,
    pub(super) life: u64,
    pub(super) max: OutboxMax,
}

/// What became of a connection that was offered a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    /// It has it.
    Written,
    /// It waits in its cold box.
    Owed,
    /// Its socket took only a part.
    Blocked,
    /// Its socket is broken.
    Broken,
}

/// The fast path: the shared bytes, one write.
pub(super) fn write_shared<S: Sockets>(
    sockets: &mut S,
    connection: &mut Connection<S::Socket>,
    (batch, encoded): (&Rc<Batch>, &Encoded),
    wire: Wire,
    lane: &LaneFacts,
    now: Moment,
) -> Offered {
    let written = match sockets.write(&connection.socket, &encoded.bytes) {
        Ok(written) if written == encoded.bytes.len() => return Offered::Written,
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(_) => return Offered::Broken,
    };
    cut(connection, batch, wire, written, lane, now);
    Offered::Blocked
}

/// The socket took `written` bytes: the rest of the message that it cut is copied, the messages behind it are owed.
fn cut<S>(
    connection: &mut Connection<S>,
    batch: &Rc<Batch>,
    wire: Wire,
    written: usize,
    lane: &LaneFacts,
    now: Moment,
) {
    let encoded = batch.encoded(wire);
    // The first message that has not left whole; one that has not even begun is owed, not copied.
    let at = encoded.ends.partition_point(|&end| end <= written);
    let begin = at.checked_sub(1).map_or(0, |before| encoded.ends[before]);
    let kept = if written > begin { at + 1 } else { at };
    let cold = connection.cold();
    if kept > at {
        cold.rest
            .extend_from_slice(&encoded.bytes[written..encoded.ends[at]]);
    }
    let mut line = streaming_line(lane, batch.after);
    match &batch.load {
        Load::Updates(updates) => {
            if let Some(last) = kept.checked_sub(1) {
                line.sent = Some(updates[last].update.position.clone());
                line.cursor = updates[last].update.position.offset;
            }
            for shared in &updates[kept..] {
                line.owe(shared, now, lane.max);
            }
        }
        Load::Beat(_) => line.beat_due = kept == at,
        Load::News(notice) | Load::Gap(notice, _) if kept == at => {
            let mut bytes = Vec::new();
            wire.append(
                &mut bytes,
                notice.op,
                notice.id.as_ref().map(|id| id as &dyn std::fmt::Display),
                &notice.json,
            );
            cold.reply(None, bytes);
        }
        Load::News(_) | Load::Gap(..) => {}
    }
    if let Load::Gap(_, gap) = &batch.load {
        (line.sent, line.cursor) = (Some(gap.to.clone()), gap.to.offset);
    }
    cold.lines.push(line);
}

/// A line for who leaves the fast path: it has everything up to `after`.
pub(super) fn streaming_line(lane: &LaneFacts, after: Offset) -> Line {
    let mut line = Line::new(lane.number, lane.mode, lane.policy, None);
    (line.phase, line.greeted, line.life) = (Phase::Streaming, true, lane.life);
    line.cursor = after;
    line.sent = lane.epoch.clone().map(|epoch| Position {
        partition: lane.partition,
        epoch,
        offset: after,
    });
    line
}

/// The slow path: what the batch says goes into the connection's own line of this lane; without one it is gathered.
pub(super) fn offer<S>(
    connection: &mut Connection<S>,
    batch: &Rc<Batch>,
    wire: Wire,
    lane: &LaneFacts,
    counts: &WorkerCounts,
    now: Moment,
) -> Offered {
    let cold = connection.cold();
    if cold.closing.is_some() {
        // Nothing more is sent to it: what it would be owed would only grow.
        return Offered::Owed;
    }
    if cold.line(lane.number).is_none() {
        if !cold.is_blocked() {
            cold.gathered.push(batch.clone());
            return Offered::Owed;
        }
        cold.lines.push(streaming_line(lane, batch.after));
    }
    let mut fits = true;
    match &batch.load {
        Load::Updates(updates) => {
            if let Some(line) = cold.line(lane.number).filter(|line| line.life == lane.life) {
                fits = owe_all(line, updates, lane.max, counts, now);
            }
        }
        Load::Beat(_) => {
            if let Some(line) = cold.line(lane.number) {
                line.beat_due = true;
            }
        }
        Load::News(notice) => {
            let mut bytes = Vec::new();
            wire.append(&mut bytes, notice.op, None, &notice.json);
            cold.reply(Some(notice.channel.clone()), bytes);
        }
        Load::Gap(_, gap) => {
            if let Some(line) = cold.line(lane.number).filter(|line| line.life == lane.life) {
                line.owe_gap(gap, now);
            }
        }
    }
    if !fits {
        disconnect(connection, wire);
    }
    Offered::Owed
}

/// Owes updates to a line, and counts what became of each; false when its policy is to disconnect.
fn owe_all(
    line: &mut Line,
    updates: &[Arc<Shared>],
    max: OutboxMax,
    counts: &WorkerCounts,
    now: Moment,
) -> bool {
    for shared in updates {
        match line.owe(shared, now, max) {
            Owed::Kept => counts.offers_queued.add(1),
            Owed::Conflated => counts.conflated.add(1),
            Owed::Dropped(count) => {
                counts.offers_queued.add(1);
                counts.dropped.add(count);
            }
            Owed::Overflow => {
                counts.offers_overflowed.add(1);
                counts.rejoined.add(1);
            }
            Owed::Disconnect => {
                counts.offers_closed.add(1);
                return false;
            }
        }
    }
    true
}

/// The policy `disconnect`: a slow consumer is told goodbye behind what its socket has cut.
fn disconnect<S>(connection: &mut Connection<S>, wire: Wire) {
    let (mut json, mut bytes) = (Vec::new(), Vec::new());
    write::bye(&mut json, CloseCode::SlowConsumer, None);
    wire.append(&mut bytes, "bye", None, &json);
    let cold = connection.cold();
    cold.reply(None, bytes);
    cold.closing = Some(Closing::AfterFlush(CloseCode::SlowConsumer));
    cold.lines.clear();
    connection.phase = session::Phase::Closing;
}
