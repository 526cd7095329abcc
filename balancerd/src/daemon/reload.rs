//! What the loader's thread does for the loop: reading the configuration file again, and making large rings. Who asks for
//! it, what waits meanwhile, and the switch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};
use wire::control::{FileText, Refusal, Request, Response};
use wire::report::Phase;

use super::listening::{Bound, bind, not_bound};
use super::{Daemon, told};
use crate::event::{Interest, News, Watch};
use crate::loader::{Order, Outcome, Text};
use crate::model::{Effect, PoolId, Prepared, Remade, Remake};
use crate::net::asker::Asker;
use crate::net::control::ControlId;
use crate::source::Source;

/// How long after the first news of the configuration file it is read: an editor may not be done with them.
const SETTLE_TIME: Duration = Duration::from_millis(200);

/// How long after the directory of a watched file was not there it is looked for again.
const WATCH_AGAIN: Duration = Duration::from_secs(2);

/// How long a file may take to be read, checked and made rings of, or a ring to be made: less than balancerctl waits for an
/// answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the thread is at.
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

/// A file that is being read.
struct Reloading {
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
        let source = match (instead, &self.config_file) {
            (Some(text), _) => Text::Given(text),
            (None, Some(file)) => Text::File(file.clone()),
            (None, None) => return Err(Refusal::NoFile),
        };
        let name = match &source {
            Text::File(path) => path.display().to_string(),
            Text::Given(text) => text.name.clone(),
        };
        let number = self.load(Of::File(Reloading { asked, name, dry_run }), now);
        self.loader.order(Order {
            number,
            source,
            before: self.model.said().clone(),
            present: self.model.settings(),
            starting: self.model.starting(),
            passed: self.model.passed_over(),
            access: self.model.access(),
        });
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

    /// The file was read, or the ring is made: switches to it as a whole, or says why not and leaves everything as it is.
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
                let fault =
                    format!("{}: it was not read within {limit} s: the disk hangs, or it is too much", reloading.name);
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
        self.watch(watched, now);
        self.model.vitals.reload_failure = None;
        // It may have been missing at the start.
        self.model.vitals.config_file = self.config_file.as_ref().map(|file| file.display().to_string());
        if !effects.is_empty() || reloading.asked != Asked::ByWatch {
            let (by, asker) = (reloading.asked.word(), self.asker_of(reloading.asked));
            let (uid, pid) = (asker.map(|asker| asker.uid), asker.map(|asker| asker.pid));
            let program = asker.and_then(|asker| asker.program.as_deref());
            let (changes, changed) = (report.changes.len(), told(&report.changes));
            info!(file = reloading.name, changes, changed, by, uid, pid, program, "configuration file read");
        }
        Ok((Response::Reloaded(report), effects))
    }

    fn on_reload_failed(&mut self, reloading: &Reloading, refusal: Refusal, now: Instant) {
        // News of a directory may come often; the same fault is told once.
        let is_known =
            self.model.vitals.reload_failure == Some(refusal.to_string()) && reloading.asked == Asked::ByWatch;
        if !reloading.dry_run && !is_known {
            let (by, asker) = (reloading.asked.word(), self.asker_of(reloading.asked));
            let (uid, pid) = (asker.map(|asker| asker.uid), asker.map(|asker| asker.pid));
            let program = asker.and_then(|asker| asker.program.as_deref());
            warn!(file = reloading.name, error = %refusal, by, uid, pid, program, "the configuration file was not taken: everything stays as it is");
            self.model.vitals.reload_failure = Some(refusal.to_string());
        }
        if let Asked::By(id) = reloading.asked {
            self.answer(id, Response::Refused(refusal), now);
        }
    }

    /// Reads the file because nobody asked who waits for an answer. One that is being read may be the old one: after it.
    pub(super) fn reload_unasked(&mut self, asked: Asked, now: Instant) {
        if self.loading.is_some() {
            self.read_at = Some((now + SETTLE_TIME, asked));
        } else if let Err(refusal) = self.reload(asked, None, false, now) {
            info!(%refusal, "the configuration file is not read");
        }
    }

    /// Watches the file, or does not.
    pub(super) fn watch(&mut self, wanted: bool, now: Instant) {
        let Some(file) = self.config_file.clone().filter(|_| wanted) else {
            (self.watch, self.watch_again) = (None, None);
            self.read_at.take_if(|(_, asked)| *asked == Asked::ByWatch);
            return;
        };
        // Anew each time, for a link may lead elsewhere by now. What the old one has still to tell is not lost.
        self.on_watch(now);
        let watch = Watch::new(&file).and_then(|watch| {
            self.poller.set(&watch, Source::Watch.key(), &mut Interest::NONE.clone(), Interest::READ)?;
            Ok(watch)
        });
        match watch {
            Ok(watch) => (self.watch, self.watch_again) = (Some(watch), None),
            Err(error) => {
                debug!(file = %file.display(), %error, "the configuration file cannot be watched");
                (self.watch, self.watch_again) = (None, Some(now + WATCH_AGAIN));
            }
        }
    }

    pub(super) fn on_watch(&mut self, now: Instant) {
        let news = self.watch.as_ref().map_or(News::None, Watch::take);
        if news == News::Lost {
            warn!("the directory of the configuration file has gone: it is watched again when it is back");
            (self.watch, self.watch_again) = (None, Some(now + WATCH_AGAIN));
        }
        if news != News::None {
            // The first news sets the time: a directory that is never quiet puts nothing off for ever.
            self.read_at.get_or_insert((now + SETTLE_TIME, Asked::ByWatch));
        }
    }
}
