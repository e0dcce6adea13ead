//! `tidegate watch`: a channel → a live view in the terminal.
//!
//! Does: composes the follower, which folds what the gateway says into [`view::View`], with the screen, which shows it;
//! ends at a signal. Owns: the terminal while it runs. Never knows: sockets, the protocol.
//! Keeps: the screen is redrawn ten times a second at most, however many updates come.

mod follow;
mod screen;
mod view;

use std::{
    cell::RefCell,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{block_on, remote::Remote, serve::Signals};
use crate::model::Channel;
use screen::Size;
use view::View;

/// Between two looks at whether there is something new to show.
const REDRAW: Duration = Duration::from_millis(100);
/// Ages are shown anew after so many looks without news.
const IDLE_LOOKS: u32 = 5;

#[derive(clap::Args, Debug)]
pub(super) struct Watch {
    /// The channel, as stream/name
    channel: Channel,
    #[command(flatten)]
    remote: Remote,
    /// Prints the messages as they come, a line each, instead of a screen
    #[arg(long)]
    json: bool,
}

impl Watch {
    /// Watches until a signal ends it, or the gateway says that it is of no use.
    pub(super) fn run(self) -> Result<(), String> {
        if !self.json && !io::stdout().is_terminal() {
            return Err("standard output is no terminal: ask for lines by --json".to_owned());
        }
        block_on(self.watch())
    }

    async fn watch(self) -> Result<(), String> {
        let mut signals = Signals::new()?;
        let view = RefCell::new(View::new(self.channel.clone(), Instant::now()));
        let follow = follow::follow(&self.remote, &self.channel, &view, self.json);
        if self.json {
            return tokio::select! {
                biased;
                () = signals.next() => Ok(()),
                result = follow => result,
            };
        }
        let _terminal = Terminal::take()?;
        tokio::select! {
            biased;
            () = signals.next() => Ok(()),
            result = follow => result,
            result = redraw(&view) => result,
        }
    }
}

async fn redraw(view: &RefCell<View>) -> Result<(), String> {
    let mut looks = interval(REDRAW);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle = IDLE_LOOKS;
    loop {
        looks.tick().await;
        idle += 1;
        if !view.borrow_mut().take_news() && idle < IDLE_LOOKS {
            continue;
        }
        idle = 0;
        let frame = screen::draw(&view.borrow(), Instant::now(), size());
        print(&frame)?;
    }
}

/// The terminal's size; a terminal that does not tell has the usual one.
fn size() -> Size {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size {
            columns: size.ws_col.into(),
            lines: size.ws_row.into(),
        },
        _ => Size {
            columns: 80,
            lines: 24,
        },
    }
}

fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| format!("can't write to the terminal: {error}"))
}

/// The terminal's other screen, without a cursor; given back at the end.
struct Terminal;

impl Terminal {
    fn take() -> Result<Self, String> {
        print("\x1b[?1049h\x1b[?25l")?;
        Ok(Self)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no tidying.
        print("\x1b[?25h\x1b[?1049l").unwrap_or_default();
    }
}
