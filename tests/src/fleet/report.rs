//! What a run came to, in words and figures.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    Faults, Plan,
    faults::Occurred,
    history::{History, What},
    judge::{Kind, Verdict, judge},
    message::{Message, Outcome},
    scene::{Ms, Scene},
    spells::Delays,
    truth::Truth,
};

/// Verdicts that are told in full.
const TOLD: usize = 6;
/// Lines of each node's log that go with a failing run.
const LOGGED: usize = 40;

/// How a run ended, beside what its clients saw.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) at: Ms,
    /// How long it took until all was at rest, if it came to that.
    pub(super) rest: Option<Ms>,
    pub(super) occurred: Vec<Occurred>,
    pub(super) figures: Vec<String>,
    pub(super) blames: Vec<String>,
    /// What each process logged.
    pub(super) logs: Vec<String>,
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    plan: Plan,
    /// What the clients saw that they must not see.
    pub verdicts: Vec<Verdict>,
    /// Where the log itself contradicts what it acknowledged: then the verdicts mean nothing.
    pub contradictions: Vec<String>,
    /// What nodes did not do that they should, and no client can see.
    pub blames: Vec<String>,
    /// Records in the logs, messages that clients heard, connections.
    pub records: usize,
    messages: usize,
    connections: usize,
    outcomes: BTreeMap<String, usize>,
    occurred: Vec<Occurred>,
    rest: Option<Ms>,
    delays: Delays,
    figures: Vec<String>,
    logs: Vec<String>,
}

impl Report {
    pub(super) fn of(
        plan: &Plan,
        scene: &Scene,
        truth: &Truth,
        histories: &[History],
        ending: Ending,
    ) -> Self {
        let mut report = Self {
            plan: plan.clone(),
            verdicts: Vec::new(),
            contradictions: truth.contradictions.clone(),
            blames: ending.blames,
            records: truth.len(),
            messages: 0,
            connections: 0,
            outcomes: BTreeMap::new(),
            occurred: ending.occurred,
            rest: ending.rest,
            delays: Delays::default(),
            figures: ending.figures,
            logs: ending.logs,
        };
        for history in histories {
            report.count(history);
            report.delays.add(scene, history, &report.occurred);
            report
                .verdicts
                .extend(judge(scene, truth, history, ending.at));
        }
        report
    }

    fn count(&mut self, history: &History) {
        for happened in &history.happened {
            match &happened.what {
                What::Began { .. } => self.connections += 1,
                What::Heard(message) => {
                    self.messages += 1;
                    let word = match message {
                        Message::Outcome { outcome, .. } => word(*outcome),
                        Message::Gap { why, .. } => format!("gap {why:?}"),
                        Message::Freshness { reason, .. } => format!("stale {reason}"),
                        _ => continue,
                    };
                    *self.outcomes.entry(word).or_default() += 1;
                }
                What::Garbled(_) => {}
                What::Ended(why) => *self.outcomes.entry(format!("end: {why}")).or_default() += 1,
            }
        }
    }

    /// How many verdicts there are of each kind.
    #[must_use]
    pub fn by_kind(&self) -> BTreeMap<Kind, usize> {
        let mut kinds = BTreeMap::new();
        for verdict in &self.verdicts {
            *kinds.entry(verdict.kind).or_default() += 1;
        }
        kinds
    }

    /// Whether the run is what it should be: nothing to be seen, or, with a bug, that bug and by its name.
    #[must_use]
    pub fn holds(&self) -> bool {
        let kinds = self.by_kind();
        self.contradictions.is_empty()
            && self.blames.is_empty()
            && match self.plan.bug {
                None => kinds.is_empty(),
                Some(bug) => kinds.contains_key(&bug.kind()),
            }
    }

    /// All of it, for people; with the stories of the first verdicts where it does not hold.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).unwrap_or_default();
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let plan = &self.plan;
        let faults = match &plan.faults {
            Faults::Random => "at random".to_owned(),
            Faults::InTurn(faults) => format!("{faults:?}"),
        };
        writeln!(
            text,
            "seed {}, {} nodes, {} brokers, {} clients, cache {:?}, faults {faults}, bug {:?}",
            plan.seed, plan.nodes, plan.brokers, plan.clients, plan.cache, plan.bug
        )?;
        writeln!(
            text,
            "{} records, {} connections, {} messages",
            self.records, self.connections, self.messages
        )?;
        for (word, count) in &self.outcomes {
            writeln!(text, "  {count:>7} {word}")?;
        }
        for occurred in &self.occurred {
            writeln!(text, "  {occurred}")?;
        }
        if !self.occurred.is_empty() {
            writeln!(text, "{}", self.delays)?;
        }
        for figure in &self.figures {
            writeln!(text, "  {figure}")?;
        }
        match self.rest {
            Some(rest) => writeln!(
                text,
                "at rest {rest} ms after the last record was known to be in the log"
            )?,
            None => writeln!(text, "not at rest")?,
        }
        writeln!(text, "verdicts: {:?}", self.by_kind())?;
        for blame in self.blames.iter().take(TOLD) {
            writeln!(text, "{blame}")?;
        }
        for contradiction in self.contradictions.iter().take(TOLD) {
            writeln!(text, "the log contradicts itself: {contradiction}")?;
        }
        let told = if self.plan.bug.is_some() && self.holds() {
            1
        } else {
            TOLD
        };
        let wanted = |verdict: &&Verdict| plan.bug.is_none_or(|bug| bug.kind() == verdict.kind);
        for verdict in self.verdicts.iter().filter(wanted).take(told) {
            writeln!(text, "{}\n{}", verdict.text, verdict.story)?;
        }
        if !self.holds() {
            for (number, log) in self.logs.iter().enumerate() {
                let lines: Vec<_> = log.lines().rev().take(LOGGED).collect();
                writeln!(text, "the last that node {number} logged:")?;
                lines
                    .iter()
                    .rev()
                    .try_for_each(|line| writeln!(text, "    {line}"))?;
            }
        }
        Ok(())
    }
}

fn word(outcome: Outcome) -> String {
    match outcome {
        Outcome::Resumed => "resumed".to_owned(),
        Outcome::Started => "started".to_owned(),
        Outcome::CatchingUp => "catching_up".to_owned(),
        Outcome::New => "snapshot new".to_owned(),
        Outcome::TooOld => "snapshot too_old".to_owned(),
        Outcome::EpochChanged => "snapshot epoch_changed".to_owned(),
        Outcome::Refused => "refused".to_owned(),
    }
}
