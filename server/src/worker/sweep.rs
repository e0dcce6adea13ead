//! A sweep: the walk over a lane's members, each of whom is given at once all that waits for it when its turn comes.
//!
//! Members side by side who have been given the same are a run; the runs lie in the order in which they will be visited, so
//! what they have been given never falls from one to the next, and the first is always the one that has had the least. What
//! arrives meanwhile is given to those who are still ahead together with the rest, and to those behind on the next round:
//! an update waits for one round at most, not for the end of this one and then its place in the next. Who leaves makes a
//! hole that the walk closes as it passes; who joins is appended. Pure: it knows numbers, no messages and no sockets.

use std::collections::VecDeque;

use crate::frame::Wire;

/// No lane, no member.
pub const NONE: u32 = u32::MAX;

/// A lane's members by wire format, each by its connection's slot.
#[derive(Debug, Default)]
pub struct Members {
    by_wire: [Vec<u32>; Wire::COUNT],
    live: usize,
}

/// Members side by side who have been given the same. It begins where the one before it in its wire format ends.
#[derive(Debug)]
struct Run {
    wire: Wire,
    end: usize,
    given: u64,
}

/// A walk under way.
#[derive(Debug)]
pub struct Sweep {
    /// In the order in which they will be visited; what they have been given never falls.
    runs: VecDeque<Run>,
    /// Who is visited next, in the first run's wire format.
    read: usize,
    /// Where it belongs: less than `read` by the holes that were passed.
    write: usize,
    /// Where those begin who were visited since the last [`Sweep::settle`].
    begin: usize,
    /// The most that anybody was given.
    newest: u64,
}

impl Members {
    /// Takes a member in at the end; gives its place.
    pub fn push(&mut self, wire: Wire, member: u32) -> u32 {
        let members = &mut self.by_wire[wire.index()];
        self.live += 1;
        members.push(member);
        u32::try_from(members.len() - 1).unwrap_or(NONE)
    }

    /// Lets a member go and leaves a hole.
    pub fn vacate(&mut self, wire: Wire, place: u32) {
        let places = self.by_wire[wire.index()].get_mut(place as usize);
        if let Some(member) = places.filter(|member| **member != NONE) {
            *member = NONE;
            self.live -= 1;
        }
    }

    /// Lets a member go; the last one takes its place: then that one, and its new place, come back.
    pub fn remove(&mut self, wire: Wire, place: u32) -> Option<(u32, u32)> {
        let members = &mut self.by_wire[wire.index()];
        if place as usize >= members.len() {
            return None;
        }
        self.live -= 1;
        members.swap_remove(place as usize);
        give_back(members);
        members.get(place as usize).map(|&moved| (moved, place))
    }

    /// Closes all holes; tells `moved` who got another place.
    pub fn close_holes(&mut self, mut moved: impl FnMut(u32, u32)) {
        if self.by_wire.iter().map(Vec::len).sum::<usize>() == self.live {
            return;
        }
        for members in &mut self.by_wire {
            let before = members.len();
            members.retain(|&member| member != NONE);
            if members.len() != before {
                for (place, &member) in (0u32..).zip(members.iter()) {
                    moved(member, place);
                }
                give_back(members);
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.live
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let places = self.by_wire.iter().flatten().copied();
        places.filter(|&member| member != NONE)
    }

    fn places(&self, wire: Wire) -> usize {
        self.by_wire[wire.index()].len()
    }
}

/// After many have left, their room is given back.
fn give_back(members: &mut Vec<u32>) {
    if members.len() < members.capacity() / 4 {
        members.shrink_to(members.len() * 2);
    }
}

impl Sweep {
    /// A walk over members who have all been given what is before `given`.
    #[must_use]
    pub fn new(members: &Members, given: u64) -> Self {
        let run = |wire: Wire| Run {
            wire,
            end: members.places(wire),
            given,
        };
        let runs = Wire::ALL.into_iter().map(run).filter(|run| run.end > 0);
        Self {
            runs: runs.collect(),
            read: 0,
            write: 0,
            begin: 0,
            newest: given,
        }
    }

    /// What those have been given whose turn is next: nobody has been given less. None when there is nobody.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.runs.front().map(|run| run.given)
    }

    /// What some have been given, and nobody more.
    #[must_use]
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    /// The next members of the first run, at most `most` of them, go to `turn`; tells `moved` who got another place. Their
    /// wire format comes back.
    pub fn visit(
        &mut self,
        members: &mut Members,
        most: usize,
        turn: &mut Vec<u32>,
        mut moved: impl FnMut(u32, u32),
    ) -> Option<Wire> {
        let run = self.runs.front()?;
        let places = &mut members.by_wire[run.wire.index()];
        while self.read < run.end && turn.len() < most {
            let (from, to) = (self.read, self.write);
            let member = places[from];
            self.read += 1;
            if member == NONE {
                continue;
            }
            self.write += 1;
            turn.push(member);
            if from != to {
                places.swap(from, to);
                moved(member, u32::try_from(to).unwrap_or(NONE));
            }
        }
        Some(run.wire)
    }

    /// Those who were visited since the last time have been given all that is before `given`: they go behind the others.
    pub fn settle(&mut self, members: &mut Members, given: u64) {
        let Some(run) = self.runs.front() else {
            return;
        };
        let wire = run.wire;
        if self.read == run.end {
            self.runs.pop_front();
        }
        self.newest = given;
        if self.write > self.begin {
            let end = self.write;
            let same =
                |last: &&mut Run| (last.wire, last.end, last.given) == (wire, self.begin, given);
            match self.runs.back_mut().filter(same) {
                Some(last) => last.end = end,
                None => self.runs.push_back(Run { wire, end, given }),
            }
        }
        let places = &mut members.by_wire[wire.index()];
        if self.read == places.len() {
            places.truncate(self.write);
            give_back(places);
            (self.read, self.write) = (0, 0);
        }
        self.begin = self.write;
    }

    /// A member was appended: it is visited with those before it.
    pub fn entered(&mut self, members: &Members, wire: Wire) {
        let end = members.places(wire);
        let mut runs = self.runs.iter_mut();
        if let Some(last) = runs.find(|run| run.wire == wire && run.end == end - 1) {
            last.end = end;
            return;
        }
        // The first of its wire format: between two others, so that no walk is interrupted.
        let is_last = |run: &Run| run.end == members.places(run.wire);
        let before = self.runs.iter().position(is_last);
        let given = before.map_or(self.newest, |at| self.runs[at].given);
        let at = before.map_or(0, |at| at + 1);
        self.runs.insert(at, Run { wire, end, given });
    }

    /// What the member at this place has been given.
    #[must_use]
    pub fn given_at(&self, wire: Wire, place: u32) -> u64 {
        let mine = |run: &&Run| run.wire == wire && run.end > place as usize;
        let run = self.runs.iter().filter(mine).min_by_key(|run| run.end);
        run.map_or(self.newest, |run| run.given)
    }
}

#[cfg(test)]
mod tests;
