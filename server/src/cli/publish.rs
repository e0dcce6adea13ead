//! `tidegate publish`: lines of standard input → records of a stream, over one request.
//!
//! Does: streams its input to the gateway as it comes, checks the answer to each line, says which were refused and why.
//! Owns: the thread that reads standard input. Never knows: what is in a record; the gateway judges.
//! Keeps: I1 (a few blocks of input and one answer are all it holds); whoever reads slowly is not overrun, because the
//! gateway reads no further than its answers are read.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{block_on, complain, plain, remote::Remote};
use crate::model::check_stream_name;

/// A block of standard input, in bytes.
const BLOCK_BYTES: usize = 64 * 1024;
/// Blocks that wait for the socket.
const BLOCKS_MAX: usize = 4;
/// Longest answer to one line, in bytes.
const ANSWER_MAX: usize = 64 * 1024;
/// Characters of a message that are shown.
const SHOWN_MAX: usize = 500;

#[derive(clap::Args, Debug)]
pub(super) struct Publish {
    /// The stream's name
    stream: String,
    #[command(flatten)]
    remote: Remote,
}

impl Publish {
    /// Publishes until the input ends.
    pub(super) fn run(self) -> Result<(), String> {
        check_stream_name(&self.stream).map_err(super::text)?;
        block_on(self.publish())
    }

    async fn publish(self) -> Result<(), String> {
        let token = self.remote.token()?;
        let socket = self.remote.connect().await?;
        let handshake = http1::handshake(TokioIo::new(socket)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.lost(&error))?;
        let sent = Arc::<AtomicU64>::default();
        let mut request = Request::post(format!("/v1/publish/{}", self.stream))
            .header(header::HOST, self.remote.url.authority())
            .header(header::CONTENT_TYPE, "application/x-ndjson");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = StreamBody::new(lines(sent.clone())?);
        let request = request.body(body).map_err(super::text)?;
        let exchange = async {
            let response = sender.send_request(request).await;
            let response = response.map_err(|error| self.lost(&error))?;
            self.read_answers(response, &sent).await
        };
        // The connection is driven beside the exchange; an answer may be complete before the input has ended.
        let drive = async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection ended");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            result = exchange => result,
            () = drive => Ok(()),
        }
    }

    fn lost(&self, error: &hyper::Error) -> String {
        let cause = std::error::Error::source(error);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        format!(
            "the exchange with {} broke off: {error}{cause}",
            self.remote.url
        )
    }

    async fn read_answers(
        &self,
        response: Response<Incoming>,
        sent: &AtomicU64,
    ) -> Result<(), String> {
        let refused = !response.status().is_success();
        let status = response.status();
        let mut body = response.into_body();
        let mut answers = Answers::default();
        let mut broken = None;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    let Ok(bytes) = frame.into_data() else {
                        continue;
                    };
                    answers.take(&bytes, refused)?;
                }
                Err(error) => {
                    broken = Some(self.lost(&error));
                    break;
                }
            }
        }
        if refused {
            let detail = problem(&answers.begun);
            return Err(format!(
                "{} refused the request ({}): {detail}",
                self.remote.url,
                status.as_u16()
            ));
        }
        answers.sum_up(sent.load(Ordering::Relaxed), broken)
    }
}

/// What a refused request was told.
fn problem(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
        detail: String,
    }
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => plain(&format!("{} ({})", problem.detail, problem.code), SHOWN_MAX),
        Err(_) => plain(&String::from_utf8_lossy(body), SHOWN_MAX),
    }
}

/// Standard input as the request's body; `sent` counts the lines that are to be answered.
fn lines(
    sent: Arc<AtomicU64>,
) -> Result<impl stream::Stream<Item = io::Result<Frame<Bytes>>>, String> {
    let (blocks, input) = mpsc::channel(BLOCKS_MAX);
    std::thread::Builder::new()
        .name("tidegate-stdin".to_owned())
        .spawn(move || read_blocks(&blocks))
        .map_err(|error| format!("can't start the thread that reads standard input: {error}"))?;
    let counter = LineCounter { sent, words: false };
    Ok(stream::unfold(
        (input, counter),
        |(mut input, mut counter)| async move {
            let block: io::Result<Bytes> = input.recv().await?;
            if let Ok(block) = &block {
                counter.see(block);
            }
            Some((block.map(Frame::data), (input, counter)))
        },
    ))
}

/// Ends with the input, at an error, or when nobody wants more.
fn read_blocks(blocks: &mpsc::Sender<io::Result<Bytes>>) {
    let mut input = io::stdin().lock();
    loop {
        let mut block = vec![0; BLOCK_BYTES];
        let read = match input.read(&mut block) {
            Ok(0) => return,
            Ok(length) => {
                block.truncate(length);
                Ok(Bytes::from(block))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        if blocks.blocking_send(read).is_err() {
            return;
        }
    }
}

/// Counts lines that are not blank, the last also without its line break.
struct LineCounter {
    sent: Arc<AtomicU64>,
    words: bool,
}

impl LineCounter {
    fn see(&mut self, block: &[u8]) {
        for byte in block {
            if *byte == b'\n' {
                self.words = false;
            } else if !self.words && !byte.is_ascii_whitespace() {
                self.words = true;
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// One line of the gateway's answer.
#[derive(Deserialize)]
struct Answer {
    line: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    code: String,
    message: String,
}

/// What became of the lines so far.
#[derive(Default)]
struct Answers {
    begun: Vec<u8>,
    published: u64,
    duplicates: u64,
    refused: u64,
    last_line: u64,
}

impl Answers {
    /// Takes a piece of the answer; one that is no list of answers is only kept, bounded.
    fn take(&mut self, bytes: &[u8], whole: bool) -> Result<(), String> {
        if whole {
            let room = ANSWER_MAX - self.begun.len();
            self.begun
                .extend_from_slice(&bytes[..bytes.len().min(room)]);
            return Ok(());
        }
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.begun.len() + piece.len() > ANSWER_MAX {
                return Err("the answer is not Tidegate's: a line of it is too long".to_owned());
            }
            self.begun.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.begun);
                self.count(&line)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, line: &[u8]) -> Result<(), String> {
        let answer: Answer = serde_json::from_slice(line).map_err(|_| {
            let line = plain(&String::from_utf8_lossy(line), 80);
            format!("the answer is not Tidegate's: {line}")
        })?;
        self.last_line = answer.line;
        match answer.error {
            None => {
                self.published += 1;
                self.duplicates += u64::from(answer.duplicate);
            }
            Some(Fault { code, message }) => {
                self.refused += 1;
                let place = format!("line {}: ", answer.line);
                let message = message.strip_prefix(&place).unwrap_or(&message);
                complain(&plain(&format!("{place}{message} ({code})"), SHOWN_MAX));
            }
        }
        Ok(())
    }

    fn sum_up(&self, sent: u64, broken: Option<String>) -> Result<(), String> {
        let mut sum = format!("{} published", self.published);
        if self.duplicates > 0 {
            sum += &format!(" ({} of them repeats, which were dropped)", self.duplicates);
        }
        sum += &format!(", {} refused", self.refused);
        let unanswered = sent.saturating_sub(self.published + self.refused);
        if unanswered > 0 || broken.is_some() {
            let why = broken.unwrap_or_else(|| "the gateway ended its answer early".to_owned());
            return Err(format!(
                "{why}\n{sum}, {unanswered} without an answer: send again what follows line {}",
                self.last_line
            ));
        }
        if self.refused > 0 {
            return Err(sum);
        }
        complain(&sum);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_across_blocks() {
        let mut counter = LineCounter {
            sent: Arc::default(),
            words: false,
        };
        for block in ["{}\n\n  \r\n{", "}", "\n{}"] {
            counter.see(block.as_bytes());
        }
        assert_eq!(counter.sent.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn answers_are_summed_up() {
        let mut answers = Answers::default();
        for piece in [
            "{\"line\":1,\"posi",
            "tion\":\"0.e:1\"}\n{\"line\":3,\"position\":\"0.e:1\",\"duplicate\":true}\n",
        ] {
            answers.take(piece.as_bytes(), false).unwrap();
        }
        assert_eq!(answers.sum_up(2, None), Ok(()));
        let missing = answers.sum_up(3, None).unwrap_err();
        assert!(missing.contains("1 without an answer"), "{missing}");
        assert!(missing.ends_with("what follows line 3"), "{missing}");
        let refusal =
            b"{\"line\":4,\"error\":{\"code\":\"bad_record\",\"message\":\"line 4: no\"}}\n";
        answers.take(refusal, false).unwrap();
        assert!(answers.sum_up(3, None).unwrap_err().contains("1 refused"));
        assert!(answers.take(b"<html>\n", false).is_err());
        assert!(answers.take(&[b'x'; ANSWER_MAX + 1], false).is_err());
    }
}
