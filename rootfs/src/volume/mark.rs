//! The owner's name inside the data itself, where a swapped directory or image betrays itself.
//!
//! On a directory it is the extended attribute `trusted.podyard.claim`, which only root of the host reads or writes; in
//! an image it is the filesystem's UUID, which no container can reach.
#![forbid(unsafe_code)]

use crate::error::Context;
use crate::files::Fingerprint;
use crate::{Error, Kind, ext4};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;
use std::fs::File;
use std::path::Path;

const ATTRIBUTE: &str = "trusted.podyard.claim";
/// Longest uid that is looked at.
const UID_BYTES_MAX: usize = 256;

/// Marks a directory. Says whether the filesystem can carry the mark.
pub(super) fn set(dir: &Path, uid: &str) -> Result<bool, Error> {
    match setxattr(dir, ATTRIBUTE, uid.as_bytes(), XattrFlags::empty()) {
        // Not everybody who makes volumes, in tests at least, is root.
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
        other => other.context(|| format!("setxattr({}, {ATTRIBUTE}, {uid})", dir.display())).map(|()| true),
    }
}

/// Refuses a directory that is not marked with this uid.
pub(super) fn check(dir: &Path, uid: &str) -> Result<(), Error> {
    let mut buffer = [0; UID_BYTES_MAX];
    let found = match getxattr(dir, ATTRIBUTE, &mut buffer) {
        Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
        Err(Errno::NODATA) => "nobody".to_owned(),
        Err(errno) => {
            return Err(errno).context(|| format!("getxattr({}, {ATTRIBUTE})", dir.display()));
        }
    };
    if found == uid {
        return Ok(());
    }
    let text = format!("{} holds the data of claim {found}, not of {uid}", dir.display());
    Err(Error::new(Kind::Conflict, text))
}

/// Refuses an image that is not marked with this uid.
pub(super) fn check_image(image: &File, uid: &str) -> Result<(), Error> {
    let found = ext4::identity(image)?;
    if found == uuid(uid) {
        return Ok(());
    }
    let text = format!("the image is marked {}, not as claim {uid}'s", hex(&found));
    Err(Error::new(Kind::Conflict, text))
}

/// The UUID for an owner: the uid itself if it is one.
pub(super) fn uuid(uid: &str) -> [u8; 16] {
    let digits: Vec<u8> = uid.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    let plain =
        uid.len() == 36 && uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-') && digits.len() == 32;
    let mut bytes = [0; 16];
    if plain {
        bytes.iter_mut().zip(digits.chunks(2)).for_each(|(byte, pair)| *byte = pair[0] << 4 | pair[1]);
    } else {
        for (half, salt) in bytes.chunks_mut(8).zip(["a", "b"]) {
            let mut fingerprint = Fingerprint::new();
            fingerprint.field(salt.as_bytes());
            fingerprint.field(uid.as_bytes());
            half.copy_from_slice(&fingerprint.value().to_le_bytes());
        }
    }
    bytes
}

fn hex(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_that_is_a_uuid_is_itself() {
        let uid = "6f3a1c00-1234-4bcd-89ab-0123456789ff";
        assert_eq!(hex(&uuid(uid)), uid);
        assert_ne!(uuid("a"), uuid("b"));
        assert_eq!(uuid("a"), uuid("a"));
    }
}
