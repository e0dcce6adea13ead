//! A client: it follows some channels by one manner, is cut, and goes on elsewhere with its token.
//!
//! Does: connects to any node, subscribes with what it holds, takes what comes, leaves after a while or when nothing comes any
//! more. Owns: its sockets, what it holds, its history. Never knows: the truth, which nodes are well.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidegate::model::{Mode, Token};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    held::{Held, Lease},
    history::{Happened, History, Manner, THE_END, What},
    message::{Message, Outcome},
    scene::{Ms, Scene},
};
use crate::simulation::Dice;

/// Between two connections, at most.
const PAUSE_MS: usize = 300;
/// How long a connection lasts that its client cuts.
const STAY_MS: std::ops::Range<usize> = 150..6000;

/// What all clients are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Come and go.
    Roam,
    /// Stay, so that all can come to rest.
    Settle,
    /// Leave.
    Stop,
}

/// The run's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Ms {
        Ms::try_from(self.0.elapsed().as_millis()).unwrap_or(Ms::MAX)
    }
}

/// What a client is like.
#[derive(Clone, Debug)]
pub(super) struct Character {
    pub(super) number: usize,
    pub(super) manner: Manner,
    pub(super) channels: Vec<usize>,
    /// It never leaves by itself.
    pub(super) is_steady: bool,
    /// It reads late.
    pub(super) dawdles: bool,
    pub(super) max_rate: Option<f64>,
}

impl Character {
    /// One of many: most come over WebSocket, some by SSE, a few poll.
    pub(super) fn roll(number: usize, scene: &Scene, dice: &mut Dice) -> Self {
        let manner = match number % 10 {
            0..6 => Manner::WebSocket,
            6..9 => Manner::Sse,
            _ => Manner::Poll,
        };
        let stream = match manner {
            // Events are no views.
            Manner::Poll => dice.below(scene.streams.len() - 1),
            _ => dice.below(scene.streams.len()),
        };
        // Of one stream, since an SSE id has one token for all.
        let mut of_stream: Vec<usize> = scene.streams[stream].channels.clone().collect();
        let wanted = if manner == Manner::Poll {
            1
        } else {
            1 + dice.below(3)
        };
        let mut channels = Vec::new();
        while channels.len() < wanted && !of_stream.is_empty() {
            channels.push(of_stream.swap_remove(dice.below(of_stream.len())));
        }
        if manner == Manner::WebSocket && dice.percent(40) {
            let any = dice.below(scene.channels.len());
            if !channels.contains(&any) {
                channels.push(any);
            }
        }
        let is_view = channels
            .iter()
            .all(|&channel| scene.stream_of(channel).mode == Mode::View);
        Self {
            number,
            manner,
            channels,
            is_steady: dice.percent(20),
            dawdles: dice.percent(8),
            max_rate: (is_view && dice.percent(25)).then_some(2.0),
        }
    }
}

/// What a client holds, and what it went through.
pub(super) struct State {
    pub(super) history: History,
    helds: Vec<Held>,
    /// The last id of the event stream.
    id: Option<Token>,
    lease: Lease,
    began: Ms,
}

/// A client, shared between its task and who asks whether it is at rest.
pub(super) struct Client {
    pub(super) character: Character,
    pub(super) scene: Arc<Scene>,
    pub(super) addresses: Vec<SocketAddr>,
    clock: Clock,
    state: Mutex<State>,
}

impl Client {
    pub(super) fn new(
        character: Character,
        scene: Arc<Scene>,
        addresses: Vec<SocketAddr>,
        clock: Clock,
    ) -> Self {
        let helds = character
            .channels
            .iter()
            .map(|&channel| Held::new(scene.stream_of(channel).mode));
        let state = State {
            helds: helds.collect(),
            history: History {
                client: character.number,
                manner: character.manner,
                channels: character.channels.clone(),
                happened: Vec::new(),
            },
            id: None,
            lease: Lease::OF_POLLS,
            began: 0,
        };
        Self {
            character,
            scene,
            addresses,
            clock,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that happened to it.
    pub(super) fn into_history(self: Arc<Self>) -> History {
        let mut state = self.state();
        let empty = History {
            client: self.character.number,
            manner: self.character.manner,
            channels: Vec::new(),
            happened: Vec::new(),
        };
        std::mem::replace(&mut state.history, empty)
    }

    /// Asks of each of its channels; the first answer that is one.
    pub(super) fn find<T>(&self, mut look: impl FnMut(usize, &Held) -> Option<T>) -> Option<T> {
        let state = self.state();
        let mut seats = self.character.channels.iter().zip(&state.helds);
        seats.find_map(|(&channel, held)| look(channel, held))
    }

    /// Lives until it is told to stop.
    pub(super) async fn live(self: Arc<Self>, mut dice: Dice, mut orders: watch::Receiver<Order>) {
        while *orders.borrow() != Order::Stop {
            let node = dice.below(self.addresses.len());
            let why = self.stay(node, &mut dice, &mut orders).await;
            self.ended(why);
            let pause = Duration::from_millis(dice.below(PAUSE_MS) as u64);
            tokio::select! {
                () = sleep(pause) => {}
                _ = orders.wait_for(|order| *order == Order::Stop) => {}
            }
        }
    }

    /// One connection to its end.
    async fn stay(
        &self,
        node: usize,
        dice: &mut Dice,
        orders: &mut watch::Receiver<Order>,
    ) -> &'static str {
        let span = STAY_MS.start + dice.below(STAY_MS.len());
        let leaves = Duration::from_millis(span as u64);
        let leaves = sleep(if self.character.is_steady {
            Duration::from_secs(1 << 30)
        } else {
            leaves
        });
        tokio::pin!(leaves);
        let session = self.session(node, dice.clone());
        dice.next();
        tokio::pin!(session);
        loop {
            let order = *orders.borrow_and_update();
            tokio::select! {
                why = &mut session => return why,
                () = &mut leaves, if order == Order::Roam => return "it left",
                changed = orders.changed() => {
                    if changed.is_err() || *orders.borrow() == Order::Stop {
                        return THE_END;
                    }
                }
            }
        }
    }

    async fn session(&self, node: usize, dice: Dice) -> &'static str {
        let address = self.addresses[node];
        match self.character.manner {
            Manner::WebSocket => super::sockets::websocket(self, node, address, dice).await,
            Manner::Sse => super::sockets::sse(self, node, address).await,
            Manner::Poll => super::sockets::poll(self, node, address, dice).await,
        }
    }

    /// It begins to connect. Gives what it hands over, by channel.
    pub(super) fn begin(&self, node: usize) -> Vec<(usize, Option<Token>)> {
        let mut state = self.state();
        state.began = self.clock.now();
        let manner = self.character.manner;
        let mut tokens = Vec::new();
        for (at, &channel) in self.character.channels.iter().enumerate() {
            let token = match manner {
                Manner::Sse => state.id.clone(),
                _ => Some(state.helds[at].token.clone())
                    .filter(|token| !token.positions().is_empty()),
            };
            let held = &mut state.helds[at];
            if token.is_none() {
                held.forget();
            } else if manner != Manner::Poll {
                held.cut();
            }
            tokens.push((channel, token));
        }
        let what = What::Began {
            node,
            tokens: tokens.clone(),
        };
        let at = state.began;
        state.history.happened.push(Happened { at, what });
        tokens
    }

    /// A message came, or what makes no sense. Whether it goes on.
    pub(super) fn heard(&self, read: Result<Option<Message>, String>) -> bool {
        let now = self.clock.now();
        let mut state = self.state();
        let message = match read {
            Ok(Some(message)) => message,
            Ok(None) => return true,
            Err(text) => {
                let what = What::Garbled(text);
                state.history.happened.push(Happened { at: now, what });
                return false;
            }
        };
        let mut too_slow = false;
        if let Message::Hello {
            now_ms,
            live_for_ms,
        } = message
        {
            state.lease = Lease::new(state.began, now_ms, live_for_ms);
            // All proofs of this connection will seem older by as much as the handshake took: it would hardly ever be live.
            too_slow = now - state.began > live_for_ms / 4;
        }
        let lease = state.lease;
        let seat = message.channel().and_then(|channel| {
            let mut channels = self.character.channels.iter();
            channels.position(|known| *known == channel)
        });
        if let Some(held) = seat.and_then(|seat| state.helds.get_mut(seat)) {
            held.take(&message, now, lease);
        }
        let refused = matches!(
            message,
            Message::Outcome {
                outcome: Outcome::Refused,
                ..
            }
        );
        let what = What::Heard(message);
        state.history.happened.push(Happened { at: now, what });
        !refused && !too_slow
    }

    /// The event stream said an id; an empty one takes back the one before.
    pub(super) fn identified(&self, id: &str) {
        let now = self.clock.now();
        let mut state = self.state();
        if id.is_empty() {
            state.id = None;
            return;
        }
        match id.parse() {
            Ok(token) => state.id = Some(token),
            Err(_) => {
                let what = What::Garbled(format!("id: {id}"));
                state.history.happened.push(Happened { at: now, what });
            }
        }
    }

    fn ended(&self, why: &'static str) {
        let now = self.clock.now();
        let mut state = self.state();
        if self.character.manner != Manner::Poll {
            state.helds.iter_mut().for_each(Held::cut);
        }
        let what = What::Ended(why);
        state.history.happened.push(Happened { at: now, what });
    }
}
