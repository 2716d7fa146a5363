//! Names from identity: a hash that is the same in every run and version.

/// FNV-1a with a final mix, over parts that cannot run into each other.
pub fn hash(parts: &[&str]) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    // FNV's low bits depend on few of the input's: spread them (the constants are MurmurHash3's finalizer).
    state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ (state >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ (state >> 33)
}

/// Letters that make no words and are not mistaken for each other: Kubernetes' own choice for generated names.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// `len` letters that depend on `parts` alone; at most 13 differ.
pub fn letters(parts: &[&str], len: usize) -> String {
    let mut rest = hash(parts);
    let mut text = String::with_capacity(len);
    for _ in 0..len {
        text.push(char::from(LETTERS[(rest % 27) as usize]));
        rest /= 27;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_change() {
        // Objects in stores carry these: a change here duplicates pods after an upgrade.
        assert_eq!(letters(&["uid", "0"], 5), letters(&["uid", "0"], 5));
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_eq!(format!("{:x}", hash(&["podyard"])), GOLDEN);
    }

    const GOLDEN: &str = "fff801c1c807c159";
}
