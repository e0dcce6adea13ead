//! The broker that keeps a group, and what it is asked.

use std::{collections::BTreeMap, time::Duration};

use kafka_protocol::{
    ResponseError,
    messages::{
        FindCoordinatorRequest, GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
        LeaveGroupRequest, SyncGroupRequest, join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity, sync_group_request::SyncGroupRequestAssignment,
    },
    protocol::StrBytes,
};
use tokio::time::timeout;

use super::{
    GroupSettings, share,
    words::{self, Verdict, verdict},
};
use crate::source::kafka::{KafkaCluster, KafkaError, error::check, wire::Connection};

/// How this program's members share out: no other kind of member can be in such a group.
const PROTOCOL: &str = "tidegate-sticky";
/// What Kafka's tools know how to show.
const KIND: &str = "consumer";
/// A key that is a group's name.
const OF_GROUPS: i8 = 0;

/// What a group's member and its coordinator call each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Membership {
    /// The member's name; empty until the coordinator gives it one.
    pub(super) member: String,
    pub(super) generation: i32,
    pub(super) share: Vec<u32>,
}

/// What came of asking the coordinator.
#[derive(Debug)]
pub(super) enum Failed {
    /// As it says.
    Refused(Verdict),
    /// It could not be asked, or can't be understood.
    Error(KafkaError),
}

impl<E: Into<KafkaError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// A connection to the broker that coordinates a group.
pub(super) struct Coordinator(Connection);

impl Coordinator {
    /// Asks any broker who coordinates, and connects there.
    pub(super) async fn find(cluster: &KafkaCluster, group: &str) -> Result<Self, KafkaError> {
        cluster
            .in_time(async {
                let mut broker = cluster.any().await?;
                let request = FindCoordinatorRequest::default()
                    .with_key_type(OF_GROUPS)
                    .with_coordinator_keys(vec![text(group)]);
                let answer = broker.call(&request, 4..=4).await?;
                let found = answer.coordinators.first();
                let found = found.ok_or(KafkaError::Malformed("no coordinator"))?;
                check(found.error_code)?;
                let address = format!("{}:{}", found.host.as_str(), found.port);
                let security = &cluster.settings.security;
                Ok(Self(Connection::open(&address, security).await?))
            })
            .await
    }

    /// Joins, and takes part in sharing out. Before the coordinator answers, all other members have joined again too, or the
    /// time for it is over.
    pub(super) async fn join(
        &mut self,
        settings: &GroupSettings,
        patience: Duration,
        now: &mut Membership,
    ) -> Result<(), Failed> {
        let joined = self.joined(settings, patience, now).await?;
        now.member = joined.member_id.to_string();
        let leads = joined.leader == joined.member_id;
        let shares = if leads {
            shares(settings, &joined)?
        } else {
            BTreeMap::new()
        };
        let assignments = shares.into_iter().map(|(member, share)| {
            let assignment = words::assignment(&settings.topic, &share)?;
            Ok(SyncGroupRequestAssignment::default()
                .with_member_id(text(&member))
                .with_assignment(assignment))
        });
        let request = SyncGroupRequest::default()
            .with_group_id(group(settings))
            .with_generation_id(joined.generation_id)
            .with_member_id(joined.member_id.clone())
            .with_protocol_type(Some(text(KIND)))
            .with_protocol_name(Some(text(PROTOCOL)))
            .with_assignments(assignments.collect::<Result<_, KafkaError>>()?);
        // Until the leader has shared out, as long as it may take to join.
        let answer = in_time(patience, self.0.call(&request, 5..=5)).await?;
        refused(answer.error_code)?;
        now.share = words::assigned(&settings.topic, answer.assignment)?;
        now.generation = joined.generation_id;
        Ok(())
    }

    async fn joined(
        &mut self,
        settings: &GroupSettings,
        patience: Duration,
        now: &mut Membership,
    ) -> Result<JoinGroupResponse, Failed> {
        let told = words::subscription(&settings.topic, now.generation, &now.share)?;
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(text(PROTOCOL))
            .with_metadata(told);
        let mut request = JoinGroupRequest::default()
            .with_group_id(group(settings))
            .with_session_timeout_ms(millis(settings.session_timeout))
            .with_rebalance_timeout_ms(millis(settings.session_timeout))
            .with_member_id(text(&now.member))
            .with_protocol_type(text(KIND))
            .with_protocols(vec![protocol]);
        let mut answer = in_time(patience, self.0.call(&request, 5..=9)).await?;
        if answer.error_code == ResponseError::MemberIdRequired.code() {
            // The coordinator names whoever is new first, so that one who never comes back leaves nothing behind.
            now.member = answer.member_id.to_string();
            request.member_id = answer.member_id;
            answer = in_time(patience, self.0.call(&request, 5..=9)).await?;
        }
        refused(answer.error_code)?;
        Ok(answer)
    }

    /// Says that the member is there.
    pub(super) async fn beat(
        &mut self,
        settings: &GroupSettings,
        patience: Duration,
        now: &Membership,
    ) -> Result<(), Failed> {
        let request = HeartbeatRequest::default()
            .with_group_id(group(settings))
            .with_generation_id(now.generation)
            .with_member_id(text(&now.member));
        let answer = in_time(patience, self.0.call(&request, 3..=4)).await?;
        refused(answer.error_code)
    }

    /// Says that the member goes, so that nobody waits for its silence to be long enough.
    pub(super) async fn leave(
        &mut self,
        settings: &GroupSettings,
        patience: Duration,
        member: &str,
    ) -> Result<(), KafkaError> {
        let request = LeaveGroupRequest::default()
            .with_group_id(group(settings))
            .with_members(vec![MemberIdentity::default().with_member_id(text(member))]);
        let answer = in_time(patience, self.0.call(&request, 3..=5)).await?;
        check(answer.error_code)
    }

    /// Whether an answer is still to come that nobody waits for any more.
    pub(super) const fn is_busy(&self) -> bool {
        self.0.is_busy()
    }
}

/// What the leader gives to each member.
fn shares(
    settings: &GroupSettings,
    joined: &JoinGroupResponse,
) -> Result<BTreeMap<String, Vec<u32>>, KafkaError> {
    let members = joined.members.iter();
    let told = members
        .map(|member| words::claimant(&member.member_id, &settings.topic, member.metadata.clone()));
    Ok(share::share(
        settings.partitions,
        told.collect::<Result<_, _>>()?,
    ))
}

fn refused(code: i16) -> Result<(), Failed> {
    match verdict(code) {
        Verdict::Fine => Ok(()),
        verdict => Err(Failed::Refused(verdict)),
    }
}

async fn in_time<T>(
    patience: Duration,
    asking: impl Future<Output = Result<T, KafkaError>>,
) -> Result<T, KafkaError> {
    let late = |_| KafkaError::Late(patience);
    timeout(patience, asking).await.map_err(late)?
}

fn group(settings: &GroupSettings) -> GroupId {
    text(&settings.group).into()
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
