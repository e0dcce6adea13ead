//! Delivers a number of batches to subscribers whose sockets cost nothing, for `load/instructions.sh`, which counts the
//! instructions: `deliveries SUBSCRIBERS BATCHES UPDATES ws|sse`.

use std::process::ExitCode;

use tidegate_tests::steady::{Listening, Steady};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((subscribers, batches, updates, how)) = parse(&words) else {
        eprintln!("usage: deliveries SUBSCRIBERS BATCHES UPDATES ws|sse");
        return ExitCode::FAILURE;
    };
    let mut node = Steady::new();
    node.subscribe(subscribers, 1, how);
    for _ in 0..batches {
        node.publish(1, updates);
        node.turns();
    }
    let due = (subscribers * batches * updates) as u64;
    if node.deliveries() == due {
        return ExitCode::SUCCESS;
    }
    eprintln!("{} deliveries instead of {due}", node.deliveries());
    ExitCode::FAILURE
}

fn parse(words: &[String]) -> Option<(usize, usize, usize, Listening)> {
    let [subscribers, batches, updates, how] = words else {
        return None;
    };
    let how = match how.as_str() {
        "ws" => Listening::WebSocket,
        "sse" => Listening::Sse,
        _ => return None,
    };
    Some((
        subscribers.parse().ok()?,
        batches.parse().ok()?,
        updates.parse().ok()?,
        how,
    ))
}
