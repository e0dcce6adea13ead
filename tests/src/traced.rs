//! The program as a process whose system calls are counted from outside.
//!
//! Does: starts `tidegate serve` under ptrace, as a debugger would, and counts the calls of all its threads. Owns: the process,
//! and the thread that traces it; neither outlives its [`Traced`]. Never knows: what the calls are for. Keeps: a process that
//! may not be traced is an error, and so is a kernel that does not tell its calls: never a count of nothing.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use anyhow::{Context, bail};
use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::binary::{PATIENCE, command};

/// What `PTRACE_GETEVENTMSG` says where a call begins (`PTRACE_EVENTMSG_SYSCALL_ENTRY`, Linux 5.3).
const ENTRY: libc::c_long = 1;

/// Calls, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Calls(BTreeMap<libc::c_long, u64>);

impl Calls {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.0.values().sum()
    }

    /// Those that write to a socket, a pipe or a file.
    #[must_use]
    pub fn writes(&self) -> u64 {
        let kinds = [
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
            libc::SYS_write,
            libc::SYS_writev,
        ];
        kinds.iter().filter_map(|kind| self.0.get(kind)).sum()
    }

    /// Those that were made since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let more = |(&number, &count): (&libc::c_long, &u64)| {
            (number, count - before.0.get(&number).copied().unwrap_or(0))
        };
        Self(
            self.0
                .iter()
                .map(more)
                .filter(|(_, count)| *count > 0)
                .collect(),
        )
    }
}

/// A running `tidegate serve` that is traced.
pub struct Traced {
    /// Where clients connect.
    pub address: SocketAddr,
    calls: Arc<Mutex<Calls>>,
    process: Pid,
    tracer: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Traced {
    /// Starts it on free ports with this environment, and waits until it listens.
    ///
    /// # Errors
    /// When it does not listen, or the kernel does not let it be traced.
    pub fn start(environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        serve.envs(environment.iter().copied());
        serve.stderr(std::process::Stdio::inherit());
        let calls = Arc::<Mutex<Calls>>::default();
        let (told, started) = mpsc::channel();
        let counted = calls.clone();
        // All requests about a traced process come from the thread that began to trace it.
        let tracer = std::thread::spawn(move || {
            let child = serve.into_std().spawn().context("it can't be started")?;
            trace(child, &counted, &told)
        });
        let Ok((process, stdout)) = started.recv_timeout(PATIENCE) else {
            let ended = tracer.join();
            let Ok(Err(error)) = ended else {
                bail!("it was not traced within {PATIENCE:?}");
            };
            return Err(error);
        };
        let mut traced = Self {
            address: ([127, 0, 0, 1], 0).into(),
            calls,
            process,
            tracer: Some(tracer),
        };
        let mut first = String::new();
        BufReader::new(stdout).read_line(&mut first)?;
        let said = first
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("http://"));
        traced.address = said
            .with_context(|| format!("it does not listen: {first}"))?
            .parse()?;
        Ok(traced)
    }

    /// What it has called until now.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended by itself; its tracer waits for its end in either case.
        kill(self.process, Signal::SIGKILL).unwrap_or_default();
        if let Some(Err(error)) = self.tracer.take().and_then(|tracer| tracer.join().ok()) {
            eprintln!("tracing has failed: {error:#}");
        }
    }
}

fn trace(
    mut child: Child,
    calls: &Mutex<Calls>,
    told: &mpsc::Sender<(Pid, ChildStdout)>,
) -> anyhow::Result<()> {
    let process = Pid::from_raw(i32::try_from(child.id())?);
    let stdout = child.stdout.take().context("no standard output")?;
    if let Err(error) = seize(process) {
        child.kill().and_then(|()| child.wait())?;
        return Err(error);
    }
    if told.send((process, stdout)).is_err() {
        child.kill()?;
    }
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..) if ended == process => {
                return Ok(());
            }
            WaitStatus::PtraceSyscall(thread) => {
                if ptrace::getevent(thread) == Ok(ENTRY) {
                    count(process, thread, calls)?;
                }
                go_on(thread, None)?;
            }
            WaitStatus::PtraceEvent(thread, ..) => go_on(thread, None)?,
            WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal))?,
            _ => {}
        }
    }
}

/// Begins to trace all threads of a process, and those that they make.
fn seize(process: Pid) -> anyhow::Result<()> {
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    let mut seized = Vec::new();
    loop {
        let before = seized.len();
        for entry in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = Pid::from_raw(entry?.file_name().to_string_lossy().parse()?);
            if seized.contains(&thread) {
                continue;
            }
            match ptrace::seize(thread, options) {
                Ok(()) => ptrace::interrupt(thread)?,
                // A thread that another one made, which was traced already, is traced from its begin; one may have ended.
                Err(Errno::EPERM | Errno::ESRCH) if before > 0 || !seized.is_empty() => {}
                Err(error) => bail!(
                    "the kernel does not let this test trace a process of its own ({error}): it counts system calls by ptrace, \
                     which a container may need --cap-add SYS_PTRACE for, or a seccomp profile that permits it"
                ),
            }
            seized.push(thread);
        }
        if seized.len() == before {
            return Ok(());
        }
    }
}

/// The call that a thread begins: the first word of its `syscall` file. A thread that is killed meanwhile begins none.
fn count(process: Pid, thread: Pid, calls: &Mutex<Calls>) -> anyhow::Result<()> {
    let path = format!("/proc/{process}/task/{thread}/syscall");
    let text = match fs::read_to_string(&path) {
        Ok(text) if text.trim() != "running" => text,
        Ok(_) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("{path} tells a call's number")),
    };
    let number = text.split_ascii_whitespace().next();
    let number = number.and_then(|word| word.parse().ok());
    let number = number.with_context(|| format!("{path}: {text}"))?;
    let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
    *calls.0.entry(number).or_default() += 1;
    Ok(())
}

fn go_on(thread: Pid, signal: Option<Signal>) -> anyhow::Result<()> {
    match ptrace::syscall(thread, signal) {
        // It was killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
