//! Philox4x32-10, the counter-based generator behind dropout (Salmon et al., SC 2011).
//!
//! A mask must be the same on every backend, for any number of threads and any split of a batch,
//! so a number is a pure function of where it is used; nothing is drawn in an order.

/// Four independent 32-bit numbers for a counter under a key.
#[inline(always)]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(0x9E37_79B9);
            key[1] = key[1].wrapping_add(0xBB67_AE85);
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

/// The four numbers of elements `4 * group ..` of one sample of one layer at one step.
///
/// Elements are counted in C, H, W order, whatever the layout in memory.
#[inline(always)]
pub fn dropout_numbers(seed: u64, layer: u32, step: u32, sample: u32, group: u32) -> [u32; 4] {
    philox4x32([layer, step, sample, group], [seed as u32, (seed >> 32) as u32])
}

/// An element is kept where its number is below this.
pub fn keep_threshold(rate: f32) -> u64 {
    ((1.0 - f64::from(rate)) * 4_294_967_296.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with Random123 (`kat_vectors`, philox4x32-10).
    #[test]
    fn published_vectors() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([ones; 4], [ones; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn threshold_keeps_the_right_share() {
        assert_eq!(keep_threshold(0.0), 1 << 32);
        assert_eq!(keep_threshold(0.5), 1 << 31);
        assert_eq!(keep_threshold(1.0), 0);
    }
}
