//! A way to a broker that makes it a leader which does not know yet how much of its log is decided.
//!
//! Does: carries requests and answers; while there is doubt, refuses in the broker's name to say where a log ends, as one that has
//! just become the leader does. Owns: its port and what passes. Never knows: anything else that is said. Nobody can keep a real
//! broker in that state.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// The number of the request for offsets by times, as Kafka has it.
const LIST_OFFSETS: i16 = 2;
/// Where the version of a request is, its number standing first.
const VERSION: usize = 2;
/// The only version of it whose answers are read here.
const VERSION_READ: i16 = 7;
/// The error of a leader in doubt.
const OFFSET_NOT_AVAILABLE: i16 = 78;
/// In an answer, what stands before the one topic's name: the request's number, no tags, the throttling, how many topics.
const BEFORE_NAME: usize = 4 + 1 + 4 + 1;

/// The way. It is closed when it is dropped.
pub struct Doubt {
    /// Where clients come in.
    pub port: u16,
    there_is: Arc<AtomicBool>,
    broker: watch::Sender<Option<SocketAddr>>,
    _tasks: JoinSet<()>,
}

impl Doubt {
    /// Opens it; it leads nowhere yet, and nobody doubts anything.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (there_is, broker) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(None));
        let mut tasks = JoinSet::new();
        tasks.spawn(take(listener, broker.subscribe(), there_is.clone()));
        Ok(Self {
            port,
            there_is,
            broker,
            _tasks: tasks,
        })
    }

    /// From now on it leads there.
    ///
    /// # Errors
    /// When that is no address.
    pub fn leads_to(&self, broker: &str) -> anyhow::Result<()> {
        self.broker.send_replace(Some(broker.parse()?));
        Ok(())
    }

    /// From now on there is doubt, or none.
    pub fn set(&self, there_is: bool) {
        self.there_is.store(there_is, Ordering::Release);
    }
}

async fn take(
    listener: TcpListener,
    broker: watch::Receiver<Option<SocketAddr>>,
    doubt: Arc<AtomicBool>,
) {
    let mut carried = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let at = *broker.borrow();
        if let Some(at) = at {
            let doubt = doubt.clone();
            carried.spawn(async move { carry(near, at, doubt).await.unwrap_or_default() });
        }
    }
}

/// Requests and answers in turn, as this server's connections send them; an error ends it.
async fn carry(mut near: TcpStream, broker: SocketAddr, doubt: Arc<AtomicBool>) -> Option<()> {
    let mut far = TcpStream::connect(broker).await.ok()?;
    loop {
        let request = piece(&mut near).await.ok()?;
        send(&mut far, &request).await.ok()?;
        let mut answer = piece(&mut far).await.ok()?;
        if word(&request, 0) == Some(LIST_OFFSETS) && doubt.load(Ordering::Acquire) {
            refuse(&request, &mut answer)?;
        }
        send(&mut near, &answer).await.ok()?;
    }
}

/// Writes the error into the answer about one partition of one topic.
fn refuse(request: &[u8], answer: &mut [u8]) -> Option<()> {
    if word(request, VERSION) != Some(VERSION_READ) {
        return None;
    }
    // A short text begins with its length and one; behind it come how many partitions, and the partition's number.
    let name = usize::from(*answer.get(BEFORE_NAME)?);
    let error = BEFORE_NAME + name + 1 + 4;
    answer
        .get_mut(error..error + 2)?
        .copy_from_slice(&OFFSET_NOT_AVAILABLE.to_be_bytes());
    Some(())
}

fn word(bytes: &[u8], at: usize) -> Option<i16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(i16::from_be_bytes(bytes.try_into().ok()?))
}

/// What stands behind its length.
async fn piece(from: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let length = usize::try_from(from.read_i32().await?)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await.context("a whole piece")?;
    Ok(bytes)
}

async fn send(to: &mut TcpStream, bytes: &[u8]) -> anyhow::Result<()> {
    let mut whole = i32::try_from(bytes.len())?.to_be_bytes().to_vec();
    whole.extend_from_slice(bytes);
    Ok(to.write_all(&whole).await?)
}
