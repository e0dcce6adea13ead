//! A short soak: two minutes of coming and going on a real server, and whether anything of it stays.
//!
//! Does: keeps some subscribers and some slow readers, lets others come and go in every way there is, publishes and pauses
//! meanwhile, and judges memory, descriptors and losses at the end. Owns: the schedule. Never knows: how a connection is
//! driven. Keeps: the run ends, also when the server does not behave.
//!
//! | room | does |
//! |---|---|
//! | `cast` | everybody who is connected, and the loop |
//! | `member` | whom a connection stands for, and what it has seen |
//! | `client` | one connection |
//! | `visit` | what the nth visitor does |
//! | `track` | what one subscriber has seen of one channel |
//! | `writer` | the source of one stream |
//! | `operator` | samples and pauses, in a thread of its own |
//! | `verdict` | the table and the bars |

mod cast;
mod client;
mod member;
mod operator;
mod track;
mod verdict;
mod visit;
mod writer;

use std::{net::SocketAddr, path::PathBuf, sync::mpsc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{net, process, tokens::Signer};
use cast::{Cast, Counts, STREAMS};
use operator::{Operator, Sample, since};
use track::Track;
use verdict::{Bar, judge, say, say_head, say_sample};
use writer::Writer;

const SECOND: u64 = 1_000_000_000;
/// Longest turn of the loop.
const TURN: Duration = Duration::from_millis(5);
/// Longest wait for those who stay, in the beginning and at the end.
const PATIENCE: Duration = Duration::from_secs(20);
/// The server looks at some of its counters four times a second.
const REST: Duration = Duration::from_secs(1);
/// A line of the table stands for so many samples.
const LINE_EVERY: usize = 10;
/// Threads that the runtime may have more at the end than in the beginning: it keeps those that read files for a while.
const THREADS_MORE: u64 = 4;

/// What is asked of a soak.
#[derive(Debug, Clone, Args)]
pub(crate) struct Soak {
    /// Where the server listens.
    #[arg(long)]
    address: SocketAddr,
    /// Where its operators connect.
    #[arg(long)]
    admin: SocketAddr,
    /// Its process.
    #[arg(long)]
    server_pid: u32,
    /// File with the HS256 secret by which everybody's token is signed.
    #[arg(long)]
    jwt_secret: PathBuf,
    /// The id of that key.
    #[arg(long, default_value = "bench")]
    jwt_kid: String,
    /// Seconds of coming and going.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,
    /// Seconds after which memory must not grow any more.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(0..=86_000))]
    warm_up: u64,
    /// Visitors that come in a second; as many leave.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=2_000))]
    joins: u64,
    /// Publications a second to the known channels of each stream.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rate: u64,
    /// Subscribers that stay.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steady: u32,
    /// Others that stay and do not always read.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    slow: u32,
}

/// Soaks the server.
///
/// # Errors
/// When it can't be reached, goes away, or misses a bar.
pub(crate) fn run(soak: &Soak) -> Result<()> {
    let operator = Operator {
        admin: soak.admin,
        pid: soak.server_pid,
    };
    let mut cast = Cast::new(soak.address, Signer::new(&soak.jwt_secret, &soak.jwt_kid)?)?;
    gather(&mut cast, soak)?;
    let begin = look_at_rest(&mut cast, operator)?;
    let (samples, pauses) = churn(&mut cast, soak, operator)?;
    let end = settle(&mut cast, operator, begin.holdings.descriptors)?;
    let bars = bars(&cast, soak, (&begin, &end), &samples, pauses);
    cast.told.iter().for_each(|mistake| say(mistake));
    ensure!(judge(&bars), "the soak missed a bar");
    Ok(())
}

/// Those who stay come.
fn gather(cast: &mut Cast, soak: &Soak) -> Result<()> {
    cast.add_steady(soak.steady as usize)?;
    cast.add_slow(soak.slow as usize)?;
    let all = (soak.steady + soak.slow) as usize;
    wait(cast, |cast| cast.staying() == (all, all)).with_context(|| {
        format!(
            "{:?} of {all} who stay have begun: {:?}",
            cast.staying(),
            cast.told
        )
    })
}

/// Turns until this holds.
fn wait(cast: &mut Cast, holds: impl Fn(&Cast) -> bool) -> Result<()> {
    let begin = net::now();
    while !holds(cast) {
        ensure!(
            since(begin) < PATIENCE,
            "not within {} s",
            PATIENCE.as_secs()
        );
        cast.turn(TURN)?;
    }
    Ok(())
}

/// The soak itself: gives the samples, and how often a source was paused.
fn churn(cast: &mut Cast, soak: &Soak, operator: Operator) -> Result<(Vec<Sample>, u64)> {
    let begin = net::now();
    let (samples, seen) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    let watch = std::thread::spawn(move || operator.watch(&STREAMS, begin, &samples, &ended));
    for writer in &mut cast.writers {
        writer.pace(begin, soak.rate);
    }
    say_head();
    let mut all = Vec::new();
    let mut joined = 0;
    while since(begin) < Duration::from_secs(soak.seconds) && !watch.is_finished() {
        while begin + joined * SECOND / soak.joins <= net::now() {
            cast.add_visitor()?;
            joined += 1;
        }
        cast.turn(TURN)?;
        for sample in seen.try_iter() {
            if all.len() % LINE_EVERY == LINE_EVERY - 1 {
                say_sample(&sample, cast.counts.joined, cast.counts.left);
            }
            all.push(sample);
        }
    }
    drop(end);
    for writer in &mut cast.writers {
        writer.pace(begin, 0);
    }
    // The sources go on and on while it ends: what it still asks for is answered by the server alone.
    match watch.join() {
        Ok(pauses) => Ok((all, pauses?)),
        Err(_) => bail!("the operator's thread has panicked"),
    }
}

/// The visitors leave, what was published arrives, and the server lets go of what it held for those who left.
fn settle(cast: &mut Cast, operator: Operator, descriptors: u64) -> Result<Sample> {
    cast.send_visitors_home();
    let through = |cast: &Cast| {
        let answered = cast.writers.iter().all(Writer::is_answered);
        cast.visitors_here() == 0 && answered && missing(cast, true) + missing(cast, false) == 0
    };
    // Who does not come through in time is told by the bars.
    wait(cast, through).unwrap_or_default();
    let held = |_: &Cast| process::descriptors(operator.pid).is_ok_and(|held| held <= descriptors);
    wait(cast, held).unwrap_or_default();
    look_at_rest(cast, operator)
}

/// Looks when the server has had time to look at itself.
fn look_at_rest(cast: &mut Cast, operator: Operator) -> Result<Sample> {
    let begin = net::now();
    while since(begin) < REST {
        cast.turn(TURN)?;
    }
    operator.look(begin)
}

/// Channels of those who stay that are not as they were published.
fn missing(cast: &Cast, slow: bool) -> u64 {
    let missing = cast.tracks(slow).filter(|(track, published)| {
        let newest = track.next == Some(published.number + 1);
        !newest || (!track.is_events && track.rows != published.rows)
    });
    missing.count() as u64
}

fn bars(
    cast: &Cast,
    soak: &Soak,
    (begin, end): (&Sample, &Sample),
    samples: &[Sample],
    pauses: u64,
) -> Vec<Bar> {
    let mut bars = bars_of_server(soak, (begin, end), samples);
    bars.extend(bars_of_those_who_stay(cast, samples));
    bars.extend(bars_of_visitors(&cast.counts, soak));
    bars.extend([
        Bar::some(
            "publications",
            cast.writers.iter().map(Writer::written).sum(),
        ),
        Bar::some(
            "tombstones",
            cast.writers.iter().map(|writer| writer.tombstones).sum(),
        ),
        Bar::some("pauses of a source", pauses),
    ]);
    bars
}

/// What the server holds.
#[expect(clippy::cast_precision_loss, reason = "few channels, few seconds")]
fn bars_of_server(soak: &Soak, (begin, end): (&Sample, &Sample), samples: &[Sample]) -> Vec<Bar> {
    let counted = |name, expected: f64| {
        let found = end.counter(name);
        Bar::new(
            name,
            format!("{found}, expected {expected}"),
            found.total_cmp(&expected).is_eq(),
        )
    };
    let (held, at_first) = (end.holdings, begin.holdings);
    let followed = "tidegate_fanout_followed_channels";
    let subscriptions = f64::from(soak.steady) + f64::from(soak.slow) * visit::KNOWN as f64;
    let whole = samples.len() as u64 + 2 >= soak.seconds;
    vec![
        verdict::memory(samples, soak.warm_up as f64),
        Bar::new("samples", samples.len().to_string(), whole),
        Bar::equal(
            "descriptors at the end",
            held.descriptors,
            at_first.descriptors,
        ),
        Bar::new(
            "threads at the end",
            format!("{}, at first {}", held.threads, at_first.threads),
            held.threads <= at_first.threads + THREADS_MORE,
        ),
        counted(
            "tidegate_session_active",
            f64::from(soak.steady + soak.slow),
        ),
        counted("tidegate_fanout_active_subscriptions", subscriptions),
        counted(followed, begin.counter(followed)),
        counted("tidegate_partition_waiting_requests", 0.0),
    ]
}

/// What the steady and the slow have seen.
fn bars_of_those_who_stay(cast: &Cast, samples: &[Sample]) -> Vec<Bar> {
    let sum = |slow, of: fn(&Track) -> u64| -> u64 {
        cast.tracks(slow).map(|(track, _)| of(track)).sum()
    };
    let waited = samples
        .iter()
        .map(|sample| sample.counter("tidegate_session_outbox_bytes"));
    let waited = waited.fold(0.0, f64::max);
    vec![
        Bar::some("updates to the steady", sum(false, |track| track.updates)),
        Bar::none(
            "events that the steady lost",
            sum(false, |track| track.faults.lost + track.gaps),
        ),
        Bar::none(
            "numbers that went back for the steady",
            sum(false, |track| track.faults.went_back),
        ),
        Bar::none(
            "channels of the steady that are not as published",
            missing(cast, false),
        ),
        Bar::some(
            "gaps and conflated numbers of the slow",
            sum(true, |track| track.gaps + track.conflated),
        ),
        Bar::none(
            "events that the slow lost without a gap",
            sum(true, |track| track.faults.lost + track.faults.went_back),
        ),
        Bar::none(
            "channels of the slow that are not as published",
            missing(cast, true),
        ),
        Bar::new(
            "bytes that waited for the slow, at most",
            waited.to_string(),
            waited > 0.0,
        ),
    ]
}

/// What became of the visitors.
fn bars_of_visitors(counts: &Counts, soak: &Soak) -> Vec<Bar> {
    let in_pace = counts.joined >= soak.joins * soak.seconds * 9 / 10;
    vec![
        Bar::new("visitors that came", counts.joined.to_string(), in_pace),
        Bar::equal("visitors that left", counts.left, counts.joined),
        Bar::some("visitors that said goodbye and were let go", counts.let_go),
        Bar::none(
            "connections refused, not answered, or closed",
            counts.failed,
        ),
        Bar::some("updates to visitors", counts.updates),
        Bar::none("events that visitors lost without a gap", counts.faults),
        Bar::some("tokens that were shown", counts.resumed),
        Bar::some("gaps that visitors were told", counts.gaps),
        Bar::some("long-polls with something newer", counts.newer),
        Bar::some("long-polls with nothing newer", counts.not_newer),
        Bar::some("invented channels", counts.invented),
    ]
}
