//! A small Tidegate for the driver's own tests: it speaks just enough of the wire, and can be told to lose, repeat or
//! dribble what it sends.
//!
//! Does: answers WebSocket and SSE subscribers and both ways of publishing. Owns: its threads, which end with the
//! test's connections. Never knows: the driver's insides. Keeps: no time, no waiting but for bytes.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use crate::wire::Transport;

/// How the fake misbehaves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manners {
    /// The publication with this number is not sent on.
    pub(crate) loses: Option<u64>,
    /// The publication with this number is sent twice.
    pub(crate) repeats: Option<u64>,
    /// Every byte leaves in a write of its own.
    pub(crate) dribbles: bool,
    /// Subscribing is refused.
    pub(crate) refuses: bool,
}

struct Fake {
    manners: Manners,
    subscribers: Mutex<Vec<(String, Transport, TcpStream)>>,
    offset: AtomicU64,
}

/// Runs `test` against a fake on a free port. The test's connections must be closed when it returns.
pub(crate) fn with_fake(manners: Manners, test: impl FnOnce(SocketAddr)) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let fake = Fake {
        manners,
        subscribers: Mutex::default(),
        offset: AtomicU64::new(0),
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for connection in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                connection.set_nodelay(true).unwrap();
                scope.spawn(|| fake.serve(connection));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(address)));
        over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(address));
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Fake {
    /// An error means that the driver has closed the connection.
    fn serve(&self, connection: TcpStream) -> Option<()> {
        let mut input = BufReader::new(connection.try_clone().ok()?);
        let mut output = connection;
        loop {
            let head = read_head(&mut input)?;
            let path = head.split(' ').nth(1)?.to_owned();
            if path == "/v1/ws" {
                return self.websocket(&mut input, output);
            }
            if let Some(channel) = path.strip_prefix("/v1/sse?channel=") {
                return self.sse(&mut input, output, channel);
            }
            if head.contains("x-ndjson") {
                return self.stream(&mut input, &mut output);
            }
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))?;
            let mut body = vec![0; length.parse().ok()?];
            input.read_exact(&mut body).ok()?;
            let answer = self.publish(std::str::from_utf8(&body).ok()?);
            write!(
                output,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}",
                answer.len()
            )
            .ok()?;
        }
    }

    fn websocket(&self, input: &mut BufReader<TcpStream>, mut output: TcpStream) -> Option<()> {
        self.send(
            &mut output,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        );
        self.send(&mut output, &frame(1, r#"{"op":"hello","now_ms":1}"#));
        self.send(&mut output, &frame(9, "are you there"));
        let subscribe = read_frame(input)?;
        let subscribe = if subscribe == "are you there" {
            read_frame(input)?
        } else {
            subscribe
        };
        let channel = subscribe.split('"').rev().nth(1)?.to_owned();
        if self.manners.refuses {
            self.send(
                &mut output,
                &frame(1, r#"{"id":1,"error":{"code":"forbidden"}}"#),
            );
        } else {
            // The reply and the registration are one step, so that no update passes the reply or is missed.
            let mut subscribers = self
                .subscribers
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.send(
                &mut output,
                &frame(1, r#"{"id":1,"ok":{"outcome":"started"}}"#),
            );
            subscribers.push((channel, Transport::Ws, output));
        }
        while read_frame(input).is_some() {}
        None
    }

    fn sse(
        &self,
        input: &mut BufReader<TcpStream>,
        mut output: TcpStream,
        channel: &str,
    ) -> Option<()> {
        let mut subscribers = self
            .subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.send(&mut output, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        self.send(
            &mut output,
            &chunk("event: hello\ndata: {\"op\":\"hello\",\"now_ms\":1}\n\n"),
        );
        subscribers.push((channel.to_owned(), Transport::Sse, output));
        drop(subscribers);
        input.read_to_end(&mut Vec::new()).ok()?;
        None
    }

    fn stream(&self, input: &mut BufReader<TcpStream>, output: &mut TcpStream) -> Option<()> {
        output
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .ok()?;
        loop {
            let mut size = String::new();
            input.read_line(&mut size).ok()?;
            let mut lines = vec![0; usize::from_str_radix(size.trim(), 16).ok()? + 2];
            input.read_exact(&mut lines).ok()?;
            for line in std::str::from_utf8(&lines)
                .ok()?
                .lines()
                .filter(|line| !line.is_empty())
            {
                let answer = self.publish(line) + "\n";
                output.write_all(&chunk(&answer)).ok()?;
            }
        }
    }

    /// Sends a record on to its channel's subscribers, and says where it is.
    fn publish(&self, record: &str) -> String {
        let record: serde_json::Value = serde_json::from_str(record).unwrap();
        let offset = self.offset.fetch_add(1, Ordering::SeqCst) + 1;
        let (channel, seq) = (
            format!("bench/{}", record["channel"].as_str().unwrap()),
            record["data"]["n"].as_u64(),
        );
        let position = format!("0.e7:{offset}");
        // The driver reads its own data byte for byte, so its order of keys is kept.
        let data = format!(
            r#"{{"t":{},"n":{},"pad":{}}}"#,
            record["data"]["t"], record["data"]["n"], record["data"]["pad"]
        );
        let update = format!(
            r#"{{"op":"update","channel":"{channel}","position":"{position}","ts":1,"row":"","data":{data}}}"#
        );
        let times = match seq {
            seq if seq == self.manners.loses => 0,
            seq if seq == self.manners.repeats => 2,
            _ => 1,
        };
        let mut subscribers = self
            .subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (_, transport, socket) in subscribers.iter_mut().filter(|(name, ..)| *name == channel) {
            let bytes = match transport {
                Transport::Ws => frame(1, &update),
                Transport::Sse => chunk(&format!(
                    "event: update\nid: {position}\ndata: {update}\n\n"
                )),
            };
            (0..times).for_each(|_| self.send(socket, &bytes));
        }
        format!(r#"{{"position":"{position}"}}"#)
    }

    /// A subscriber that is gone misses it.
    fn send(&self, socket: &mut TcpStream, bytes: &[u8]) {
        let size = if self.manners.dribbles {
            1
        } else {
            bytes.len()
        };
        for part in bytes.chunks(size) {
            if socket.write_all(part).is_err() {
                return;
            }
        }
    }
}

fn read_head(input: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if input.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// A client's short frame, whose mask must be there.
fn read_frame(input: &mut BufReader<TcpStream>) -> Option<String> {
    let mut header = [0; 6];
    input.read_exact(&mut header).ok()?;
    assert_eq!(header[1] & 0x80, 0x80, "clients mask");
    let mut payload = vec![0; usize::from(header[1] & 0x7f)];
    input.read_exact(&mut payload).ok()?;
    let unmask = |(nth, byte): (usize, &u8)| byte ^ header[2 + nth % 4];
    String::from_utf8(payload.iter().enumerate().map(unmask).collect()).ok()
}

fn frame(opcode: u8, payload: &str) -> Vec<u8> {
    let mut out = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(length) if length < 126 => out.push(length),
        _ => {
            out.push(126);
            out.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        }
    }
    out.extend_from_slice(payload.as_bytes());
    out
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

mod tests {
    use super::*;
    use crate::{
        net,
        publisher::{Bounds, Plan},
        run::{GroupSetup, Run, Setup},
        tokens::Tokens,
        wire::{Publications, Publish, Target},
    };

    const SUBSCRIBERS: u32 = 5;

    fn setup(address: SocketAddr, transport: Transport, publish: Publish, channels: u32) -> Setup {
        let publications = Publications {
            target: Target::Tidegate,
            transport,
            publish,
            data_bytes: 128,
            frame_bytes: None,
            host: address.to_string(),
            token: None,
        };
        let bounds = Bounds {
            window: 4,
            owed: u64::MAX,
        };
        let groups = vec![GroupSetup {
            subscribers: SUBSCRIBERS,
            channels,
            publications,
            bounds,
        }];
        Setup {
            address,
            target: Target::Tidegate,
            transport,
            publish_address: address,
            tokens: Tokens::None,
            each: 1,
            kernel_times: false,
            in_flight: 2,
            groups,
        }
    }

    fn run(address: SocketAddr, transport: Transport, publish: Publish, channels: u32) -> Run {
        Run::new(setup(address, transport, publish, channels)).unwrap()
    }

    fn published(run: &mut Run, count: u64) {
        run.subscribe_all().unwrap();
        run.open_publishers().unwrap();
        published_once_more(run, count);
    }

    fn published_once_more(run: &mut Run, count: u64) {
        let start = net::now();
        run.publish(&[Plan {
            start,
            end: start + 30_000_000_000,
            rate: 0.0,
            count,
        }])
        .unwrap();
    }

    #[test]
    fn everything_arrives_by_every_way_however_it_is_cut() {
        for (transport, publish, dribbles) in [
            (Transport::Ws, Publish::One, true),
            (Transport::Ws, Publish::Stream, false),
            (Transport::Sse, Publish::One, false),
            (Transport::Sse, Publish::Stream, true),
        ] {
            with_fake(
                Manners {
                    dribbles,
                    ..Manners::default()
                },
                |address| {
                    let mut run = run(address, transport, publish, 2);
                    published(&mut run, 20);
                    let (tally, publisher) = (&run.tallies[0], &run.publishers[0]);
                    assert_eq!(
                        (publisher.issued, publisher.expected),
                        (20, 50),
                        "{transport:?} {publish:?}"
                    );
                    let counted = (
                        tally.deliveries,
                        tally.skipped,
                        tally.repeated,
                        tally.closed,
                    );
                    assert_eq!(counted, (50, 0, 0, 0), "{transport:?} {publish:?}");
                    assert_eq!(publisher.refusals().0, 0);
                    assert!(tally.others >= u64::from(SUBSCRIBERS), "each got a hello");
                    assert!(tally.frame_bytes > 200 && tally.quantile_us(1.0) > 0);
                },
            );
        }
    }

    #[test]
    fn with_kernel_times_what_the_driver_adds_is_told_apart() {
        with_fake(Manners::default(), |address| {
            let mut run = Run::new(Setup {
                kernel_times: true,
                ..setup(address, Transport::Ws, Publish::One, 1)
            })
            .unwrap();
            published(&mut run, 10);
            let (tally, publisher) = (&run.tallies[0], &run.publishers[0]);
            let read_us = tally.read_us.as_ref().unwrap();
            assert_eq!((tally.deliveries, read_us.len()), (50, 50));
            assert_eq!(publisher.late_us.len(), 10);
            let (arrived, read) = (tally.quantile_us(1.0), read_us.max());
            assert!(0 < arrived && arrived <= read, "{arrived} {read}");
        });
    }

    #[test]
    fn what_is_lost_or_repeated_is_seen() {
        with_fake(
            Manners {
                loses: Some(3),
                repeats: Some(5),
                ..Manners::default()
            },
            |address| {
                let mut run = run(address, Transport::Ws, Publish::One, 1);
                published(&mut run, 8);
                // The last ones may still be on their way.
                run.settle(std::time::Duration::from_millis(200)).unwrap();
                let tally = &run.tallies[0];
                let lost = run.publishers[0].expected - (tally.deliveries - tally.repeated);
                assert_eq!((lost, tally.skipped, tally.repeated), (5, 5, 5));
            },
        );
    }

    #[test]
    fn who_stops_reading_is_counted_apart_and_has_the_newest_when_it_reads_again() {
        with_fake(Manners::default(), |address| {
            let mut run = run(address, Transport::Ws, Publish::One, 1);
            run.subscribe_all().unwrap();
            run.open_publishers().unwrap();
            let stalled = run.stall(2).unwrap();
            published_once_more(&mut run, 6);
            let counted = (run.tallies[0].deliveries, run.tallies[stalled].deliveries);
            assert_eq!((run.publishers[0].expected, counted), (18, (18, 0)));
            let (have, _) = run
                .resume_reading(std::time::Duration::from_secs(30))
                .unwrap();
            assert_eq!((have, run.tallies[stalled].deliveries), (2, 12));
        });
    }

    #[test]
    fn who_comes_and_goes_leaves_the_others_alone() {
        with_fake(Manners::default(), |address| {
            let mut run = run(address, Transport::Ws, Publish::One, 1);
            run.subscribe_all().unwrap();
            run.churn(7).unwrap();
            run.open_publishers().unwrap();
            published_once_more(&mut run, 3);
            assert_eq!((run.tallies[0].deliveries, run.tallies[0].closed), (15, 0));
        });
    }

    #[test]
    fn nobody_listening_is_said_so() {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|gone| gone.local_addr())
            .unwrap();
        let error = run(address, Transport::Ws, Publish::One, 1)
            .subscribe_all()
            .unwrap_err()
            .to_string();
        assert!(error.contains("connect: Connection refused"), "{error}");
    }

    #[test]
    fn a_refusal_ends_the_run_with_the_servers_words() {
        with_fake(
            Manners {
                refuses: true,
                ..Manners::default()
            },
            |address| {
                let mut run = run(address, Transport::Ws, Publish::One, 1);
                let error = run.subscribe_all().unwrap_err().to_string();
                assert!(error.contains("forbidden"), "{error}");
            },
        );
    }
}
