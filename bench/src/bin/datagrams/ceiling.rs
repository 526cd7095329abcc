//! The highest rate without loss: found by halving over steps that are the same for every balancer.

use anyhow::Result;

/// The first step, in datagrams per second, and the factor from one to the next.
const LEAST: f64 = 20_000.0;
const FACTOR: f64 = 1.1;
/// How many there are: the last one is 3.3 million.
const STEPS: i32 = 54;
/// So often a step is tried before it is said to lose: a moment without a processor loses some at any rate.
const TRIES: usize = 2;
/// So often it is tried when the balancer had to wait for a processor, which says nothing about the balancer.
const DISTURBED_TRIES: usize = 6;

/// What came of one rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// All that was sent arrived.
    Clean,
    /// Some did not.
    Lost,
    /// Some did not, but the balancer had no processor for a part of the time.
    Waited,
    /// Clients or servers were not up to the rate.
    Ours,
}

/// The highest rate without loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ceiling {
    /// Datagrams per second; 0 when the first step already loses.
    pub(crate) rate: f64,
    /// Whether it was not the balancer that was not up to the next step, but the load or the machine.
    pub(crate) open: bool,
}

impl Ceiling {
    pub(crate) fn find(mut probe: impl FnMut(f64) -> Result<Probe>) -> Result<Self> {
        let rate = |step: i32| LEAST * FACTOR.powi(step);
        let (mut good, mut bad, mut open) = (-1, STEPS, true);
        while bad - good > 1 {
            let step = i32::midpoint(good, bad);
            match tries(|| probe(rate(step)))? {
                Probe::Clean => good = step,
                failed => (bad, open) = (step, failed != Probe::Lost),
            }
        }
        Ok(Self { rate: if good < 0 { 0.0 } else { rate(good) }, open })
    }
}

fn tries(mut probe: impl FnMut() -> Result<Probe>) -> Result<Probe> {
    let (mut counted, mut result) = (0, Probe::Waited);
    for _ in 0..DISTURBED_TRIES {
        result = probe()?;
        counted += usize::from(result != Probe::Waited);
        if result == Probe::Clean || counted == TRIES {
            break;
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(limit: f64, beyond: Probe) -> Ceiling {
        Ceiling::find(|rate| Ok(if rate <= limit { Probe::Clean } else { beyond })).unwrap()
    }

    #[test]
    fn the_last_step_below_the_limit_is_found() {
        for limit in [LEAST, 21_999.0, 100_000.0, 1e6] {
            let ceiling = find(limit, Probe::Lost);
            assert!(ceiling.rate <= limit && limit < ceiling.rate * FACTOR * 1.000_001, "{limit}: {ceiling:?}");
            assert!(!ceiling.open);
        }
        assert_eq!(find(0.0, Probe::Lost), Ceiling { rate: 0.0, open: false });
    }

    #[test]
    fn it_is_said_when_the_balancer_was_not_the_limit() {
        assert!(find(100_000.0, Probe::Ours).open);
        assert!(find(100_000.0, Probe::Waited).open);
        assert!(find(f64::INFINITY, Probe::Lost).open);
    }

    #[test]
    fn one_bad_moment_is_not_the_limit() {
        let mut moments = 0;
        let ceiling = Ceiling::find(|rate| {
            moments += 1;
            Ok(if rate > 100_000.0 || moments % 2 == 1 { Probe::Lost } else { Probe::Clean })
        });
        assert!(ceiling.unwrap().rate > 90_000.0);
    }
}
