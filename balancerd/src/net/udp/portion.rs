//! How many calls an event of a socket is worth. One that finds nothing costs as much as a share of being told again, so a
//! portion is what was found the last time, and grows only when whole portions have been there for a while.

/// Whole portions in a row after which there may be more.
const WHOLE_ONES: u8 = 8;

/// A number of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portion {
    calls: u8,
    whole: u8,
}

impl Portion {
    pub(super) const ONE: Self = Self { calls: 1, whole: 0 };

    pub(super) fn calls(self) -> u8 {
        self.calls
    }

    /// All calls found something.
    pub(super) fn on_whole(&mut self, most: u8) {
        self.whole += 1;
        if self.whole >= WHOLE_ONES {
            *self = Self { calls: self.calls.saturating_mul(2).min(most), whole: 0 };
        }
    }

    /// So many did, and the next one found nothing.
    pub(super) fn on_end(&mut self, found: u8) {
        *self = Self { calls: found.max(1), whole: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_is_what_was_found_and_grows_when_whole_ones_go_on() {
        let mut portion = Portion::ONE;
        let mut wasted = 0;
        for _ in 0..900 {
            // One datagram is there each time.
            match portion.calls() {
                1 => portion.on_whole(16),
                _ => {
                    wasted += 1;
                    portion.on_end(1);
                }
            }
        }
        assert_eq!(wasted, 100);
        for _ in 0..5 * u32::from(WHOLE_ONES) {
            portion.on_whole(16);
        }
        assert_eq!(portion.calls(), 16, "and no further");
        portion.on_end(0);
        assert_eq!(portion, Portion::ONE);
    }
}
