//! What the balancer uses, second by second, and whether it grows.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bench::clock;
use bench::process::Process;
use wire::Client;
use wire::control::{Request, Response};
use wire::report::{ServiceReport, StatusReport};

use crate::findings::Findings;

/// Samples of which the least counts: what a large ring or a burst takes for a moment is no growth.
const WINDOW: usize = 5;

/// One look.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    /// Since the start.
    pub(crate) at: Duration,
    /// Resident bytes.
    pub(crate) memory: u64,
    pub(crate) descriptors: u64,
    pub(crate) sessions: u64,
}

/// The looks so far.
pub(crate) struct Watch {
    client: Client,
    begin: Instant,
    pub(crate) samples: Vec<Sample>,
}

impl Watch {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, begin: clock::now(), samples: Vec::new() }
    }

    /// How the balancer is. A session that is not counted is a fault.
    pub(crate) fn status(&mut self, findings: &Findings) -> Result<StatusReport> {
        let Response::Status(status) = self.client.call(&Request::Status).context("ask balancerd how it is")? else {
            bail!("balancerd does not say how it is");
        };
        for ServiceReport { name, active, total, ended, .. } in &status.services {
            let over: u64 = ended.values().sum();
            if *total != active + over {
                findings.fault(format!("{name}: {total} sessions began, {active} are there, {over} have ended"));
            }
        }
        Ok(status)
    }

    /// Looks once.
    pub(crate) fn look(&mut self, process: &Process, findings: &Findings) -> Result<()> {
        let status = self.status(findings)?;
        self.samples.push(Sample {
            at: clock::now() - self.begin,
            memory: process.resident()?.0,
            descriptors: process.descriptors()?,
            sessions: status.services.iter().map(|service| service.active).sum(),
        });
        Ok(())
    }

    /// The connection on which it asks.
    pub(crate) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The least of a value in each of so many parts of the run, as far as there are enough looks.
    pub(crate) fn course(&self, parts: usize, value: impl Fn(&Sample) -> u64) -> Vec<u64> {
        let part = (self.samples.len() / parts).max(1);
        self.samples.chunks(part).take(parts).filter_map(|part| part.iter().map(&value).min()).collect()
    }

    /// How much a value grows in a minute, by the line that fits the second half best; nothing when that is too short.
    pub(crate) fn growth(&self, value: impl Fn(&Sample) -> f64) -> Option<f64> {
        let half = &self.samples[self.samples.len() / 2..];
        let points = half.chunks_exact(WINDOW).map(|window| {
            let least = window.iter().map(&value).fold(f64::INFINITY, f64::min);
            (window[0].at.as_secs_f64() / 60.0, least)
        });
        slope(&points.collect::<Vec<_>>())
    }
}

/// The slope of the line with the least squares.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < 3 {
        return None;
    }
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    Some(above / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_slope_and_noise_has_none() {
        let line: Vec<_> = (0..10).map(|x| (f64::from(x), 5.0 + 3.0 * f64::from(x))).collect();
        assert!((slope(&line).expect("one") - 3.0).abs() < 1e-9);
        assert_eq!(slope(&[(0.0, 1.0), (1.0, -1.0), (2.0, -1.0), (3.0, 1.0)]), Some(0.0));
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0)]), None);
    }
}
