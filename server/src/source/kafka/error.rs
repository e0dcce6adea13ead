//! What goes wrong between a node and its brokers.

use std::io;

use kafka_protocol::ResponseError;

use crate::upstream::{self, Verdict};

/// Why a broker could not be asked, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// No connection, or it broke.
    #[error("no broker can be reached: {0}")]
    Connection(#[from] io::Error),
    /// A broker did not answer in time.
    #[error("a broker does not answer within {0:?}")]
    Late(std::time::Duration),
    /// A broker refused.
    #[error("a broker refuses: {}", words(.0))]
    Refused(ResponseError),
    /// A broker's answer can't be read.
    #[error("a broker's answer can't be read: {0}")]
    Malformed(&'static str),
    /// The broker does not speak the versions that are needed.
    #[error(
        "a broker is too old or too new: it has no common version of request {0}; Kafka 3.1 or newer is needed"
    )]
    Version(i16),
    /// The credentials or certificates are not right.
    #[error("a broker can't be trusted, or does not trust this node: {0}")]
    Security(String),
    /// There is no such topic.
    #[error("there is no topic {0}, or this node may not describe it: make it, or permit it")]
    NoTopic(String),
    /// There is no such partition.
    #[error("the topic {0} has no partition {1}")]
    Missing(String, u32),
    /// Nobody leads the partition now.
    #[error("partition {1} of the topic {0} has no leader now")]
    Leaderless(String, u32),
    /// Who is named, or names himself, as a partition's leader is none any more.
    #[error("partition {1} of the topic {0} has another leader than the broker knows")]
    Outdated(String, u32),
    /// Nobody was asked, since the cluster's breaker is open.
    #[error(transparent)]
    Shed(#[from] upstream::Refused),
}

impl KafkaError {
    /// Whether this node lacks a right, so that another try is of no use.
    #[must_use]
    pub const fn is_denied(&self) -> bool {
        use ResponseError::{ClusterAuthorizationFailed, TopicAuthorizationFailed};
        match self {
            Self::Security(_) => true,
            Self::Refused(error) => {
                matches!(error, TopicAuthorizationFailed | ClusterAuthorizationFailed)
            }
            Self::Connection(_)
            | Self::Late(_)
            | Self::Malformed(_)
            | Self::Version(_)
            | Self::NoTopic(_)
            | Self::Missing(..)
            | Self::Leaderless(..)
            | Self::Outdated(..)
            | Self::Shed(_) => false,
        }
    }

    /// What it says of the cluster. Who refuses is there.
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self::Connection(_) | Self::Late(_) | Self::Malformed(_) => {
                Verdict::Failed(self.to_string())
            }
            Self::Refused(_)
            | Self::Version(_)
            | Self::Security(_)
            | Self::NoTopic(_)
            | Self::Missing(..)
            | Self::Leaderless(..)
            | Self::Outdated(..)
            | Self::Shed(_) => Verdict::Declined,
        }
    }
}

impl KafkaError {
    /// Whose fault it is: the broker's at this address.
    pub(super) fn at(self, address: &str) -> Self {
        match self {
            Self::Connection(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let why = format!("{address} ended the connection: does it want TLS, or not?");
                Self::Connection(io::Error::new(error.kind(), why))
            }
            Self::Connection(error) => {
                Self::Connection(io::Error::new(error.kind(), format!("{address}: {error}")))
            }
            Self::Malformed(what) => {
                let why = format!("{address} speaks something else ({what}): does it want TLS?");
                Self::Connection(io::Error::new(io::ErrorKind::InvalidData, why))
            }
            Self::Security(why) => Self::Security(format!("{address}: {why}")),
            other => other,
        }
    }
}

/// What a broker's word means to an operator.
fn words(error: &ResponseError) -> String {
    use ResponseError::{ClusterAuthorizationFailed, OffsetNotAvailable, TopicAuthorizationFailed};
    let hint = match error {
        TopicAuthorizationFailed => {
            ": permit this node Describe and Read of the topic, and Write where it publishes"
        }
        ClusterAuthorizationFailed => ": permit this node IdempotentWrite",
        OffsetNotAvailable => {
            ": it has just become the leader, and does not know yet how much is decided"
        }
        _ => "",
    };
    format!("{error:?}{hint}")
}

/// What an answer's error code says.
pub(super) fn check(code: i16) -> Result<(), KafkaError> {
    ResponseError::try_from_code(code).map_or(Ok(()), |error| Err(KafkaError::Refused(error)))
}
