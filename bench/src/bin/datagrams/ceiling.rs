//! The highest rate without loss: found by halving over steps that are the same for every balancer.

use anyhow::Result;

/// The first step, in datagrams per second, and the factor from one to the next.
const LEAST: f64 = 20_000.0;
const FACTOR: f64 = 1.1;
/// How many there are: the last one is 3.3 million.
const STEPS: i32 = 54;
/// So often a step is tried before it is said to lose: a moment without a processor loses some at any rate.
const TRIES: usize = 2;

/// What came of one rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// All that was sent arrived.
    Clean,
    /// Some did not.
    Lost,
    /// Clients or servers were not up to the rate.
    Ours,
}

/// The highest rate without loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ceiling {
    /// Datagrams per second; 0 when the first step already loses.
    pub(crate) rate: f64,
    /// Whether it was the load that was not up to the next step: the balancer may be.
    pub(crate) ours: bool,
}

impl Ceiling {
    pub(crate) fn find(mut probe: impl FnMut(f64) -> Result<Probe>) -> Result<Self> {
        let rate = |step: i32| LEAST * FACTOR.powi(step);
        let (mut good, mut bad, mut ours) = (-1, STEPS, true);
        while bad - good > 1 {
            let step = i32::midpoint(good, bad);
            match tries(|| probe(rate(step)))? {
                Probe::Clean => good = step,
                failed => (bad, ours) = (step, failed == Probe::Ours),
            }
        }
        Ok(Self { rate: if good < 0 { 0.0 } else { rate(good) }, ours })
    }
}

fn tries(mut probe: impl FnMut() -> Result<Probe>) -> Result<Probe> {
    let mut result = probe()?;
    for _ in 1..TRIES {
        if result != Probe::Clean {
            result = probe()?;
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
            assert!(!ceiling.ours);
        }
        assert_eq!(find(0.0, Probe::Lost), Ceiling { rate: 0.0, ours: false });
    }

    #[test]
    fn it_is_said_when_the_load_was_the_limit() {
        assert!(find(100_000.0, Probe::Ours).ours);
        assert!(find(f64::INFINITY, Probe::Lost).ours);
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
