//! The operator of the soak: looks at the server every second, and pauses its sources now and then.
//!
//! Does: reads `/proc/PID` and the server's own metrics, and uses its admin API, in a thread of its own. Owns: that thread's
//! schedule. Never knows: subscribers. Keeps: every request has a time-out; a source that it paused goes on before it ends.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{net, parse::Chunks, process::Holdings};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);
/// Every so many looks a source is paused, one stream and then the other …
const PAUSE_EVERY: u64 = 10;
/// … for so many looks.
const PAUSED_FOR: u64 = 2;

/// The server's own counters that are looked at, summed over their labels.
pub(super) const COUNTERS: [&str; 11] = [
    "tidegate_session_active",
    "tidegate_transport_http_connections",
    "tidegate_fanout_followed_channels",
    "tidegate_fanout_active_subscriptions",
    "tidegate_view_resident_channels",
    "tidegate_view_resident_rows",
    "tidegate_partition_waiting_requests",
    "tidegate_tail_held_bytes",
    "tidegate_log_held_bytes",
    "tidegate_session_outbox_bytes",
    "tidegate_session_blocked",
];

/// What it saw at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// Seconds since the begin.
    pub(super) at: f64,
    /// What the kernel says.
    pub(super) holdings: Holdings,
    /// What the server says of itself.
    pub(super) counters: BTreeMap<&'static str, f64>,
}

impl Sample {
    /// One of [`COUNTERS`].
    pub(super) fn counter(&self, name: &str) -> f64 {
        self.counters.get(name).copied().unwrap_or(f64::NAN)
    }
}

/// Who looks, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operator {
    /// The admin listener.
    pub(super) admin: SocketAddr,
    /// The server's process.
    pub(super) pid: u32,
}

impl Operator {
    /// Looks once; `begin` is when the soak began. Descriptors are counted while no request of its own is open.
    ///
    /// # Errors
    /// When the process has gone, or does not answer.
    pub(super) fn look(&self, begin: u64) -> Result<Sample> {
        let holdings = Holdings::of(self.pid)?;
        let text = self.ask("GET", "/metrics")?;
        Ok(Sample {
            at: since(begin).as_secs_f64(),
            holdings,
            counters: sums(&text),
        })
    }

    /// Looks every second and pauses the sources in between, until `end` is dropped; hands on what it saw.
    ///
    /// # Errors
    /// As [`Operator::look`].
    pub(super) fn watch(
        &self,
        streams: &[&str],
        begin: u64,
        samples: &Sender<Sample>,
        end: &Receiver<()>,
    ) -> Result<u64> {
        let mut pauses = 0;
        for look in 1.. {
            let due = EVERY.saturating_mul(look).saturating_sub(since(begin));
            if end.recv_timeout(due) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            let (round, within) = (u64::from(look) / PAUSE_EVERY, u64::from(look) % PAUSE_EVERY);
            let stream = streams[usize::try_from(round)? % streams.len()];
            if within == PAUSE_EVERY / 2 {
                self.ask("POST", &format!("/streams/{stream}/pause"))?;
                pauses += 1;
            }
            if within == PAUSE_EVERY / 2 + PAUSED_FOR {
                self.ask("POST", &format!("/streams/{stream}/resume"))?;
            }
            if samples.send(self.look(begin)?).is_err() {
                break;
            }
        }
        for stream in streams {
            self.ask("POST", &format!("/streams/{stream}/resume"))?;
        }
        Ok(pauses)
    }

    fn ask(&self, method: &str, path: &str) -> Result<String> {
        let asking = || format!("{method} {path} of the admin listener {}", self.admin);
        let mut socket = TcpStream::connect_timeout(&self.admin, PATIENCE).with_context(asking)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.admin
        )
        .with_context(asking)?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).with_context(asking)?;
        body(answer).with_context(asking)
    }
}

/// How long ago this was: nanoseconds, monotonic.
pub(super) fn since(begin: u64) -> Duration {
    Duration::from_nanos(net::now().saturating_sub(begin))
}

fn body(answer: Vec<u8>) -> Result<String> {
    let length = memchr::memmem::find(&answer, b"\r\n\r\n").context("an answer without a head")?;
    let head = String::from_utf8_lossy(&answer[..length]).to_ascii_lowercase();
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.starts_with("http/1.1 2"), "answered {status}");
    let mut body = answer;
    body.drain(..length + 4);
    if head.contains("transfer-encoding: chunked") {
        let end = Chunks::Size(0).unwrap_in_place(&mut body, 0);
        body.truncate(end.map_err(|broken| anyhow::anyhow!("answered {broken:?}"))?);
    }
    Ok(String::from_utf8(body)?)
}

/// Each of [`COUNTERS`], summed over its labels.
fn sums(text: &str) -> BTreeMap<&'static str, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = series.split('{').next().unwrap_or_default();
        let known = COUNTERS.into_iter().find(|counter| *counter == name);
        if let (Some(name), Ok(value)) = (known, value.parse::<f64>()) {
            *sums.entry(name).or_default() += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_their_labels() {
        let text = "# TYPE tidegate_session_active gauge\ntidegate_session_active{worker=\"0\",transport=\"sse\"} 3\n\
                    tidegate_session_active{worker=\"1\",transport=\"sse\"} 4\ntidegate_session_blocked{worker=\"0\"} 1\n\
                    tidegate_session_blocked_more 9\n# EOF\n";
        let sums = sums(text);
        assert_eq!(sums.get("tidegate_session_active"), Some(&7.0));
        assert_eq!(sums.get("tidegate_session_blocked"), Some(&1.0));
        assert_eq!(sums.len(), 2);
    }

    #[test]
    fn an_answer_may_be_chunked_and_may_be_a_refusal() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(body(chunked.to_vec()).unwrap(), "abc");
        assert!(body(b"HTTP/1.1 403 Forbidden\r\n\r\n".to_vec()).is_err());
    }
}
