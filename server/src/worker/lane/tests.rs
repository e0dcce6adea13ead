use super::*;
use crate::{frame::samples, worker::batch::Notice};

fn shared(offset: u64, bytes: usize) -> Arc<Shared> {
    let data = format!("\"{}\"", "x".repeat(bytes));
    samples::shared(offset, "s/c", "", &data)
}

fn lane(members: u32) -> Lane {
    let mut lane = Lane::new(
        "s/c".parse().unwrap(),
        0,
        0,
        Mode::View,
        Offset::BEFORE_ALL,
        (0, None),
    );
    for member in 0..members {
        lane.enter(Wire::WebSocket, member);
    }
    lane
}

fn notice(op: &'static str) -> Notice {
    Notice {
        channel: "s/c".parse().unwrap(),
        op,
        json: b"{}".to_vec(),
        id: None,
    }
}

/// What a slice carries: offsets of updates, names of notices.
fn told(slice: &Slice) -> Vec<String> {
    let mut told = Vec::new();
    for batch in &slice.batches {
        match &batch.load {
            Load::Updates(updates) => {
                let offsets = updates.iter().map(|shared| shared.update.position.offset);
                told.extend(offsets.map(|offset| offset.number().to_string()));
            }
            Load::Beat(notice) | Load::News(notice) | Load::Gap(notice, _) => {
                told.push(notice.op.to_owned());
            }
        }
    }
    told
}

/// A share of a sweep: whom it came to, and what they were given.
fn share(lane: &mut Lane, budget: usize, rolling: bool) -> Option<(Vec<u32>, Vec<String>)> {
    let slice = lane.slice(Offset::new(100), rolling)?;
    let mut members = Vec::new();
    lane.next_members(budget, &mut members, |_, _| {});
    lane.settle(&slice);
    Some((members, told(&slice)))
}

fn strings<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[test]
fn a_slice_is_bounded_and_takes_at_least_one() {
    let mut lane = lane(1);
    for (offset, bytes) in [(1, 60_000), (2, 60_000), (3, 200_000)] {
        lane.push(shared(offset, bytes));
    }
    for offset in 1..=3 {
        let (_, told) = share(&mut lane, 1, true).unwrap();
        assert_eq!(told, [offset.to_string()]);
        assert_eq!(lane.swept, Offset::new(offset));
    }
    assert!(share(&mut lane, 1, true).is_none());
}

#[test]
fn what_comes_during_a_sweep_goes_along_with_what_is_ahead_of_it() {
    let mut lane = lane(4);
    lane.push(shared(1, 1));
    assert_eq!(
        share(&mut lane, 2, true),
        Some((vec![0, 1], strings(["1"])))
    );
    lane.push(shared(2, 1));
    assert_eq!(
        share(&mut lane, 9, true),
        Some((vec![2, 3], strings(["1", "2"])))
    );
    assert_eq!(
        (
            lane.given_at(Wire::WebSocket, 0),
            lane.oldest(),
            lane.newest()
        ),
        (1, 1, 2)
    );
    assert_eq!(lane.offset_at(1, Offset::new(100)), Offset::new(1));
    assert_eq!(lane.offset_at(2, Offset::new(100)), Offset::new(100));
    assert_eq!(
        share(&mut lane, 9, true),
        Some((vec![0, 1], strings(["2"])))
    );
    assert!(share(&mut lane, 9, true).is_none());
    lane.end_sweep(|_, _| {});
    assert!(!lane.has_work());
}

#[test]
fn a_sweep_that_does_not_roll_ends_with_what_it_began_with() {
    let mut lane = lane(4);
    lane.push(shared(1, 1));
    assert_eq!(
        share(&mut lane, 2, false),
        Some((vec![0, 1], strings(["1"])))
    );
    lane.push(shared(2, 1));
    assert_eq!(
        share(&mut lane, 9, false),
        Some((vec![2, 3], strings(["1"])))
    );
    assert!(share(&mut lane, 9, false).is_none());
    lane.end_sweep(|_, _| {});
    assert_eq!(
        share(&mut lane, 9, false),
        Some((vec![0, 1, 2, 3], strings(["2"])))
    );
}

#[test]
fn a_notice_goes_behind_what_somebody_has_been_given_and_before_the_rest() {
    let cursor = Offset::new(100);
    let mut lane = lane(2);
    lane.push(shared(1, 1));
    lane.push(shared(2, 1));
    share(&mut lane, 1, true);
    lane.push(shared(3, 1));
    lane.put_notice(Load::News(notice("stale")), cursor);
    lane.put_notice(Load::News(notice("stale again")), cursor);
    let all = strings(["1", "2", "stale again", "3"]);
    assert_eq!(share(&mut lane, 9, true), Some((vec![1], all)));
    assert_eq!(
        share(&mut lane, 9, true),
        Some((vec![0], strings(["stale again", "3"])))
    );
    assert!(share(&mut lane, 9, true).is_none());
    lane.end_sweep(|_, _| {});
    lane.put_notice(Load::News(notice("stale")), cursor);
    lane.put_notice(Load::Beat(notice("live")), cursor);
    lane.put_notice(Load::News(notice("stale")), cursor);
    assert_eq!(
        share(&mut lane, 9, true),
        Some((vec![0, 1], strings(["live", "stale"])))
    );
}

#[test]
fn who_has_the_first_has_everything_up_to_there_and_waits_for_the_second() {
    let cursor = Offset::new(100);
    let mut lane = lane(2);
    lane.push(shared(7, 1));
    lane.push(shared(9, 1));
    assert_eq!(lane.first_waiting(lane.oldest()), Some(Offset::new(7)));
    share(&mut lane, 1, true);
    let (ahead, behind) = (
        lane.given_at(Wire::WebSocket, 0),
        lane.given_at(Wire::WebSocket, 1),
    );
    assert_eq!(
        (lane.first_waiting(ahead), lane.first_waiting(behind)),
        (None, Some(Offset::new(7)))
    );
    lane.behind_from = lane.last_offset();
    assert_eq!(lane.offset_at(ahead, cursor), Offset::new(9));
}
