//! The room under paused time: what hangs, what heals, who waits.

use std::{
    convert::Infallible,
    future::pending,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn upstream(limits: Limits) -> Arc<Upstream> {
    Upstreams::new(Clock::start()).open("kafka:departures", limits)
}

/// A result's verdict where every error is a failure.
fn strict<T, E: std::fmt::Display>(result: &Result<T, E>) -> Verdict {
    match result {
        Ok(_) => Verdict::Answered,
        Err(error) => Verdict::Failed(error.to_string()),
    }
}

type Called = Result<&'static str, CallError<&'static str>>;

async fn answer(upstream: &Arc<Upstream>) -> Called {
    upstream.call(async { Ok("here") }, strict).await
}

async fn fail(upstream: &Arc<Upstream>) -> Called {
    upstream.call(async { Err("broken pipe") }, strict).await
}

async fn hang(upstream: &Arc<Upstream>) -> Called {
    upstream.call(pending(), strict).await
}

async fn open(upstream: &Arc<Upstream>) {
    while upstream.state() == State::Closed {
        assert!(fail(upstream).await.is_err());
    }
}

fn is_shed(result: &Called) -> bool {
    matches!(result, Err(CallError::Refused(refused)) if refused.why == Why::Open)
}

/// How often something came of a call.
fn count(upstream: &Upstream, outcome: &str) -> u64 {
    upstream.report().calls[outcome]
}

#[tokio::test(start_paused = true)]
async fn a_callee_that_hangs_costs_nothing_once_the_breaker_is_open() {
    let upstream = upstream(Limits::default());
    let start = Instant::now();
    let first = join_all((0..3).map(|_| hang(&upstream))).await;
    assert_eq!(start.elapsed(), 2000 * MS);
    assert!(
        first
            .iter()
            .all(|result| matches!(result, Err(CallError::TimedOut { .. })))
    );
    let start = Instant::now();
    for _ in 0..1000 {
        let called = AtomicBool::new(false);
        let call = async {
            called.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(())
        };
        let refused = upstream.call(call, strict).await.unwrap_err();
        assert!(refused.is_unavailable());
        let retry_after = refused.retry_after().unwrap();
        assert!(
            retry_after > Duration::ZERO && retry_after <= 1000 * MS,
            "{retry_after:?}"
        );
        assert!(!called.load(Ordering::Relaxed));
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(
        (count(&upstream, "timed_out"), count(&upstream, "shed")),
        (3, 1000)
    );
}

#[tokio::test(start_paused = true)]
async fn it_heals_by_itself_within_the_longest_pause() {
    let upstream = upstream(Limits::default());
    open(&upstream).await;
    // Down for a minute, with somebody asking all the time: the pause has grown to its longest.
    let mut probes = 0;
    for _ in 0..6000 {
        advance(10 * MS).await;
        probes += usize::from(!is_shed(&fail(&upstream).await));
    }
    assert!((60..=130).contains(&probes), "{probes} probes in a minute");
    let start = Instant::now();
    while is_shed(&answer(&upstream).await) {
        advance(10 * MS).await;
    }
    assert!(start.elapsed() <= 1000 * MS, "{:?}", start.elapsed());
    assert_eq!(upstream.state(), State::Closed);
    assert_eq!(answer(&upstream).await, Ok("here"));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_at_once_make_one_probe() {
    let upstream = upstream(Limits::default());
    open(&upstream).await;
    advance(50 * MS).await;
    let probe = hang(&upstream);
    tokio::pin!(probe);
    assert!(probe.as_mut().now_or_never().is_none());
    assert_eq!(upstream.state(), State::HalfOpen);
    for _ in 0..1000 {
        assert!(is_shed(&answer(&upstream).await));
    }
    assert!(matches!(probe.await, Err(CallError::TimedOut { .. })));
    assert_eq!(upstream.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_lets_the_next_one_out() {
    let upstream = upstream(Limits::default());
    open(&upstream).await;
    for _ in 0..20 {
        advance(1000 * MS).await;
        assert!(hang(&upstream).now_or_never().is_none());
        assert_eq!(upstream.state(), State::Open);
    }
    assert_eq!(count(&upstream, "abandoned"), 20);
    advance(1000 * MS).await;
    assert_eq!(answer(&upstream).await, Ok("here"));
    assert_eq!(upstream.report().active, 0);
}

#[tokio::test(start_paused = true)]
async fn callers_with_less_patience_than_the_time_out_still_open_it() {
    let upstream = upstream(Limits::default());
    for _ in 0..3 {
        assert!(
            tokio::time::timeout(1500 * MS, hang(&upstream))
                .await
                .is_err()
        );
    }
    assert_eq!(upstream.state(), State::Open);
    let last = upstream.report().last_failure.unwrap().reason;
    assert_eq!(last, "its caller went away after 1500 ms without an answer");
}

#[tokio::test(start_paused = true)]
async fn what_the_callee_declines_opens_nothing_and_says_so() {
    let upstream = upstream(Limits::default());
    for _ in 0..50 {
        let declined = |_: &Result<(), &str>| Verdict::Declined;
        let error = upstream
            .call(async { Err("no permission") }, declined)
            .await;
        let error = error.unwrap_err();
        assert!(!error.is_unavailable());
        assert_eq!(
            error.to_string(),
            "kafka:departures declined: no permission"
        );
    }
    assert_eq!(upstream.state(), State::Closed);
    assert_eq!(upstream.report().last_failure, None);
}

#[tokio::test(start_paused = true)]
async fn no_more_calls_are_out_than_may_be_and_the_rest_wait_in_a_bounded_line() {
    let upstream = upstream(Limits {
        concurrent: 4,
        waiting: 3,
        ..Limits::default()
    });
    let (out, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let call = || {
        upstream.call(
            async {
                most.fetch_max(1 + out.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
                tokio::time::sleep(100 * MS).await;
                out.fetch_sub(1, Ordering::Relaxed);
                Ok::<_, &str>("here")
            },
            strict,
        )
    };
    let start = Instant::now();
    let results = join_all((0..9).map(|_| call())).await;
    assert_eq!(start.elapsed(), 200 * MS);
    let busy = results.iter().filter(
        |result| matches!(result, Err(CallError::Refused(refused)) if refused.why == Why::Busy),
    );
    assert_eq!((busy.count(), count(&upstream, "busy")), (2, 2));
    assert_eq!(
        (most.load(Ordering::Relaxed), count(&upstream, "answered")),
        (4, 7)
    );
    assert_eq!(
        (upstream.report().waiting, upstream.report().active),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_is_let_go_when_the_breaker_opens() {
    let upstream = upstream(Limits {
        concurrent: 2,
        failures: 1,
        ..Limits::default()
    });
    // Neither of these gives its place back: one of them fails by a permit of its own.
    let hanging = join_all((0..2).map(|_| hang(&upstream)));
    tokio::pin!(hanging);
    assert!(hanging.as_mut().now_or_never().is_none());
    let waiting = answer(&upstream);
    tokio::pin!(waiting);
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(upstream.report().waiting, 1);
    advance(10 * MS).await;
    upstream.try_acquire().unwrap().failed("connection reset");
    assert!(is_shed(&waiting.await));
    // And the probe needs no place, though calls from before hold them all.
    advance(50 * MS).await;
    assert_eq!(answer(&upstream).await, Ok("here"));
    assert_eq!(upstream.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_a_place_has_the_whole_time_out() {
    let upstream = upstream(Limits {
        concurrent: 1,
        ..Limits::default()
    });
    let slow = upstream.call(
        async {
            tokio::time::sleep(1999 * MS).await;
            Ok::<_, &str>("here")
        },
        strict,
    );
    let start = Instant::now();
    let (slow, late) = tokio::join!(slow, hang(&upstream));
    assert_eq!(start.elapsed(), 3999 * MS);
    assert_eq!(slow, Ok("here"));
    assert!(
        matches!(late, Err(CallError::TimedOut { .. })),
        "it had its whole time-out"
    );
    assert_eq!(upstream.report().failures, 1);
}

#[tokio::test(start_paused = true)]
async fn loops_wait_without_spinning_and_all_go_on_when_a_probe_is_answered() {
    let upstream = upstream(Limits::default());
    open(&upstream).await;
    let tries = AtomicUsize::new(0);
    let up = AtomicBool::new(false);
    let reader = async || {
        loop {
            let permit = upstream.acquire().await;
            tries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(MS).await; // the round trip
            if up.load(Ordering::Relaxed) {
                return permit.answered();
            }
            permit.failed("connection refused");
        }
    };
    let readers = join_all((0..100).map(|_| reader()));
    tokio::pin!(readers);
    let outage = tokio::time::timeout(Duration::from_secs(30), readers.as_mut());
    assert!(outage.await.is_err());
    let tried = tries.load(Ordering::Relaxed);
    assert!(
        (30..=70).contains(&tried),
        "{tried} probes in 30 s, of all readers together"
    );
    up.store(true, Ordering::Relaxed);
    let healed = tokio::time::timeout(1010 * MS, readers).await;
    assert!(healed.is_ok(), "not all readers went on");
    // Each of them once, and a probe that had failed at the edge.
    assert!(tries.load(Ordering::Relaxed) - tried <= 101);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_loop_that_is_dropped_holds_nothing() {
    let upstream = upstream(Limits::default());
    open(&upstream).await;
    assert!(upstream.acquire().now_or_never().is_none());
    advance(50 * MS).await;
    drop(upstream.acquire().await);
    advance(1000 * MS).await;
    upstream.acquire().await.answered();
    assert_eq!(upstream.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_tower_service_behind_its_upstream_is_shed_probed_and_healed() {
    let upstream = upstream(Limits::default());
    let (up, called) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let inner = {
        let (up, called) = (up.clone(), called.clone());
        service_fn(move |request: u32| {
            called.fetch_add(1, Ordering::Relaxed);
            let up = up.load(Ordering::Relaxed);
            async move { if up { Ok(request + 1) } else { Err("no route") } }
        })
    };
    let mut service = UpstreamLayer::new(upstream.clone(), strict::<u32, &str>).layer(inner);
    for _ in 0..100 {
        let ready = service.ready().await.unwrap();
        assert!(ready.call(1).await.unwrap_err().is_unavailable());
    }
    assert_eq!(called.load(Ordering::Relaxed), 3);
    up.store(true, Ordering::Relaxed);
    advance(50 * MS).await;
    assert_eq!(service.call(1).await, Ok(2));
    assert_eq!(service.oneshot(2).await, Ok(3));
}

#[tokio::test(start_paused = true)]
async fn a_report_says_what_an_operator_asks() {
    let upstreams = Upstreams::new(Clock::start());
    let redis = upstreams.open("redis:cache", Limits::default());
    let kafka = upstreams.open("kafka:departures", Limits::default());
    open(&redis).await;
    advance(10 * MS).await;
    let reports = upstreams.reports();
    let names: Vec<_> = reports.iter().map(|report| report.name.as_str()).collect();
    assert_eq!(names, ["kafka:departures", "redis:cache"]);
    let shown = serde_json::to_value(&reports[1]).unwrap();
    for (path, value) in [
        ("/state", "open".into()),
        ("/state_ms", 10.into()),
        ("/openings", 1.into()),
        ("/open_ms", 10.into()),
        ("/last_failure/reason", "broken pipe".into()),
        ("/last_failure/age_ms", 10.into()),
        ("/calls/failed", 3.into()),
        ("/time_out_ms", 2000.into()),
    ] {
        assert_eq!(shown.pointer(path), Some(&value), "{path} of {shown}");
    }
    assert!(reports[1].next_probe_ms.unwrap() <= 40);
    assert_eq!(
        (reports[0].state, reports[0].next_probe_ms),
        (State::Closed, None)
    );
    // Who opens a name again shares its breaker; whom nobody holds any more is gone.
    let again = upstreams.open("redis:cache", Limits::default());
    assert_eq!(again.state(), State::Open);
    drop((redis, again, kafka));
    assert_eq!(upstreams.reports(), []);
}

#[tokio::test(start_paused = true)]
async fn a_long_reason_is_cut() {
    let upstream = upstream(Limits::default());
    upstream.try_acquire().unwrap().failed("ä".repeat(1000));
    let reason = upstream.report().last_failure.unwrap().reason;
    assert_eq!(reason, "ä".repeat(150));
}

#[tokio::test(start_paused = true)]
async fn errors_name_who_was_called_and_what_to_do() {
    let upstream = upstream(Limits::default());
    let said = |result: Called| result.unwrap_err().to_string();
    assert_eq!(said(fail(&upstream).await), "kafka:departures: broken pipe");
    assert_eq!(
        said(hang(&upstream).await),
        "kafka:departures did not answer within 2000 ms"
    );
    open(&upstream).await;
    let shed = said(answer(&upstream).await);
    let (before, after) = shed.rsplit_once("try again in ").unwrap();
    assert_eq!(
        before,
        "kafka:departures does not answer, its breaker is open: "
    );
    assert!(after.ends_with(" ms"), "{after}");
}

/// What the log was told while this is held, a line each.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let plain = tracing_subscriber::fmt().with_ansi(false).without_time();
        let subscriber = plain.with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(lock(&self.0).clone()).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }
}

/// Fails whenever it is let out, for so long.
async fn down(upstream: &Arc<Upstream>, span: Duration) {
    let start = Instant::now();
    while start.elapsed() < span {
        assert!(fail(upstream).await.is_err());
        advance(10 * MS).await;
    }
}

async fn back(upstream: &Arc<Upstream>) {
    while is_shed(&answer(upstream).await) {
        advance(10 * MS).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_and_its_end_once_and_one_that_flaps_is_not_told_each_time() {
    let (log, upstream) = (Log::default(), upstream(Limits::default()));
    let _listening = log.listen();
    down(&upstream, 5000 * MS).await;
    back(&upstream).await;
    // It flaps, within ten seconds of what the log was told: not told before those are over, and then all the same.
    open(&upstream).await;
    back(&upstream).await;
    assert_eq!(upstream.report().openings, 2);
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].starts_with("WARN"), "{}", lines[0]);
    assert!(lines[0].contains("upstream=kafka:departures reason=\"broken pipe\" kept_back=0"));
    assert!(lines[1].starts_with("INFO"), "{}", lines[1]);
    down(&upstream, 10_000 * MS).await;
    let lines = log.lines();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[2].starts_with("WARN"), "{}", lines[2]);
    assert!(!lines[2].contains("kept_back=0"), "{}", lines[2]);
}
