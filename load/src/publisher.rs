//! The sending half: one keep-alive connection that publishes at a pace.
//!
//! Does: writes the publications that are due, reads the answers, stops at the plan's end. Owns: a socket, what of it is
//! not sent yet, the numbers of its channels. Never knows: subscribers, but for how many each channel has. Keeps: open
//! loop: a publication carries the time at which it was due, however late it leaves (with kernel times the one at which it
//! leaves); at most `window` wait for answers.

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use rustix::fd::OwnedFd;

use crate::{
    answers::{Answers, Style},
    net,
    stats::times,
    wire::{Publications, Publish, Target},
};

/// Unsent bytes above which nothing more is written.
const OUT_MAX: usize = 256 << 10;

/// When to publish, and how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// When it begins: nanoseconds, monotonic.
    pub(crate) start: u64,
    /// When it ends.
    pub(crate) end: u64,
    /// Publications a second; 0 as fast as answers allow.
    pub(crate) rate: f64,
    /// Publications in all, at most.
    pub(crate) count: u64,
}

impl Plan {
    /// When publication `nth` is due; `None` when the plan has no such one.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "far below 2^52 nanoseconds"
    )]
    fn due(&self, nth: u64, now: u64) -> Option<u64> {
        let due = if self.rate > 0.0 {
            self.start + (nth as f64 * 1e9 / self.rate) as u64
        } else {
            now.max(self.start)
        };
        (nth < self.count && due < self.end).then_some(due)
    }

    /// Publications that were due before the end.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "far below 2^52 nanoseconds"
    )]
    pub(crate) fn offered(&self) -> u64 {
        if self.rate > 0.0 {
            (((self.end - self.start) as f64 * self.rate / 1e9).ceil() as u64).min(self.count)
        } else {
            0
        }
    }
}

/// What limits a publisher, apart from its plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Publications that may wait for their answer.
    pub(crate) window: u64,
    /// Deliveries that may be under way; `u64::MAX`: no limit.
    pub(crate) owed: u64,
}

/// One publishing connection.
pub(crate) struct Publisher {
    socket: OwnedFd,
    how: Publications,
    bounds: Bounds,
    plan: Plan,
    /// Subscribers of each channel.
    fans: Vec<u32>,
    first_channel: u32,
    /// Next number of each channel.
    next: Vec<u64>,
    turn: usize,
    batch: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    answers: Answers,
    /// A publication carries when it was written.
    kernel_times: bool,
    /// From due to written, in microseconds, where publications carry the latter.
    pub(crate) late_us: Histogram<u64>,
    /// Publications written within this plan.
    pub(crate) issued: u64,
    issued_ever: u64,
    /// Deliveries that the publications of all plans should make.
    pub(crate) expected: u64,
}

impl Publisher {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not take it.
    pub(crate) fn new(
        socket: OwnedFd,
        how: Publications,
        bounds: Bounds,
        first_channel: u32,
        fans: Vec<u32>,
    ) -> Result<Self> {
        net::no_delay(&socket)?;
        let style = match (how.target, how.publish) {
            (Target::Nats, _) => Style::Nats,
            (Target::Tidegate, Publish::Stream) => Style::Streamed,
            (Target::Tidegate | Target::Limit, _) => Style::Each,
        };
        Ok(Self {
            out: how.opening(),
            answers: Answers::new(style),
            next: vec![0; fans.len()],
            plan: Plan {
                start: 0,
                end: 0,
                rate: 0.0,
                count: 0,
            },
            socket,
            how,
            bounds,
            fans,
            first_channel,
            turn: 0,
            batch: Vec::new(),
            sent: 0,
            kernel_times: false,
            late_us: times(),
            issued: 0,
            issued_ever: 0,
            expected: 0,
        })
    }

    /// Publications carry when they are written, and how late that is is counted apart.
    pub(crate) const fn use_kernel_times(&mut self) {
        self.kernel_times = true;
    }

    /// So many subscribers of a channel are no longer counted on.
    pub(crate) fn leave(&mut self, channel: usize, count: u32) {
        self.fans[channel] = self.fans[channel].saturating_sub(count);
    }

    /// The number that the next publication of a channel has.
    pub(crate) fn next_number(&self, channel: usize) -> u64 {
        self.next[channel]
    }

    /// Begins a plan.
    pub(crate) fn begin(&mut self, plan: Plan) {
        self.plan = plan;
        self.issued = 0;
        self.late_us.reset();
    }

    /// Reads answers, writes what is due while `arrived` deliveries are there, sends. Returns when to come again if
    /// nothing happens before.
    ///
    /// # Errors
    /// When the server is gone, or refuses.
    pub(crate) fn pump(&mut self, now: u64, arrived: u64) -> Result<Option<u64>> {
        while self.answers.count < self.issued_ever && self.answers.read(&self.socket)? {}
        let next = self.write_due(now, arrived);
        self.how.seal(&mut self.batch, &mut self.out);
        self.flush()?;
        Ok(next)
    }

    fn write_due(&mut self, now: u64, arrived: u64) -> Option<u64> {
        while self.out.len() + self.batch.len() < OUT_MAX {
            let due = self.plan.due(self.issued, now)?;
            if due > now {
                return Some(due);
            }
            let waiting = self.issued_ever - self.answers.count;
            if now >= self.plan.end
                || waiting >= self.bounds.window
                || self.expected.saturating_sub(arrived) >= self.bounds.owed
            {
                return None;
            }
            let channel = self.turn;
            self.turn = (self.turn + 1) % self.next.len();
            let number = self.first_channel + u32::try_from(channel).unwrap_or(u32::MAX);
            let told = if self.kernel_times {
                self.late_us.saturating_record((now - due) / 1000);
                now
            } else {
                due
            };
            self.how
                .write(&mut self.batch, number, told, self.next[channel]);
            self.next[channel] += 1;
            self.expected += u64::from(self.fans[channel]);
            self.issued += 1;
            self.issued_ever += 1;
        }
        None
    }

    fn flush(&mut self) -> Result<()> {
        while self.sent < self.out.len() {
            match net::send(&self.socket, &self.out[self.sent..])
                .context("the server closed the publisher's connection")?
            {
                0 => return Ok(()),
                taken => self.sent += taken,
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Whether the plan's time is over, or all is written and answered.
    pub(crate) fn done(&self, now: u64) -> bool {
        let written = self.plan.due(self.issued, now).is_none();
        now >= self.plan.end || (written && self.answers.count >= self.issued_ever)
    }

    /// Publications that were answered, in all plans.
    pub(crate) const fn answered(&self) -> u64 {
        self.answers.count
    }

    /// Publications that were due in the plan and never left.
    pub(crate) fn behind(&self) -> u64 {
        self.plan.offered().saturating_sub(self.issued)
    }

    /// Lines or requests that were refused, and the first refusal.
    pub(crate) fn refusals(&self) -> (u64, &str) {
        (self.answers.refused, &self.answers.first_refusal)
    }

    /// Ends the connection properly, as far as the socket takes it.
    pub(crate) fn finish(&mut self) {
        self.out.extend_from_slice(self.how.closing());
        // Whatever is wrong with the connection now, the figures are complete.
        self.flush().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_paces_and_ends() {
        let plan = Plan {
            start: 1_000,
            end: 1_000 + 1_000_000_000,
            rate: 4.0,
            count: u64::MAX,
        };
        let due: Vec<_> = (0..6).map(|nth| plan.due(nth, 0)).collect();
        let quarter = 250_000_000;
        let expected = (0..6)
            .map(|nth| (nth < 4).then_some(1_000 + nth * quarter))
            .collect::<Vec<_>>();
        assert_eq!(due, expected);
        assert_eq!(plan.offered(), 4);
        let once = Plan {
            rate: 0.0,
            count: 1,
            ..plan
        };
        assert_eq!(
            (once.due(0, 5_000), once.due(1, 5_000)),
            (Some(5_000), None)
        );
    }
}
