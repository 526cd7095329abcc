//! Bounded loads: how many sessions a server may have before the ring passes its clients on to the next.
//!
//! The rule of "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, 2016), which HAProxy has as
//! `hash-balance-factor` and Envoy as `hash_balance_factor`: nobody takes more than its share of all sessions, times a
//! factor. The sessions are counted with the one that is to be placed, and the result is rounded up, so that with a
//! factor of at least 1 someone always has room.

/// How many sessions a server of this weight may have, the one to be placed included:
/// ⌈factor · (sessions + 1) · weight / total weight⌉, and at least 1. It has room if it has fewer now.
///
/// The factor is in thousandths, 1250 for 1.25. `sessions` are those that all servers have, `total_weight` the sum of
/// their weights. Exact for every input; a result beyond `u64` is `u64::MAX`.
pub(crate) fn capacity(factor_thousandths: u32, sessions: u64, weight: u32, total_weight: u64) -> u64 {
    // Below 2^32 · 2^64 · 2^32: a u128 holds it.
    let share = u128::from(factor_thousandths) * (u128::from(sessions) + 1) * u128::from(weight);
    let whole = 1000 * u128::from(total_weight.max(1));
    u64::try_from(share.div_ceil(whole)).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_the_share_times_the_factor_rounded_up() {
        assert_eq!(capacity(1000, 9, 1, 10), 1);
        assert_eq!(capacity(1250, 9, 1, 10), 2);
        assert_eq!(capacity(1250, 99, 1, 10), 13);
        assert_eq!(capacity(1250, 99, 3, 10), 38);
        assert_eq!(capacity(2000, 99, 10, 10), 200);
    }

    #[test]
    fn nobody_has_no_room_at_all() {
        assert_eq!(capacity(1000, 0, 1, 1_000_000), 1);
        assert_eq!(capacity(0, 0, 0, 0), 1);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        assert_eq!(capacity(u32::MAX, u64::MAX, u32::MAX, 1), u64::MAX);
        assert_eq!(capacity(1000, u64::MAX - 1, u32::MAX, u64::from(u32::MAX)), u64::MAX);
        assert_eq!(capacity(1000, u64::MAX, 1, u64::MAX), 2);
    }

    proptest! {
        #[test]
        fn someone_always_has_room(
            factor in 1000..5000u32,
            sessions in prop_oneof![0..100u64, 0..1_000_000u64, 0..u64::MAX / 2],
            weights in vec(prop_oneof![1..4u32, 1..=65_536u32], 1..50),
        ) {
            let total = weights.iter().copied().map(u64::from).sum();
            let room: u128 = weights.iter().map(|weight| u128::from(capacity(factor, sessions, *weight, total))).sum();
            prop_assert!(room > u128::from(sessions));
        }

        #[test]
        fn more_of_anything_but_others_is_no_less_room(
            factor in 1000..5000u32,
            sessions in 0..1_000_000u64,
            weight in 1..65_536u32,
            others in 0..1_000_000u64,
        ) {
            let total = u64::from(weight) + others;
            let room = capacity(factor, sessions, weight, total);
            prop_assert!(capacity(factor + 1, sessions, weight, total) >= room);
            prop_assert!(capacity(factor, sessions + 1, weight, total) >= room);
            prop_assert!(capacity(factor, sessions, weight + 1, total + 1) >= room);
            prop_assert!(capacity(factor, sessions, weight, total + 1) <= room);
        }
    }
}
