//! One connection to a broker: one request at a time, and its answer.
//!
//! Asking is apart from waiting for the answer, which may be given up and taken up again: what was sent stays sent, what came
//! stays. Frames are bounded; an answer to another question ends the connection.

use std::{io, ops::RangeInclusive};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiVersionsRequest, RequestHeader, ResponseHeader},
    protocol::{Decodable, HeaderVersion, Request, StrBytes, encode_request_header_into_buffer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::{KafkaError, error::check, secure::Security};

/// The largest answer that is taken, in bytes: a broker gives one batch whole, however large its topic allows it to be.
const FRAME_MAX: usize = 128 << 20;
/// Read at once, in bytes.
const READ_BYTES: usize = 64 << 10;
/// How this client names itself to brokers.
const CLIENT: &str = "tidegate";
/// A frame's length, before it.
const LENGTH: usize = 4;

/// Bytes in both directions.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Socket for S {}

/// The versions of a request that this client speaks.
pub(super) type Versions = RangeInclusive<i16>;

struct Asked {
    correlation: i32,
    key: i16,
    version: i16,
}

/// A connection that has been opened.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    output: BytesMut,
    input: BytesMut,
    /// Of the broker: key, lowest and highest version.
    spoken: Vec<(i16, i16, i16)>,
    asked: Option<Asked>,
    correlation: i32,
}

impl Connection {
    /// Connects, agrees on versions, authenticates.
    pub(super) async fn open(address: &str, security: &Security) -> Result<Self, KafkaError> {
        let opening = Self::open_to(address, security);
        opening.await.map_err(|error| error.at(address))
    }

    async fn open_to(address: &str, security: &Security) -> Result<Self, KafkaError> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut connection = Self {
            socket: security.wrap(tcp, address).await?,
            output: BytesMut::new(),
            input: BytesMut::new(),
            spoken: vec![(ApiVersionsRequest::KEY, 3, 3)],
            asked: None,
            correlation: 0,
        };
        let hello = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(CLIENT))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let answer = connection.call(&hello, 3..=3).await?;
        check(answer.error_code)?;
        let keys = answer.api_keys.iter();
        connection.spoken = keys
            .map(|api| (api.api_key, api.min_version, api.max_version))
            .collect();
        security.authenticate(&mut connection).await?;
        Ok(connection)
    }

    /// Whether an answer is still to come.
    pub(super) const fn is_busy(&self) -> bool {
        self.asked.is_some()
    }

    /// Asks, and waits for the answer.
    pub(super) async fn call<R: Request>(
        &mut self,
        request: &R,
        versions: Versions,
    ) -> Result<R::Response, KafkaError> {
        self.ask(request, versions)?;
        self.answer::<R>().await
    }

    /// Takes a request, which leaves with the waiting for its answer.
    pub(super) fn ask<R: Request>(
        &mut self,
        request: &R,
        versions: Versions,
    ) -> Result<(), KafkaError> {
        if self.is_busy() {
            return Err(KafkaError::Malformed("an earlier answer is missing"));
        }
        let version = self.version(R::KEY, &versions)?;
        self.correlation = self.correlation.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT)));
        let start = self.output.len();
        self.output.put_i32(0);
        let unfit = |_| KafkaError::Malformed("a request has no form in this version");
        encode_request_header_into_buffer(&mut self.output, &header).map_err(unfit)?;
        request.encode(&mut self.output, version).map_err(unfit)?;
        let length = i32::try_from(self.output.len() - start - LENGTH)
            .map_err(|_| KafkaError::Malformed("a request is too long"))?;
        self.output[start..start + LENGTH].copy_from_slice(&length.to_be_bytes());
        self.asked = Some(Asked {
            correlation: self.correlation,
            key: R::KEY,
            version,
        });
        Ok(())
    }

    fn version(&self, key: i16, ours: &Versions) -> Result<i16, KafkaError> {
        let theirs = self.spoken.iter().find(|(spoken, _, _)| *spoken == key);
        theirs
            .map(|&(_, lowest, highest)| (lowest.max(*ours.start()), highest.min(*ours.end())))
            .filter(|(lowest, highest)| lowest <= highest)
            .map(|(_, highest)| highest)
            .ok_or(KafkaError::Version(key))
    }

    /// Waits for the answer to the last request. Cancel safe: it can be waited for again.
    pub(super) async fn answer<R: Request>(&mut self) -> Result<R::Response, KafkaError> {
        let mut frame = self.frame().await?;
        let Some(asked) = self.asked.take().filter(|asked| asked.key == R::KEY) else {
            return Err(KafkaError::Malformed("nothing was asked"));
        };
        let unreadable = |_| KafkaError::Malformed("not what was asked for");
        let header = R::Response::header_version(asked.version);
        let header = ResponseHeader::decode(&mut frame, header).map_err(unreadable)?;
        if header.correlation_id != asked.correlation {
            return Err(KafkaError::Malformed("an answer to another question"));
        }
        R::Response::decode(&mut frame, asked.version).map_err(unreadable)
    }

    /// Sends what waits, and reads one frame. Cancel safe, since both buffers are ours.
    async fn frame(&mut self) -> Result<Bytes, KafkaError> {
        while !self.output.is_empty() {
            self.socket.write_buf(&mut self.output).await?;
        }
        self.socket.flush().await?;
        loop {
            if let Some(length) = self.input.first_chunk::<LENGTH>() {
                let length = usize::try_from(i32::from_be_bytes(*length))
                    .ok()
                    .filter(|length| *length <= FRAME_MAX)
                    .ok_or(KafkaError::Malformed("a frame's length"))?;
                if self.input.len() >= LENGTH + length {
                    self.input.advance(LENGTH);
                    return Ok(self.input.split_to(length).freeze());
                }
                self.input.reserve(LENGTH + length - self.input.len());
            } else {
                self.input.reserve(READ_BYTES);
            }
            if self.socket.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}
