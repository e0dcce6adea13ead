//! The command line, as a user has it: processes, their output, their exit codes.

use std::{net::TcpListener, path::PathBuf, process::Output};

use anyhow::{Context, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tidegate_tests::binary::{Node, PATIENCE, command, run, signal};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};
use tokio_tungstenite::{connect_async, tungstenite::Message};

/// Longer than the bound of any key's minimum.
const SECRET: &str = "a secret of more than thirty-two bytes, for tests";

/// A folder of one test's own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> anyhow::Result<Self> {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
    fn write(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.0.join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies in Cargo's own folder for such things.
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A node whose key signs the tokens of `tidegate token`; the folder has `config` and `secret`.
async fn node_with_key(name: &str) -> anyhow::Result<(Folder, String, Node)> {
    let folder = Folder::new(name)?;
    folder.write("secret", SECRET)?;
    let config = folder.write(
        "tidegate.toml",
        r#"
        access.jwt_keys = [{ id = "k1", algorithm = "HS256", file = "secret" }]
        session = { heartbeat = "1s", drain = { window = "100ms", deadline = "10s" } }
        streams = [{ name = "departures" }, { name = "log", mode = "events" }]
        "#,
    )?;
    let node = Node::start(&["--config", &config]).await?;
    Ok((folder, config, node))
}

async fn token(arguments: &[&str]) -> anyhow::Result<String> {
    let output = run(command(&[&["token"], arguments].concat()), b"").await?;
    ensure!(output.status.success(), stderr(&output));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

async fn token_for_all(config: &str) -> anyhow::Result<String> {
    let can = "subscribe,publish";
    token(&[
        "--config",
        config,
        "--channels",
        "departures/*,log/*",
        "--can",
        can,
    ])
    .await
}

async fn publish(node: &Node, stream: &str, token: &str, lines: &str) -> anyhow::Result<Output> {
    let mut command = command(&["publish", stream, "--url", &node.url()]);
    command.env("TIDEGATE_TOKEN", token);
    run(command, lines.as_bytes()).await
}

/// A running `tidegate watch --json`.
struct Watcher {
    child: Child,
    messages: Lines<BufReader<ChildStdout>>,
}

impl Watcher {
    fn start(url: &str, channel: &str, token: &str) -> anyhow::Result<Self> {
        let watch = ["watch", channel, "--json", "--url", url, "--token", token];
        let mut child = command(&watch).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let messages = BufReader::new(stdout).lines();
        Ok(Self { child, messages })
    }
    /// The next message of this op.
    async fn next(&mut self, op: &str) -> anyhow::Result<Value> {
        let find = async {
            while let Some(line) = self.messages.next_line().await? {
                let message: Value = serde_json::from_str(&line)?;
                if message["op"] == op {
                    return Ok(message);
                }
            }
            anyhow::bail!("it ended without {op}")
        };
        timeout(PATIENCE, find)
            .await
            .with_context(|| format!("no {op}"))?
    }
}

#[tokio::test]
async fn records_are_published_and_the_bad_ones_are_told_by_their_line() -> anyhow::Result<()> {
    let (_folder, config, node) = node_with_key("publish").await?;
    let token = token_for_all(&config).await?;
    let lines = concat!(
        "{\"channel\":\"JFK\",\"row\":\"a\",\"data\":1}\n",
        "\n",
        "{\"channel\":\"JFK\",\"row\":\"b\",\"ts\":\"noon\",\"data\":1}\n",
        "no JSON\n",
        "{\"channel\":\"JFK\",\"row\":\"c\",\"data\":{\"to\":\"SEA\"}}"
    );
    let output = publish(&node, "departures", &token, lines).await?;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(
        said[0].starts_with("line 3: ") && said[0].ends_with("(bad_record)"),
        "{said:?}"
    );
    assert!(said[1].starts_with("line 4: "), "{said:?}");
    assert_eq!(said[2], "2 published, 2 refused");

    let good = "{\"channel\":\"JFK\",\"row\":\"a\",\"data\":1,\"id\":\"x\"}\n".repeat(2);
    let output = publish(&node, "departures", &token, &good).await?;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        stderr(&output).trim(),
        "2 published (1 of them repeats, which were dropped), 0 refused"
    );
    Ok(())
}

#[tokio::test]
async fn many_records_go_over_one_connection() -> anyhow::Result<()> {
    let (_folder, config, node) = node_with_key("many").await?;
    let token = token_for_all(&config).await?;
    let lines: String = (0..20_000)
        .map(|n| {
            format!(
                "{{\"channel\":\"JFK\",\"row\":\"r{}\",\"data\":{{\"n\":{n}}}}}\n",
                n % 100
            )
        })
        .collect();
    let output = publish(&node, "departures", &token, &lines).await?;
    assert_eq!(stderr(&output).trim(), "20000 published, 0 refused");
    assert_eq!(output.status.code(), Some(0));
    let mut watcher = Watcher::start(&node.url(), "departures/JFK", &token)?;
    let snapshot = watcher.next("snapshot").await?;
    assert_eq!(snapshot["rows"]["r99"]["data"]["n"], 19_999);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_in_plain_words() -> anyhow::Result<()> {
    let (_folder, _config, node) = node_with_key("refused").await?;
    let record = "{\"channel\":\"JFK\",\"data\":1}\n";
    let output = publish(&node, "departures", "nobody's", record).await?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("(401)") && stderr(&output).contains("(unauthorized)"),
        "{}",
        stderr(&output)
    );
    let nowhere = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let output = run(
        command(&["publish", "s", "--url", &format!("http://{nowhere}")]),
        b"",
    )
    .await?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("can't connect"),
        "{}",
        stderr(&output)
    );
    let output = run(
        command(&["publish", "s", "--url", "https://board.example"]),
        b"",
    )
    .await?;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("TLS"), "{}", stderr(&output));
    Ok(())
}

#[tokio::test]
async fn a_watcher_sees_updates_and_comes_back_with_its_token() -> anyhow::Result<()> {
    let (_folder, config, node) = node_with_key("watch").await?;
    let token = token_for_all(&config).await?;
    let mut watcher = Watcher::start(&node.url(), "departures/JFK", &token)?;
    watcher.next("snapshot").await?;
    publish(
        &node,
        "departures",
        &token,
        "{\"channel\":\"JFK\",\"row\":\"a\",\"data\":{\"to\":\"SEA\"}}",
    )
    .await?;
    let update = watcher.next("update").await?;
    assert_eq!(
        (&update["row"], &update["data"]["to"]),
        (&"a".into(), &"SEA".into())
    );
    watcher.next("heartbeat").await?;

    node.signal("TERM").await?;
    watcher.next("bye").await?;
    let address = node.address.clone();
    let (status, _) = node.ended().await?;
    assert_eq!(status.code(), Some(0));
    // The same address again: the watcher finds it, and its token is of a log that is no more.
    let _again = Node::start_at(&address, &["--config", &config]).await?;
    watcher.next("hello").await?;
    watcher.next("snapshot").await?;
    signal(&watcher.child, "INT").await?;
    let status = timeout(PATIENCE, watcher.child.wait()).await??;
    assert_eq!(status.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_watcher_without_permission_ends() -> anyhow::Result<()> {
    let (_folder, config, node) = node_with_key("forbidden").await?;
    let token = token(&[
        "--config",
        &config,
        "--channels",
        "log/*",
        "--can",
        "subscribe",
    ])
    .await?;
    let watch = [
        "watch",
        "departures/JFK",
        "--json",
        "--url",
        &node.url(),
        "--token",
        &token,
    ];
    let output = run(command(&watch), b"").await?;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("(forbidden)"),
        "{}",
        stderr(&output)
    );
    let output = run(
        command(&["watch", "departures/JFK", "--url", &node.url()]),
        b"",
    )
    .await?;
    assert!(stderr(&output).contains("--json"), "{}", stderr(&output));
    Ok(())
}

#[tokio::test]
async fn events_are_watched_too() -> anyhow::Result<()> {
    let (_folder, config, node) = node_with_key("events").await?;
    let token = token_for_all(&config).await?;
    let mut watcher = Watcher::start(&node.url(), "log/door", &token)?;
    watcher.next("heartbeat").await?;
    publish(
        &node,
        "log",
        &token,
        "{\"channel\":\"door\",\"data\":\"open\"}",
    )
    .await?;
    assert_eq!(watcher.next("update").await?["data"], "open");
    Ok(())
}

#[tokio::test]
async fn tokens_are_signed_by_a_file_too_and_bounded() -> anyhow::Result<()> {
    let (folder, config, node) = node_with_key("token").await?;
    let secret = folder.0.join("secret").to_string_lossy().into_owned();
    let spec = [
        "--secret-file",
        &secret,
        "--kid",
        "k1",
        "--sub",
        "bob",
        "--channels",
        "departures/{sub}",
        "--can",
        "publish",
        "--ttl",
        "30s",
    ];
    let token = token(&spec).await?;
    let mine = publish(
        &node,
        "departures",
        &token,
        "{\"channel\":\"bob\",\"data\":1}",
    )
    .await?;
    assert_eq!(mine.status.code(), Some(0), "{}", stderr(&mine));
    let other = publish(
        &node,
        "departures",
        &token,
        "{\"channel\":\"eve\",\"data\":1}",
    )
    .await?;
    assert!(
        stderr(&other).contains("line 1: ") && stderr(&other).contains("(forbidden)"),
        "{}",
        stderr(&other)
    );
    for (arguments, reason) in [
        (
            &[
                "--config",
                &config,
                "--channels",
                "a/*",
                "--can",
                "publish",
                "--kid",
                "k2",
            ][..],
            "k1",
        ),
        (
            &["--config", &config, "--channels", "a", "--can", "publish"],
            "stream/name",
        ),
        (
            &["--config", &config, "--channels", "a/*", "--can", "fly"],
            "subscribe or publish",
        ),
        (
            &[
                "--config",
                &config,
                "--channels",
                "a/*",
                "--can",
                "publish",
                "--ttl",
                "1y",
            ],
            "1h",
        ),
        (
            &[
                "--secret-file",
                &config,
                "--channels",
                "a/*",
                "--can",
                "publish",
            ],
            "--kid",
        ),
        (&["--channels", "a/*", "--can", "publish"], "--config"),
    ] {
        let output = run(command(&[&["token"], arguments].concat()), b"").await?;
        assert!(!output.status.success(), "{arguments:?}");
        assert!(
            stderr(&output).contains(reason),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_file_is_judged_all_at_once() -> anyhow::Result<()> {
    let folder = Folder::new("check")?;
    let bad = folder.write(
        "bad.toml",
        r#"
        listen = { address = "nowhere", workers = 0 }
        session = { heartbeat = "soon" }
        limits = { memory = -1, colour = "red" }
        "#,
    )?;
    let output = run(command(&["config", "check", &bad]), b"").await?;
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    for key in [
        "listen.address",
        "listen.workers",
        "session.heartbeat",
        "limits.memory",
        "limits.colour",
    ] {
        let lines = said.lines().filter(|line| line.starts_with(key)).count();
        assert_eq!(lines, 1, "{key} in {said}");
    }
    assert_eq!(said.lines().count(), 5, "{said}");
    let defaults = run(command(&["config", "default"]), b"").await?;
    let good = folder.write("good.toml", std::str::from_utf8(&defaults.stdout)?)?;
    let output = run(command(&["config", "check", &good]), b"").await?;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_named() -> anyhow::Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    for arguments in [
        ["serve", "--listen", &address, "--admin", "127.0.0.1:0"],
        ["serve", "--listen", "127.0.0.1:0", "--admin", &address],
    ] {
        let output = run(command(&arguments), b"").await?;
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(
            said.contains("can't listen on") && said.contains(&address),
            "{said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_signal_says_goodbye_first() -> anyhow::Result<()> {
    let (_folder, config, node) = node_with_key("drain").await?;
    let token = token_for_all(&config).await?;
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let (mut socket, _) = connect_async(format!("ws://{}/v1/ws", node.address)).await?;
        let auth = serde_json::json!([
            { "id": 1, "op": "auth", "token": token },
            { "id": 2, "op": "subscribe", "channel": "departures/JFK" }
        ]);
        socket.send(Message::text(auth.to_string())).await?;
        wait_for(&mut socket, "snapshot").await?;
        sockets.push(socket);
    }
    node.signal("TERM").await?;
    for socket in &mut sockets {
        let bye = wait_for(socket, "bye").await?;
        assert_eq!(bye["code"], "draining");
        let close = loop {
            match timeout(PATIENCE, socket.next())
                .await?
                .context("no close frame")??
            {
                Message::Close(close) => break close.context("a close frame without a code")?,
                _ => continue,
            }
        };
        assert_eq!(u16::from(close.code), 1012);
    }
    let (status, said) = node.ended().await?;
    assert_eq!(status.code(), Some(0), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_at_once() -> anyhow::Result<()> {
    let folder = Folder::new("twice")?;
    let config = folder.write(
        "tidegate.toml",
        "access.anonymous = { channels = [\"*\"], can = [\"subscribe\"] }\nsession.drain = { window = \"5m\", deadline = \"10m\" }",
    )?;
    let node = Node::start(&["--config", &config]).await?;
    let (mut socket, _) = connect_async(format!("ws://{}/v1/ws", node.address)).await?;
    wait_for(&mut socket, "hello").await?;
    node.signal("TERM").await?;
    // Admission is closed first: so the first signal has been heard once nobody new is let in.
    let refused = async {
        while connect_async(format!("ws://{}/v1/ws", node.address))
            .await
            .is_ok()
        {}
    };
    timeout(PATIENCE, refused).await.context("still let in")?;
    node.signal("INT").await?;
    let (status, said) = node.ended().await?;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("ended at once by a signal"), "{said}");
    Ok(())
}

async fn wait_for<S>(socket: &mut S, op: &str) -> anyhow::Result<Value>
where
    S: StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
{
    let find = async {
        while let Some(message) = socket.next().await {
            if let Message::Text(text) = message? {
                let message: Value = serde_json::from_str(&text)?;
                if message["op"] == op {
                    return Ok(message);
                }
            }
        }
        anyhow::bail!("it ended without {op}")
    };
    timeout(PATIENCE, find)
        .await
        .with_context(|| format!("no {op}"))?
}
