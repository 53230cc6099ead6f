//! The live view: looks at everything a few times a second, draws it, and does what keys say.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use crossterm::event::{self, Event as TerminalEvent, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use runtime::{signal::Shutdown, task};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::model::{Gatherer, Model};
use crate::{
    args::RunArgs,
    cluster::RouteName,
    cold_start::millis,
    request::{Load, MAX_LOAD},
    timeline::unix_micros,
    world::{ScaledRoute, World},
};

pub mod draw;
pub mod model;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// How often the keyboard's thread asks whether it is still wanted.
const KEYS: Duration = Duration::from_millis(100);
/// Keys and answers that may wait.
const MAX_WAITING: usize = 32;
/// How much `+` and `-` change the load.
const LOAD_STEP: usize = 2;

/// What the user has set.
struct Controls {
    chosen: Option<RouteName>,
    concurrency: usize,
    load: Option<Load>,
    load_path: String,
    reply: String,
    replies: mpsc::Sender<String>,
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Request,
    Load,
    More,
    Less,
    Up,
    Down,
    Quit,
}

/// Gives the terminal back, whatever happens.
struct Screen(DefaultTerminal);

/// Shows the view until the user quits or the process is told to end.
pub async fn run(world: &World, args: &RunArgs, shutdown: &mut Shutdown) -> anyhow::Result<()> {
    let mut screen = Screen(ratatui::try_init().context("cannot use the terminal")?);
    let (replies, mut answers) = mpsc::channel(MAX_WAITING);
    let (mut keys, _keyboard) = keyboard().context("cannot read keys")?;
    let mut gatherer = Gatherer::new(unix_micros());
    let mut controls = Controls {
        chosen: None,
        concurrency: args.load,
        load: None,
        load_path: args.load_path.clone(),
        reply: String::new(),
        replies,
    };
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            Some(reply) = answers.recv() => controls.reply = reply,
            order = keys.recv() => match order {
                Some(Order::Quit) | None => return Ok(()),
                Some(order) => controls.obey(order, world),
            },
            () = shutdown.requested() => return Ok(()),
        }
        let state = world.state.fetch().await.ok();
        let load = controls.load.as_ref().map(|load| (controls.concurrency, load));
        let mut model: Model = gatherer.gather(world, state.as_ref(), controls.chosen.as_ref(), load);
        model.reply.clone_from(&controls.reply);
        screen.0.draw(|frame| draw::draw(frame, &model)).context("cannot draw")?;
    }
}

/// Reads keys on a thread of its own, since reading blocks. The thread ends with the returned guard.
fn keyboard() -> io::Result<(mpsc::Receiver<Order>, Unwanted)> {
    let (orders, receiver) = mpsc::channel(MAX_WAITING);
    let unwanted = Arc::new(AtomicBool::new(false));
    let guard = Unwanted(Arc::clone(&unwanted));
    thread::Builder::new().name("keyboard".to_owned()).spawn(move || {
        while !unwanted.load(Relaxed) {
            let order = match event::poll(KEYS) {
                Ok(true) => event::read().ok().and_then(|event| order(&event)),
                Ok(false) => None,
                Err(_gone) => return,
            };
            if let Some(order) = order
                && orders.blocking_send(order).is_err()
            {
                return;
            }
        }
    })?;
    Ok((receiver, guard))
}

/// Ends the keyboard's thread.
struct Unwanted(Arc<AtomicBool>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn order(event: &TerminalEvent) -> Option<Order> {
    let TerminalEvent::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else { return None };
    match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Some(Order::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Order::Quit),
        KeyCode::Char('r') => Some(Order::Request),
        KeyCode::Char('l') => Some(Order::Load),
        KeyCode::Char('+' | '=') => Some(Order::More),
        KeyCode::Char('-') => Some(Order::Less),
        KeyCode::Up | KeyCode::Char('k') => Some(Order::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Order::Down),
        _ => None,
    }
}

// === impl Controls ===

impl Controls {
    fn obey(&mut self, order: Order, world: &World) {
        let routes = world.scaled_routes();
        let at = routes.iter().position(|route| Some(&route.name) == self.chosen.as_ref()).unwrap_or(0);
        let Some(route) = routes.get(at) else { return };
        match order {
            Order::Request => self.request(world, route),
            Order::Load if self.load.is_some() => self.load = None,
            Order::Load => self.start_load(world, route),
            Order::More => self.change_load(world, route, (self.concurrency + LOAD_STEP).min(MAX_LOAD)),
            Order::Less => self.change_load(world, route, self.concurrency.saturating_sub(LOAD_STEP).max(1)),
            Order::Up => self.choose(&routes, at.saturating_sub(1)),
            Order::Down => self.choose(&routes, (at + 1).min(routes.len() - 1)),
            Order::Quit => {}
        }
    }

    fn choose(&mut self, routes: &[ScaledRoute], at: usize) {
        self.chosen = routes.get(at).map(|route| route.name.clone());
        self.load = None;
    }

    fn change_load(&mut self, world: &World, route: &ScaledRoute, concurrency: usize) {
        self.concurrency = concurrency;
        if self.load.is_some() {
            self.start_load(world, route);
        }
    }

    fn start_load(&mut self, world: &World, route: &ScaledRoute) {
        self.load = Some(Load::start(&world.requester, &route.address, &self.load_path, self.concurrency));
    }

    fn request(&mut self, world: &World, route: &ScaledRoute) {
        self.reply = format!("a request to {} is on its way …", route.name.key);
        let (requester, address, replies) = (world.requester.clone(), route.address.clone(), self.replies.clone());
        task::spawn("request", async move {
            let reply = match requester.send(&address, "").await {
                Ok(reply) => {
                    let cold =
                        reply.cold.map_or("no X-KEDA-HTTP-Cold-Start".to_owned(), |cold| format!("cold start: {cold}"));
                    let took = millis(u64::try_from(reply.took.as_micros()).unwrap_or(u64::MAX));
                    format!("{} after {took}, {cold}: {}", reply.status, reply.line)
                }
                Err(error) => error.to_string(),
            };
            // The view has ended; nobody is left to read it.
            let _ = replies.try_send(reply);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_screen_says() {
        let press = |code, modifiers| TerminalEvent::Key(KeyEvent::new(code, modifiers));
        for (code, expected) in [
            (KeyCode::Char('r'), Some(Order::Request)),
            (KeyCode::Char('l'), Some(Order::Load)),
            (KeyCode::Char('+'), Some(Order::More)),
            (KeyCode::Up, Some(Order::Up)),
            (KeyCode::Char('q'), Some(Order::Quit)),
            (KeyCode::Char('c'), None),
        ] {
            assert_eq!(order(&press(code, KeyModifiers::NONE)), expected);
        }
        assert_eq!(order(&press(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Order::Quit));
        assert_eq!(order(&TerminalEvent::FocusLost), None);
    }
}
