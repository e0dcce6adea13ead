//! What the driver says: requests and publications, for both kinds of target.
//!
//! Does: writes bytes into buffers. Owns: nothing. Never knows: sockets, clocks, answers. Keeps: a publication for a
//! limit server makes a frame exactly as long as the gateway's frame for the same data.

use std::io::Write as _;

/// Bytes of padding that a publication can have.
pub(crate) const PAYLOAD_MAX: usize = 64 << 10;
static PAD: [u8; PAYLOAD_MAX] = [b'x'; PAYLOAD_MAX];

/// What is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// A Tidegate node.
    Tidegate,
    /// A bare-socket limit server (`load/limits`), or another that takes `GET /sub/N` and `POST /pub/N`.
    Limit,
    /// NATS: subscribers over its WebSocket listener, publications over TCP (`--publish-address`).
    Nats,
}

/// How a subscriber listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Transport {
    /// WebSocket.
    Ws,
    /// Server-sent events.
    Sse,
}

impl Transport {
    /// The word used in figures.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Sse => "sse",
        }
    }
}

/// How publications travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Publish {
    /// One request at a time.
    One,
    /// One endless request (Tidegate), or pipelined ones (limit).
    Stream,
}

impl Publish {
    /// The word used in figures.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Stream => "stream",
        }
    }
}

/// The channels of one subscriber: some that follow one another in a ring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Channels {
    /// The first one's number.
    pub(crate) first: u32,
    /// How many the subscriber has.
    pub(crate) each: u32,
    /// How many there are.
    pub(crate) of: u32,
}

impl Channels {
    fn numbers(self) -> impl Iterator<Item = u32> {
        (0..self.each).map(move |nth| (self.first + nth) % self.of.max(1))
    }
}

/// The request by which a subscriber introduces itself.
pub(crate) fn subscribe_request(
    target: Target,
    transport: Transport,
    channels: Channels,
    host: &str,
    token: Option<&str>,
    from: Option<&str>,
) -> Vec<u8> {
    let path = match (target, transport) {
        (Target::Limit, _) => format!("/sub/{}", channels.first),
        (Target::Nats, _) => "/".to_owned(),
        (Target::Tidegate, Transport::Ws) => "/v1/ws".to_owned(),
        (Target::Tidegate, Transport::Sse) => {
            let named: Vec<_> = channels
                .numbers()
                .map(|number| format!("channel=bench/c{number}"))
                .collect();
            format!("/v1/sse?{}", named.join("&"))
        }
    };
    let mut head = opening(&path, transport, host);
    if let Some(from) = from.filter(|_| transport == Transport::Sse) {
        head.push_str(&format!("Last-Event-ID: {from}\r\n"));
    }
    if (target, transport) == (Target::Tidegate, Transport::Ws) {
        head.push_str("Sec-WebSocket-Protocol: tidegate.v1.json\r\n");
    }
    authorize(&mut head, token);
    head.push_str("\r\n");
    head.into_bytes()
}

/// How the head of a subscriber's request begins; further fields, and an empty line, follow.
pub(crate) fn opening(path: &str, transport: Transport, host: &str) -> String {
    let how = match transport {
        Transport::Sse => "Accept: text/event-stream\r\n",
        Transport::Ws => {
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        }
    };
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{how}")
}

/// Adds the field that shows a token.
pub(crate) fn authorize(head: &mut String, token: Option<&str>) {
    if let Some(token) = token {
        head.push_str("Authorization: Bearer ");
        head.push_str(token);
        head.push_str("\r\n");
    }
}

/// The message by which a WebSocket client subscribes; none where its request said it all.
pub(crate) fn subscribe_frame(
    target: Target,
    channels: Channels,
    from: Option<&str>,
) -> Option<Vec<u8>> {
    match target {
        Target::Tidegate => {
            let wishes: Vec<_> = channels
                .numbers()
                .enumerate()
                .map(|(id, number)| {
                    let from =
                        from.map_or_else(String::new, |from| format!(",\"from\":\"{from}\""));
                    format!(
                        "{{\"id\":{id},\"op\":\"subscribe\",\"channel\":\"bench/c{number}\"{from}}}"
                    )
                })
                .collect();
            let text = match &wishes[..] {
                [only] => only.clone(),
                several => format!("[{}]", several.join(",")),
            };
            Some(client_frame(1, text.as_bytes()))
        }
        Target::Nats => {
            let mut text = String::from("CONNECT {\"verbose\":false}\r\n");
            for (id, number) in channels.numbers().enumerate() {
                text.push_str(&format!("SUB c{number} {id}\r\n"));
            }
            text.push_str("PING\r\n");
            Some(client_frame(2, text.as_bytes()))
        }
        Target::Limit => None,
    }
}

/// A client's frame. Its mask is zero, which is a mask like any other; `payload` is cut at 65,535 bytes.
pub(crate) fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(usize::from(u16::MAX))];
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(length @ 0..126) => frame.push(0x80 | length),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(
                &u16::try_from(payload.len())
                    .unwrap_or(u16::MAX)
                    .to_be_bytes(),
            );
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// How publications are written for one run.
#[derive(Debug, Clone)]
pub(crate) struct Publications {
    /// What is at the other end.
    pub(crate) target: Target,
    /// How the subscribers listen: it decides the length of a limit server's frame.
    pub(crate) transport: Transport,
    /// How publications travel.
    pub(crate) publish: Publish,
    /// Length of a publication's data, in bytes.
    pub(crate) data_bytes: usize,
    /// Length on the wire that a delivery of a limit server shall have, in bytes. `None`: as it comes.
    pub(crate) frame_bytes: Option<usize>,
    /// `address:port` for the Host header.
    pub(crate) host: String,
    /// Bearer token.
    pub(crate) token: Option<String>,
}

impl Publications {
    /// What opens the connection: the head of the endless request, or nothing.
    pub(crate) fn opening(&self) -> Vec<u8> {
        if self.target == Target::Nats {
            return b"CONNECT {\"verbose\":true}\r\n".to_vec();
        }
        if (self.target, self.publish) != (Target::Tidegate, Publish::Stream) {
            return Vec::new();
        }
        let mut head = format!(
            "POST /v1/publish/bench HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n",
            self.host
        );
        authorize(&mut head, self.token.as_deref());
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// What ends the connection properly.
    pub(crate) fn closing(&self) -> &'static [u8] {
        match (self.target, self.publish) {
            (Target::Tidegate, Publish::Stream) => b"0\r\n\r\n",
            _ => b"",
        }
    }

    /// Makes publications that were written one behind the other ready to be sent, and empties `batch`: those of the
    /// endless request become one chunk.
    pub(crate) fn seal(&self, batch: &mut Vec<u8>, out: &mut Vec<u8>) {
        let chunk =
            (self.target, self.publish) == (Target::Tidegate, Publish::Stream) && !batch.is_empty();
        if chunk {
            append(out, format_args!("{:x}\r\n", batch.len()));
        }
        out.append(batch);
        if chunk {
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Appends one publication.
    pub(crate) fn write(&self, out: &mut Vec<u8>, channel: u32, due: u64, seq: u64) {
        let mut record = Vec::with_capacity(self.data_bytes + 256);
        match self.target {
            Target::Tidegate => {
                append(
                    &mut record,
                    format_args!("{{\"channel\":\"c{channel}\",\"data\":"),
                );
                data(&mut record, due, seq, self.data_bytes);
                record.extend_from_slice(b"}");
            }
            Target::Limit | Target::Nats => self.limit_message(&mut record, channel, due, seq),
        }
        match (self.target, self.publish) {
            (Target::Tidegate, Publish::Stream) => {
                out.extend_from_slice(&record);
                out.push(b'\n');
                return;
            }
            (Target::Tidegate, Publish::One) => {
                append(
                    out,
                    format_args!(
                        "POST /v1/publish/bench HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n",
                        self.host
                    ),
                );
                let mut head = String::new();
                authorize(&mut head, self.token.as_deref());
                out.extend_from_slice(head.as_bytes());
            }
            (Target::Nats, _) => {
                append(out, format_args!("PUB c{channel} {}\r\n", record.len()));
                out.extend_from_slice(&record);
                out.extend_from_slice(b"\r\n");
                return;
            }
            (Target::Limit, _) => append(
                out,
                format_args!("POST /pub/{channel} HTTP/1.1\r\nHost: {}\r\n", self.host),
            ),
        }
        append(
            out,
            format_args!("Content-Length: {}\r\n\r\n", record.len()),
        );
        out.extend_from_slice(&record);
    }

    /// The gateway's frame for the same data, made as long as `frame_bytes` asks for.
    fn limit_message(&self, out: &mut Vec<u8>, channel: u32, due: u64, seq: u64) {
        append(
            out,
            format_args!(
                "{{\"op\":\"update\",\"channel\":\"bench/c{channel}\",\"position\":\"0.e1:{seq}\",\"ts\":1373493600000,\"row\":\"\",\"data\":"
            ),
        );
        let data_bytes = match self.frame_bytes {
            None => self.data_bytes,
            Some(wire) => self
                .limit_payload(wire, channel)
                .saturating_sub(out.len() + 1),
        };
        data(out, due, seq, data_bytes);
        out.push(b'}');
    }

    /// Length of the message in a frame of `wire` bytes.
    fn limit_payload(&self, wire: usize, channel: u32) -> usize {
        let overhead = match self.transport {
            _ if self.target == Target::Nats => {
                4 + format!("MSG c{channel} 0 {wire}\r\n\r\n").len()
            }
            Transport::Sse => "data: \n\n".len(),
            Transport::Ws if wire < 128 => 2,
            Transport::Ws => 4,
        };
        wire.saturating_sub(overhead)
    }
}

/// Appends the data of a publication, padded to `bytes` where it is shorter.
fn data(out: &mut Vec<u8>, due: u64, seq: u64, bytes: usize) {
    let start = out.len();
    append(out, format_args!("{{\"t\":{due},\"n\":{seq},\"pad\":\""));
    let pad = bytes.saturating_sub(out.len() - start + 2).min(PAYLOAD_MAX);
    out.extend_from_slice(&PAD[..pad]);
    out.extend_from_slice(b"\"}");
}

fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a vector takes all bytes");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Message, Scanner};

    fn publications(
        target: Target,
        transport: Transport,
        publish: Publish,
        frame_bytes: Option<usize>,
    ) -> Publications {
        Publications {
            target,
            transport,
            publish,
            data_bytes: 128,
            frame_bytes,
            host: "h".into(),
            token: Some("secret".into()),
        }
    }

    fn body(publications: &Publications) -> String {
        let mut out = Vec::new();
        publications.write(&mut out, 3, 1_234_567, 9);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.ends_with(&format!("Content-Length: {}", body.len())),
            "{head}"
        );
        body.to_owned()
    }

    #[test]
    fn a_record_for_tidegate_carries_data_of_the_asked_length() {
        let body = body(&publications(
            Target::Tidegate,
            Transport::Ws,
            Publish::One,
            None,
        ));
        let record: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(record["channel"], "c3");
        assert_eq!(
            (&record["data"]["t"], &record["data"]["n"]),
            (&1_234_567.into(), &9.into())
        );
        assert_eq!(body.len(), r#"{"channel":"c3","data":}"#.len() + 128);
    }

    #[test]
    fn a_limit_message_has_the_length_of_the_gateways_frame() {
        for (transport, wire, overhead) in [(Transport::Ws, 251, 4), (Transport::Sse, 300, 8)] {
            let body = body(&publications(
                Target::Limit,
                transport,
                Publish::One,
                Some(wire),
            ));
            assert_eq!(body.len() + overhead, wire);
            let message = Scanner::default().message(body.as_bytes());
            assert_eq!(
                message,
                Message::Update {
                    due: 1_234_567,
                    seq: 9
                }
            );
        }
    }

    #[test]
    fn a_long_message_has_a_long_frame() {
        let channels = Channels {
            first: 8,
            each: 10,
            of: 10,
        };
        let frame = subscribe_frame(Target::Tidegate, channels, None).unwrap();
        let length = u16::from_be_bytes([frame[2], frame[3]]);
        assert_eq!((frame[1], usize::from(length)), (0xfe, frame.len() - 8));
        let wishes: serde_json::Value = serde_json::from_slice(&frame[8..]).unwrap();
        let named: Vec<_> = wishes.as_array().unwrap().iter().collect();
        assert_eq!(
            (named.len(), &named[2]["channel"]),
            (10, &"bench/c0".into())
        );
    }

    #[test]
    fn streamed_records_are_lines_of_one_chunk() {
        let (mut batch, mut out) = (Vec::new(), Vec::new());
        let publications = publications(Target::Tidegate, Transport::Ws, Publish::Stream, None);
        publications.write(&mut batch, 0, 5, 6);
        publications.write(&mut batch, 1, 5, 7);
        publications.seal(&mut batch, &mut out);
        assert!(batch.is_empty());
        let mut state = crate::parse::Chunks::Size(0);
        let end = state.unwrap_in_place(&mut out, 0).unwrap();
        assert!(out[..end].starts_with(b"{\"channel\":\"c0\",\"data\":{\"t\":5,\"n\":6,"));
        assert_eq!(out[..end].iter().filter(|&&byte| byte == b'\n').count(), 2);
        assert!(out[..end].ends_with(b"}\n"));
        assert!(
            String::from_utf8(publications.opening())
                .unwrap()
                .contains("Bearer secret")
        );
    }
}
