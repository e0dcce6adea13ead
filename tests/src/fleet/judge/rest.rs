//! When all is calm every view is what the log comes to, every event has come, and everything is live.

use tidegate::model::Mode;

use super::views::difference;
use crate::fleet::{
    held::{Held, Rows},
    scene::{Ms, Scene},
    truth::Truth,
};

/// Why a channel is not what it should be when all is calm.
pub(in crate::fleet) fn unsettled(
    scene: &Scene,
    truth: &Truth,
    channel: usize,
    held: &Held,
    now: Ms,
) -> Option<String> {
    let (stream_no, mode) = (scene.channels[channel].1, scene.stream_of(channel).mode);
    let life = truth.current(stream_no)?;
    if truth.is_trimmed(stream_no) && mode == Mode::View {
        // Nobody knows it as a whole any more, and nobody says so.
        return held
            .is_live(now)
            .then(|| "is shown live although its log has lost its beginning".to_owned());
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
    if mode == Mode::View && held.all_rows() != expected {
        return Some(format!(
            "at {}: {}",
            held.token,
            difference(&held.all_rows(), &expected)
        ));
    }
    (!held.is_live(now)).then(|| format!("is not live at {}", held.token))
}
