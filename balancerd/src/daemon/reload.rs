//! What two threads do for the loop: one reads the configuration file again, the other prepares what it says, and makes large
//! rings. Who asks for it, what waits meanwhile, and the switch. Nothing waits while a file is read, for that may take as
//! long as the disk likes; while what it says is prepared changes wait, as they would change what it meets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};
use wire::control::{FileText, Refusal, Request, Response};
use wire::report::{LastReload, Phase};

use super::listening::{Bound, bind, not_bound};
use super::{Daemon, told};
use crate::event::{Interest, News, Watch};
use crate::loader::{Order, Outcome};
use crate::log;
use crate::model::{Effect, PoolId, Prepared, Remade, Remake};
use crate::net::asker::Asker;
use crate::net::control::ControlId;
use crate::reader::{Done, Readout, Text, lists_of};
use crate::source::Source;

/// How long after the first news of the configuration file it is read: an editor may not be done with them.
const SETTLE_TIME: Duration = Duration::from_millis(200);

/// How long a file may take to be read until whoever asked is told that it hangs.
const READ_PATIENCE: Duration = Duration::from_secs(8);

/// How long it may take to prepare what a file says, or to make a ring. With [`READ_PATIENCE`] it is less than balancerctl
/// waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the file's thread is at.
pub(super) struct Reading {
    /// The number of its order.
    number: u64,
    began: Instant,
    /// What it is for, until it is given up; the thread is at it all the same.
    of: Option<Reloading>,
}

impl Reading {
    /// When it is given up.
    pub(super) fn until(&self) -> Option<Instant> {
        self.of.as_ref().map(|_| self.began + READ_PATIENCE)
    }
}

/// A file that is to be read when the one before has been.
pub(super) struct ToRead {
    reloading: Reloading,
    text: Text,
}

/// What the thread of rings is at.
pub(super) struct Loading {
    /// The number of its order: a result that comes later belongs to nobody.
    number: u64,
    /// When it is given up.
    pub(super) until: Instant,
    of: Of,
}

/// What it is for.
#[expect(clippy::large_enum_variant, reason = "there is one")]
enum Of {
    File(Reloading),
    /// A change that takes a ring.
    Change(ControlId, Request),
    /// The ring of a pool in which servers start slowly, and when it was ordered.
    Growth(PoolId, Instant),
}

/// A file that is to be taken, or looked at.
pub(super) struct Reloading {
    asked: Asked,
    /// What it is called.
    name: String,
    dry_run: bool,
}

/// Who wants the file to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    By(ControlId),
    BySignal,
    ByWatch,
}

impl Asked {
    /// For the log.
    fn word(self) -> &'static str {
        match self {
            Self::By(_) => "command",
            Self::BySignal => "signal",
            Self::ByWatch => "watch",
        }
    }
}

impl Daemon {
    /// Who asked, if they are still there. A signal's line has named its sender.
    fn asker_of(&self, asked: Asked) -> Option<&Asker> {
        match asked {
            Asked::By(id) => self.control.asker(id),
            Asked::BySignal | Asked::ByWatch => None,
        }
    }

    /// Begins to read the file again, or to look at another text.
    pub(super) fn reload(
        &mut self,
        asked: Asked,
        instead: Option<FileText>,
        dry_run: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.model.phase() == Phase::Stopping {
            return Err(Refusal::Stopping);
        }
        let text = match (instead, &self.config_file) {
            (Some(text), _) => Text::Given(text),
            (None, Some(file)) => Text::File(file.clone()),
            (None, None) => return Err(Refusal::NoFile),
        };
        let name = match &text {
            Text::File(path) => path.display().to_string(),
            Text::Given(text) => text.name.clone(),
        };
        if let Some(reading) = self.reading.as_ref().filter(|reading| reading.of.is_none()) {
            return Err(hangs(&name, now.saturating_duration_since(reading.began)));
        }
        self.to_read.push_back(ToRead { reloading: Reloading { asked, name, dry_run }, text });
        self.read_next(now);
        Ok(())
    }

    /// Begins to make the ring that a change takes.
    pub(super) fn remake(&mut self, id: ControlId, request: Request, remake: Box<Remake>, now: Instant) {
        let number = self.load(Of::Change(id, request), now);
        self.loader.remake(number, remake);
    }

    /// Begins to make the next ring in which servers get another part of their weight, if the thread is at nothing else.
    pub(super) fn grow(&mut self, now: Instant) {
        if self.loading.is_none()
            && let Some((pool, remake)) = self.model.next_growth(now)
        {
            let number = self.load(Of::Growth(pool, now), now);
            self.loader.remake(number, remake);
        }
    }

    fn load(&mut self, of: Of, now: Instant) -> u64 {
        self.loads += 1;
        self.loading = Some(Loading { number: self.loads, until: now + PATIENCE, of });
        self.loads
    }

    /// The thread of files has something to tell.
    pub(super) fn on_reader(&mut self, now: Instant) {
        while let Some(done) = self.reader.result() {
            match done {
                Done::Read(number, result) => self.on_read(number, result, now),
                Done::Watching(watch) => self.take_watch(watch, now),
                Done::Changed => drop(self.read_at.get_or_insert((now + SETTLE_TIME, Asked::ByWatch))),
            }
        }
    }

    /// A text was read: what it says is prepared next, or it was given up meanwhile.
    fn on_read(&mut self, number: u64, result: Result<Box<Readout>, Refusal>, now: Instant) {
        let Some(reading) = self.reading.take_if(|reading| reading.number == number) else { return };
        match (reading.of, result) {
            (Some(reloading), Ok(readout)) => self.to_prepare.push_back((reloading, readout)),
            (Some(reloading), Err(refusal)) => self.on_reload_failed(&reloading, refusal, now),
            // It hung, and goes on: what it says may be news.
            (None, _) => {
                info!("the configuration file can be read again");
                self.read_at.get_or_insert((now + SETTLE_TIME, Asked::ByWatch));
            }
        }
        self.read_next(now);
    }

    fn read_next(&mut self, now: Instant) {
        if self.reading.is_none()
            && let Some(ToRead { reloading, text }) = self.to_read.pop_front()
        {
            self.loads += 1;
            self.reading = Some(Reading { number: self.loads, began: now, of: Some(reloading) });
            self.reader.read(self.loads, text, lists_of(self.model.said()));
        }
    }

    /// Has what was read prepared, as soon as the thread is free.
    pub(super) fn prepare_next(&mut self, now: Instant) {
        if self.loading.is_some() {
            return;
        }
        let Some((reloading, readout)) = self.to_prepare.pop_front() else { return };
        let number = self.load(Of::File(reloading), now);
        self.loader.order(Order {
            number,
            readout,
            before: self.model.said().clone(),
            present: self.model.settings(),
            starting: self.model.starting(),
            passed: self.model.passed_over(),
            access: self.model.access(),
        });
    }

    /// Reading takes too long: whoever asked is told, and changes go on. No other read begins until this one has ended.
    pub(super) fn on_reading_hangs(&mut self, now: Instant) {
        let Some(reloading) = self.reading.as_mut().and_then(|reading| reading.of.take()) else { return };
        let waiting = std::mem::take(&mut self.to_read).into_iter().map(|it| it.reloading);
        for reloading in std::iter::once(reloading).chain(waiting) {
            let refusal = hangs(&reloading.name, READ_PATIENCE);
            self.on_reload_failed(&reloading, refusal, now);
        }
    }

    /// It stops: whoever waits for a file or a change is told so, in place of a connection that closes.
    pub(super) fn refuse_what_waits(&mut self, now: Instant) {
        // What it comes to belongs to nobody then.
        let reading = self.reading.take().and_then(|reading| reading.of);
        let to_read = self.to_read.drain(..).map(|it| it.reloading);
        let to_prepare = self.to_prepare.drain(..).map(|(reloading, _)| reloading);
        let mut asked: Vec<Asked> = reading.into_iter().chain(to_read).chain(to_prepare).map(|it| it.asked).collect();
        match self.loading.take().map(|loading| loading.of) {
            Some(Of::File(reloading)) => asked.push(reloading.asked),
            Some(Of::Change(id, _)) => asked.push(Asked::By(id)),
            Some(Of::Growth(..)) | None => {}
        }
        asked.extend(self.postponed.drain(..).map(|(_, id, _)| Asked::By(id)));
        for asked in asked {
            if let Asked::By(id) = asked {
                self.answer(id, Response::Refused(Refusal::Stopping), now);
            }
        }
    }

    /// What the file says is prepared, or the ring is made: switches to it as a whole, or says why not and leaves everything
    /// as it is.
    pub(super) fn on_loaded(&mut self, now: Instant) {
        while let Some(loaded) = self.loader.result() {
            let Some(loading) = self.loading.take_if(|loading| loading.number == loaded.number) else { continue };
            match (loading.of, loaded.outcome) {
                (Of::File(reloading), Outcome::File(result)) => {
                    let result = result.and_then(|(prepared, watched)| {
                        let present = Arc::clone(&prepared.settings);
                        Ok((self.switch(&reloading, prepared, watched, now)?, present))
                    });
                    match result {
                        Ok(((response, effects), present)) => {
                            self.finish(reloading.asked, response, &effects, Some(present), now);
                        }
                        Err(refusal) => self.on_reload_failed(&reloading, refusal, now),
                    }
                }
                (Of::Change(id, request), Outcome::Ring(result)) => self.on_remade(id, request, result, now),
                (Of::Growth(pool, asked), Outcome::Ring(result)) => match result {
                    Ok(remade) => {
                        self.model.grown(pool, remade, asked, now);
                        self.discard_old_rings();
                    }
                    Err(refusal) => self.on_growth_failed(pool, &refusal, now),
                },
                (Of::File(_), Outcome::Ring(_)) | (Of::Change(..) | Of::Growth(..), Outcome::File(_)) => {
                    unreachable!("an order has a number of its own")
                }
            }
        }
    }

    fn on_remade(&mut self, id: ControlId, request: Request, result: Result<Remade, Refusal>, now: Instant) {
        match result {
            Ok(remade) => self.apply(id, request, Some(remade), Bound::default(), now),
            Err(refusal) => self.on_change_failed(id, &request, refusal, now),
        }
    }

    /// What the thread is at takes too long: it is given up, and nothing has changed.
    pub(super) fn on_too_slow(&mut self, loading: Loading, now: Instant) {
        let limit = PATIENCE.as_secs();
        let not_made = || {
            let fault = format!("the ring was not made within {limit} s: it is too large for this machine");
            Refusal::NotMade { fault }
        };
        match loading.of {
            Of::File(reloading) => {
                let fault = format!(
                    "{}: what it says was not prepared within {limit} s: it is too much for this machine",
                    reloading.name
                );
                self.on_reload_failed(&reloading, Refusal::BadFile { fault }, now);
            }
            Of::Change(id, request) => self.on_change_failed(id, &request, not_made(), now),
            Of::Growth(pool, _) => self.on_growth_failed(pool, &not_made(), now),
        }
    }

    fn on_growth_failed(&mut self, pool: PoolId, refusal: &Refusal, now: Instant) {
        warn!(error = %refusal, "servers that start slowly get no other part of their weight for now");
        self.model.growth_failed(pool, now);
    }

    fn on_change_failed(&mut self, id: ControlId, request: &Request, refusal: Refusal, now: Instant) {
        warn!(%request, error = %refusal, "not carried out: everything stays as it is");
        self.answer(id, Response::Refused(refusal), now);
    }

    fn switch(
        &mut self,
        reloading: &Reloading,
        mut prepared: Prepared,
        watched: bool,
        now: Instant,
    ) -> Result<(Response, Vec<Effect>), Refusal> {
        let report = prepared.take_report(&reloading.name, reloading.dry_run);
        if reloading.dry_run {
            return Ok((Response::Reloaded(report), Vec::new()));
        }
        if self.model.phase() == Phase::Stopping {
            return Err(Refusal::Stopping);
        }
        let listeners =
            bind(&prepared.settings, &self.listeners, self.flows.listeners()).map_err(|error| not_bound(&error))?;
        self.serve_those_who_wait(&prepared.settings, now);
        let effects = self.model.adopt(prepared, false, now);
        self.relisten(listeners, now);
        self.watch(watched);
        self.model.vitals.reload_failure = None;
        self.note_reload(reloading.asked, Some(report.changes.len() as u64));
        // It may have been missing at the start.
        self.model.vitals.config_file = self.config_file.as_ref().map(|file| file.display().to_string());
        if !effects.is_empty() || reloading.asked != Asked::ByWatch {
            let by = reloading.asked.word();
            let (uid, pid, program) = Asker::told(self.asker_of(reloading.asked));
            let (changes, changed) = (report.changes.len(), told(&report.changes));
            info!(file = reloading.name, changes, changed, by, uid, pid, program, "configuration file read");
        }
        Ok((Response::Reloaded(report), effects))
    }

    fn note_reload(&mut self, asked: Asked, changes: Option<u64>) {
        let (at, by) = (log::time_of_day(), asked.word().to_owned());
        self.model.vitals.last_reload = Some(LastReload { at, by, changes });
    }

    fn on_reload_failed(&mut self, reloading: &Reloading, refusal: Refusal, now: Instant) {
        if !reloading.dry_run {
            self.note_reload(reloading.asked, None);
            // News of a directory may come often; the same fault is told once.
            let fault = Some(refusal.to_string());
            if reloading.asked != Asked::ByWatch || self.model.vitals.reload_failure != fault {
                let by = reloading.asked.word();
                let (uid, pid, program) = Asker::told(self.asker_of(reloading.asked));
                warn!(file = reloading.name, error = %refusal, by, uid, pid, program, "the configuration file was not taken: everything stays as it is");
                self.model.vitals.reload_failure = fault;
            }
        }
        if let Asked::By(id) = reloading.asked {
            self.answer(id, Response::Refused(refusal), now);
        }
    }

    /// Reads the file because nobody asked who waits for an answer. One that is being read may be the old one: after it.
    pub(super) fn reload_unasked(&mut self, asked: Asked, now: Instant) {
        match &self.reading {
            // It reads again by itself when that goes on.
            Some(Reading { of: None, .. }) => debug!("the configuration file is not read: the read before still hangs"),
            Some(_) => self.read_at = Some((now + SETTLE_TIME, asked)),
            None => {
                if let Err(refusal) = self.reload(asked, None, false, now) {
                    info!(%refusal, "the configuration file is not read");
                }
            }
        }
    }

    /// Watches the file, or does not. Anew each time, for a link may lead elsewhere by now; until then the old watch serves.
    pub(super) fn watch(&mut self, wanted: bool) {
        match self.config_file.clone().filter(|_| wanted) {
            Some(file) => {
                self.watches = true;
                self.reader.watch(file, None);
            }
            None => {
                self.watches = false;
                let watch = self.unwatch();
                self.reader.forget(watch);
                self.read_at.take_if(|(_, asked)| *asked == Asked::ByWatch);
            }
        }
    }

    /// The thread has made a watch of the file: it is listened to from now on.
    fn take_watch(&mut self, watch: Watch, now: Instant) {
        let mut registered = Interest::NONE;
        let is_known = self.watches
            && match self.poller.set(&watch, Source::Watch.key(), &mut registered, Interest::READ) {
                Ok(()) => true,
                Err(error) => {
                    debug!(%error, "the configuration file's news cannot be heard: it is looked at now and then");
                    false
                }
            };
        // What the old one has still to tell is not lost.
        self.on_watch(now);
        let unused = if is_known {
            let before = self.unwatch();
            self.watch = Some(watch);
            before
        } else {
            Some(watch)
        };
        // Its close may wait for the kernel.
        self.reader.close(unused);
    }

    fn unwatch(&mut self) -> Option<Watch> {
        let watch = self.watch.take()?;
        // One that stays in epoll until its thread has closed it would be heard meanwhile.
        let _ = self.poller.set(&watch, Source::Watch.key(), &mut Interest::READ.clone(), Interest::NONE);
        Some(watch)
    }

    pub(super) fn on_watch(&mut self, now: Instant) {
        let news = self.watch.as_ref().map_or(News::None, Watch::take);
        if news == News::Lost {
            warn!("a directory on the way to the configuration file has gone: it is watched again when it is back");
            let watch = self.unwatch();
            if let Some(file) = &self.config_file {
                self.reader.watch(file.clone(), watch);
            }
        }
        if news != News::None {
            // The first news sets the time: a directory that is never quiet puts nothing off for ever.
            self.read_at.get_or_insert((now + SETTLE_TIME, Asked::ByWatch));
        }
    }
}

/// Why a file is not read that takes so long already.
fn hangs(name: &str, time: Duration) -> Refusal {
    let seconds = time.as_secs();
    let fault = format!(
        "{name}: it could not be read within {seconds} s: the disk or the network that it lies on hangs. Everything stays as \
         it is, changes by command go on, and it is read again when it answers"
    );
    Refusal::BadFile { fault }
}
