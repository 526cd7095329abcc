//! The daemon: owns every part and runs the loop. The only place where the parts meet.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;
use tracing::{error, info, warn};
use wire::control::{Request, Response};
use wire::report::{EndReason, Phase};

use crate::config::Config;
use crate::descriptors::Descriptors;
use crate::event::{self, Events, Interest, Poller, Repeated, Signal, Signals, Waker};
use crate::log::Log;
use crate::model::{Effect, Model, Vitals};
use crate::net::Context;
use crate::net::control::{Control, ControlId};
use crate::net::listen::{ListenError, Listener};
use crate::net::tcp::Sessions;
use crate::source::Source;
use crate::state::{self, Saver};

/// The one buffer that all reads go through, and so what one event moves at most. HAProxy reads 16 KiB at a time and
/// nginx as much; 64 KiB halves the calls of a bulk transfer and still fits the second-level cache.
const SCRATCH: usize = 64 * 1024;

/// Events that one turn takes from the kernel; the others are taken in the next.
const EVENTS_PER_TURN: usize = 256;

/// How long after the state file could not be written it is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(30);

/// How long an answer, or the end of the daemon, waits for the state file. A disk that takes longer is one that hangs.
const SAVE_PATIENCE: Duration = Duration::from_secs(5);

/// The name of the one service there is.
const SERVICE_NAME: &str = "default";

/// What a handler may use of the daemon, beside the part that it belongs to: a macro, since a method would borrow the
/// other parts, too.
macro_rules! lend {
    ($daemon:expr, $now:expr) => {
        Context { poller: &$daemon.poller, model: &mut $daemon.model, scratch: &mut $daemon.scratch, now: $now }
    };
}

/// The whole daemon.
pub(crate) struct Daemon {
    poller: Poller,
    events: Events,
    scratch: Box<[u8]>,
    signals: Signals,
    log: Log,
    model: Model,
    listeners: Vec<Listener>,
    sessions: Sessions,
    control: Control,
    saver: Saver,
    /// Answers that wait until the change that they tell of is in the state file. There is one for a connection at most.
    unsaved_answers: Vec<Unsaved>,
    save_again: Option<Instant>,
    /// When the sessions that are left are closed.
    stop_at: Option<Instant>,
    /// Until when the end waits for the state file, once the last session is gone.
    last_save_until: Option<Instant>,
    /// A signal has told it to stop: the next one ends it at once.
    signalled: bool,
    unpolled: Repeated,
    watchdog: Option<Watchdog>,
}

/// An answer that waits for the state file.
struct Unsaved {
    number: u64,
    id: ControlId,
    response: Response,
    until: Instant,
}

/// The service manager restarts a loop that stands still.
struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Daemon {
    /// Binds, restores the pool, and is ready to run. The caller holds the locks of the place.
    pub(crate) fn new(config: &Config, signals: Signals, log: Log) -> Result<Self> {
        let now = event::now();
        let descriptors = Descriptors::raise().context("the descriptor limit")?;
        anyhow::ensure!(
            descriptors.sessions > 0,
            "a limit of {} descriptors allows no session; raise it with `ulimit -Hn`",
            descriptors.limit
        );
        let poller = Poller::new().context("epoll")?;
        poller.set(&signals, Source::Signals.key(), &mut Interest::NONE.clone(), Interest::READ).context("signals")?;

        let vitals = Vitals {
            pid: std::process::id(),
            started: now,
            session_limit: descriptors.sessions,
            drain_timeout: config.drain,
            state_file: config.places.state.display().to_string(),
            log: log.target().to_string(),
            unsaved: None,
            longest_turn: Duration::ZERO,
            log_lines_dropped: 0,
        };
        let mut model = Model::new(config.points_per_weight, vitals);
        let kept = state::load(&config.places.state)?;
        // The control socket comes first: it says best that another daemon is there.
        let control = Control::bind(&config.places.socket, |id| Source::Control(id).key())?;
        let listen = config.listen.context("--listen is missing")?;
        let service = model.add_service(SERVICE_NAME, listen);
        let listener = Listener::bind(listen, service).map_err(|error| ListenError::new(listen, error))?;
        model.listening(service, listener.address());
        model.restore(&kept).map_err(|refusal| state::StateError::Broken {
            path: config.places.state.clone(),
            fault: refusal.to_string(),
        })?;
        let waker = Waker::new(&poller, Source::Saver.key()).context("a waker")?;
        let saver = Saver::start(config.places.state.clone(), waker).context("the thread for the state file")?;
        info!(
            listen = %listener.address(),
            socket = %config.places.socket.display(),
            servers = kept.len(),
            descriptors = descriptors.limit,
            sessions = descriptors.sessions,
            "balancer started"
        );
        let mut daemon = Self {
            poller,
            events: Events::with_capacity(EVENTS_PER_TURN),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            signals,
            log,
            model,
            sessions: Sessions::new(config.timeouts, descriptors.sessions, vec![listener.address()], |id, side| {
                Source::Session(id, side).key()
            }),
            listeners: vec![listener],
            control,
            saver,
            unsaved_answers: Vec::new(),
            save_again: None,
            stop_at: None,
            last_save_until: None,
            signalled: false,
            unpolled: Repeated::default(),
            watchdog: sd_notify::watchdog_enabled().map(|limit| Watchdog { every: limit / 2, next: now }),
        };
        daemon.settle(now);
        Ok(daemon)
    }

    /// Runs until it is told to stop and the last session has ended, or their time is over.
    ///
    /// # Errors
    /// When the loop itself failed, or the pool as it was last is not in the state file. The log has it too.
    pub(crate) fn run(mut self) -> Result<()> {
        let result = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error).context("the event loop"),
            }
        };
        let result = result.and_then(|()| match &self.model.vitals.unsaved {
            Some(fault) => Err(anyhow::anyhow!("the pool as it was last could not be saved: {fault}")),
            None => Ok(()),
        });
        match &result {
            Ok(()) => info!("balancer stopped"),
            Err(error) => error!(error = format!("{error:#}"), "balancer stopped"),
        }
        result
    }

    /// One pass of the loop: wait, dispatch, expire, carry out what followed. Whether there is to be another.
    fn turn(&mut self) -> io::Result<bool> {
        let start = event::now();
        let timeout = self.next_deadline().map(|at| at.saturating_duration_since(start));
        self.poller.wait(&mut self.events, timeout)?;
        let now = event::now();
        let ended_before = self.sessions.ended();

        let mut follow = Vec::new();
        for (key, ready) in self.events.iter() {
            let cx = &mut lend!(self, now);
            match Source::of(key) {
                Some(Source::Session(id, side)) => {
                    let served = catch_unwind(AssertUnwindSafe(|| self.sessions.ready(id, side, ready, cx)));
                    if served.is_err() {
                        error!(?id, "a fault in the balancer: its session is closed, the others go on");
                        // Where the fault left it may be a place that cannot be ended in order either.
                        let _ = catch_unwind(AssertUnwindSafe(|| self.sessions.end(id, EndReason::Fault, cx)));
                    }
                }
                Some(Source::Listener(index)) => {
                    if let Some(listener) = self.listeners.get_mut(index as usize) {
                        self.sessions.accept_from(listener, cx);
                    }
                }
                Some(Source::ControlListener) => self.control.accept(cx),
                Some(Source::Control(id)) => {
                    match catch_unwind(AssertUnwindSafe(|| self.control.ready(id, ready, cx))) {
                        Ok(Some(request)) => follow.push(Follow::Request(id, request)),
                        Ok(None) => {}
                        Err(_) => {
                            error!(?id, "a fault in the balancer: its control connection is closed");
                            self.control.close(id);
                        }
                    }
                }
                Some(Source::Signals) => follow.push(Follow::Signals),
                Some(Source::Saver) => follow.push(Follow::Saved),
                None => {}
            }
        }
        for next in follow {
            match next {
                Follow::Request(id, request) => self.serve(id, &request, now),
                Follow::Signals => self.on_signals(now)?,
                Follow::Saved => self.on_saved(now),
            }
        }
        // Before the deadlines, so that a stop which is due ends those who have just arrived, too; and after them.
        let cx = &mut lend!(self, now);
        self.sessions.settle(cx);
        self.expire(now);
        let cx = &mut lend!(self, now);
        self.sessions.settle(cx);
        if self.sessions.ended() > ended_before {
            self.listeners.iter_mut().for_each(Listener::on_relief);
        }
        self.settle(now);
        self.model.vitals.longest_turn = self.model.vitals.longest_turn.max(event::now() - now);
        Ok(!self.is_over(now))
    }

    /// Asks the model, carries out what follows, and answers: at once, or when the change is saved.
    fn serve(&mut self, id: ControlId, request: &Request, now: Instant) {
        self.model.vitals.log_lines_dropped = self.log.dropped_lines();
        let (response, effects) = self.model.apply(request, now);
        if !effects.is_empty() {
            info!(%request, "carried out");
        }
        if matches!(response, Response::Stopping(_)) {
            self.control.hold(id);
        }
        let saved = effects.contains(&Effect::Save).then(|| self.saver.save(self.model.kept()));
        self.carry_out(&effects, now);
        match saved {
            Some(number) => {
                self.unsaved_answers.push(Unsaved { number, id, response, until: now + SAVE_PATIENCE });
            }
            None => self.answer(id, &response, now),
        }
    }

    fn carry_out(&mut self, effects: &[Effect], now: Instant) {
        for effect in effects {
            let cx = &mut lend!(self, now);
            match *effect {
                Effect::Save => {}
                Effect::EndSessions(server, reason) => self.sessions.end_of_server(server, reason, cx),
                Effect::Stop(at) => self.stop(at, now),
            }
        }
    }

    fn answer(&mut self, id: ControlId, response: &Response, now: Instant) {
        let cx = &mut lend!(self, now);
        self.control.answer(id, response, cx);
    }

    /// Takes no new sessions, and sets the end. Who waits in the kernel's queue was let in before and is still served.
    fn stop(&mut self, at: Instant, now: Instant) {
        let limit = at.saturating_duration_since(now);
        info!(sessions = self.sessions.len(), limit_ms = limit.as_millis() as u64, "stopping");
        notify(&[NotifyState::Stopping]);
        for mut listener in std::mem::take(&mut self.listeners) {
            let cx = &mut lend!(self, now);
            if !limit.is_zero() {
                self.sessions.accept_last(&mut listener, cx);
            }
            self.model.accepting(listener.service, false);
        }
        self.stop_at = Some(at);
    }

    fn on_signals(&mut self, now: Instant) -> io::Result<()> {
        while let Some(signal) = self.signals.read()? {
            match signal {
                Signal::HangUp => info!("SIGHUP: there is no file to read again; the log follows its name by itself"),
                Signal::Terminate => {
                    let again = std::mem::replace(&mut self.signalled, true);
                    info!(again, "told to stop by a signal");
                    let (_, effects) = self.model.apply(&Request::Stop { now: again, drain_ms: None }, now);
                    self.carry_out(&effects, now);
                }
            }
        }
        Ok(())
    }

    fn on_saved(&mut self, now: Instant) {
        while let Some(saved) = self.saver.result() {
            self.model.vitals.unsaved = saved.result.err();
            self.save_again = self.model.vitals.unsaved.as_ref().map(|fault| {
                warn!(fault, "the pool could not be saved: what was changed holds until the balancer ends");
                now + SAVE_AGAIN
            });
            self.answer_unsaved(|waiting| waiting.number <= saved.number, now);
        }
    }

    /// Answers those who have waited for the state file, and says whether they have waited in vain.
    fn answer_unsaved(&mut self, is_settled: impl Fn(&Unsaved) -> bool, now: Instant) {
        let settled = self.unsaved_answers.extract_if(.., |waiting| is_settled(waiting));
        for Unsaved { id, mut response, .. } in settled.collect::<Vec<_>>() {
            if let Response::Changed(report) = &mut response {
                report.unsaved.clone_from(&self.model.vitals.unsaved);
            }
            self.answer(id, &response, now);
        }
    }

    fn expire(&mut self, now: Instant) {
        let cx = &mut lend!(self, now);
        self.sessions.expire(cx);
        self.control.expire(now);
        self.listeners.iter_mut().for_each(|listener| listener.expire(now));
        if self.stop_at.is_some_and(|at| at <= now) {
            self.stop_at = None;
            self.sessions.end_all(EndReason::Shutdown, cx);
        }
        if let Some(suppressed) = self.unpolled.expire(now) {
            warn!(suppressed, "epoll had no room for a listener again");
        }
        if self.unsaved_answers.iter().any(|waiting| waiting.until <= now) {
            let fault = format!("{} is not written after {} s", self.model.vitals.state_file, SAVE_PATIENCE.as_secs());
            warn!(fault, "the pool is not saved yet: the disk takes its time");
            self.model.vitals.unsaved = Some(fault);
            self.answer_unsaved(|waiting| waiting.until <= now, now);
        }
        if self.save_again.is_some_and(|at| at <= now) {
            self.save_again = None;
            self.saver.save(self.model.kept());
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now) {
            watchdog.next = now + watchdog.every;
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// Tells the poller what the listeners wait for now. One that epoll has no room for comes back after a pause.
    fn settle(&mut self, now: Instant) {
        let room = self.sessions.have_room();
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let key = Source::Listener(u32::try_from(index).expect("a few listeners")).key();
            let accepting = listener.settle(&self.poller, key, room, now).unwrap_or_else(|error| {
                if self.unpolled.on_event(now) {
                    warn!(%error, "epoll has no room for a listener: clients wait in the kernel's queue");
                }
                false
            });
            self.model.accepting(listener.service, accepting);
        }
        let cx = &mut lend!(self, now);
        if let Err(error) = self.control.settle_listener(Source::ControlListener.key(), cx)
            && self.unpolled.on_event(now)
        {
            warn!(%error, "epoll has no room for the control socket");
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let listeners = self.listeners.iter().filter_map(Listener::next_deadline);
        let unsaved = self.unsaved_answers.iter().map(|waiting| waiting.until).min();
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        let own =
            [self.stop_at, self.save_again, self.last_save_until, unsaved, watchdog, self.unpolled.next_deadline()];
        let parts = [self.sessions.next_deadline(), self.control.next_deadline()];
        listeners.chain(own.into_iter().flatten()).chain(parts.into_iter().flatten()).min()
    }

    /// Told to stop, with no session left and the pool in the state file; for the file it waits so long and no longer.
    fn is_over(&mut self, now: Instant) -> bool {
        if self.model.phase() != Phase::Stopping || self.sessions.len() > 0 {
            return false;
        }
        if self.last_save_until.is_none() {
            self.last_save_until = Some(now + SAVE_PATIENCE);
            if self.model.vitals.unsaved.is_some() {
                self.saver.save(self.model.kept());
            }
        }
        if self.saver.is_busy() && self.last_save_until.is_some_and(|until| now < until) {
            return false;
        }
        if self.saver.is_busy() {
            self.model.vitals.unsaved.get_or_insert_with(|| "the disk takes its time".to_owned());
        }
        true
    }
}

/// What an event asks of the daemon itself, after the events of the turn.
enum Follow {
    Request(ControlId, Request),
    Signals,
    Saved,
}

/// Tells the service manager, if there is one.
pub(crate) fn notify(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        warn!(%error, "the service manager could not be told");
    }
}
