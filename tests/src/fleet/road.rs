//! The road from a process to a service, with the weather that there is: a small TCP proxy.
//!
//! Does: takes connections, carries bytes both ways; delays them, holds them back, breaks them. Owns: its port and what passes
//! through. Never knows: what is said.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// How the road is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// Everything passes.
    Fair,
    /// Everything passes, each piece so much later.
    Slow(Duration),
    /// Nothing passes, and nobody is told.
    Fog,
    /// Connections are reset, and new ones too.
    Storm,
}

impl Weather {
    /// What seems long to people, and is shorter than anybody's patience.
    pub(super) const SLOW: Self = Self::Slow(Duration::from_millis(250));
}

/// A road. It is closed when it is dropped.
pub(super) struct Road {
    pub(super) port: u16,
    weather: watch::Sender<Weather>,
    service: watch::Sender<Option<SocketAddr>>,
    _tasks: JoinSet<()>,
}

impl Road {
    /// Opens one; it leads nowhere yet.
    pub(super) async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (weather, service) = (watch::Sender::new(Weather::Fair), watch::Sender::new(None));
        let mut tasks = JoinSet::new();
        tasks.spawn(take(listener, service.subscribe(), weather.subscribe()));
        Ok(Self {
            port,
            weather,
            service,
            _tasks: tasks,
        })
    }

    /// From now on it leads there.
    pub(super) fn leads_to(&self, service: SocketAddr) {
        self.service.send_replace(Some(service));
    }

    /// The weather changes.
    pub(super) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn take(
    listener: TcpListener,
    service: watch::Receiver<Option<SocketAddr>>,
    weather: watch::Receiver<Weather>,
) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = carried.join_next() => {}
            taken = listener.accept() => {
                let Ok((near, _)) = taken else { continue };
                let at = *service.borrow();
                if let Some(at) = at {
                    carried.spawn(carry(near, at, weather.clone()));
                }
            }
        }
    }
}

async fn carry(near: TcpStream, service: SocketAddr, weather: watch::Receiver<Weather>) {
    let both = async {
        let Ok(far) = TcpStream::connect(service).await else {
            return;
        };
        near.set_nodelay(true).unwrap_or_default();
        far.set_nodelay(true).unwrap_or_default();
        let (from_near, to_near) = near.into_split();
        let (from_far, to_far) = far.into_split();
        // Where one direction ends, the other does.
        tokio::select! {
            () = pipe(from_near, to_far, weather.clone()) => {}
            () = pipe(from_far, to_near, weather.clone()) => {}
        }
    };
    let mut storm = weather.clone();
    if *weather.borrow() == Weather::Storm {
        return;
    }
    tokio::select! {
        () = both => {}
        _ = storm.wait_for(|weather| *weather == Weather::Storm) => {}
    }
}

async fn pipe(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(count) = from.read(&mut bytes).await {
        if count == 0 {
            return;
        }
        let now = *weather.borrow_and_update();
        if let Weather::Slow(by) = now {
            sleep(by).await;
        }
        if weather
            .wait_for(|weather| *weather != Weather::Fog)
            .await
            .is_err()
        {
            return;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
