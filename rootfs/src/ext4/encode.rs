//! The bytes of a new ext4 filesystem. Pure: a list of blocks that are not zero.
#![forbid(unsafe_code)]

use super::{
    BLOCK_BYTES, DESCRIPTORS, DIRECTORY_BLOCKS, GROUP_BLOCKS, GROUP_INODES, Geometry, INODE_BYTES, MAGIC,
    SUPERBLOCK_AT, SUPERBLOCK_BYTES, TABLE_BLOCKS, base_blocks, has_superblock, own_blocks,
};

/// Offsets in the superblock.
pub(super) const SB_UUID: usize = 0x68;
pub(super) const SB_JOURNAL_BYTES: usize = 0x10c + 64;
pub(super) const SB_CHECKSUM: usize = 0x3fc;

const ROOT_INODE: u32 = 2;
const JOURNAL_INODE: u32 = 8;
const LOST_INODE: u32 = 11;
const DATA_INODE: u32 = 12;

// Features, in the kernel's words.
const COMPAT: u32 = 0x4 /* has_journal */ | 0x8 /* ext_attr */ | 0x20 /* dir_index */;
const INCOMPAT: u32 =
    0x2 /* filetype */ | 0x10 /* meta_bg */ | 0x40 /* extents */ | 0x80 /* 64bit */ | 0x2000 /* csum_seed */;
const RO_COMPAT: u32 = 0x1 /* sparse_super */ | 0x2 /* large_file */ | 0x8 /* huge_file */ | 0x20 /* dir_nlink */
    | 0x40 /* extra_isize */ | 0x400 /* metadata_csum */;

// Flags of a group: its tables are as new, and the inode table is known to be zero.
const INODES_UNUSED: u16 = 1;
const BLOCKS_UNUSED: u16 = 2;
const TABLE_ZEROED: u16 = 4;

/// CRC-32C as ext4 uses it: the seed goes in and the sum comes out without inversion. Source: fs/ext4/ext4.h,
/// `ext4_chksum`.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(seed, |sum, byte| TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8)
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The two halves of a 64-bit number, which ext4 keeps apart.
fn put_split(bytes: &mut [u8], low: usize, high: usize, value: u64) {
    put32(bytes, low, value as u32);
    put32(bytes, high, (value >> 32) as u32);
}

fn put_split16(bytes: &mut [u8], low: usize, high: usize, value: u32) {
    put16(bytes, low, value as u16);
    put16(bytes, high, (value >> 16) as u16);
}

pub(super) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Renews the superblock's own checksum.
pub(super) fn seal_superblock(bytes: &mut [u8; SUPERBLOCK_BYTES]) {
    let sum = crc32c(!0, &bytes[..SB_CHECKSUM]);
    put32(bytes, SB_CHECKSUM, sum);
}

fn block() -> Vec<u8> {
    vec![0; BLOCK_BYTES as usize]
}

/// Makes the blocks of one filesystem.
pub(super) struct Encoder {
    geometry: Geometry,
    uuid: [u8; 16],
    seed: u32,
    now: u32,
}

impl Encoder {
    pub(super) fn new(geometry: Geometry, uuid: [u8; 16], now: u32) -> Encoder {
        Encoder { geometry, uuid, seed: crc32c(!0, &uuid), now }
    }

    /// Every block that is not zero, by its number.
    pub(super) fn blocks(&self) -> Vec<(u64, Vec<u8>)> {
        let mut blocks = Vec::new();
        let groups = self.geometry.groups();
        for first in (0..groups).step_by(DESCRIPTORS as usize) {
            let descriptors = self.descriptors(first);
            for group in
                [first, first + 1, first + DESCRIPTORS - 1].into_iter().filter(|group| *group < groups)
            {
                let at = group * GROUP_BLOCKS + u64::from(has_superblock(group));
                blocks.push((at, descriptors.clone()));
            }
        }
        let last = groups - 1;
        for group in if last == 0 { vec![0] } else { vec![0, last] } {
            let start = group * GROUP_BLOCKS + base_blocks(group);
            blocks.push((start, self.block_bitmap(group)));
            if group == 0 {
                blocks.push((start + 1, self.inode_bitmap()));
            }
        }
        blocks.push((base_blocks(0) + 2, self.inodes()));
        let first = own_blocks(0);
        let in_root = [(LOST_INODE, "lost+found"), (DATA_INODE, super::DATA_DIR)];
        blocks.push((first, self.directory(ROOT_INODE, ROOT_INODE, &in_root)));
        blocks.push((first + 1, self.directory(LOST_INODE, ROOT_INODE, &[])));
        blocks.push((first + 2, self.directory(DATA_INODE, ROOT_INODE, &[])));
        blocks.push((self.journal_at(), self.journal()));
        for group in (0..groups).filter(|group| has_superblock(*group)) {
            let mut bytes = block();
            let at = if group == 0 { SUPERBLOCK_AT as usize } else { 0 };
            bytes[at..at + SUPERBLOCK_BYTES].copy_from_slice(&self.superblock(group));
            blocks.push((group * GROUP_BLOCKS, bytes));
        }
        blocks
    }

    fn journal_at(&self) -> u64 {
        own_blocks(0) + DIRECTORY_BLOCKS
    }

    fn used_blocks(&self, group: u64) -> u64 {
        own_blocks(group) + if group == 0 { DIRECTORY_BLOCKS + self.geometry.journal } else { 0 }
    }

    fn superblock(&self, group: u64) -> [u8; SUPERBLOCK_BYTES] {
        let mut sb = [0; SUPERBLOCK_BYTES];
        let inodes = self.geometry.groups() as u32 * GROUP_INODES;
        put32(&mut sb, 0x0, inodes);
        put_split(&mut sb, 0x4, 0x150, self.geometry.blocks);
        put_split(&mut sb, 0xc, 0x158, self.geometry.usable());
        put32(&mut sb, 0x10, inodes - DATA_INODE);
        put32(&mut sb, 0x18, 2); // Block size: 1024 << 2.
        put32(&mut sb, 0x1c, 2);
        put32(&mut sb, 0x20, GROUP_BLOCKS as u32);
        put32(&mut sb, 0x24, GROUP_BLOCKS as u32);
        put32(&mut sb, 0x28, GROUP_INODES);
        put32(&mut sb, 0x30, self.now);
        put16(&mut sb, 0x36, u16::MAX); // Never checked for its age.
        put16(&mut sb, 0x38, MAGIC);
        put16(&mut sb, 0x3a, 1); // Clean.
        put16(&mut sb, 0x3c, 2); // On errors: read-only.
        put32(&mut sb, 0x40, self.now);
        put32(&mut sb, 0x4c, 1);
        put32(&mut sb, 0x54, LOST_INODE);
        put16(&mut sb, 0x58, INODE_BYTES as u16);
        put16(&mut sb, 0x5a, group as u16);
        put32(&mut sb, 0x5c, COMPAT);
        put32(&mut sb, 0x60, INCOMPAT);
        put32(&mut sb, 0x64, RO_COMPAT);
        sb[SB_UUID..SB_UUID + 16].copy_from_slice(&self.uuid);
        sb[0x78..0x78 + 7].copy_from_slice(b"podyard"); // Label, for people.
        put32(&mut sb, 0xe0, JOURNAL_INODE);
        // Seed of directory hashes: need not be secret from the directory's owner.
        sb[0xec..0xec + 16].copy_from_slice(&self.uuid);
        sb[0xfc] = 1; // half_md4
        sb[0xfd] = 1; // A copy of the journal's inode follows.
        put16(&mut sb, 0xfe, 64);
        put32(&mut sb, 0x100, 0xc); // user_xattr, acl
        put32(&mut sb, 0x108, self.now);
        sb[0x10c..0x10c + 60].copy_from_slice(&self.extent(self.journal_at(), self.geometry.journal));
        put32(&mut sb, SB_JOURNAL_BYTES, (self.geometry.journal * BLOCK_BYTES) as u32);
        put16(&mut sb, 0x15c, 32);
        put16(&mut sb, 0x15e, 32);
        put32(&mut sb, 0x160, 1); // Directory hashes of signed characters.
        sb[0x175] = 1; // crc32c
        put32(&mut sb, 0x248, (self.geometry.overhead() - DIRECTORY_BLOCKS) as u32);
        put32(&mut sb, 0x270, self.seed);
        seal_superblock(&mut sb);
        sb
    }

    /// One block: the descriptors of 64 groups from `first` on.
    fn descriptors(&self, first: u64) -> Vec<u8> {
        let mut bytes = block();
        let last = self.geometry.groups() - 1;
        for (group, entry) in (first..=last).zip(bytes.chunks_mut(64)) {
            let start = group * GROUP_BLOCKS + base_blocks(group);
            put_split(entry, 0x0, 0x20, start);
            put_split(entry, 0x4, 0x24, start + 1);
            put_split(entry, 0x8, 0x28, start + 2);
            put_split16(
                entry,
                0xc,
                0x2c,
                (self.geometry.group_blocks(group) - self.used_blocks(group)) as u32,
            );
            let used = if group == 0 { DATA_INODE } else { 0 };
            put_split16(entry, 0xe, 0x2e, GROUP_INODES - used);
            put_split16(entry, 0x10, 0x30, if group == 0 { DIRECTORY_BLOCKS as u32 } else { 0 });
            put_split16(entry, 0x1c, 0x32, GROUP_INODES - used);
            let mut flags = TABLE_ZEROED;
            if group == 0 {
                let sum = crc32c(self.seed, &self.inode_bitmap()[..GROUP_INODES as usize / 8]);
                put_split16(entry, 0x1a, 0x3a, sum);
            } else {
                flags |= INODES_UNUSED;
            }
            if group == 0 || group == last {
                put_split16(entry, 0x18, 0x38, crc32c(self.seed, &self.block_bitmap(group)));
            } else {
                flags |= BLOCKS_UNUSED;
            }
            put16(entry, 0x12, flags);
            // The sum's own field counts as zero.
            let sum = crc32c(crc32c(self.seed, &(group as u32).to_le_bytes()), entry);
            put16(entry, 0x1e, sum as u16);
        }
        bytes
    }

    fn block_bitmap(&self, group: u64) -> Vec<u8> {
        let mut bytes = block();
        set_bits(&mut bytes, 0, self.used_blocks(group) as usize);
        set_bits(&mut bytes, self.geometry.group_blocks(group) as usize, GROUP_BLOCKS as usize);
        bytes
    }

    fn inode_bitmap(&self) -> Vec<u8> {
        let mut bytes = block();
        set_bits(&mut bytes, 0, DATA_INODE as usize);
        set_bits(&mut bytes, GROUP_INODES as usize, GROUP_BLOCKS as usize);
        bytes
    }

    /// The first block of group 0's inode table: 16 inodes.
    fn inodes(&self) -> Vec<u8> {
        let mut bytes = block();
        let first = own_blocks(0);
        let (journal, length) = (self.journal_at(), self.geometry.journal);
        for (number, mode, links, start, blocks) in [
            (ROOT_INODE, 0o040_700, 4, first, 1),
            (JOURNAL_INODE, 0o100_600, 1, journal, length),
            (LOST_INODE, 0o040_700, 2, first + 1, 1),
            (DATA_INODE, 0o040_777, 2, first + 2, 1),
        ] {
            let at = (number as usize - 1) * INODE_BYTES;
            let inode = &mut bytes[at..at + INODE_BYTES];
            put16(inode, 0x0, mode);
            put32(inode, 0x4, (blocks * BLOCK_BYTES) as u32);
            for time in [0x8, 0xc, 0x10, 0x90] {
                put32(inode, time, self.now);
            }
            put16(inode, 0x1a, links);
            put32(inode, 0x1c, (blocks * BLOCK_BYTES / 512) as u32);
            put32(inode, 0x20, 0x8_0000); // Extents.
            inode[0x28..0x28 + 60].copy_from_slice(&self.extent(start, blocks));
            put16(inode, 0x80, 32);
            let sum = crc32c(self.inode_seed(number), inode);
            put16(inode, 0x7c, sum as u16);
            put16(inode, 0x82, (sum >> 16) as u16);
        }
        bytes
    }

    /// Sums of what belongs to an inode begin with its number and generation, which is 0.
    fn inode_seed(&self, number: u32) -> u32 {
        crc32c(crc32c(self.seed, &number.to_le_bytes()), &[0; 4])
    }

    /// The root of an extent tree with one extent.
    fn extent(&self, start: u64, blocks: u64) -> [u8; 60] {
        let mut bytes = [0; 60];
        put16(&mut bytes, 0, 0xf30a);
        put16(&mut bytes, 2, 1);
        put16(&mut bytes, 4, 4);
        put16(&mut bytes, 16, blocks as u16);
        put16(&mut bytes, 18, (start >> 32) as u16);
        put32(&mut bytes, 20, start as u32);
        bytes
    }

    fn directory(&self, number: u32, parent: u32, entries: &[(u32, &str)]) -> Vec<u8> {
        const TAIL: usize = 12;
        const DIRECTORY: u8 = 2;
        let mut bytes = block();
        let end = bytes.len() - TAIL;
        let mut at = 0;
        let dots = [(number, "."), (parent, "..")];
        let count = dots.len() + entries.len();
        for (index, (inode, name)) in dots.iter().chain(entries).enumerate() {
            let length = (8 + name.len()).next_multiple_of(4);
            let length = if index + 1 == count { end - at } else { length };
            put32(&mut bytes, at, *inode);
            put16(&mut bytes, at + 4, length as u16);
            bytes[at + 6] = name.len() as u8;
            bytes[at + 7] = DIRECTORY;
            bytes[at + 8..at + 8 + name.len()].copy_from_slice(name.as_bytes());
            at += length;
        }
        put16(&mut bytes, end + 4, TAIL as u16);
        bytes[end + 7] = 0xde;
        let sum = crc32c(self.inode_seed(number), &bytes[..end]);
        put32(&mut bytes, end + 8, sum);
        bytes
    }

    /// The journal's superblock: an empty log. Big-endian. Source: include/linux/jbd2.h, `journal_superblock_s`.
    fn journal(&self) -> Vec<u8> {
        let mut bytes = block();
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        put(0x0, 0xc03b_3998);
        put(0x4, 4); // Superblock, version 2.
        put(0xc, BLOCK_BYTES as u32);
        put(0x10, self.geometry.journal as u32);
        put(0x14, 1); // First block of the log.
        put(0x18, 1); // First transaction expected.
        put(0x40, 1); // One user.
        bytes[0x30..0x40].copy_from_slice(&self.uuid);
        bytes
    }
}

fn set_bits(bytes: &mut [u8], from: usize, to: usize) {
    (from..to).for_each(|bit| bytes[bit / 8] |= 1 << (bit % 8));
}

const _: () = assert!(TABLE_BLOCKS as usize * BLOCK_BYTES as usize == GROUP_INODES as usize * INODE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnolis() {
        // RFC 3720, B.4: 32 bytes of zeros; ext4 leaves the last inversion out.
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
