//! The daemon: owns every part and runs the loop. The only place where the parts meet. `reload` has what is done when the
//! configuration file is read again, `listening` where services listen.

/// What a handler may use of the daemon, beside the part that it belongs to: a macro, since a method would borrow the
/// other parts, too.
macro_rules! lend {
    ($daemon:expr, $now:expr) => {
        Context { poller: &$daemon.poller, model: &mut $daemon.model, scratch: &mut $daemon.scratch, now: $now }
    };
}

mod listening;
mod reload;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use slotmap::SlotMap;
use tracing::{debug, error, info, warn};
use wire::control::{Change, Refusal, Removal, Request, Response};
use wire::difference::{Difference, differences};
use wire::report::{EndReason, HealthState, Phase, SessionReport};
use wire::settings::Settings;

use crate::config::Config;
use crate::descriptors::Descriptors;
use crate::event::{self, Events, Interest, Poller, Repeated, Sent, Signal, Signals, Waker, Watch};
use crate::loader::Loader;
use crate::log::{self, Log};
use crate::model::{
    AccessByService, Effect, HealthNews, Model, PassedOver, Remade, ServerId, SessionFilter, Starting, Vitals, prepare,
    what_goes_with,
};
use crate::net::Context;
use crate::net::asker::Asker;
use crate::net::control::{Control, ControlId};
use crate::net::listen::{Listener, ListenerId};
use crate::net::probe::Probes;
use crate::net::tcp::{SessionId, Sessions};
use crate::net::udp::{FlowId, Flows};
use crate::notifier::{self, News, Notifier};
use crate::reader::{self, Reader, Readout, Said};
use crate::source::Source;
use crate::state::{self, Kept, Saver};
use crate::teller::{Long, Teller};
use listening::{Bound, bind};
use reload::{Asked, Loading, Reading, Reloading, ToRead};

/// The one buffer that all reads go through, and so what one event moves at most. HAProxy reads 16 KiB at a time and
/// nginx as much; 64 KiB halves the calls of a bulk transfer and still fits the second-level cache.
const SCRATCH: usize = 64 * 1024;

/// Events that one turn takes from the kernel; the others are taken in the next.
const EVENTS_PER_TURN: usize = 256;

/// Turns in a row whose events were as many as one takes, after which deadlines are looked at all the same. Until then it is
/// heard first what has come: after the process stood still it may have come in time, and be dealt with late.
const MOST_FULL_TURNS: u32 = 32;

/// How long after the state file could not be written it is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(30);

/// How long an answer, or the end of the daemon, waits for the state file. A disk that takes longer is one that hangs.
const SAVE_PATIENCE: Duration = Duration::from_secs(5);

/// Listeners that the first line of the log names.
const MOST_NAMED: usize = 8;

/// Signals that one turn takes; whoever sends them without a pause holds nobody up.
const SIGNALS_PER_TURN: usize = 8;

/// Values that a line of the log names of those that a change or a file has changed.
const MOST_DIFFERENCES: usize = 20;

/// Rows of the state file that have no effect, said in this many lines at most.
const MOST_STRAYS_SAID: usize = 20;

/// The whole daemon.
pub(crate) struct Daemon {
    poller: Poller,
    events: Events,
    scratch: Box<[u8]>,
    signals: Signals,
    log: Log,
    notifier: Notifier,
    descriptors: Descriptors,
    model: Model,
    listeners: SlotMap<ListenerId, Listener>,
    sessions: Sessions,
    flows: Flows,
    control: Control,
    probes: Probes,
    saver: Saver,
    reader: Reader,
    loader: Loader,
    teller: Teller,
    config_file: Option<PathBuf>,
    watch: Option<Watch>,
    /// The file is to be watched.
    watches: bool,
    /// When the file is read without being asked for it by command, and why.
    read_at: Option<(Instant, Asked)>,
    /// The file is being read.
    reading: Option<Reading>,
    /// What is to be read then. There is one for a connection at most, and one for a signal.
    to_read: VecDeque<ToRead>,
    /// What was read, and waits until the thread of rings is free.
    to_prepare: VecDeque<(Reloading, Box<Readout>)>,
    /// What a file says is being prepared, or a ring is being made.
    loading: Option<Loading>,
    /// The number of the last order for that.
    loads: u64,
    /// Changes that are still to be carried out, in their order, and when they came. There is one for a connection at most.
    postponed: VecDeque<(Instant, ControlId, Request)>,
    /// When a listener that waits for its rate opens.
    opens_at: Option<Instant>,
    /// Answers that wait until the change that they tell of is in the state file. There is one for a connection at most.
    unsaved_answers: Vec<Unsaved>,
    /// Answers that wait until the last session has ended that they count. There is one for a connection at most.
    unended_answers: Vec<Unended>,
    save_again: Option<Instant>,
    /// When the sessions that are left are closed.
    stop_at: Option<Instant>,
    /// Until when the end waits for the state file, once the last session is gone.
    last_save_until: Option<Instant>,
    /// A signal has told it to stop: the next one ends it at once.
    signalled: bool,
    unpolled: Repeated,
    watchdog: Option<Watchdog>,
    /// Turns in a row that were full of events.
    full_turns: u32,
}

/// An answer that waits for the state file.
struct Unsaved {
    number: u64,
    id: ControlId,
    response: Response,
    until: Instant,
}

/// An answer that waits for the ends of sessions.
struct Unended {
    id: ControlId,
    response: Response,
    /// Ends of sessions, and of flows, with which the last of its own has come.
    sessions: u64,
    flows: u64,
}

/// The service manager restarts a loop that stands still.
struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Daemon {
    /// Binds, restores the pool, and is ready to run. The caller holds the locks of the place.
    pub(crate) fn new(config: &Config, signals: Signals, log: Log, notifier: Notifier) -> Result<Self> {
        let now = event::now();
        let descriptors = Descriptors::raise().context("the descriptor limit")?;
        anyhow::ensure!(
            descriptors.sessions(1) > 0,
            "a limit of {} descriptors allows no session; raise it with `ulimit -Hn`",
            descriptors.limit
        );
        let poller = Poller::new().context("epoll")?;
        poller.set(&signals, Source::Signals.key(), &mut Interest::NONE.clone(), Interest::READ).context("signals")?;

        let told = reader::said_at_start(config).map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        let vitals = Vitals {
            pid: std::process::id(),
            started: now,
            started_at: log::time_of_day(),
            session_limit: descriptors.sessions(1),
            drain_timeout: config.drain,
            config_file: config.file.as_ref().filter(|_| told.has_file).map(|file| file.display().to_string()),
            reload_failure: None,
            last_reload: None,
            state_file: config.places.state.display().to_string(),
            log: log.target().to_string(),
            unsaved: None,
            longest_turn: Duration::ZERO,
            log_lines_dropped: 0,
        };
        let Said { settings: said, watch: watched, has_file, read, own } = told;
        let kept = state::load(&config.places.state)?;
        let (before, present) = kept.apply(&said);
        warn_of_strays(&kept, &said);
        let prepared =
            prepare(&before, &present, said.clone(), Starting::new(), &PassedOver::new()).or_else(|refusal| {
                let (present, left_out) = what_goes_with(&said, &before, &present);
                warn!(%refusal, "what commands have changed does not go with what the balancer is started with");
                for subject in left_out {
                    warn!(%subject, "left out, since it does not go with the rest");
                }
                prepare(&said, &present, said.clone(), Starting::new(), &PassedOver::new())
            });
        let prepared = prepared.map_err(|refusal| state::StateError::Broken {
            path: config.places.state.clone(),
            fault: refusal.to_string(),
        })?;
        let prepared = prepared
            .with_lists(&AccessByService::new(), reader::networks)
            .map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        // The control socket comes first: it says best that another daemon is there.
        let control = Control::bind(&config.places.socket, |id| Source::Control(id).key())?;
        let listeners = bind(&prepared.settings, &SlotMap::with_key(), &SlotMap::with_key())?;
        let mut model = Model::new(fastrand::u64(..), vitals);
        model.adopt(prepared, true, now);

        let waker = Waker::new(&poller, Source::Threads.key()).context("a waker")?;
        let saver =
            Saver::start(config.places.state.clone(), waker.clone()).context("the thread for the state file")?;
        let loader = Loader::start(waker.clone()).context("the thread for rings")?;
        let reader = Reader::start(own, read, waker.clone()).context("the thread for the configuration file")?;
        let teller = Teller::start(waker).context("the thread for long answers")?;
        let mut daemon = Self {
            poller,
            events: Events::with_capacity(EVENTS_PER_TURN),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            signals,
            log,
            notifier,
            descriptors,
            model,
            sessions: Sessions::new(
                config.timeouts,
                descriptors.kernel_pipes(),
                |id, side| Source::Session(id, side).key(),
                |id| Source::Newcomer(id).key(),
            ),
            flows: Flows::new(|id| Source::Flow(id).key()),
            listeners: SlotMap::with_key(),
            control,
            probes: Probes::new(descriptors.probes(), |id| Source::Probe(id).key()),
            saver,
            reader,
            loader,
            teller,
            config_file: config.file.clone(),
            watch: None,
            watches: false,
            read_at: None,
            reading: None,
            to_read: VecDeque::new(),
            to_prepare: VecDeque::new(),
            loading: None,
            loads: 0,
            postponed: VecDeque::new(),
            opens_at: None,
            unsaved_answers: Vec::new(),
            unended_answers: Vec::new(),
            save_again: None,
            stop_at: None,
            last_save_until: None,
            signalled: false,
            unpolled: Repeated::default(),
            watchdog: notifier::watchdog_pause().map(|every| Watchdog { every, next: now }),
            full_turns: 0,
        };
        daemon.relisten(listeners, now);
        daemon.watch(watched);
        // What the file has changed meanwhile is no command's any more, or it would come back with the old file.
        let settings = daemon.model.settings();
        let now_kept = Kept::between(daemon.model.said(), &settings);
        if now_kept != kept {
            let path = &config.places.state;
            if let Err(error) = state::keep_old(path).and_then(|()| state::store(path, &now_kept)) {
                warn!(%error, "the state file could not be written");
                daemon.save();
            }
        }
        daemon.settle(now);
        let named = daemon.named_listeners();
        info!(
            listen = named,
            config = config.file.as_ref().filter(|_| has_file).map(|file| tracing::field::display(file.display())),
            socket = %config.places.socket.display(),
            servers = settings.pools.values().map(|pool| pool.servers.len()).sum::<usize>(),
            descriptors = descriptors.limit,
            sessions = daemon.model.session_limit(),
            "balancer started"
        );
        Ok(daemon)
    }

    /// Runs until it is told to stop and the last session has ended, or their time is over.
    ///
    /// # Errors
    /// When the loop itself failed, or the pool as it was last is not in the state file. The log has it too.
    pub(crate) fn run(mut self) -> Result<()> {
        self.notifier.tell(News::Ready);
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
        self.notifier.finish();
        result
    }

    /// One pass of the loop: wait, dispatch, expire, carry out what followed. Whether there is to be another.
    fn turn(&mut self) -> io::Result<bool> {
        let start = event::now();
        let timeout = self.next_deadline(start).map(|at| at.saturating_duration_since(start));
        self.poller.wait(&mut self.events, timeout)?;
        let now = event::now();
        let ended_before = self.sessions.ended() + self.flows.ended();

        let ready = self.events.iter().count();
        self.sessions.on_turn(ready);
        self.flows.on_turn(ready);
        let mut follow = Vec::new();
        for (key, ready) in self.events.iter() {
            let cx = &mut lend!(self, now);
            match Source::of(key) {
                Some(Source::Session(id, side)) => {
                    let served = catch_unwind(AssertUnwindSafe(|| self.sessions.ready(id, side, ready, cx)));
                    if served.is_err() {
                        let session = self.sessions.number(id);
                        error!(session, "a fault in the balancer: its session is closed, the others go on");
                        // Where the fault left it may be a place that cannot be ended in order either.
                        let _ = catch_unwind(AssertUnwindSafe(|| self.sessions.end(id, EndReason::Fault, cx)));
                    }
                }
                Some(Source::Newcomer(id)) => {
                    let served = catch_unwind(AssertUnwindSafe(|| self.sessions.newcomer_ready(id, cx)));
                    if served.is_err() {
                        let session = self.sessions.newcomer_number(id);
                        error!(session, "a fault in the balancer: a client whose header was read is closed");
                        let _ = catch_unwind(AssertUnwindSafe(|| self.sessions.end_newcomer(id, EndReason::Fault, cx)));
                    }
                }
                Some(Source::Listener(id)) => {
                    if let Some(listener) = self.listeners.get_mut(id) {
                        self.sessions.accept_from(listener, cx);
                    }
                }
                Some(Source::DatagramListener(id)) => {
                    let served = catch_unwind(AssertUnwindSafe(|| self.flows.receive_from(id, cx)));
                    if served.is_err() {
                        error!(?id, "a fault in the balancer: a datagram is dropped, the others go on");
                    }
                }
                Some(Source::Flow(id)) => {
                    let served = catch_unwind(AssertUnwindSafe(|| self.flows.ready(id, ready, cx)));
                    if served.is_err() {
                        let session = self.flows.number(id);
                        error!(session, "a fault in the balancer: its flow is ended, the others go on");
                        let _ = catch_unwind(AssertUnwindSafe(|| self.flows.end(id, EndReason::Fault, cx)));
                    }
                }
                Some(Source::ControlListener) => self.control.accept(cx),
                Some(Source::Control(id)) => {
                    match catch_unwind(AssertUnwindSafe(|| self.control.ready(id, ready, cx))) {
                        Ok(Some(request)) => follow.push(Follow::Request(id, Box::new(request))),
                        Ok(None) => {}
                        Err(_) => {
                            error!(?id, "a fault in the balancer: its control connection is closed");
                            self.control.close(id);
                        }
                    }
                }
                Some(Source::Probe(id)) => {
                    let checked = catch_unwind(AssertUnwindSafe(|| self.probes.ready(id, ready, cx)));
                    if checked.is_err() {
                        error!(?id, "a fault in the balancer: a check is left out");
                        self.probes.drop_out(id, cx);
                    }
                }
                Some(Source::Signals) => follow.push(Follow::Signals),
                Some(Source::Threads) => follow.push(Follow::Threads),
                Some(Source::Watch) => follow.push(Follow::Watch),
                None => {}
            }
        }
        for next in follow {
            match next {
                Follow::Request(id, request) => self.serve(id, *request, now),
                Follow::Signals => self.on_signals(now)?,
                Follow::Threads => {
                    self.on_saved(now);
                    self.on_reader(now);
                    self.on_loaded(now);
                    self.on_told(now);
                }
                Follow::Watch => self.on_watch(now),
            }
        }
        self.prepare_next(now);
        self.serve_postponed(now);
        // Before the deadlines, so that a stop which is due ends those who have just arrived, too; and after them.
        let cx = &mut lend!(self, now);
        self.sessions.settle(cx);
        self.full_turns = if ready < EVENTS_PER_TURN { 0 } else { (self.full_turns + 1) % MOST_FULL_TURNS };
        if self.full_turns == 0 {
            self.expire(now);
        }
        let cx = &mut lend!(self, now);
        self.flows.look(cx);
        self.sessions.settle(cx);
        self.answer_ended(now);
        if self.sessions.ended() + self.flows.ended() > ended_before {
            self.listeners.values_mut().for_each(Listener::on_relief);
        }
        self.grow(now);
        if self.model.take_picks_changed() {
            self.flows.look_at_all();
        }
        self.settle(now);
        self.model.vitals.longest_turn = self.model.vitals.longest_turn.max(event::now() - now);
        Ok(!self.is_over(now))
    }

    /// Answers a request, or puts a change behind those that came before it.
    fn serve(&mut self, id: ControlId, request: Request, now: Instant) {
        if matches!(request, Request::Change { .. } | Request::Reload { .. }) {
            self.postponed.push_back((now, id, request));
        } else {
            self.apply(id, request, None, Bound::default(), now);
        }
    }

    /// Carries out the next change: one in a turn, since each takes its time. While a file is being read or a ring is being
    /// made nothing else changes, for it was asked what comes of what holds now. Who has gone meanwhile could not be told
    /// any more what became of it, and would not count on it.
    fn serve_postponed(&mut self, now: Instant) {
        while self.loading.is_none()
            && let Some((_, id, request)) = self.postponed.pop_front()
        {
            if self.control.has_gone(id) {
                info!(%request, "not carried out: who asked for it has gone");
                self.control.close(id);
                continue;
            }
            match self.begin(id, &request, now) {
                Ok(Some(listeners)) => self.apply(id, request, None, listeners, now),
                Ok(None) => {}
                Err(refusal) => self.answer(id, Response::Refused(refusal), now),
            }
            return;
        }
    }

    /// Asks the model, carries out what follows, and answers: at once, when the change is saved, or when its ring is made.
    fn apply(&mut self, id: ControlId, request: Request, remade: Option<Remade>, listeners: Bound, now: Instant) {
        self.model.vitals.log_lines_dropped = self.log.dropped_lines();
        let change = match &request {
            Request::Change { change, dry_run: false } => Some(change),
            _ => None,
        };
        let before = change.map(|change| self.model.part_of(change));
        let (mut response, effects) = match self.model.apply(&request, remade, now) {
            Ok(applied) => applied,
            Err(remake) => return self.remake(id, request, remake, now),
        };
        let (uid, pid, program) = Asker::told(self.control.asker(id));
        if let Some(before) = before.filter(|_| !effects.is_empty()) {
            let now = change.map(|change| self.model.part_of(change)).unwrap_or_default();
            let changed = told(&differences(&before, &now));
            info!(%request, changed, uid, pid, program, "carried out");
        }
        if matches!(response, Response::Stopping(_)) {
            info!(%request, uid, pid, program, "told to stop");
            self.control.hold(id);
        }
        if let Some(Effect::ListSessions(filter)) = effects.first() {
            response = Response::Sessions(self.list_sessions(filter, now));
        }
        if let Some(Effect::CompleteList(pool)) = effects.first()
            && let (Response::List(_), Some(sharing)) = (&response, self.model.sharing(*pool))
        {
            let Response::List(report) = response else { unreachable!("it is one") };
            return self.teller.order(id, Long::List(Box::new((report, sharing))));
        }
        if effects.iter().any(|effect| matches!(effect, Effect::Listen(_) | Effect::Unlisten(_))) {
            self.relisten(listeners, now);
        }
        self.finish(Asked::By(id), response, &effects, None, now);
    }

    /// Does what comes before the model is asked. The listeners that were bound for the request; nothing when the answer
    /// comes later, from a file that is read.
    fn begin(&mut self, id: ControlId, request: &Request, now: Instant) -> Result<Option<Bound>, Refusal> {
        match request {
            Request::Reload { instead, dry_run } => {
                let dry_run = *dry_run || instead.is_some();
                self.reload(Asked::By(id), instead.clone(), dry_run, now).map(|()| None)
            }
            Request::Change { change: Change::Kill { session }, .. }
                if !self.sessions.has_number(*session) && !self.flows.has_number(*session) =>
            {
                Err(Refusal::NoSession { session: *session })
            }
            Request::Change { change, dry_run: false } => self.bind_for(change, now).map(Some),
            _ => Ok(Some(Bound::default())),
        }
    }

    /// Carries out what follows from a change, and answers: at once, or when it is saved. What holds now, `present`, is asked
    /// of the model where nobody knows it.
    fn finish(
        &mut self,
        asked: Asked,
        response: Response,
        effects: &[Effect],
        present: Option<Arc<Settings>>,
        now: Instant,
    ) {
        let saved = effects.contains(&Effect::Save).then(|| match present {
            Some(present) => self.saver.save(Arc::clone(self.model.said()), present),
            None => self.save(),
        });
        self.discard_old_rings();
        self.carry_out(effects, now);
        let Asked::By(id) = asked else {
            if let Response::Reloaded(report) = response {
                self.teller.discard(Long::Reload(report));
            }
            return;
        };
        match saved {
            Some(number) => {
                self.unsaved_answers.push(Unsaved { number, id, response, until: now + SAVE_PATIENCE });
            }
            None => self.answer_when_ended(id, response, now),
        }
    }

    fn discard_old_rings(&mut self) {
        let old_rings = self.model.take_old_rings();
        if !old_rings.is_empty() {
            self.loader.discard(old_rings);
        }
    }

    fn save(&mut self) -> u64 {
        self.saver.save(Arc::clone(self.model.said()), Arc::new(self.model.settings()))
    }

    fn carry_out(&mut self, effects: &[Effect], now: Instant) {
        for effect in effects {
            let cx = &mut lend!(self, now);
            match *effect {
                Effect::Tell(ref news) => {
                    tell(news);
                    self.model.record(news, log::time_of_day());
                }
                Effect::Save
                | Effect::ListSessions(_)
                | Effect::CompleteList(_)
                | Effect::Listen(_)
                | Effect::Unlisten(_) => {}
                Effect::EndSessions(server, reason) => {
                    self.sessions.end_of_server(server, reason);
                    self.flows.leave_server(server, reason);
                }
                Effect::EndIdlest(server, count, reason) => self.end_idlest(server, count, reason),
                Effect::EndUnwelcome(service) => {
                    self.sessions.end_unwelcome(service, cx.model);
                    self.flows.end_unwelcome(service, cx.model);
                }
                Effect::EndSession(number) => {
                    self.sessions.end_number(number, EndReason::Killed, cx);
                    self.flows.end_number(number, EndReason::Killed, cx);
                }
                Effect::LookAtSessions => {
                    self.sessions.look_at_all(cx);
                    self.flows.hurry_all(cx);
                }
                Effect::Stop(at) => self.stop(at, now),
            }
        }
    }

    /// Ends so many sessions of a server, flows or not, those that are idle for longest.
    fn end_idlest(&mut self, server: ServerId, count: u64, reason: EndReason) {
        let sessions = self.sessions.of_server(server).map(|(moved, id)| (moved, Idle::Session(id)));
        let flows = self.flows.of_server(server).map(|(moved, id)| (moved, Idle::Flow(id)));
        let mut its: Vec<(Instant, Idle)> = sessions.chain(flows).collect();
        let count = its.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        if count < its.len() {
            its.select_nth_unstable_by_key(count, |(moved, _)| *moved);
        }
        for (_, one) in its.into_iter().take(count) {
            match one {
                Idle::Session(id) => self.sessions.end_soon(id, reason),
                Idle::Flow(id) => self.flows.leave_soon(id, reason),
            }
        }
    }

    /// The live sessions that are meant, flows or not, the longest idle first.
    fn list_sessions(&self, filter: &SessionFilter, now: Instant) -> Vec<SessionReport> {
        let mut reports = self.sessions.list(filter, &self.model, now);
        reports.extend(self.flows.list(filter, &self.model, now));
        reports.sort_by_key(|report| Reverse(report.idle_ms));
        reports.truncate(filter.limit);
        reports
    }

    fn answer(&mut self, id: ControlId, response: Response, now: Instant) {
        if let Response::Reloaded(report) = response {
            return self.teller.order(id, Long::Reload(report));
        }
        let cx = &mut lend!(self, now);
        self.control.answer(id, &response, cx);
    }

    /// Gives the answers that were finished beside the loop.
    fn on_told(&mut self, now: Instant) {
        while let Some((id, bytes)) = self.teller.result() {
            let cx = &mut lend!(self, now);
            self.control.answer_bytes(id, bytes, cx);
        }
    }

    /// Takes no new sessions, and sets the end. Who waits in the kernel's queue was let in before and is still served.
    fn stop(&mut self, at: Instant, now: Instant) {
        let limit = at.saturating_duration_since(now);
        info!(sessions = self.sessions.len() + self.flows.len(), limit_ms = limit.as_millis() as u64, "stopping");
        self.notifier.tell(News::Stopping);
        self.refuse_what_waits(now);
        for id in self.listeners.keys().collect::<Vec<_>>() {
            self.unlisten(id, !limit.is_zero(), now);
        }
        if !limit.is_zero() {
            let cx = &mut lend!(self, now);
            self.flows.stop(cx);
        }
        self.stop_at = Some(at);
    }

    fn on_signals(&mut self, now: Instant) -> io::Result<()> {
        for _ in 0..SIGNALS_PER_TURN {
            let Some(Sent { signal, uid, pid }) = self.signals.read()? else { break };
            let Asker { uid, pid, program } = Asker::new(uid, pid);
            match signal {
                Signal::HangUp if self.config_file.is_none() => {
                    info!("SIGHUP: there is no file to read again; the log follows its name by itself");
                }
                Signal::HangUp => {
                    info!(uid, pid, program, "SIGHUP: the configuration file is read again");
                    self.reload_unasked(Asked::BySignal, now);
                }
                Signal::Terminate => {
                    let again = std::mem::replace(&mut self.signalled, true);
                    info!(again, uid, pid, program, "told to stop by a signal");
                    self.stop_by_signal(again, now);
                }
                Signal::Quit if self.model.phase() == Phase::Stopping => info!("SIGQUIT: it stops already"),
                Signal::Quit => {
                    self.signalled = true;
                    info!(uid, pid, program, "told to stop by SIGQUIT");
                    self.stop_by_signal(false, now);
                }
                Signal::OpenLog if self.log.open_again() => {
                    info!(uid, pid, program, "SIGUSR1: the log is opened again");
                }
                Signal::OpenLog => info!("SIGUSR1: the log is no file that could be opened again"),
                Signal::Upgrade => info!("SIGUSR2 does nothing: it is kept for an upgrade without a pause"),
                Signal::Nothing(signal) => debug!(%signal, "a signal that means nothing here"),
            }
        }
        Ok(())
    }

    fn stop_by_signal(&mut self, at_once: bool, now: Instant) {
        let stop = Request::Stop { now: at_once, drain_ms: None };
        if let Ok((_, effects)) = self.model.apply(&stop, None, now) {
            self.carry_out(&effects, now);
        }
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
            match &mut response {
                Response::Changed(report) => report.unsaved.clone_from(&self.model.vitals.unsaved),
                Response::Reloaded(report) => report.unsaved.clone_from(&self.model.vitals.unsaved),
                _ => {}
            }
            self.answer_when_ended(id, response, now);
        }
    }

    /// Answers a change when all have ended that it says it has closed. Many take more than a turn.
    fn answer_when_ended(&mut self, id: ControlId, response: Response, now: Instant) {
        let Response::Changed(report) = &response else { return self.answer(id, response, now) };
        match report.change {
            Change::KillAll { .. } | Change::Remove { how: Removal::Now, .. } if !report.dry_run => {
                let ((_, sessions), (_, flows)) = (self.sessions.ends(), self.flows.ends());
                self.unended_answers.push(Unended { id, response, sessions, flows });
            }
            _ => self.answer(id, response, now),
        }
    }

    fn answer_ended(&mut self, now: Instant) {
        let ((sessions, _), (flows, _)) = (self.sessions.ends(), self.flows.ends());
        let have_ended = |waiting: &mut Unended| waiting.sessions <= sessions && waiting.flows <= flows;
        for Unended { id, response, .. } in self.unended_answers.extract_if(.., have_ended).collect::<Vec<_>>() {
            self.answer(id, response, now);
        }
    }

    fn expire(&mut self, now: Instant) {
        let cx = &mut lend!(self, now);
        self.sessions.expire(cx);
        self.flows.expire(cx);
        self.control.expire(now);
        self.probes.expire(cx);
        self.listeners.values_mut().for_each(|listener| listener.expire(now));
        if self.stop_at.is_some_and(|at| at <= now) {
            self.stop_at = None;
            self.sessions.end_all(EndReason::Shutdown, cx);
            self.flows.end_all(EndReason::Shutdown, cx);
        }
        let effects = self.model.expire(now);
        self.carry_out(&effects, now);
        if let Some(loading) = self.loading.take_if(|loading| loading.until <= now) {
            self.on_too_slow(loading, now);
        }
        if self.reading.as_ref().and_then(Reading::until).is_some_and(|until| until <= now) {
            self.on_reading_hangs(now);
        }
        if let Some((_, asked)) = self.read_at.take_if(|(at, _)| *at <= now) {
            self.reload_unasked(asked, now);
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
            self.save();
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now) {
            watchdog.next = now + watchdog.every;
            self.notifier.tell(News::Alive);
        }
    }

    /// Tells the poller what the listeners wait for now.
    fn settle(&mut self, now: Instant) {
        self.settle_listeners(now);
        let cx = &mut lend!(self, now);
        if let Err(error) = self.control.settle_listener(Source::ControlListener.key(), cx)
            && self.unpolled.on_event(now)
        {
            warn!(%error, "epoll has no room for the control socket");
        }
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let listeners = self.listeners.values().filter_map(Listener::next_deadline);
        let unsaved = self.unsaved_answers.iter().map(|waiting| waiting.until).min();
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        let own = [
            self.stop_at,
            self.save_again,
            self.last_save_until,
            self.read_at.map(|(at, _)| at),
            self.reading.as_ref().and_then(Reading::until),
            self.loading.as_ref().map(|loading| loading.until),
            self.postponed.front().filter(|_| self.loading.is_none()).map(|(since, ..)| *since),
            self.model.next_growth_due().filter(|_| self.loading.is_none()),
            self.opens_at,
            unsaved,
            watchdog,
        ];
        let parts = [
            self.sessions.next_deadline(now),
            self.flows.next_deadline(now),
            self.control.next_deadline(),
            self.model.next_deadline(),
            self.probes.next_deadline(self.model.next_check_due()),
            self.unpolled.next_deadline(),
        ];
        listeners.chain(own.into_iter().flatten()).chain(parts.into_iter().flatten()).min()
    }

    /// Told to stop, with no session left, no datagram that waits since before that, nobody who waits to hear that the last
    /// of some has ended, and the pool in the state file; for the file it waits so long and no longer.
    fn is_over(&mut self, now: Instant) -> bool {
        // Datagrams that begin no flow are all that some services have.
        let has_some = self.sessions.len() + self.flows.len() > 0 || self.flows.has_last();
        if self.model.phase() != Phase::Stopping || has_some || !self.unended_answers.is_empty() {
            return false;
        }
        if self.last_save_until.is_none() {
            self.last_save_until = Some(now + SAVE_PATIENCE);
            if self.model.vitals.unsaved.is_some() {
                self.save();
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

/// What has changed, for a line of the log: some of it, and how much more there is.
fn told(differences: &[Difference]) -> Option<String> {
    let mut told: Vec<String> = differences.iter().take(MOST_DIFFERENCES).map(ToString::to_string).collect();
    if let Some(more) = differences.len().checked_sub(MOST_DIFFERENCES).filter(|more| *more > 0) {
        told.push(format!("and {more} more"));
    }
    (!told.is_empty()).then(|| told.join("; "))
}

/// Says which servers the state file has for pools that there are no more.
fn warn_of_strays(kept: &Kept, said: &Settings) {
    let mut strays = kept.stray(said);
    for (pool, server) in strays.by_ref().take(MOST_STRAYS_SAID) {
        warn!(pool, %server, "left out of the state file: neither the file nor a command has this pool");
    }
    let more = strays.count();
    if more > 0 {
        warn!(more, "further servers of the state file are left out for the same reason");
    }
}

/// Logs that the health of a server has changed.
fn tell(news: &HealthNews) {
    let HealthNews { pool, server, before: _, state, reason, back_off, up } = news;
    let (up, of) = *up;
    match state {
        HealthState::Up => info!(pool, %server, up, of, "server is up"),
        HealthState::Down => warn!(pool, %server, reason, up, of, "server is down"),
        HealthState::Ejected => {
            let out_ms = back_off.map(|time| time.as_millis() as u64);
            warn!(pool, %server, reason, out_ms, up, of, "server is ejected: its clients fail");
        }
    }
}

/// A session of either kind.
enum Idle {
    Session(SessionId),
    Flow(FlowId),
}

/// What an event asks of the daemon itself, after the events of the turn.
enum Follow {
    Request(ControlId, Box<Request>),
    Signals,
    Threads,
    Watch,
}
