//! How long it took until a fault was seen, and until its end was: a figure for people, nothing that a run fails by.
//!
//! Does: finds the spells in which each client showed each of its channels as live, and lays them beside the faults. Owns: nothing.

use std::fmt;

use super::{
    faults::Occurred,
    held::{Held, Lease},
    history::{History, Manner, What},
    message::Message,
    scene::{Ms, SLO_MS, Scene},
};

/// Within so long of a fault that takes a source away a view should be stale …
const STALE_WITHIN_MS: Ms = SLO_MS + 2000;
/// … and so soon live again when the source has answered somebody else.
const LIVE_WITHIN_MS: Ms = 5000;

/// A time in which a channel was shown as live over one connection.
#[derive(Clone, Copy, Debug)]
struct Spell {
    connection: usize,
    node: usize,
    channel: usize,
    from: Ms,
    until: Ms,
    /// Its end was the connection's.
    cut: bool,
}

/// How long something took, each time.
#[derive(Debug, Default)]
struct Times(Vec<Ms>);

/// Both of all runs' faults.
#[derive(Debug, Default)]
pub(super) struct Delays {
    to_stale: Times,
    to_live: Times,
}

impl Delays {
    /// Adds those of one client.
    pub(super) fn add(&mut self, scene: &Scene, history: &History, occurred: &[Occurred]) {
        if history.manner == Manner::Poll {
            return;
        }
        let spells = spells(scene, history);
        for fault in occurred {
            for (number, spell) in spells.iter().enumerate() {
                let stream = scene.channels[spell.channel].1;
                let ended = fault.from < spell.until && spell.until <= fault.back && !spell.cut;
                if !ended || spell.from > fault.from || !fault.hides(spell.node, stream) {
                    continue;
                }
                self.to_stale.0.push(spell.until - fault.from);
                let same = |later: &&Spell| {
                    (later.connection, later.channel) == (spell.connection, spell.channel)
                };
                let next = spells[number + 1..].iter().find(same);
                // What another fault hid meanwhile says nothing of this one.
                let hidden = |next: &&Spell| {
                    let others = occurred.iter().filter(|other| other.from >= fault.back);
                    others
                        .filter(|other| other.from < next.from)
                        .any(|other| other.hides(spell.node, stream))
                };
                if let Some(next) = next.filter(|next| next.from >= fault.back && !hidden(next)) {
                    self.to_live.0.push(next.from - fault.back);
                }
            }
        }
    }
}

fn spells(scene: &Scene, history: &History) -> Vec<Spell> {
    let held = |&channel: &usize| {
        (
            channel,
            Held::new(scene.stream_of(channel).mode),
            None::<Ms>,
        )
    };
    let mut seats: Vec<_> = history.channels.iter().map(held).collect();
    let (mut found, mut connection, mut node, mut began) = (Vec::new(), 0, 0, 0);
    let mut lease = Lease::OF_POLLS;
    for happened in &history.happened {
        let now = happened.at;
        let concerned = match &happened.what {
            What::Heard(message) => message.channel(),
            _ => None,
        };
        let ends = matches!(happened.what, What::Ended(_));
        for (channel, held, open) in &mut seats {
            if !ends && concerned != Some(*channel) {
                continue;
            }
            let until = held.live_until.min(now);
            let was_live = open.filter(|_| ends || held.live_until <= now);
            if let What::Heard(message) = &happened.what {
                held.take(message, now, lease);
            }
            let lost = open.filter(|_| !held.is_live(now)).or(was_live);
            if let Some(from) = lost {
                let cut = ends && until == now;
                found.push(Spell {
                    connection,
                    node,
                    channel: *channel,
                    from,
                    until,
                    cut,
                });
                *open = None;
            }
            if ends {
                held.cut();
            } else if held.is_live(now) {
                open.get_or_insert(now);
            }
        }
        match &happened.what {
            What::Began { node: to, tokens } => {
                (connection, node, began) = (connection + 1, *to, now);
                for (channel, held, _) in &mut seats {
                    let fresh = tokens
                        .iter()
                        .any(|(of, token)| of == channel && token.is_none());
                    if fresh {
                        held.forget();
                    }
                }
            }
            What::Heard(Message::Hello {
                now_ms,
                live_for_ms,
            }) => lease = Lease::new(began, *now_ms, *live_for_ms),
            _ => {}
        }
    }
    found
}

impl Times {
    fn write(&self, f: &mut fmt::Formatter<'_>, what: &str, within: Ms) -> fmt::Result {
        let mut times = self.0.clone();
        times.sort_unstable();
        let late = times.iter().filter(|time| **time > within).count();
        let middle = times.get(times.len() / 2).copied().unwrap_or(0);
        let longest = times.last().copied().unwrap_or(0);
        let count = times.len();
        write!(
            f,
            "{what}: {count} times, median {middle} ms, longest {longest} ms, {late} beyond {within} ms"
        )
    }
}

impl fmt::Display for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_stale
            .write(f, "  stale after a source was gone", STALE_WITHIN_MS)?;
        f.write_str("\n")?;
        self.to_live
            .write(f, "  live after it was back", LIVE_WITHIN_MS)
    }
}
