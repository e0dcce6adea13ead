//! When all is calm every view is what the log comes to, every event has come, and everything is live.

use tidegate::model::Mode;

use super::views::difference;
use crate::fleet::{
    held::{Held, Rows},
    scene::{Ms, Scene},
    truth::Truth,
};

/// Why a channel is not what it should be when all is calm: it is not what the log comes to, or it is not live now.
pub(in crate::fleet) fn unsettled(
    scene: &Scene,
    truth: &Truth,
    channel: usize,
    held: &Held,
    now: Ms,
) -> Option<String> {
    let lacks = lacks(scene, truth, channel, held);
    // What nobody knows as a whole any more is never live.
    let may_be_live = !is_without_beginning(scene, truth, channel);
    match (may_be_live, held.is_live(now)) {
        (true, false) => lacks.or_else(|| Some(format!("is not live at {}", held.token))),
        (false, true) => Some("is shown live although its log has lost its beginning".to_owned()),
        _ => lacks,
    }
}

/// Whether the oldest records of a view's log were deleted.
fn is_without_beginning(scene: &Scene, truth: &Truth, channel: usize) -> bool {
    let is_view = scene.stream_of(channel).mode == Mode::View;
    is_view && truth.is_trimmed(scene.channels[channel].1)
}

/// What a channel lacks of what its log comes to.
pub(super) fn lacks(scene: &Scene, truth: &Truth, channel: usize, held: &Held) -> Option<String> {
    let (stream_no, mode) = (scene.channels[channel].1, scene.stream_of(channel).mode);
    let life = truth.current(stream_no)?;
    if is_without_beginning(scene, truth, channel) {
        return None;
    }
    let mut expected = Rows::new();
    for partition in scene.partitions_of(channel) {
        let Some(here) = held.token.position(partition) else {
            return Some(format!("has no position in partition {partition}"));
        };
        if here.epoch != life.epoch {
            return Some(format!("is at {here}, of a log that is no more"));
        }
        let missing = life.between(partition, channel, here.offset.number(), u64::MAX);
        if let (Mode::Events, Some(first)) = (mode, missing.first()) {
            return Some(format!("is at {here} and lacks {first:?}"));
        }
        expected.extend(life.fold(partition, channel, u64::MAX));
    }
    let shown = held.all_rows();
    let differs = mode == Mode::View && shown != expected;
    differs.then(|| format!("at {}: {}", held.token, difference(&shown, &expected)))
}
