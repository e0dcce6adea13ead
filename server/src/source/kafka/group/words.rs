//! What a group's members tell each other, in the form that Kafka's own consumers use, so that its tools can show it; and what
//! a coordinator's refusals mean.
//!
//! What others told is read here by hand: the crate that has the messages believes every length that it reads.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        ConsumerProtocolAssignment, ConsumerProtocolSubscription, consumer_protocol_assignment,
        consumer_protocol_subscription,
    },
    protocol::{Encodable, StrBytes},
};

use super::share::Claimant;
use crate::source::kafka::{KafkaError, cluster::name};

/// The version of a subscription that also says in which generation its partitions were had.
const SUBSCRIPTION: i16 = 2;
/// The version of an assignment.
const ASSIGNMENT: i16 = 0;

/// What a coordinator's refusal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is wrong.
    Fine,
    /// The group is being shared out anew: join again, under the same name.
    Rejoin,
    /// Nobody of this name is in the group any more: join under a new one, and have nothing until then.
    Forgotten,
    /// Another broker coordinates, or this one is not ready: look for it again. What is held stays held.
    Elsewhere,
    /// Something is wrong that trying again at once does not mend.
    Wrong(ResponseError),
}

/// What an error code of a group's request means.
pub(super) fn verdict(code: i16) -> Verdict {
    use ResponseError as E;
    match ResponseError::try_from_code(code) {
        None => Verdict::Fine,
        Some(E::RebalanceInProgress | E::IllegalGeneration) => Verdict::Rejoin,
        Some(E::UnknownMemberId | E::FencedInstanceId) => Verdict::Forgotten,
        Some(
            E::NotCoordinator
            | E::CoordinatorNotAvailable
            | E::CoordinatorLoadInProgress
            | E::BrokerNotAvailable
            | E::NetworkException,
        ) => Verdict::Elsewhere,
        Some(error) => Verdict::Wrong(error),
    }
}

/// What a member tells the leader: the topic that it wants, and what it had, when.
pub(super) fn subscription(
    topic: &str,
    generation: i32,
    owned: &[u32],
) -> Result<Bytes, KafkaError> {
    let owned = consumer_protocol_subscription::TopicPartition::default()
        .with_topic(name(topic))
        .with_partitions(indices(owned));
    let subscription = ConsumerProtocolSubscription::default()
        .with_topics(vec![StrBytes::from_string(topic.to_owned())])
        .with_owned_partitions(vec![owned])
        .with_generation_id(generation);
    written(&subscription, SUBSCRIPTION)
}

/// What a member told.
pub(super) fn claimant(id: &str, topic: &str, told: Bytes) -> Result<Claimant, KafkaError> {
    let read = |mut told: Told| {
        let version = told.number::<2>().map(i16::from_be_bytes)?;
        for _ in 0..told.count()? {
            told.text()?;
        }
        told.bytes()?;
        let owned = if version >= 1 {
            told.partitions(topic)?
        } else {
            Vec::new()
        };
        let generation = if version >= 2 {
            i32::from_be_bytes(told.number()?)
        } else {
            -1
        };
        Some((generation, owned))
    };
    let (generation, owned) =
        read(Told(told)).ok_or(KafkaError::Malformed("a member's subscription"))?;
    Ok(Claimant {
        id: id.to_owned(),
        generation,
        owned,
    })
}

/// What the leader gives a member.
pub(super) fn assignment(topic: &str, share: &[u32]) -> Result<Bytes, KafkaError> {
    let share = consumer_protocol_assignment::TopicPartition::default()
        .with_topic(name(topic))
        .with_partitions(indices(share));
    let assignment = ConsumerProtocolAssignment::default().with_assigned_partitions(vec![share]);
    written(&assignment, ASSIGNMENT)
}

/// What the leader gave; a leader that knew nothing of a member gives it nothing.
pub(super) fn assigned(topic: &str, told: Bytes) -> Result<Vec<u32>, KafkaError> {
    if told.is_empty() {
        return Ok(Vec::new());
    }
    let mut told = Told(told);
    let partitions = told.number::<2>().and_then(|_| told.partitions(topic));
    let mut all = partitions.ok_or(KafkaError::Malformed("an assignment"))?;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// What was told and has not been read yet. Whatever it says of lengths, nothing is read beyond its end.
struct Told(Bytes);

impl Told {
    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        let number = *self.0.first_chunk()?;
        self.0.advance(N);
        Some(number)
    }
    /// Of things that take a byte each, at least.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(i32::from_be_bytes(self.number()?)).ok()?;
        (count <= self.0.len()).then_some(count)
    }
    fn text(&mut self) -> Option<Bytes> {
        let length = usize::try_from(i16::from_be_bytes(self.number()?)).ok()?;
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }
    fn bytes(&mut self) -> Option<()> {
        let length = i32::from_be_bytes(self.number()?);
        // Less than nothing: there are none.
        let length = usize::try_from(length).unwrap_or(0);
        (length <= self.0.len()).then(|| self.0.advance(length))
    }
    /// Topics with some of their partitions: those of this one.
    fn partitions(&mut self, of: &str) -> Option<Vec<u32>> {
        let mut found = Vec::new();
        for _ in 0..self.count()? {
            let topic = self.text()?;
            for _ in 0..self.count()? {
                let index = i32::from_be_bytes(self.number()?);
                found.extend(u32::try_from(index).ok().filter(|_| topic == of.as_bytes()));
            }
        }
        Some(found)
    }
}

fn written(message: &impl Encodable, version: i16) -> Result<Bytes, KafkaError> {
    let mut out = BytesMut::new();
    out.put_i16(version);
    let unfit = |_| KafkaError::Malformed("what members tell each other has no form");
    message.encode(&mut out, version).map_err(unfit)?;
    Ok(out.freeze())
}

fn indices(partitions: &[u32]) -> Vec<i32> {
    partitions
        .iter()
        .filter_map(|&partition| i32::try_from(partition).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_members_tell_reads_back() {
        let told = subscription("t", 7, &[3, 1]).unwrap();
        let read = claimant("m", "t", told.clone()).unwrap();
        assert_eq!((read.generation, read.owned), (7, vec![3, 1]));
        assert!(claimant("m", "another", told).unwrap().owned.is_empty());
        assert_eq!(
            assigned("t", assignment("t", &[4, 2]).unwrap()).unwrap(),
            [2, 4]
        );
        assert!(assigned("t", Bytes::new()).unwrap().is_empty());
    }

    #[test]
    fn what_is_cut_or_noise_is_refused() {
        let told = subscription("t", 7, &[3, 1]).unwrap();
        for length in 0..told.len() {
            assert!(
                claimant("m", "t", told.slice(..length)).is_err(),
                "{length}"
            );
        }
        assert!(assigned("t", Bytes::from_static(b"\0\0\xff\xff\xff\xff\xff")).is_err());
        assert!(claimant("m", "t", Bytes::from_static(b"\0\x02\x7f\xff\xff\xff")).is_err());
    }

    #[test]
    fn refusals_ask_for_something() {
        for (error, wished) in [
            (ResponseError::RebalanceInProgress, Verdict::Rejoin),
            (ResponseError::IllegalGeneration, Verdict::Rejoin),
            (ResponseError::UnknownMemberId, Verdict::Forgotten),
            (ResponseError::NotCoordinator, Verdict::Elsewhere),
            (ResponseError::CoordinatorLoadInProgress, Verdict::Elsewhere),
            (
                ResponseError::GroupAuthorizationFailed,
                Verdict::Wrong(ResponseError::GroupAuthorizationFailed),
            ),
        ] {
            assert_eq!(verdict(error.code()), wished);
        }
        assert_eq!(verdict(0), Verdict::Fine);
    }
}
