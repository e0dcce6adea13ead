//! What leaves an outbox never goes back and ends on the newest; budgets are never exceeded.

use proptest::prelude::*;

use super::*;
use crate::frame::samples;

fn shared(offset: u64, row: u64) -> Arc<Shared> {
    samples::shared(offset, "s/c", &row.to_string(), &offset.to_string())
}

const ROOM: OutboxMax = OutboxMax {
    bytes: 1 << 20,
    frames: 4096,
};

fn line(mode: Mode, max_rate: Option<f64>) -> Line {
    Line::new(
        0,
        mode,
        if mode == Mode::View {
            Policy::Conflate
        } else {
            Policy::DropOldest
        },
        max_rate,
    )
}

fn offsets(line: &mut Line, now: Moment, most: usize) -> Vec<u64> {
    let next = std::iter::from_fn(|| line.next(now, None)).take(most);
    next.map(|next| match next {
        Next::Update(shared) => shared.update.position.offset.number(),
        other => panic!("{other:?}"),
    })
    .collect()
}

fn owe(
    line: &mut Line,
    updates: impl IntoIterator<Item = (u64, u64)>,
    max: OutboxMax,
) -> Vec<Owed> {
    updates
        .into_iter()
        .map(|(offset, row)| line.owe(&shared(offset, row), Moment::default(), max))
        .collect()
}

#[test]
fn a_newer_update_takes_the_place_of_one_that_waits_but_not_of_one_that_is_frozen() {
    let mut line = line(Mode::View, None);
    owe(&mut line, [(1, 1), (2, 2), (3, 1)], ROOM);
    assert_eq!(offsets(&mut line, Moment::default(), 1), [2]);
    assert_eq!(
        owe(&mut line, [(4, 1), (5, 1)], ROOM),
        [Owed::Kept, Owed::Conflated]
    );
    assert_eq!(offsets(&mut line, Moment::default(), 9), [3, 5]);
    assert!(line.is_empty() && line.bytes() == 0);
}

#[test]
fn a_rate_lets_flushes_through_not_updates() {
    let mut line = line(Mode::View, Some(10.0));
    let at = |millis: u64| Moment::from_micros(millis * 1000);
    owe(&mut line, [(1, 1), (2, 2)], ROOM);
    assert_eq!(offsets(&mut line, at(1000), 9), [1, 2]);
    owe(&mut line, [(3, 1)], ROOM);
    assert_eq!(offsets(&mut line, at(1099), 9), [0u64; 0]);
    assert_eq!(line.flush_at(at(1099)), Some(at(1100)));
    assert_eq!(offsets(&mut line, at(1100), 9), [3]);
}

#[test]
fn dropped_events_are_one_counted_gap_in_their_place_from_what_was_sent() {
    let mut line = line(Mode::Events, None);
    let max = OutboxMax { frames: 3, ..ROOM };
    owe(&mut line, [(1, 0)], max);
    assert_eq!(offsets(&mut line, Moment::default(), 1), [1]);
    owe(&mut line, (2..=6).map(|offset| (offset, 0)), max);
    let Some(Next::Gap(gap)) = line.next(Moment::default(), None) else {
        panic!()
    };
    let (from, to) = (gap.from.offset.number(), gap.to.offset.number());
    let rest = offsets(&mut line, Moment::default(), 9);
    assert_eq!((from, gap.dropped), (1, Some(to - 1)));
    assert_eq!(rest, (to + 1..=6).collect::<Vec<_>>());
}

#[test]
fn a_view_that_overflows_begins_again_from_what_was_sent() {
    let mut line = line(Mode::View, None);
    let max = OutboxMax { frames: 2, ..ROOM };
    owe(&mut line, [(1, 1)], max);
    offsets(&mut line, Moment::default(), 1);
    assert_eq!(
        owe(&mut line, [(2, 2), (3, 3), (4, 4)], max),
        [Owed::Kept, Owed::Kept, Owed::Overflow]
    );
    assert_eq!(
        line.phase,
        Phase::Behind(From::After(shared(1, 1).update.position.clone()))
    );
    assert!(line.is_empty());
    (line.policy, line.phase) = (Policy::Disconnect, Phase::Streaming);
    assert_eq!(
        owe(&mut line, [(5, 5), (6, 6), (7, 7)], max)[2],
        Owed::Disconnect
    );
}

proptest! {
    #[test]
    fn views_never_go_back_and_end_on_the_newest(steps in prop::collection::vec((0..6u64, 0..3usize), 1..80)) {
        let mut line = line(Mode::View, None);
        let (mut newest, mut shown, mut last) = (HashMap::new(), Vec::new(), 0);
        let mut leave = |line: &mut Line, most: usize| {
            for offset in offsets(line, Moment::default(), most) {
                assert!(offset > last, "{offset} after {last}");
                last = offset;
                shown.push(offset);
            }
        };
        for (offset, (row, reads)) in (1u64..).zip(&steps) {
            owe(&mut line, [(offset, *row)], ROOM);
            newest.insert(*row, offset);
            prop_assert!(line.frames() <= 12, "twice the rows");
            leave(&mut line, *reads);
        }
        leave(&mut line, usize::MAX);
        for offset in newest.values() {
            prop_assert!(shown.contains(offset));
        }
        prop_assert_eq!(line.bytes(), 0);
    }

    #[test]
    fn events_come_once_or_lie_in_a_counted_gap(frames in 1..6usize, steps in prop::collection::vec(0..4usize, 1..80)) {
        let mut line = line(Mode::Events, None);
        let max = OutboxMax { frames, ..ROOM };
        let mut expected = 1;
        let mut leave = |line: &mut Line, most: usize| {
            for next in std::iter::from_fn(|| line.next(Moment::default(), None)).take(most) {
                match next {
                    Next::Update(shared) => assert_eq!(shared.update.position.offset.number(), expected),
                    Next::Gap(gap) => {
                        assert_eq!(gap.dropped, Some(gap.to.offset.number() + 1 - expected));
                        expected = gap.to.offset.number();
                    }
                    Next::Part(..) => panic!("events have no snapshot"),
                }
                expected += 1;
            }
        };
        for (offset, reads) in (1u64..).zip(&steps) {
            owe(&mut line, [(offset, 0)], max);
            prop_assert!(line.frames() <= frames);
            leave(&mut line, *reads);
        }
        leave(&mut line, usize::MAX);
        prop_assert_eq!(expected, steps.len() as u64 + 1);
    }

    #[test]
    fn the_bytes_never_exceed_their_bound(bytes in 300..3000usize, events in any::<bool>(), rows in prop::collection::vec(0..20u64, 1..60)) {
        let mut line = line(if events { Mode::Events } else { Mode::View }, None);
        let max = OutboxMax { bytes, frames: 4096 };
        for (offset, row) in (1u64..).zip(rows) {
            owe(&mut line, [(offset, row)], max);
            prop_assert!(line.bytes() <= bytes);
        }
    }
}
