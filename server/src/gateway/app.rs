//! What the node's handlers share, assembled: an [`App`] from the configuration and the rooms behind it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{StartError, access::authority, factory::Factory};
use crate::{
    auth::Authority,
    clock::Clock,
    config::Config,
    publish::Publisher,
    streams::Streams,
    telemetry::{NodeCounts, WorkerCounts},
    transport::{
        App, HttpMax,
        admission::{Admission, AdmissionMax},
        live::{Door, LiveDoor},
    },
};

/// What the handlers share.
pub(super) fn app(
    config: &Config,
    streams: Arc<Streams>,
    clock: Clock,
    workers: Vec<Arc<WorkerCounts>>,
    factory: &Arc<Factory>,
) -> Result<App, StartError> {
    let counts = Arc::<NodeCounts>::default();
    let limits = &config.limits;
    let publisher = publisher(config, streams.clone(), clock, &counts, factory);
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| StartError::System {
        what: "random numbers",
        error: error.into(),
    })?;
    Ok(App {
        streams,
        live: LiveDoor::new(door(config, authority(config)?, None)),
        publisher: Arc::new(publisher),
        clock,
        counts,
        log_counts: factory.log_counts(),
        workers,
        channels_max: limits.channels_per_connection,
        http: HttpMax {
            head_bytes: limits.header_bytes,
            head_timeout: limits.head_timeout,
            body_timeout: limits.body_timeout,
        },
        long_polls: 0.into(),
        draining: false.into(),
        leave: CancellationToken::new(),
        seed: u64::from_le_bytes(seed).into(),
    })
}

fn publisher(
    config: &Config,
    streams: Arc<Streams>,
    clock: Clock,
    counts: &Arc<NodeCounts>,
    factory: &Arc<Factory>,
) -> Publisher {
    let (limits, makes) = (&config.limits, config.creates_streams);
    let factory = factory.clone();
    let creator = Box::new(move |name: &str| makes.then(|| factory.create(name)).flatten());
    Publisher::new(
        streams,
        clock,
        limits.record_bytes,
        limits.publishes_per_second,
        creator,
        counts.clone(),
    )
}

/// Who may come in. What the door before it remembers of addresses stays, where there was one.
pub(super) fn door(config: &Config, authority: Authority, before: Option<&Door>) -> Door {
    let limits = &config.limits;
    let max = AdmissionMax {
        per_second: limits.connects_per_second,
        per_second_of_address: limits.connects_per_second_per_address,
        of_address: limits.connections_per_address,
    };
    Door {
        authority,
        origins: config.listen.origins.clone(),
        cookie: config.access.cookie.clone(),
        connections_max: limits.connections,
        admission: before.map_or_else(|| Admission::new(max), |before| before.admission.under(max)),
    }
}
