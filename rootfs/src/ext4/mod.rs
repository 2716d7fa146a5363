//! Makes ext4 filesystems in image files, without a program and without reading the whole of them.
//!
//! ```text
//!  group      0                        1                     … 63                  64
//!  ┌──────────────────────────┐┌───────────────────────┐┌──────────────┐┌──────────────────────────┐
//!  │sb gd bb ib itable … data ││sb gd bb ib itable data││gd bb ib …    ││gd bb ib itable … data    │
//!  └──────────────────────────┘└───────────────────────┘└──────────────┘└──────────────────────────┘
//!   sb: superblock, and copies in groups 1 and 3ⁿ 5ⁿ 7ⁿ      bb ib: bitmaps of blocks and inodes
//!   gd: one block of descriptors for 64 groups, in the first, second and last of them (`meta_bg`)
//! ```
//! Blocks of 4 KiB, groups of 32768 blocks, extents, a journal, checksums of all metadata. Nothing of a group needs to
//! move when groups are added: that is what `meta_bg` is for. Whatever is zero stays a hole in the file, and groups
//! nobody has used are marked so: formatting costs a few writes, whatever the size.
//!
//! The root holds `data/`, which containers see, and `lost+found`, which they do not. The filesystem's UUID is the
//! identity of whom it belongs to; checksums are seeded apart from it (`metadata_csum_seed`), so it may change.
//!
//! Source: kernel Documentation/filesystems/ext4, fs/ext4/ext4.h, include/linux/jbd2.h.
#![forbid(unsafe_code)]

mod encode;

use crate::error::Context;
use crate::{Error, Kind};
use encode::{Encoder, crc32c, get32};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// Blocks of a group: as many as one block of bitmap has bits.
const GROUP_BLOCKS: u64 = 32768;
/// Inodes of a group, whatever its size.
const GROUP_INODES: u32 = 8192;
const INODE_BYTES: usize = 256;
/// Blocks of a group's inode table.
const TABLE_BLOCKS: u64 = 512;
/// Descriptors in one block.
const DESCRIPTORS: u64 = 64;
/// Blocks that the directories take: `/`, `lost+found`, `data`.
const DIRECTORY_BLOCKS: u64 = 3;
/// Blocks that a last group has at least beside its own tables.
const LAST_GROUP_MIN: u64 = 64;
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;

/// The directory in the filesystem that containers see.
pub(crate) const DATA_DIR: &str = "data";

/// How a filesystem is laid out. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// All blocks.
    pub blocks: u64,
    /// Blocks of the journal.
    pub journal: u64,
}

impl Geometry {
    /// The smallest layout in which `usable` blocks are free once it is formatted.
    pub(crate) fn with_usable(usable: u64, journal: u64) -> Geometry {
        let mut needed = usable + journal + DIRECTORY_BLOCKS;
        let mut group = 0;
        loop {
            let room = GROUP_BLOCKS - own_blocks(group);
            if needed <= room {
                let last = own_blocks(group) + needed.max(LAST_GROUP_MIN);
                return Geometry { blocks: group * GROUP_BLOCKS + last, journal };
            }
            needed -= room;
            group += 1;
        }
    }

    /// A journal that suits `usable` blocks: 4, 16 or 32 MiB.
    pub(crate) fn journal_for(usable: u64) -> u64 {
        match (usable * BLOCK_BYTES) >> 20 {
            ..128 => 1024,
            128..2048 => 4096,
            _ => 8192,
        }
    }

    /// Blocks that are free in the new filesystem.
    pub(crate) fn usable(&self) -> u64 {
        self.blocks - self.overhead()
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES
    }

    fn groups(&self) -> u64 {
        self.blocks.div_ceil(GROUP_BLOCKS)
    }

    fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - group * GROUP_BLOCKS).min(GROUP_BLOCKS)
    }

    fn overhead(&self) -> u64 {
        (0..self.groups()).map(own_blocks).sum::<u64>() + self.journal + DIRECTORY_BLOCKS
    }
}

/// Whether a group begins with a copy of the superblock. Source: fs/ext4/balloc.c, `ext4_bg_has_super`.
fn has_superblock(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || is_power(3) || is_power(5) || is_power(7)
}

fn has_descriptors(group: u64) -> bool {
    matches!(group % DESCRIPTORS, 0 | 1) || group % DESCRIPTORS == DESCRIPTORS - 1
}

/// Blocks before a group's bitmaps.
fn base_blocks(group: u64) -> u64 {
    u64::from(has_superblock(group)) + u64::from(has_descriptors(group))
}

/// Blocks that a group's own tables take.
fn own_blocks(group: u64) -> u64 {
    base_blocks(group) + 2 + TABLE_BLOCKS
}

/// Writes an empty filesystem into a new, empty file, which gets its size. Not flushed.
///
/// # Errors
/// The disk's answer.
pub(crate) fn format(file: &File, geometry: Geometry, uuid: [u8; 16], now_secs: u32) -> Result<(), Error> {
    let what = || "write the filesystem's metadata".to_owned();
    file.set_len(geometry.bytes()).context(|| format!("ftruncate({})", geometry.bytes()))?;
    let encoder = Encoder::new(geometry, uuid, now_secs);
    for (block, bytes) in encoder.blocks() {
        file.write_all_at(&bytes, block * BLOCK_BYTES).context(what)?;
    }
    Ok(())
}

/// Whose filesystem it is: its UUID.
///
/// # Errors
/// `Internal` for a file that is no ext4 filesystem, or whose superblock is damaged.
pub(crate) fn identity(file: &File) -> Result<[u8; 16], Error> {
    let superblock = superblock(file)?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&superblock[encode::SB_UUID..encode::SB_UUID + 16]);
    Ok(uuid)
}

/// Blocks of the filesystem's journal.
///
/// # Errors
/// As [`identity`].
pub(crate) fn journal_blocks(file: &File) -> Result<u64, Error> {
    Ok(u64::from(get32(&superblock(file)?, encode::SB_JOURNAL_BYTES)) / BLOCK_BYTES)
}

/// Makes an unmounted filesystem another's, durably.
///
/// # Errors
/// As [`identity`]; the disk's answer.
pub(crate) fn set_identity(file: &File, uuid: [u8; 16]) -> Result<(), Error> {
    let mut bytes = superblock(file)?;
    bytes[encode::SB_UUID..encode::SB_UUID + 16].copy_from_slice(&uuid);
    encode::seal_superblock(&mut bytes);
    // Within one sector of 4 KiB or two of 512 bytes: a torn write is told by the checksum, and e2fsck has the copies.
    file.write_all_at(&bytes, SUPERBLOCK_AT).context(|| "write the superblock".into())?;
    file.sync_all().context(|| "fsync the image".into())
}

fn superblock(file: &File) -> Result<[u8; SUPERBLOCK_BYTES], Error> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    file.read_exact_at(&mut bytes, SUPERBLOCK_AT).context(|| "read the superblock".into())?;
    let sum = get32(&bytes, encode::SB_CHECKSUM);
    if bytes[0x38..0x3a] != MAGIC.to_le_bytes() || crc32c(!0, &bytes[..encode::SB_CHECKSUM]) != sum {
        return Err(Error::new(Kind::Internal, "the image holds no intact ext4 superblock"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// e2fsck's opinion; none if there is no such program here.
    fn e2fsck(path: &std::path::Path) -> Option<std::process::Output> {
        let run = |program: &str| Command::new(program).arg("-fn").arg(path).output().ok();
        run("/usr/sbin/e2fsck").or_else(|| run("/sbin/e2fsck")).or_else(|| run("e2fsck"))
    }

    #[test]
    fn copies_of_the_superblock_are_where_the_kernel_looks() {
        let groups: Vec<u64> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn what_is_asked_for_is_usable() {
        for usable in [1, 256, 4096, 31000, 32252, 32253, 70_000, 5 << 18, 64 << 18, 1 << 28] {
            let geometry = Geometry::with_usable(usable, Geometry::journal_for(usable));
            assert!(geometry.usable() >= usable, "{usable}: {geometry:?}");
            assert!(geometry.usable() <= usable + LAST_GROUP_MIN, "{usable}: {geometry:?}");
        }
    }

    #[test]
    fn e2fsck_finds_nothing_to_mend() {
        let dir = std::env::temp_dir().join(format!("podyard-ext4-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut sizes: Vec<u64> =
            [16, 17, 64, 100, 127, 128, 129, 200, 256, 1000, 1024, 5000, 8192, 8320, 20480]
                .iter()
                .map(|mib| (mib << 20) / BLOCK_BYTES)
                .collect();
        sizes.extend([1, 100, 32768 - 516 - 3 - 1024, 32768, 300 << 18]);
        for usable in sizes {
            let path = dir.join(format!("{usable}.img"));
            let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            let geometry = Geometry::with_usable(usable, Geometry::journal_for(usable));
            format(&file, geometry, [7; 16], 1_700_000_000).unwrap();
            assert_eq!(identity(&file).unwrap(), [7; 16]);
            set_identity(&file, [9; 16]).unwrap();
            assert_eq!(identity(&file).unwrap(), [9; 16]);
            let Some(output) = e2fsck(&path) else {
                _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIP: no e2fsck\n");
                return;
            };
            let text = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(output.status.success(), "{usable} blocks, {geometry:?}: {text}");
            let used = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
            assert!(used < 4 << 20, "{used} bytes of {} are written", geometry.bytes());
            std::fs::remove_file(path).unwrap();
        }
        std::fs::remove_dir(dir).unwrap();
    }

    #[test]
    fn a_damaged_superblock_is_nobodys() {
        let path = std::env::temp_dir().join(format!("podyard-ext4-damaged-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        assert!(identity(&file).is_err(), "empty");
        format(&file, Geometry::with_usable(100, 1024), [7; 16], 0).unwrap();
        file.write_all_at(&[0xff], SUPERBLOCK_AT + encode::SB_UUID as u64).unwrap();
        assert_eq!(identity(&file).unwrap_err().kind(), Kind::Internal);
        std::fs::remove_file(path).unwrap();
    }
}
