//! The oracle before histories made by hand: it acquits the one that is right, and calls each fault by its name.

use tidegate::model::Epoch;

use super::*;
use crate::fleet::message::Why;

/// A view by channel, and a channel of events.
const BOARD: usize = 0;
const TRADES: usize = 9;
const LAST: Ms = 9000;

fn partition(scene: &Scene, channel: usize) -> u32 {
    scene.partitions_of(channel)[0]
}

/// Five records of each: rows 0, 1, 2, 0, 1.
fn truth(scene: &Scene) -> Truth {
    let mut truth = Truth::new(scene);
    for stream in 0..scene.streams.len() {
        truth.begin(stream, Epoch::new(&format!("e{stream}")).unwrap());
    }
    for channel in [BOARD, TRADES] {
        let stream = scene.channels[channel].1;
        for offset in 1..=5u64 {
            let row = u16::try_from((offset - 1) % 3).unwrap();
            let at = (partition(scene, channel), offset);
            let known_at = Ms::try_from(offset).unwrap() * 10;
            truth.read((stream, 0), at, (channel, row, Some(offset)), known_at);
        }
    }
    truth
}

struct Made {
    scene: Scene,
    happened: Vec<Happened>,
    channel: usize,
    now: Ms,
}

impl Made {
    fn new(channel: usize) -> Self {
        Self {
            scene: Scene::new(),
            happened: Vec::new(),
            channel,
            now: 0,
        }
    }
    fn at(&self, offset: u64) -> Position {
        let stream = self.scene.channels[self.channel].1;
        let partition = partition(&self.scene, self.channel);
        format!("{partition}.e{stream}:{offset}").parse().unwrap()
    }
    fn what(&mut self, what: What) {
        self.now += 100;
        self.happened.push(Happened { at: self.now, what });
    }
    fn begin(&mut self, token: Option<u64>) {
        let token = token.map(|offset| Token::of([self.at(offset)]));
        self.what(What::Began {
            node: 0,
            tokens: vec![(self.channel, token)],
        });
        let now_ms = self.now;
        self.what(What::Heard(Message::Hello {
            now_ms,
            live_for_ms: 2000,
        }));
    }
    fn outcome(&mut self, outcome: Outcome) {
        let channel = self.channel;
        self.what(What::Heard(Message::Outcome { channel, outcome }));
    }
    fn snapshot(&mut self, offset: u64, rows: &[(u16, u64)]) {
        let (channel, at, rows) = (self.channel, Some(self.at(offset)), rows.to_vec());
        let part = 0;
        self.what(What::Heard(Message::Snapshot {
            channel,
            part,
            rows,
            at,
        }));
    }
    fn update(&mut self, offset: u64) {
        let row = u16::try_from((offset - 1) % 3).unwrap();
        self.update_to(offset, row, offset);
    }
    fn update_to(&mut self, offset: u64, row: u16, value: u64) {
        let (channel, at, value) = (self.channel, self.at(offset), Some(value));
        self.what(What::Heard(Message::Update {
            channel,
            at,
            row,
            value,
        }));
    }
    fn gap(&mut self, from: u64, to: u64) {
        let (channel, from, to) = (self.channel, self.at(from), self.at(to));
        self.what(What::Heard(Message::Gap {
            channel,
            from,
            to,
            dropped: None,
            why: Why::TooOld,
        }));
    }
    /// A heartbeat with a proof of just now.
    fn heartbeat(&mut self, offset: u64) {
        let (channel, token) = (self.channel, Token::of([self.at(offset)]));
        let proved_at_ms = Some(self.now);
        self.what(What::Heard(Message::Heartbeat {
            channel,
            token,
            proved_at_ms,
        }));
    }
    fn beats_until(&mut self, offset: u64, until: Ms) {
        while self.now < until {
            self.now += 400;
            self.heartbeat(offset);
        }
    }
    /// The kinds of all verdicts, once everything has come to rest.
    fn judged(self) -> Vec<Kind> {
        let truth = truth(&self.scene);
        let history = History {
            client: 0,
            manner: Manner::WebSocket,
            channels: vec![self.channel],
            happened: self.happened,
        };
        let verdicts = judge(&self.scene, &truth, &history, self.now + 100);
        verdicts.iter().map(|verdict| verdict.kind).collect()
    }
}

/// A view: whole at 3, cut there, and then what is given.
fn view(then: impl FnOnce(&mut Made)) -> Vec<Kind> {
    let mut made = Made::new(BOARD);
    made.begin(None);
    made.outcome(Outcome::New);
    made.snapshot(2, &[(0, 1), (1, 2)]);
    made.update(3);
    made.heartbeat(3);
    made.what(What::Ended("cut"));
    made.begin(Some(3));
    then(&mut made);
    made.judged()
}

/// Events: the first two have come, and then what is given.
fn events(then: impl FnOnce(&mut Made)) -> Vec<Kind> {
    let mut made = Made::new(TRADES);
    made.begin(None);
    made.outcome(Outcome::Started);
    made.update(1);
    made.update(2);
    then(&mut made);
    made.judged()
}

fn resumes(offsets: &[u64]) -> Vec<Kind> {
    view(|made| {
        made.outcome(Outcome::Resumed);
        offsets.iter().for_each(|&offset| made.update(offset));
        made.heartbeat(5);
    })
}

#[test]
fn what_is_right_is_acquitted() {
    assert_eq!(resumes(&[4, 5]), []);
    let whole = view(|made| {
        made.outcome(Outcome::TooOld);
        made.snapshot(5, &[(0, 4), (1, 5), (2, 3)]);
        made.heartbeat(5);
    });
    assert_eq!(whole, []);
    let with_gap = events(|made| {
        made.gap(2, 4);
        made.update(5);
        made.heartbeat(5);
    });
    assert_eq!(with_gap, []);
}

#[test]
fn what_never_came_was_lost_or_passed_over_at_the_beginning() {
    assert_eq!(resumes(&[4]), [Kind::Lost]);
    assert_eq!(resumes(&[5]), [Kind::WrongResume]);
    assert_eq!(resumes(&[]), [Kind::WrongResume]);
    let skipped = events(|made| {
        made.update(4);
        made.update(5);
        made.heartbeat(5);
    });
    assert_eq!(skipped, [Kind::Lost]);
    let after_gap = events(|made| {
        made.gap(3, 4);
        made.update(5);
        made.heartbeat(5);
    });
    assert_eq!(after_gap, [Kind::Lost]);
}

#[test]
fn what_came_twice_or_late_is_told_apart() {
    assert_eq!(resumes(&[4, 5, 5]), [Kind::Doubled]);
    assert_eq!(resumes(&[3, 4, 5]), [Kind::WrongResume]);
    assert!(resumes(&[5, 4]).contains(&Kind::Reordered));
}

#[test]
fn what_no_log_holds_is_invented() {
    let other_value = view(|made| {
        made.outcome(Outcome::Resumed);
        made.update_to(4, 0, 77);
        made.update(5);
        made.heartbeat(5);
    });
    assert!(other_value.contains(&Kind::Invented), "{other_value:?}");
    let half = view(|made| {
        made.outcome(Outcome::TooOld);
        made.snapshot(5, &[(0, 4), (1, 5)]);
        made.heartbeat(5);
    });
    assert_eq!(half, [Kind::Lost]);
}

#[test]
fn a_lease_that_is_renewed_without_what_was_written_is_no_proof() {
    let stale = view(|made| {
        made.outcome(Outcome::Resumed);
        made.update(4);
        made.heartbeat(4);
        made.beats_until(4, LAST);
    });
    // The rows are those of their place; it is the place that is too old.
    assert_eq!(stale, [Kind::UnmarkedStale, Kind::NotConverged]);
}

#[test]
fn outcomes_are_held_against_the_token() {
    let foreign = view(|made| {
        made.outcome(Outcome::EpochChanged);
        made.snapshot(5, &[(0, 4), (1, 5), (2, 3)]);
        made.heartbeat(5);
    });
    assert_eq!(foreign, [Kind::WrongResume]);
    let back = view(|made| {
        made.outcome(Outcome::TooOld);
        made.snapshot(2, &[(0, 1), (1, 2)]);
        [3, 4, 5].into_iter().for_each(|offset| made.update(offset));
        made.heartbeat(5);
    });
    assert_eq!(back, [Kind::Reordered]);
}

#[test]
fn who_is_not_live_at_rest_has_not_converged() {
    let silent = view(|made| {
        made.outcome(Outcome::Resumed);
        made.update(4);
        made.update(5);
    });
    assert_eq!(silent, [Kind::NotConverged]);
    let garbled = view(|made| {
        made.outcome(Outcome::Resumed);
        made.what(What::Garbled("{".to_owned()));
        made.update(4);
        made.update(5);
        made.heartbeat(5);
    });
    assert_eq!(garbled, [Kind::Garbled]);
}
