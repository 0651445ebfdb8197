//! Philox4x32-10, a random function of a counter and a key (Salmon, Moraes, Dror & Shaw 2011,
//! "Parallel random numbers: as easy as 1, 2, 3", section 3.3).

/// Rounds of the recommended variant.
const ROUNDS: usize = 10;
/// Multipliers of the two halves of the counter.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl increments of the key: the golden ratio and √3 − 1.
const INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words. Vectorises.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut x, mut k) = (counter, key);
    for round in 0..ROUNDS {
        if round > 0 {
            k[0] = k[0].wrapping_add(INCREMENTS[0]);
            k[1] = k[1].wrapping_add(INCREMENTS[1]);
        }
        let first = u64::from(MULTIPLIERS[0]) * u64::from(x[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(x[2]);
        x = [
            (second >> 32) as u32 ^ x[1] ^ k[0],
            second as u32,
            (first >> 32) as u32 ^ x[3] ^ k[1],
            first as u32,
        ];
    }
    x
}

/// The counter word that tells streams of one key apart: FNV-1a (32 bits) of a path, such as
/// that of the node that draws.
pub const fn purpose(path: &str) -> u32 {
    let bytes = path.as_bytes();
    let mut hash = 0x811c_9dc5u32;
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u32).wrapping_mul(0x0100_0193);
        index += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of Random123 1.14, lines `philox4x32 10`.
    #[test]
    fn published_vectors() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// Test vectors of the FNV authors (draft-eastlake-fnv).
    #[test]
    fn purposes() {
        assert_eq!(purpose(""), 0x811c_9dc5);
        assert_eq!(purpose("a"), 0xe40c_292c);
        assert_eq!(purpose("foobar"), 0xbf9c_f968);
    }
}
