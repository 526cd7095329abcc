//! The health of one server: what its checks say, what its clients meet, and what follows for the clients to come. It
//! keeps no time of its own and asks nobody; whoever has news of a server hands it in.

use std::time::{Duration, Instant};

use wire::health::{CheckKind, CheckSettings, EjectionSettings, InitialHealth};
use wire::report::{CheckReport, HealthReport, HealthState};

use super::milliseconds;

/// The health of a server.
#[derive(Debug)]
pub(super) struct Health {
    /// Checks do not say that it is down.
    passes: bool,
    /// No check has said anything yet.
    unchecked: bool,
    /// Results in a row that speak against `passes`.
    against: u32,
    passed: u64,
    failed: u64,
    last: Option<(CheckResult, Instant)>,
    /// Clients in a row that met a failure.
    failures: u32,
    /// It is left out until then.
    ejected_until: Option<Instant>,
    /// For how long it was left out the last time.
    back_off: Duration,
    ejections: u64,
    /// Since when it is in its state.
    since: Instant,
    /// Why it is not up; what it was stays when it is again.
    reason: String,
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckResult {
    /// What was found: in words, either way.
    pub(crate) outcome: Result<String, String>,
    pub(crate) duration: Duration,
}

/// What a client may meet at a server that speaks against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It refused the connect, or something on the way did.
    ConnectFailed,
    /// It did not answer the connect in time.
    ConnectTimedOut,
    /// It reset the connection, or was lost, before its first byte.
    Reset,
    /// A datagram for it came back as an ICMP error.
    Unreachable,
}

impl Trouble {
    fn words(self) -> &'static str {
        match self {
            Self::ConnectFailed => "failed connects",
            Self::ConnectTimedOut => "connects that timed out",
            Self::Reset => "resets before the first byte",
            Self::Unreachable => "ICMP errors",
        }
    }
}

impl Health {
    /// That of a server that was not there before.
    pub(super) fn new(check: &CheckSettings, now: Instant) -> Self {
        let passes = check.kind == CheckKind::None || check.initial == InitialHealth::Up;
        Self {
            passes,
            unchecked: true,
            against: 0,
            passed: 0,
            failed: 0,
            last: None,
            failures: 0,
            ejected_until: None,
            back_off: Duration::ZERO,
            ejections: 0,
            since: now,
            reason: if passes { String::new() } else { "it was not checked yet".to_owned() },
        }
    }

    pub(super) fn state(&self) -> HealthState {
        match (self.passes, self.ejected_until) {
            (false, _) => HealthState::Down,
            (true, Some(_)) => HealthState::Ejected,
            (true, None) => HealthState::Up,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state() == HealthState::Up
    }

    /// It is down for no other reason than that it was not checked yet.
    pub(super) fn waits_for_a_check(&self) -> bool {
        self.unchecked && !self.passes
    }

    /// Why it is not up.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// It is not checked any more: nothing speaks against it but its clients.
    pub(super) fn unwatch(&mut self, now: Instant) {
        (self.unchecked, self.against, self.last) = (true, 0, None);
        self.turn(true, now);
    }

    /// A check is done.
    pub(super) fn on_check(&mut self, result: &CheckResult, settings: &CheckSettings, now: Instant) {
        let passed = result.outcome.is_ok();
        *(if passed { &mut self.passed } else { &mut self.failed }) += 1;
        let first = std::mem::take(&mut self.unchecked);
        self.against = if passed == self.passes { 0 } else { self.against + 1 };
        self.last = Some((result.clone(), now));
        let enough = match passed {
            // Who waits for the first pass waits for one.
            true if first || settings.rise.get() == 1 => 1,
            true => settings.rise.get(),
            false => settings.fall.get(),
        };
        if self.against < enough {
            return;
        }
        if let Err(fault) = &result.outcome {
            self.reason.clone_from(fault);
        }
        if passed && self.ejected_until.take().is_some() {
            // It was down and is back: what clients met before was another life.
            self.back_off = Duration::ZERO;
        }
        if passed {
            self.failures = 0;
        }
        self.turn(passed, now);
    }

    fn turn(&mut self, passes: bool, now: Instant) {
        self.against = 0;
        if self.passes != passes {
            (self.passes, self.since) = (passes, now);
        }
    }

    /// A client was answered, or went in order.
    pub(super) fn on_success(&mut self) {
        self.failures = 0;
    }

    /// A client met trouble. Whether it is enough to leave the server out for a while.
    pub(super) fn on_trouble(&mut self, settings: &EjectionSettings) -> bool {
        self.failures = self.failures.saturating_add(1);
        settings.failures > 0 && self.failures >= settings.failures && self.ejected_until.is_none()
    }

    /// Leaves it out for a while: until when.
    pub(super) fn eject(&mut self, last: Trouble, settings: &EjectionSettings, now: Instant) -> Instant {
        let (first, most) = (Duration::from_millis(settings.time_ms), Duration::from_millis(settings.max_time_ms));
        // Back for as long as it was out without failing again, it begins anew.
        let is_anew = now.saturating_duration_since(self.since) >= self.back_off;
        self.back_off = if is_anew { first } else { self.back_off.saturating_mul(2) }.clamp(first.min(most), most);
        let until = now.checked_add(self.back_off).unwrap_or(now);
        self.ejected_until = Some(until);
        self.ejections += 1;
        self.reason = format!("{} {} in a row", self.failures, last.words());
        if self.passes {
            self.since = now;
        }
        until
    }

    /// Lets it in again if the time that it was left out for is over; one more failure is enough then. Whether it is over.
    pub(super) fn readmit(&mut self, settings: &EjectionSettings, now: Instant) -> bool {
        let is_over = self.ejected_until.is_some_and(|until| until <= now);
        if is_over {
            self.release(now);
            self.failures = settings.failures.saturating_sub(1);
        }
        is_over
    }

    /// Lets it in again, whatever it was left out for.
    pub(super) fn release(&mut self, now: Instant) {
        if self.ejected_until.take().is_some() && self.passes {
            self.since = now;
        }
        self.failures = 0;
    }

    /// How long it is to the next check.
    pub(super) fn interval(&self, settings: &CheckSettings) -> Duration {
        let interval = if self.against > 0 {
            settings.undecided_interval_ms
        } else if !self.passes {
            settings.down_interval_ms
        } else {
            None
        };
        Duration::from_millis(interval.unwrap_or(settings.interval_ms))
    }

    pub(super) fn report(&self, now: Instant) -> HealthReport {
        let state = self.state();
        let ejected = self.ejected_until.filter(|_| state == HealthState::Ejected);
        HealthReport {
            state,
            since_ms: milliseconds(now.saturating_duration_since(self.since)),
            reason: (state != HealthState::Up).then(|| self.reason.clone()),
            ejected_ms: ejected.map(|until| milliseconds(until.saturating_duration_since(now))),
            ejections: self.ejections,
            passed: self.passed,
            failed: self.failed,
            last_check: self.last.as_ref().map(|(result, at)| CheckReport {
                passed: result.outcome.is_ok(),
                result: result.outcome.clone().unwrap_or_else(|fault| fault),
                duration_us: u64::try_from(result.duration.as_micros()).unwrap_or(u64::MAX),
                ago_ms: milliseconds(now.saturating_duration_since(*at)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;

    const SECOND: Duration = Duration::from_secs(1);

    fn passed() -> CheckResult {
        CheckResult { outcome: Ok("connected".to_owned()), duration: SECOND }
    }

    fn failed(why: &str) -> CheckResult {
        CheckResult { outcome: Err(why.to_owned()), duration: SECOND }
    }

    fn tcp(initial: InitialHealth) -> CheckSettings {
        CheckSettings { kind: CheckKind::Tcp, initial, down_interval_ms: Some(9_000), ..CheckSettings::default() }
    }

    #[test]
    fn three_failures_in_a_row_take_it_down_and_two_passes_bring_it_up() {
        let (start, settings) = (event::now(), tcp(InitialHealth::Up));
        let mut health = Health::new(&settings, start);
        let mut at = start;
        for (result, up) in [
            (failed("a"), true),
            (failed("b"), true),
            (passed(), true),
            (failed("c"), true),
            (failed("d"), true),
            (failed("e"), false),
            (passed(), false),
            (failed("f"), false),
            (passed(), false),
            (passed(), true),
        ] {
            at += SECOND;
            health.on_check(&result, &settings, at);
            assert_eq!(health.is_up(), up, "{result:?}");
        }
        let report = health.report(at);
        assert_eq!((report.passed, report.failed, report.since_ms, report.reason), (4, 6, 0, None));
        assert_eq!(health.reason(), "e", "what took it down, and not what came later");
    }

    #[test]
    fn one_that_waits_for_its_first_pass_waits_for_one() {
        let (now, settings) = (event::now(), tcp(InitialHealth::Down));
        let mut health = Health::new(&settings, now);
        assert_eq!(health.report(now).reason.as_deref(), Some("it was not checked yet"));
        health.on_check(&passed(), &settings, now);
        assert!(health.is_up());
        let mut late = Health::new(&settings, now);
        late.on_check(&failed("no"), &settings, now);
        late.on_check(&passed(), &settings, now);
        assert!(!late.is_up(), "after a failure it takes as many as always");
        late.on_check(&passed(), &settings, now);
        assert!(late.is_up());
    }

    #[test]
    fn intervals_go_by_what_is_known() {
        let now = event::now();
        let settings = CheckSettings { undecided_interval_ms: Some(100), ..tcp(InitialHealth::Up) };
        let mut health = Health::new(&settings, now);
        let mut intervals = vec![health.interval(&settings).as_millis()];
        for result in [failed("a"), failed("b"), failed("c"), passed(), passed()] {
            health.on_check(&result, &settings, now);
            intervals.push(health.interval(&settings).as_millis());
        }
        assert_eq!(intervals, [2000, 100, 100, 9000, 100, 2000]);
    }

    #[test]
    fn the_time_out_doubles_until_it_was_back_for_as_long() {
        let start = event::now();
        let settings = EjectionSettings { failures: 3, time_ms: 10_000, max_time_ms: 30_000, max_percent: 50 };
        let mut health = Health::new(&CheckSettings::default(), start);
        let fail = |health: &mut Health| health.on_trouble(&settings);
        assert_eq!([fail(&mut health), fail(&mut health)], [false, false]);
        health.on_success();
        assert_eq!([fail(&mut health), fail(&mut health), fail(&mut health)], [false, false, true]);
        let mut at = start;
        for seconds in [10, 20, 30, 30] {
            assert_eq!(health.eject(Trouble::Reset, &settings, at), at + seconds * SECOND);
            assert_eq!(health.state(), HealthState::Ejected);
            assert!(!fail(&mut health), "it is out");
            at += seconds * SECOND;
            assert!(!health.readmit(&settings, at - SECOND));
            assert!(health.readmit(&settings, at) && health.is_up());
            assert!(fail(&mut health), "back, it fails but once");
        }
        at += 30 * SECOND;
        assert_eq!(health.eject(Trouble::Reset, &settings, at), at + 10 * SECOND, "it begins anew");
    }

    #[test]
    fn a_server_that_was_down_and_is_back_is_not_left_out_any_more() {
        let now = event::now();
        let (checks, settings) = (tcp(InitialHealth::Up), EjectionSettings::default());
        let mut health = Health::new(&checks, now);
        health.on_check(&passed(), &checks, now);
        health.eject(Trouble::ConnectFailed, &settings, now);
        health.on_check(&passed(), &checks, now);
        assert_eq!(health.state(), HealthState::Ejected, "checks that pass as before say nothing new");
        for _ in 0..3 {
            health.on_check(&failed("gone"), &checks, now);
        }
        assert_eq!(health.state(), HealthState::Down);
        health.on_check(&passed(), &checks, now);
        health.on_check(&passed(), &checks, now);
        assert_eq!(health.state(), HealthState::Up);
    }

    #[test]
    fn what_is_not_checked_any_more_is_up() {
        let (now, settings) = (event::now(), tcp(InitialHealth::Down));
        let mut health = Health::new(&settings, now);
        health.unwatch(now);
        assert!(health.is_up());
    }
}
