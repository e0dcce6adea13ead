use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
/// The longest pause and the shortest, by chance.
const LONG: u32 = u32::MAX;

fn at(ms: u32) -> Moment {
    Moment::from_micros(1).plus(MS * ms)
}

fn breaker() -> Breaker {
    Breaker::new(Limits::default(), at(0))
}

fn ticket(breaker: &mut Breaker, now: Moment) -> Ticket {
    match breaker.admit(now, LONG) {
        Admission::Call(ticket) => ticket,
        Admission::Wait(until) => panic!("told to wait until {until:?} at {now:?}"),
    }
}

fn call(breaker: &mut Breaker, now: Moment, outcome: Outcome) {
    let ticket = ticket(breaker, now);
    breaker.settle(ticket, outcome, now, LONG);
}

/// Opened at `now` by as many failures as it takes.
fn opened(now: Moment) -> Breaker {
    let mut breaker = breaker();
    for _ in 0..Limits::default().failures {
        call(&mut breaker, now, Outcome::Failed);
    }
    assert_eq!(breaker.state(), State::Open);
    breaker
}

#[test]
fn failures_in_a_row_open_it_and_an_answer_between_them_does_not() {
    use Outcome::{Abandoned, Answered, Declined, Failed};
    for (outcomes, state) in [
        (&[Failed, Failed][..], State::Closed),
        (&[Failed, Failed, Failed], State::Open),
        (&[Failed, Failed, Answered, Failed, Failed], State::Closed),
        (&[Failed, Declined, Failed, Declined, Failed], State::Open),
        (&[Declined; 9], State::Closed),
        (&[Abandoned; 9], State::Closed),
        (&[Failed, Abandoned, Failed, Failed], State::Open),
    ] {
        let mut breaker = breaker();
        for &outcome in outcomes {
            call(&mut breaker, at(1), outcome);
        }
        assert_eq!(breaker.state(), state, "{outcomes:?}");
    }
}

#[test]
fn who_gives_up_after_half_of_the_time_out_has_seen_it_hang() {
    for (waited, state) in [(999, State::Closed), (1000, State::Open)] {
        let mut breaker = breaker();
        for _ in 0..3 {
            let ticket = ticket(&mut breaker, at(0));
            breaker.settle(ticket, Outcome::Abandoned, at(waited), LONG);
        }
        assert_eq!(breaker.state(), state, "{waited} ms");
    }
}

#[test]
fn an_open_breaker_lets_one_probe_through_when_its_time_is_over() {
    let mut breaker = opened(at(0));
    assert_eq!(breaker.admit(at(49), LONG), Admission::Wait(at(50)));
    let probe = ticket(&mut breaker, at(50));
    assert!(probe.is_probe());
    assert_eq!(breaker.state(), State::HalfOpen);
    // The time-out and the longest pause later the probe counts as lost.
    assert_eq!(breaker.admit(at(51), LONG), Admission::Wait(at(3050)));
    breaker.settle(probe, Outcome::Answered, at(52), LONG);
    assert_eq!(breaker.state(), State::Closed);
    assert!(!ticket(&mut breaker, at(52)).is_probe());
    assert_eq!(breaker.openings(), 1);
    assert_eq!(breaker.open_time(at(9000)), 52 * MS);
}

#[test]
fn probes_that_fail_or_are_dropped_double_the_pause_up_to_a_second() {
    for outcome in [Outcome::Failed, Outcome::Abandoned] {
        let mut breaker = opened(at(0));
        let mut now = at(50);
        for pause in [100, 200, 400, 800, 1000, 1000] {
            call(&mut breaker, now, outcome);
            let next = now.plus(pause * MS);
            assert_eq!(
                breaker.admit(now, LONG),
                Admission::Wait(next),
                "{outcome:?}"
            );
            now = next;
        }
        assert_eq!(breaker.openings(), 1);
        call(&mut breaker, now, Outcome::Answered);
        assert_eq!(breaker.state(), State::Closed);
    }
}

#[test]
fn a_callee_that_declines_a_probe_is_there() {
    let mut breaker = opened(at(0));
    call(&mut breaker, at(50), Outcome::Declined);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_probe_that_never_ends_is_lost_and_says_nothing_later() {
    let mut breaker = opened(at(0));
    let lost = ticket(&mut breaker, at(50));
    assert_eq!(breaker.admit(at(3050), LONG), Admission::Wait(at(3150)));
    assert_eq!(breaker.state(), State::Open);
    breaker.settle(lost, Outcome::Answered, at(3060), LONG);
    assert_eq!(breaker.state(), State::Open);
    let probe = ticket(&mut breaker, at(3150));
    breaker.settle(lost, Outcome::Failed, at(3151), LONG);
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.settle(probe, Outcome::Answered, at(3152), LONG);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn calls_of_an_earlier_life_change_nothing() {
    let mut breaker = breaker();
    let old: Vec<Ticket> = (0..100).map(|_| ticket(&mut breaker, at(0))).collect();
    for &ticket in &old[..10] {
        breaker.settle(ticket, Outcome::Failed, at(10), LONG);
    }
    assert_eq!(breaker.state(), State::Open);
    breaker.settle(old[10], Outcome::Answered, at(11), LONG);
    assert_eq!(breaker.state(), State::Open);
    call(&mut breaker, at(60), Outcome::Answered);
    for &ticket in &old[11..] {
        breaker.settle(ticket, Outcome::Failed, at(70), LONG);
    }
    assert_eq!((breaker.state(), breaker.failures()), (State::Closed, 0));
}

#[test]
fn one_that_flaps_goes_on_where_its_pause_was_until_it_was_calm() {
    for (closed_for, pause) in [(9_999, 100), (10_000, 50)] {
        let mut breaker = opened(at(0));
        call(&mut breaker, at(50), Outcome::Answered);
        let now = at(50 + closed_for);
        for _ in 0..3 {
            call(&mut breaker, now, Outcome::Failed);
        }
        let next = now.plus(pause * MS);
        assert_eq!(
            breaker.admit(now, LONG),
            Admission::Wait(next),
            "{closed_for} ms"
        );
        assert_eq!(breaker.openings(), 2);
    }
}

/// What happens to a breaker: time passes, then somebody asks, or a call that is still out ends.
#[derive(Clone, Debug)]
enum Step {
    Ask,
    End(prop::sample::Index, Outcome),
}

fn steps(outcomes: &'static [Outcome]) -> impl Strategy<Value = Vec<(u32, Step, u32)>> {
    let end = (any::<prop::sample::Index>(), prop::sample::select(outcomes))
        .prop_map(|(which, outcome)| Step::End(which, outcome));
    let step = prop_oneof![2 => Just(Step::Ask), 1 => end];
    let pause = prop_oneof![4 => 0u32..60, 1 => 0u32..5000];
    prop::collection::vec((pause, step, any::<u32>()), 1..200)
}

/// What is out, and how many calls each half-open life let through.
#[derive(Default)]
struct Seen {
    out: Vec<Ticket>,
    probes: BTreeMap<u64, u32>,
}

/// Plays steps, and after each looks at a copy: so a look may go on into a future of its own.
fn play(steps: Vec<(u32, Step, u32)>, mut look: impl FnMut(Breaker, &Seen, Moment)) {
    let (mut breaker, mut seen, mut now) = (breaker(), Seen::default(), at(0));
    for (pause, step, chance) in steps {
        now = now.plus(MS * pause);
        match step {
            Step::Ask => {
                if let Admission::Call(ticket) = breaker.admit(now, chance) {
                    if ticket.is_probe() {
                        *seen.probes.entry(breaker.life()).or_default() += 1;
                    }
                    seen.out.push(ticket);
                }
            }
            Step::End(..) if seen.out.is_empty() => {}
            Step::End(which, outcome) => {
                let ticket = seen.out.swap_remove(which.index(seen.out.len()));
                breaker.settle(ticket, outcome, now, chance);
            }
        }
        look(breaker.clone(), &seen, now);
    }
}

const ALL: &[Outcome] = &[
    Outcome::Answered,
    Outcome::Declined,
    Outcome::Failed,
    Outcome::Abandoned,
];

proptest! {
    #[test]
    fn half_open_never_has_more_than_one_probe(steps in steps(ALL)) {
        play(steps, |mut breaker, seen, now| {
            assert!(seen.probes.values().all(|&calls| calls == 1));
            if breaker.state() == State::HalfOpen {
                let until = breaker.opens_again().unwrap();
                if now < until {
                    assert_eq!(breaker.admit(now, 0), Admission::Wait(until));
                }
            }
        });
    }

    #[test]
    fn it_never_closes_while_nothing_is_answered(steps in steps(&[Outcome::Failed, Outcome::Abandoned])) {
        let mut opened = false;
        play(steps, |breaker, _, _| {
            opened |= breaker.state() == State::Open;
            assert!(!opened || breaker.state() != State::Closed);
        });
    }

    #[test]
    fn whoever_is_told_to_wait_is_let_through_in_time(steps in steps(ALL), chance in any::<u32>()) {
        let limits = Limits::default();
        play(steps, |mut breaker, _, now| {
            let (mut asked, mut waits) = (now, Vec::new());
            // The calls that are out never end: a lost probe's lease, then one pause, are all that there is to wait for.
            while breaker.state() != State::Closed {
                match breaker.admit(asked, chance) {
                    Admission::Call(_) => break,
                    Admission::Wait(until) => {
                        assert!(until > asked, "a wait of nothing is a hot loop");
                        waits.push(until.since(asked));
                        asked = until;
                    }
                }
            }
            let longest = match waits.len() {
                0 | 1 => limits.time_out + limits.backoff_max,
                2 => limits.time_out + 2 * limits.backoff_max,
                _ => panic!("waited again and again: {waits:?}"),
            };
            assert!(waits.iter().sum::<Duration>() <= longest, "{waits:?}");
        });
    }

    #[test]
    fn an_open_breaker_takes_a_probe_within_a_second_and_heals_by_one_answer(steps in steps(ALL)) {
        play(steps, |mut breaker, _, now| {
            if breaker.state() == State::Open {
                let until = breaker.opens_again().unwrap();
                assert!(until.since(now) <= Duration::from_secs(1));
                let probe = ticket(&mut breaker, until.max(now));
                breaker.settle(probe, Outcome::Answered, until.max(now), 0);
                assert_eq!(breaker.state(), State::Closed);
            }
        });
    }
}
